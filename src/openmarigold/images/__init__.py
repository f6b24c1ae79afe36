# SPDX-License-Identifier: Apache-2.0
"""Reads any picture file or array as upright sRGB, and resizes it for the networks; without torch."""
