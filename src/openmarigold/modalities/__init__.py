# SPDX-License-Identifier: Apache-2.0
"""What a model predicts: one description for each kind of map, which every other room asks."""
