# SPDX-License-Identifier: Apache-2.0
"""Relative depth to meters, from known lengths, depths or points: robust fits, residual fields, guided denoising."""
