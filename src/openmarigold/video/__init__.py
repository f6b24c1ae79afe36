# SPDX-License-Identifier: Apache-2.0
"""Reads and writes clips with PyAV, frame by frame, in constant memory; a killed run can be resumed."""
