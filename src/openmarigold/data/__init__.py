# SPDX-License-Identifier: Apache-2.0
"""Training data: where samples come from (`sources`) and how they are varied (`augmentation`). No torch here."""
