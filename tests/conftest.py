# SPDX-License-Identifier: Apache-2.0
"""Run-time checks of every shape in a signature, and one hypothesis profile without chance."""

from __future__ import annotations

import sys

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Before anything imports the package: from here on jaxtyping and beartype check its annotations in every call.
# Function-wise imports of the package by pytest plugins would come too early; that must not pass unnoticed.
assert "openmarigold" not in sys.modules, "openmarigold was imported before its shape checks were installed"
install_import_hook("openmarigold", "beartype.beartype")

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=50,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")
