# SPDX-License-Identifier: Apache-2.0
"""From relative depth to meters by what is known: robust fits, residual fields, guided denoising."""
