# SPDX-License-Identifier: Apache-2.0
"""From frame to frame of a clip: correspondences, one gauge, cuts. Pure functions on arrays."""
