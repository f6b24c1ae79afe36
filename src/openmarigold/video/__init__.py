# SPDX-License-Identifier: Apache-2.0
"""Clips to clips: reading and writing with PyAV, frame by frame, in constant memory, resumed after a kill."""
