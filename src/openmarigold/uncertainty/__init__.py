# SPDX-License-Identifier: Apache-2.0
"""Whether an uncertainty ranks errors, and scales of intervals that hold on new pictures."""
