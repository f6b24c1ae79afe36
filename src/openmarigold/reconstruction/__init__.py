# SPDX-License-Identifier: Apache-2.0
"""From depth to space: focal length and shift, the ground, points and meshes, and their files. Pure functions."""
