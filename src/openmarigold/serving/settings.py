# SPDX-License-Identifier: Apache-2.0
"""Where a server listens, and what it takes at most."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields
from pathlib import Path

from openmarigold.config import check_whole
from openmarigold.errors import InvalidValueError

_COUNTS = ("max_pixels", "max_resolution", "max_passes", "max_queue", "max_jobs", "max_frames", "threads")
_SECONDS = ("time_limit", "body_time_limit", "drain_time", "keep_jobs")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The settings of `openmarigold serve`, but for the model.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    host: str = "127.0.0.1"
    """Address to listen on. Another one than this machine's own needs a token."""
    port: int = 8765
    """0: any that is free."""
    token_file: Path | None = None
    """File with the token that requests must carry (Authorization: Bearer TOKEN). The variable OPENMARIGOLD_TOKEN does
    the same."""
    max_megabytes: float = 64.0
    """Largest body of a request [MB]."""
    max_pixels: int = 100_000_000
    """Largest photo."""
    max_resolution: int = 1536
    """Largest processing-resolution that a request may ask for [px]."""
    max_passes: int = 100
    """Most passes of the U-Net that a request may ask for: steps times members."""
    max_queue: int = 16
    """Requests that wait, at most; further ones get status 429."""
    time_limit: float = 120.0
    """A request is answered within this time, or with status 504 [s]."""
    body_time_limit: float = 30.0
    """A body must have arrived within this time [s]."""
    drain_time: float = 30.0
    """At the end, requests that have begun have this time [s]."""
    max_jobs: int = 100
    """Jobs that are kept, running or done."""
    keep_jobs: float = 3600.0
    """Results of a job are kept this long [s]."""
    max_frames: int = 5000
    """Frames of a clip, at most."""
    max_result_megabytes: float = 4096.0
    """Results of a job, at most [MB]."""
    threads: int = 2
    """Photos that are worked on at once, so that one is read or written while another is predicted."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name in _COUNTS:
                check_whole(setting.name, value)
            if setting.name in _SECONDS and not (isinstance(value, (int, float)) and 0 < value < 1e9):
                raise InvalidValueError(f"{setting.name}={value!r} is not accepted; give seconds above 0")
        for name in ("max_megabytes", "max_result_megabytes"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 < value < 1e6):
                raise InvalidValueError(f"{name}={value!r} is not accepted; give a number above 0")
        if not isinstance(self.port, int) or not 0 <= self.port < 65536:
            raise InvalidValueError(f"port={self.port!r} is not accepted; give 0 to 65535")

    @property
    def max_bytes(self) -> int:
        """Largest body [bytes]."""
        return int(self.max_megabytes * 1e6)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
