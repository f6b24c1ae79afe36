# SPDX-License-Identifier: Apache-2.0
"""What very many photos take, and what crashes and slow machines add: on paper, and in a simulation.

    python benchmarks/scale.py plan [--photos 1e6 1e9] [--core-hour 0.04] [--gpu-hour 3]
    python benchmarks/scale.py simulate [--photos 1000000] [--workers 200] [--shard-size 1000]

The simulation (SimPy) has a clock of its own, and workers that are slow, die and fall silent; the program that hands
out the shards dies too. What they plan, resume and write is the code of `openmarigold batch`, on `memory://`: only the
maps are made up. At the end the keys of all tables are counted, and the files compared with those of an undisturbed
run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import simpy

from openmarigold.addresses import OutputFolder, read_bytes
from openmarigold.batch.run import batch_files
from openmarigold.batch.settings import BatchConfig
from openmarigold.batch.shard_files import FAILED, STATS_END, SUCCESS, Entry, ShardStats, write_shard
from openmarigold.batch.sources import Shard
from openmarigold.batch.worker import ShardWorker
from openmarigold.config import PredictConfig

RATES = {  # photos a second of one unit, whether that is a GPU, cores; docs/scale.md says where each was measured
    "marigold-lite, CPU core": (9.12 / 2, False),
    "Stable Diffusion 2, bfloat16, OpenVINO, CPU core": (1 / 8.38 / 2, False),
    "the same, tiny autoencoder": (1 / 2.46 / 2, False),
    "Stable Diffusion 2, float16, H100, batches of 16": (16 / 1.0701, True),
    "the same, tiny autoencoder, H100": (16 / 0.2878, True),
}
KIB_A_PHOTO = 268
"""Of 16-bit PNG of 640x480 in shards: see docs/scale.md."""


class DriverDied(BaseException):
    """The program that hands out the shards was killed."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Machines, and what befalls them; times in seconds."""

    workers: int = 200
    rate: float = 2.0
    """Photos a second of an ordinary worker."""
    slow_share: float = 0.05
    slow_factor: float = 4.0
    spread: float = 0.1
    """Of the logarithm of workers' speeds."""
    life: float = 4 * 3600.0
    """Of a worker, on average."""
    boot: float = 120.0
    """Until a worker that died works again, the model loaded."""
    silence: float = 0.02
    """Share of shards whose worker is thought dead and is not: another makes the shard, too."""
    patience: float = 60.0
    """Until a dead worker's shard is given to another."""
    driver_life: float = 3600.0
    """Of the program that hands out the shards, on average; with it all its workers end."""
    write: float = 1.0
    """Of one file of a shard."""


@dataclass
class Account:
    """What happened, and the time of workers [s]."""

    clock: float = 0.0
    useful: float = 0.0
    lost: float = 0.0
    twice: float = 0.0
    events: Counter[str] = field(default_factory=Counter)


def made_up(shard: Shard) -> list[Entry]:
    """Entries with maps that depend on the key only; one in a thousand failed."""
    entries = []
    with shard.source.rows(shard.stem) as rows:
        for row in rows:
            digest = hashlib.sha256(row.key.encode()).digest()
            known = Entry(key=row.key, source=row.source, status=SUCCESS, input_sha256=digest.hex())
            if digest[0] == 0 and digest[1] < 64:
                entries.append(replace(known, status=FAILED, error_class="ImageError", error="made up"))
            else:
                entries.append(replace(known, ranges={"depth": (0.0, 1.0)}, maps={"depth": digest}))
    return entries


