# SPDX-License-Identifier: Apache-2.0
"""`openmarigold batch` against a plain loop of `multiprocessing`, and through kills: photos a second, and equal bytes.

    python benchmarks/batch.py rates FOLDER --photos 240       # by turns: plain loop, processes, Ray where installed
    python benchmarks/batch.py kills FOLDER --photos 2000      # workers and the program itself are killed

Photos are made in FOLDER: 640x480 JPEG of a seed. The plain loop is what people write: a pool of processes, each with a
`Predictor`, `pool.imap_unordered` over the photos, a 16-bit PNG of each written by Pillow.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PREDICTOR: Any = None


def _photos(folder: Path, number: int, size: tuple[int, int]) -> Path:
    """Photos that compress as photos do: smooth colors, edges, a little noise."""
    place = folder / f"photos-{number}-{size[0]}x{size[1]}"
    if place.exists():
        return place
    partial = place.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for one in range(number):
        chance = np.random.default_rng(one)
        coarse = chance.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(picture).astype(np.int16) + chance.normal(0, 4, (size[1], size[0], 1)).astype(np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(partial / f"{one:05d}.jpg", quality=90)
    partial.rename(place)
    return place


def _load() -> None:
    global PREDICTOR
    from openmarigold import Predictor

    PREDICTOR = Predictor.load()


def _plain(job: tuple[Path, Path, int]) -> None:
    source, target, resolution = job
    depth = PREDICTOR(source, processing_resolution=resolution).depth
    Image.fromarray(np.rint(depth * 65535).astype(np.uint16)).save(target)


def _run_plain(photos: Path, out: Path, workers: int, resolution: int) -> None:
    out.mkdir()
    jobs = [(path, out / f"{path.stem}.png", resolution) for path in sorted(photos.iterdir())]
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_load) as pool:
        for _ in pool.imap_unordered(_plain, jobs):
            pass


def _command(photos: Path, out: Path, workers: int, resolution: int, *more: str) -> list[str]:
    words = ["--workers", str(workers), "--processing-resolution", str(resolution), *more]
    return [sys.executable, "-m", "openmarigold", "batch", str(photos), str(out), *words]


def _hashes(out: Path) -> dict[str, str]:
    names = [path for path in sorted(out.glob("*")) if path.suffix in (".tar", ".parquet")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


def _num_done(out: Path) -> int:
    """Shards that are whole."""
    return len(list(out.glob("*_stats.json")))


def _rates(folder: Path, number: int, rounds: int, workers: int) -> None:
    photos, resolution, size = _photos(folder, number, (640, 480)), 256, max(1, number // (4 * workers))
    ways = ["plain", "batch"] + (["ray"] if _has_ray() else [])
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            started = time.perf_counter()
            if way == "plain":
                _run_plain(photos, out, workers, resolution)
            else:
                more = ["--ray", "local"] if way == "ray" else []
                command = _command(photos, out, workers, resolution, "--shard-size", str(size), *more)
                subprocess.run(command, check=True, capture_output=True)
            rates[way].append(number / (time.perf_counter() - started))
    plain = statistics.median(rates["plain"])
    for way, found in rates.items():
        middle = statistics.median(found)
        print(
            f"{way}: {middle:.2f} photos a second, {middle / plain:.2f} of the plain loop "
            f"({min(found):.2f} to {max(found):.2f}), start-up and model included"
        )


def _has_ray() -> bool:
    import importlib.util

    return importlib.util.find_spec("ray") is not None


def _kills(folder: Path, number: int, workers: int) -> None:
    """Kills a worker every few seconds and the program itself twice; compares with an undisturbed run."""
    photos, resolution = _photos(folder, number, (160, 120)), 64
    reference = folder / "reference"
    shutil.rmtree(reference, ignore_errors=True)
    more = ("--shard-size", str(max(1, number // 40)))
    subprocess.run(_command(photos, reference, 1, resolution, *more), check=True, capture_output=True)
    for way in ["processes"] + (["ray"] if _has_ray() else []):
        out = folder / f"killed-{way}"
        shutil.rmtree(out, ignore_errors=True)
        ray = ("--ray", "local") if way == "ray" else ()
        chance, killed = random.Random(1), {"workers": 0, "programs": 0}
        for attempt in range(6):
            program = subprocess.Popen(
                _command(photos, out, workers, resolution, *more, *ray),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            enough = 10 * (attempt + 1) if attempt < 2 else 40  # of 40 shards
            while program.poll() is None and _num_done(out) < enough:
                time.sleep(chance.uniform(2, 4))
                found = _workers_of(program.pid)
                if found and killed["workers"] < 6 and _num_done(out) >= 5 * killed["workers"]:
                    os.kill(chance.choice(found), signal.SIGKILL)
                    killed["workers"] += 1
            if attempt >= 2:
                program.wait(600)
            if program.poll() is None:
                program.kill()
                killed["programs"] += 1
            program.wait()
            if program.returncode == 0:
                break
        same = _hashes(out) == _hashes(reference)
        print(
            f"{way}: {killed['workers']} workers and {killed['programs']} programs killed, last status "
            f"{program.returncode}, {len(_hashes(out)) // 2} shards, bytes {'equal' if same else 'DIFFER'}"
        )


def _workers_of(pid: int) -> list[int]:
    """Processes that make shards, below a program."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            parents = (folder / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        is_spawned = int(parents[1]) == pid and b"spawn_main" in words
        if is_spawned or (b"ray::" in words and b"UnitActor" in words):
            found.append(int(folder.name))
    return found


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "kills"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    if given.what == "rates":
        _rates(given.folder, given.photos, given.rounds, given.workers)
    else:
        _kills(given.folder, given.photos, given.workers)


if __name__ == "__main__":
    _main()
