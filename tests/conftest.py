# SPDX-License-Identifier: Apache-2.0
"""Run-time checks of every shape in a signature, and one hypothesis profile without chance."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
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


@pytest.fixture
def shared_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted networks in one folder for all tests of a process, so that each checkpoint is converted once."""
    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder for converted networks."""
    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """moto's server on the loopback interface behind s3://, where moto and s3fs are installed."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()  # of another test's server
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        yield
    finally:
        server.stop()
