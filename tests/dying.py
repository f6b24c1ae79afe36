# SPDX-License-Identifier: Apache-2.0
"""Workers that die in the middle of a shard, for tests of batches; another process imports this module."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from openmarigold.batch.shard_files import Entry
from openmarigold.batch.sources import Shard
from openmarigold.batch.worker import ShardWorker


class DyingWorker(ShardWorker):
    """Kills its process while it makes the shard `number`: the first time, or every time."""

    number = 1
    always = False

    def _entries(self, shard: Shard, kept: dict[str, Entry]) -> Iterator[tuple[Entry, float]]:
        marker = Path(self.folder.address) / "died"
        for place, entry in enumerate(super()._entries(shard, kept)):
            if shard.number == self.number and place == 1 and (self.always or not marker.exists()):
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield entry


class DoomedWorker(DyingWorker):
    """Never makes its shard."""

    always = True
