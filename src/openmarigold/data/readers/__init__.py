# SPDX-License-Identifier: Apache-2.0
"""How each raw data set stores its frames."""
