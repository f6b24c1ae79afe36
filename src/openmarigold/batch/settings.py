# SPDX-License-Identifier: Apache-2.0
"""How photos are divided into shards, and what shards hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from openmarigold.config import check_choice
from openmarigold.errors import InvalidValueError

LARGEST_SHARD = 10_000
"""Photos: a key has four digits for the place in its shard."""
_PART = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})")


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The settings of `openmarigold batch`, but for the model.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    shard_size: int = 1000
    """Photos of a shard, 1 to 10000. An input tar is one shard, however many it holds."""
    format: Literal["webdataset", "parquet"] = "webdataset"
    """webdataset: NNNNN.tar with the maps, and their records in NNNNN.parquet. parquet: maps and records in
    NNNNN.parquet."""
    workers: int = 1
    """Processes on this machine; each loads the model. The results do not depend on it."""
    part: str = "1/1"
    """I/N: only each N-th shard, from the I-th on, for N machines that share the output folder."""
    retry: bool = False
    """Do failed photos of finished shards again, and photos of a tar or table that have changed in it."""
    column: str | None = None
    """Column of the photos' bytes or addresses in a Parquet input. None: image, jpg, png, bytes, url, address or path,
    whichever is there first."""

    def __post_init__(self) -> None:
        for name, largest in (("shard_size", LARGEST_SHARD), ("workers", 1024)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
                raise InvalidValueError(f"{name}={value!r} is not accepted; give a whole number from 1 to {largest}")
        check_choice("format", self.format, ("webdataset", "parquet"))
        found = _PART.fullmatch(self.part)
        if found is None or int(found[1]) > int(found[2]):
            raise InvalidValueError(f"part={self.part!r} is not accepted; give I/N with I from 1 to N, such as 2/8")

    @property
    def turn(self) -> tuple[int, int]:
        """Remainder and divisor of the numbers of the shards that are to be made."""
        first, _, number = self.part.partition("/")
        return int(first) - 1, int(number)
