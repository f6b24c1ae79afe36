# SPDX-License-Identifier: Apache-2.0
"""Soak of one Predictor in many threads: the bytes of every prediction are those alone, and memory stays flat.

Threads draw from a fixed set of tasks: photos of 64 to 1500 px in every format that is installed, arrays, settings that
differ, damaged files and settings that are refused. Exit status 1 where a prediction has other bytes than alone, an
error is missing or another one comes. Memory (resident, Linux) is printed each minute.

    python benchmarks/threads.py --minutes 30
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openmarigold import Predictor
from openmarigold.errors import ImageError, InvalidValueError
from openmarigold.images.exr import write_exr

SIZES = ((64, 96), (120, 80), (333, 500), (480, 640), (700, 300), (1000, 1500), (1500, 1125))
SETTINGS: tuple[dict[str, Any], ...] = ({}, {"processing_resolution": 96, "ensemble_size": 3}, {"seed": 7})


@dataclass(frozen=True)
class Task:
    """One call of the predictor; `error` is what it is to end with, None where it gives a depth."""

    name: str
    photo: Any
    settings: dict[str, Any] = field(default_factory=dict)
    error: type[Exception] | None = None


def make_photo(height: int, width: int, *, seed: int) -> np.ndarray:
    """Smooth colors with some noise, uint8 [h w 3]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    phases = rng.uniform(0, 6, (3, 1, 1))
    smooth = 0.5 + 0.3 * np.sin(rows / 60 + phases) * np.cos(columns / 90 - phases)
    noisy = smooth + rng.normal(0, 0.03, smooth.shape)
    return np.ascontiguousarray((255 * np.clip(noisy, 0, 1)).astype(np.uint8).transpose(1, 2, 0))


def make_tasks(folder: Path) -> list[Task]:
    """Writes the photos, whole and damaged, and lists what is to be done with them."""
    writers: dict[str, Callable[[Path, np.ndarray], object]] = {
        "jpg": lambda path, rgb: Image.fromarray(rgb).save(path),
        "png": lambda path, rgb: Image.fromarray(rgb).save(path, compress_level=1),
        "tif": lambda path, rgb: Image.fromarray(rgb).save(path, compression="tiff_lzw"),
        "webp": lambda path, rgb: Image.fromarray(rgb).save(path),
    }
    if importlib.util.find_spec("OpenEXR"):
        writers["exr"] = lambda path, rgb: write_exr(
            path, dict(zip("RGB", np.moveaxis(rgb.astype(np.float32) / 255, -1, 0), strict=True)), {}
        )
    tasks = []
    for number, (height, width) in enumerate(SIZES):
        rgb = make_photo(height, width, seed=number)
        for turn, (suffix, write) in enumerate(writers.items()):
            path = folder / f"{width}x{height}.{suffix}"
            write(path, rgb)
            settings = SETTINGS[(number + turn) % len(SETTINGS)]
            tasks.append(Task(f"{path.name} {settings}", path, settings))
        tasks.append(Task(f"array {width}x{height}", rgb))
    for suffix in writers:
        content = bytearray((folder / f"640x480.{suffix}").read_bytes())
        if suffix in ("tif", "exr"):  # so that the library remarks on it
            begin = 60 if suffix == "tif" else len(content) // 2
            content[begin : begin + 140] = bytes(140)
        else:
            del content[len(content) // 2 :]
        damaged = folder / f"damaged.{suffix}"
        damaged.write_bytes(content)
        tasks.append(Task(damaged.name, damaged, error=ImageError))
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    tasks += [Task(name, folder / name, error=ImageError) for name in ("empty.png", "text.jpg", "missing.png")]
    tasks.append(Task("ensemble of 0", folder / "640x480.jpg", {"ensemble_size": 0}, InvalidValueError))
    return tasks


def outcome(predictor: Predictor, task: Task) -> str:
    """A hash of the depth, or the error."""
    try:
        prediction = predictor(task.photo, **task.settings)
    except Exception as error:  # noqa: BLE001 - any other kind than the expected one is what is looked for
        return f"{type(error).__name__}: {error}"
    digest = hashlib.sha256(prediction.depth.tobytes())
    if prediction.uncertainty is not None:
        digest.update(prediction.uncertainty.tobytes())
    return digest.hexdigest()


def resident_mib() -> float:
    """Memory of this process [MiB]; 0 where the system does not say it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


class Soak:
    """Threads that predict until they are told to stop, and what came of it."""

    def __init__(self, predictor: Predictor, tasks: list[Task], *, seed: int) -> None:
        self.predictor, self.tasks, self.seed = predictor, tasks, seed
        self.alone = [outcome(predictor, task) for task in tasks]
        for task, found in zip(tasks, self.alone, strict=True):
            expected = task.error is None or found.startswith(task.error.__name__)
            if not expected or (task.error is None and ":" in found):
                raise SystemExit(f"{task.name}, alone: {found}")
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stop = threading.Event()
        self.lock = threading.Lock()

    def work(self, number: int) -> None:
        """One thread's tasks, drawn anew each time."""
        rng = np.random.default_rng((self.seed, number))
        while not self.stop.is_set():
            place = int(rng.integers(len(self.tasks)))
            task = self.tasks[place]
            found = outcome(self.predictor, task)
            with self.lock:
                self.counts["predictions" if task.error is None else "errors as expected"] += 1
                if found != self.alone[place]:
                    self.wrong.append(f"{task.name}: {found} instead of {self.alone[place]}")

    def report(self, started: float) -> None:
        """One line of where it stands."""
        with self.lock:
            counts = ", ".join(f"{self.counts[name]} {name}" for name in ("predictions", "errors as expected"))
            line = f"{(time.monotonic() - started) / 60:5.1f} min  RSS {resident_mib():7.1f} MiB  {counts}"
            print(f"{line}, {len(self.wrong)} with other bytes", flush=True)


def main() -> int:
    """Run the soak and print its figures; 1 where something was not as alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=6)
    parser.add_argument("--checkpoint", type=Path, help="folder or hub id; the embedded model without it")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    predictor = Predictor.load(given.checkpoint, engine=given.engine)
    with tempfile.TemporaryDirectory() as folder:
        tasks = make_tasks(Path(folder))
        soak = Soak(predictor, tasks, seed=given.seed)
        failing = sum(task.error is not None for task in tasks)
        print(f"{given.threads} threads, engine {predictor.engine.name}, {len(tasks)} tasks, {failing} of them to fail")
        started = time.monotonic()
        threads = [threading.Thread(target=soak.work, args=(number,), daemon=True) for number in range(given.threads)]
        soak.report(started)
        for thread in threads:
            thread.start()
        end = started + 60 * given.minutes
        while (left := end - time.monotonic()) > 0:
            soak.stop.wait(min(60.0, left))
            soak.report(started)
        soak.stop.set()
        for thread in threads:
            thread.join()
        soak.report(started)
    print("\n".join(soak.wrong[:20]) or "all bytes equal those alone, all errors are those alone")
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