class SimulatedCluster:
    """An engine of `batch_files`: shards are made by workers of a simulation."""

    def __init__(self, fleet: Fleet, account: Account, chance: random.Random) -> None:
        self.fleet, self.account, self.chance = fleet, account, chance
        slow = set(chance.sample(range(fleet.workers), round(fleet.slow_share * fleet.workers)))
        self.rates = [
            fleet.rate * chance.lognormvariate(0, fleet.spread) / (fleet.slow_factor if number in slow else 1)
            for number in range(fleet.workers)
        ]

    def __call__(
        self, worker: ShardWorker, shards: Sequence[Shard], *, again: bool
    ) -> Iterator[tuple[Shard, ShardStats]]:
        """Makes shards until all are there, or the driver dies."""
        environment, account = simpy.Environment(initial_time=self.account.clock), self.account
        queue: Any = simpy.Store(environment)
        finished: dict[int, tuple[Shard, ShardStats]] = {}
        news: list[int] = []
        for shard in shards:
            queue.put(shard)
        begun: dict[int, float] = {}
        for number in range(self.fleet.workers):
            environment.process(self._work(number, environment, queue, worker, finished, news, begun))
        dies = environment.now + self.chance.expovariate(1 / self.fleet.driver_life)
        while len(finished) < len(shards) and environment.peek() < dies:
            environment.step()
            while news:
                yield finished[news.pop()]
        if len(finished) < len(shards):
            account.events["driver died"] += 1
            account.lost += sum(dies - since for since in begun.values())
            account.clock = dies + self.fleet.boot
            raise DriverDied
        account.twice += sum(environment.now - since for since in begun.values())  # copies of finished shards
        account.clock = environment.now

    def _work(
        self,
        number: int,
        environment: Any,
        queue: Any,
        worker: ShardWorker,
        finished: dict[int, tuple[Shard, ShardStats]],
        news: list[int],
        begun: dict[int, float],
    ) -> Iterator[Any]:
        fleet, account, chance = self.fleet, self.account, self.chance
        dies = environment.now + chance.expovariate(1 / fleet.life)
        while True:
            shard = yield queue.get()
            if shard.number in finished:
                continue
            if environment.now > dies:  # while it waited; it is back since
                dies = environment.now + chance.expovariate(1 / fleet.life)
            begun[number] = environment.now
            if chance.random() < fleet.silence:
                account.events["worker fell silent"] += 1
                environment.process(_give_again(environment, queue, shard, fleet.patience))
            entries = made_up(shard)
            for step, seconds in (
                ("predict", len(entries) / self.rates[number]),
                ("maps", fleet.write),
                ("stats", fleet.write),
            ):
                if environment.now + seconds > dies:
                    yield environment.timeout(dies - environment.now)
                    account.events["worker died" if step == "predict" else f"worker died before {step}"] += 1
                    account.lost += environment.now - begun.pop(number)
                    environment.process(_give_again(environment, queue, shard, fleet.patience))
                    yield environment.timeout(fleet.boot)
                    dies = environment.now + chance.expovariate(1 / fleet.life)
                    break
                yield environment.timeout(seconds)
                if step == "maps":
                    write_shard(worker.folder, shard.stem, entries, ["depth"], worker.batch)
            else:
                spent = environment.now - begun.pop(number)
                stats = _statistics(entries, spent)
                stats.write(worker.folder, shard.stem)
                if shard.number in finished:
                    account.events["shard made twice"] += 1
                    account.twice += spent
                else:
                    account.useful += spent
                    finished[shard.number] = shard, stats
                    news.append(shard.number)


def _give_again(environment: Any, queue: Any, shard: Shard, after: float) -> Iterator[Any]:
    yield environment.timeout(after)
    queue.put(shard)


def _statistics(entries: Sequence[Entry], seconds: float) -> ShardStats:
    failed = Counter(entry.error_class or "" for entry in entries if entry.status == FAILED)
    return ShardStats(
        count=len(entries),
        successes=len(entries) - failed.total(),
        failed_by_class=dict(failed),
        started=0.0,
        seconds=seconds,
        photo_seconds=(),
        engine="simulated",
    )


def undisturbed(worker: ShardWorker, shards: Sequence[Shard], *, again: bool) -> Iterator[tuple[Shard, ShardStats]]:
    """An engine without a clock: each shard once, in order."""
    for shard in shards:
        entries = made_up(shard)
        write_shard(worker.folder, shard.stem, entries, ["depth"], worker.batch)
        stats = _statistics(entries, 0.0)
        stats.write(worker.folder, shard.stem)
        yield shard, stats


