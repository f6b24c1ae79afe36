# SPDX-License-Identifier: Apache-2.0
"""What returning memory to the system is worth: engine OpenVINO at Stable Diffusion 2's size, with it and without.

    python benchmarks/returned_memory.py --folder DIR    # random weights, made where they are missing: 3.8 GB

Each way predicts one photo of 768x576 in a process of its own (Linux), after the networks have been converted.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from against_diffusers import inputs, load_ours, machine, make_weights


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--worker", choices=("convert", "returned", "kept"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(str(arguments.folder), arguments.worker)
        return
    make_weights(arguments.folder)
    print(machine("cpu"))
    for way in ("convert", "returned", "kept"):
        command = [sys.executable, __file__, "--folder", str(arguments.folder), "--worker", way]
        print(way, subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


def work(folder: str, way: str) -> None:
    """Predicts once in this process and prints its peak and its memory afterwards."""
    from openmarigold.engines import openvino

    if way == "kept":
        openvino._return_memory = lambda files: None
    rgb, latents = inputs(1)
    task = {"folder": folder, "engine": "openvino", "device": "cpu", "dtype": "float32"}
    predict, _ = load_ours(task, rgb, latents)
    predict(1)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak, now = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmHWM", "VmRSS"))
    assert peak is not None and now is not None
    print(f"peak {int(peak[1]) / 2**20:.1f} GiB, resident {int(now[1]) / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
