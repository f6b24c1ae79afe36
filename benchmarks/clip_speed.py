# SPDX-License-Identifier: Apache-2.0
"""Frames a second of `openmarigold video` with its defaults, and of the networks alone, which is the most there can be.

    python benchmarks/clip_speed.py [--engines onnx openvino] [--rounds 3] [--frames 150] [--photo PHOTO]

The clip is a pan of 640x480 over a photo, written to a temporary folder. Each run is a process of its own; engines take
turns. Frames a second are the command's own, from the first frame to the last, without loading. CPU time is of the
whole process, by its number of frames. The networks run as clips run them: three frames at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "hotel-room.jpg"
WIDTH, HEIGHT = 640, 480
AT_ONCE = 3


def main() -> None:
    """Prints a line for each run, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["onnx"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--photo", type=Path, default=PHOTO)
    given = parser.parse_args()
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        clip = Path(scratch, "pan.mp4")
        write_pan(given.photo, clip, given.frames)
        print(f"{os.cpu_count()} cores, {given.frames} frames of {WIDTH}x{HEIGHT}")
        for _ in range(given.rounds):
            for engine in given.engines:
                for name, (rate, cpu_ms) in {
                    f"{engine}, the command": run_command(clip, Path(scratch, "out"), engine),
                    f"{engine}, the networks alone": run_networks(engine, given.frames),
                }.items():
                    rates.setdefault(name, []).append(rate)
                    print(f"{name}: {rate:.2f} frames a second, {cpu_ms:.0f} ms of the processor a frame", flush=True)
    for name, found in rates.items():
        print(f"{name}: median {statistics.median(found):.1f}, from {min(found):.1f} to {max(found):.1f}")


def write_pan(photo: Path, clip: Path, num_frames: int) -> None:
    """A window of 640x480 that wanders over the photo, which is enlarged by 1.6 where it is smaller than that."""
    import av

    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    factor = max(1.6 * WIDTH / picture.width, 1.6 * HEIGHT / picture.height)
    size = round(factor * picture.width), round(factor * picture.height)
    pixels = np.asarray(picture.resize(size, Image.Resampling.LANCZOS))
    room_x, room_y = pixels.shape[1] - WIDTH, pixels.shape[0] - HEIGHT
    with av.open(str(clip), "w") as output:
        stream: Any = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(num_frames):
            x, y = int(room_x * (1 + np.sin(number / 25)) / 2), int(room_y * (1 + np.cos(number / 30)) / 2)
            window = np.ascontiguousarray(pixels[y : y + HEIGHT, x : x + WIDTH])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        output.mux(stream.encode(None))


def run_command(clip: Path, folder: Path, engine: str) -> tuple[float, float]:
    """Frames a second of the command, and the processor's time a frame [ms]."""
    before = _seconds(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "openmarigold", "video", str(clip), str(folder), "--engine", engine]
    done = subprocess.run([*command, "--overwrite", "--json"], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    spent = _seconds(resource.RUSAGE_CHILDREN) - before
    return found["num_predicted"] / found["predict_s"], 1000 * spent / found["num_predicted"]


def run_networks(engine: str, num_frames: int) -> tuple[float, float]:
    """The same of encoder, U-Net and decoder on an image of the size that the command gives them."""
    from openmarigold.checkpoints.checkpoint import read_checkpoint
    from openmarigold.engines import open_engine
    from openmarigold.images.photo import processing_size

    opened: Any = open_engine(read_checkpoint(None), engine=engine, at_once=AT_ONCE)  # type: ignore[arg-type]
    height, width = (
        -(-side // 8) * 8 for side in processing_size(HEIGHT, WIDTH, processing_resolution=256, side="shorter")
    )
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
    start = np.zeros((1, opened.latent_channels, height // 8, width // 8), dtype=np.float32)

    def frame(_: int) -> None:
        opened.decode(opened.denoise(opened.encode(image), start, timestep=999))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(frame, range(AT_ONCE)))
        began, before = time.perf_counter(), _seconds(resource.RUSAGE_SELF)
        list(pool.map(frame, range(num_frames)))
        wall, spent = time.perf_counter() - began, _seconds(resource.RUSAGE_SELF) - before
    return num_frames / wall, 1000 * spent / num_frames


def _seconds(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