def simulate(photos: int, fleet: Fleet, shard_size: int, seed: int, format: Any) -> dict[str, Any]:
    """One simulation; the result is for JSON. Times in virtual seconds, but for `real_s`."""
    began, account, chance = time.perf_counter(), Account(), random.Random(seed)
    cluster = SimulatedCluster(fleet, account, chance)
    settings: dict[str, Any] = {
        "config": PredictConfig(),
        "batch": BatchConfig(shard_size=shard_size, format=format),
    }
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch, "photos.txt")
        listed.write_text("".join(f"memory://photos/{number:09d}.jpg\n" for number in range(photos)))
        out, plain = f"memory://scale-{id(cluster)}", f"memory://plain-{id(cluster)}"
        while True:
            try:
                outcome = batch_files(str(listed), out, engine=cluster, **settings)
                break
            except DriverDied:
                continue
        batch_files(str(listed), plain, engine=undisturbed, **settings)
    keys = _keys(out)
    ideal = photos / sum(cluster.rates)
    spent = account.useful + account.lost + account.twice
    return {
        "photos": photos,
        "shards": outcome.shards,
        "workers": fleet.workers,
        "hours": round(account.clock / 3600, 2),
        "hours_without_faults_and_ends": round(ideal / 3600, 2),
        "longer_by": round(account.clock / ideal - 1, 3),
        "work_lost": round(account.lost / spent, 4),
        "work_done_twice": round(account.twice / spent, 4),
        "events": dict(sorted(account.events.items())),
        "keys": len(keys),
        "keys_once": sum(count == 1 for count in keys.values()),
        "photos_in_statistics": outcome.photos,
        "files_equal_to_undisturbed": _hashes(out) == _hashes(plain),
        "real_s": round(time.perf_counter() - began, 1),
    }


def _names(address: str) -> list[str]:
    return [name for name in OutputFolder(address).names() if not name.endswith((STATS_END, "_batch.json"))]


def _hashes(address: str) -> dict[str, str]:
    return {name: hashlib.sha256(read_bytes(f"{address}/{name}")).hexdigest() for name in _names(address)}


def _keys(address: str) -> Counter[str]:
    import io

    from pyarrow import parquet

    keys: Counter[str] = Counter()
    for name in _names(address):
        if name.endswith(".parquet"):
            table = parquet.read_table(io.BytesIO(read_bytes(f"{address}/{name}")), columns=["key"])
            keys.update(table["key"].to_pylist())
    return keys


def plan(numbers: Sequence[float], core_hour: float, gpu_hour: float) -> str:
    """A Markdown table: hours of a unit, and their price."""
    titles = ["", *(f"{number:.0e} photos".replace("e+0", "e") for number in numbers)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, (rate, is_gpu) in RATES.items():
        cells = []
        for number in numbers:
            hours = number / rate / 3600
            unit = "GPU" if is_gpu else "core"
            cells.append(f"{_short(hours)} {unit} hours, ${_short(hours * (gpu_hour if is_gpu else core_hour))}")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    sizes = [f"{_short(number * KIB_A_PHOTO / 2**30)} TiB" for number in numbers]
    lines.append("| " + " | ".join(["shards of 16-bit PNG", *sizes]) + " |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "simulate"))
    parser.add_argument("--photos", type=float, nargs="+")
    parser.add_argument("--core-hour", type=float, default=0.04, help="dollars, an assumption")
    parser.add_argument("--gpu-hour", type=float, default=3.0, help="dollars, an assumption")
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument("--format", choices=("webdataset", "parquet"), default="parquet")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.what == "plan":
        print(plan(given.photos or (1e6, 1e9), given.core_hour, given.gpu_hour))
        return
    for number in given.photos or (1e6,):
        found = simulate(int(number), Fleet(workers=given.workers), given.shard_size, given.seed, given.format)
        print(json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
