# SPDX-License-Identifier: Apache-2.0
"""Any picture file or array to upright sRGB, and back to processing size; no torch here."""
