# SPDX-License-Identifier: Apache-2.0
"""The measured tables of docs/speed.md for the embedded model: medians, spread and machine, by one command.

    python benchmarks/speed.py                                   # prints all parts, some minutes
    python benchmarks/speed.py --parts folders --write docs/speed.md

With `--write` the text between `<!-- measured: PART -->` and `<!-- end -->` in that file is replaced; other parts stay.
Each round is a process of its own. Run nothing else at the same time.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
SIZES = {(320, 240): 96, (640, 480): 64, (1280, 960): 48, (2048, 1536): 32, (4000, 3000): 12}
"""Width and height [px], and how many photos of a folder."""
START = {"depth": (), "normals": ("--modality", "normals"), "both": ("--modality", "depth", "normals")}


def main() -> None:
    """Measures, prints, and writes where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="a Markdown file with marks")
    given = parser.parse_args()
    for part in given.parts:
        text = f"{machine()}; {given.rounds} rounds, median (smallest to largest).\n\n{PARTS[part](given.rounds)}"
        print(text, end="\n\n", flush=True)
        if given.write:
            replace(given.write, part, text)


def replace(path: Path, part: str, text: str) -> None:
    """Puts a part's text between its marks."""
    before = path.read_text(encoding="utf-8")
    marks = re.compile(rf"(<!-- measured: {part} -->\n).*?(<!-- end -->)", re.DOTALL)
    after, found = marks.subn(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", before)
    if not found:
        raise SystemExit(
            f"{path} has no marks <!-- measured: {part} --> and <!-- end -->; add them where the text belongs"
        )
    path.write_text(after, encoding="utf-8")


def networks(rounds: int) -> str:
    """One photo, as `openmarigold benchmark` times it."""
    reports = [json.loads(_openmarigold("benchmark", "--json")) for _ in range(rounds)]
    rows = []
    for stage in reports[0]["stages"]:
        seconds = [report["stages"][stage]["seconds"] for report in reports]
        shares = [report["stages"][stage]["ceiling_share"] for report in reports]
        share = "" if None in shares else f"{100 * statistics.median(shares):.0f} %"  # which counting needs torch for
        rows.append((stage, _spread(seconds, 1000), share))
    rows.append(("photo, warm", _spread([report["photo_s"] for report in reports], 1000), ""))
    rows.append(("first photo of a process", _spread([report["first_photo_s"] for report in reports], 1000), ""))
    return table(("one 640x480 photo", "ms", "of a matrix product's rate"), rows)


def start(rounds: int) -> str:
    """From the start of a process to the files of one photo."""
    rows = []
    times: dict[str, list[float]] = {name: [] for name in START}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(rounds):
            for name, words in START.items():
                began = time.perf_counter()
                command = ("predict", str(PHOTOS / "courtyard.jpg"), "--output-dir", scratch, "--overwrite", *words)
                _openmarigold(*command)
                times[name].append(time.perf_counter() - began)
    rows = [(name, _spread(found, 1, 2)) for name, found in times.items()]
    return table(("one 640x480 photo, process start to files", "s"), rows)


def folders(rounds: int) -> str:
    """Photos of one size: the rate of `openmarigold predict` from its first to its last photo, and the model's own."""
    rates: dict[tuple[int, int], list[tuple[float, float]]] = {size: [] for size in SIZES}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(rounds):
            for size, number in SIZES.items():
                own = 1 / json.loads(_openmarigold("benchmark", "--json", "--size", *map(str, size)))["photo_s"]
                rates[size].append((own, folder_rate(Path(scratch), size, number)))
    rows = []
    for size, found in rates.items():
        model, command = zip(*found, strict=True)
        ratios = [100 * made / own for own, made in found]
        rows.append(("x".join(map(str, size)), _spread(model, 1, 2), _spread(command, 1, 2), _spread(ratios) + " %"))
    return table(("photos", "model alone, photos a second", "folder command", "of the model"), rows)


def folder_rate(scratch: Path, size: tuple[int, int], number: int) -> float:
    """Photos a second of the command: a run of all photos less a run of one, which loads the model too."""
    photos = make_photos(scratch / "x".join(map(str, size)), size, number)
    times = []
    for chosen in (photos / "one", photos / "all"):
        out = scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        _openmarigold("predict", str(chosen), "--output-dir", str(out))
        times.append(time.perf_counter() - began)
    return (number - 1) / (times[1] - times[0])


def make_photos(folder: Path, size: tuple[int, int], number: int) -> Path:
    """The example photos at one size, each mirrored and cut differently, in folders `all` and `one`."""
    if folder.exists():
        return folder
    sources = sorted(PHOTOS.glob("*.jpg"))
    for name, count in (("one", 1), ("all", number)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            with Image.open(sources[index % len(sources)]) as opened:
                picture = opened.convert("RGB")
            margin = index // len(sources)
            box = (margin, margin, picture.width - margin, picture.height - margin)
            picture.resize(size, Image.Resampling.BICUBIC, box).save(folder / name / f"{index:03}.jpg", quality=92)
    return folder


def clips(rounds: int) -> str:
    """`openmarigold video` with its defaults, and its networks alone."""
    from clip_speed import run_command, run_networks, write_pan  # next to this script

    rates: dict[str, list[tuple[float, float]]] = {"the command": [], "the networks alone": []}
    with tempfile.TemporaryDirectory() as scratch:
        clip = Path(scratch, "pan.mp4")
        write_pan(PHOTOS / "hotel-room.jpg", clip, 150)
        for _ in range(rounds):
            rates["the command"].append(run_command(clip, Path(scratch, "out"), "onnx"))
            rates["the networks alone"].append(run_networks("onnx", 150))
    rows = []
    for name, found in rates.items():
        frames, spent = zip(*found, strict=True)
        rows.append((name, _spread(frames, 1, 1), _spread(spent)))
    return table(("clip, 640x480", "frames a second", "ms of the processor a frame"), rows)


def png(rounds: int) -> str:
    """A 2048x1536 photo's 16-bit depth and its colors: our writer, and Pillow at the same level of compression."""
    from openmarigold import Predictor
    from openmarigold.images.png import save_png

    def with_pillow(file: io.BytesIO, pixels: np.ndarray, texts: Mapping[str, str]) -> None:
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)

    with Image.open(PHOTOS / "courtyard.jpg") as opened:
        photo = np.asarray(opened.convert("RGB").resize((2048, 1536), Image.Resampling.BICUBIC))
    prediction = Predictor.load()(photo)
    depth = prediction.depth / prediction.depth.max()
    rows = []
    pictures = {"16 bits": np.rint(depth * 65535).astype(np.uint16), "colors": np.asarray(prediction.picture())}
    for name, pixels in pictures.items():
        for way, write in (("ours", save_png), ("Pillow", with_pillow)):
            times = []
            for _ in range(rounds):
                file, began = io.BytesIO(), time.process_time()
                write(file, pixels, {})
                times.append(time.process_time() - began)
            rows.append((f"{name}, {way}", _spread(times, 1000), f"{len(file.getvalue()) / 1e6:.2f}"))
    return table(("2048x1536 PNG", "ms of the processor", "MB"), rows)


PARTS: dict[str, Callable[[int], str]] = {
    "networks": networks,
    "start": start,
    "folders": folders,
    "png": png,
    "clips": clips,
}


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def machine() -> str:
    """What this runs on, and when."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    name = " ".join(found[1].split()) if found else "an unknown CPU"
    return f"{os.cpu_count()} cores of {name}, {date.today().isoformat()}, ONNX Runtime {version('onnxruntime')}"


def _spread(values: Sequence[float], factor: float = 1.0, digits: int = 0) -> str:
    low, middle, high = (factor * choose(values) for choose in (min, statistics.median, max))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _openmarigold(*words: str) -> str:
    environment: dict[str, Any] = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "openmarigold", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


if __name__ == "__main__":
    main()
