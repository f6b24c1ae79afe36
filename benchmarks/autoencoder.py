# SPDX-License-Identifier: Apache-2.0
"""Memory and time of Stable Diffusion 2's autoencoder in one pass and in strips (random weights), each in a process.

python benchmarks/autoencoder.py [--width 1536] [--height 1152] [--threads 2]

`more` is the peak of main memory above what the process held before; `difference` is the largest one to one pass, by
the range of its result.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("one pass", "strips", "strips, computed twice")


def main() -> None:
    """Measures each way in a new process, so that no peak is another's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--height", type=int, default=1152)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--half", help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options)
        return
    print(f"{options.width}x{options.height}, {options.threads} threads, float32")
    with tempfile.TemporaryDirectory() as folder:
        for half in ("encode", "decode"):
            for way in WAYS:
                own = ["--way", way, "--half", half, "--keep", str(Path(folder) / half)]
                subprocess.run([sys.executable, __file__, *sys.argv[1:], *own], check=True)


def measure(options: argparse.Namespace) -> None:
    """One way through one half."""
    import torch

    from openmarigold.networks import backbone
    from openmarigold.networks.rewrites import fold_upsampling
    from openmarigold.networks.strips import decode_in_strips, encode_in_strips
    from stable_diffusion import make_vae  # next to this script

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    vae = make_vae()
    vae = fold_upsampling(vae.eval().requires_grad_(False))
    size = options.height, options.width
    inputs = {"encode": torch.rand(1, 3, *size) * 2 - 1, "decode": torch.randn(1, 4, *(side // 8 for side in size))}
    whole = {"encode": backbone.encode_to_latent, "decode": backbone.decode_to_image}[options.half]
    strips = {"encode": encode_in_strips, "decode": decode_in_strips}[options.half]
    before, started = _memory("VmRSS"), time.perf_counter()
    with torch.inference_mode():
        if options.way == WAYS[0]:
            result = whole(vae, inputs[options.half])
        else:
            result = strips(vae, inputs[options.half], num_whole=2 if options.way == WAYS[1] else 1)
    seconds, more = time.perf_counter() - started, _memory("VmHWM") - before
    difference = 0.0
    if options.way == WAYS[0]:
        torch.save(result, options.keep)
    else:
        exact = torch.load(options.keep, weights_only=True)
        difference = float((result - exact).abs().max() / (exact.max() - exact.min()))
    print(
        f"{options.half}, {options.way}: {seconds:.1f} s, {more:.2f} GiB more, difference {difference:.1e}", flush=True
    )


def _memory(name: str) -> float:
    """A figure of this process in GiB, as Linux states it."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 2**20


if __name__ == "__main__":
    main()
