# SPDX-License-Identifier: Apache-2.0
"""Run-time checks of every shape in a signature, and one hypothesis profile without chance."""

from __future__ import annotations

import sys

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Before anything imports the packages: from here on jaxtyping and beartype check their annotations in every call.
for package in ("openmarigold", "openmarigold_render"):
    assert package not in sys.modules, f"{package} was imported before its shape checks were installed"
install_import_hook(["openmarigold", "openmarigold_render"], "beartype.beartype")

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=50,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")
