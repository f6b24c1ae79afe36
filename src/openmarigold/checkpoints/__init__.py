# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders and hub repositories: their files and settings, read once, without torch."""
