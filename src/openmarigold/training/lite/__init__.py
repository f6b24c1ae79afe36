# SPDX-License-Identifier: Apache-2.0
"""The embedded model marigold-lite: a recognition network as the prior, depth up to scale, members that differ."""
