# SPDX-License-Identifier: Apache-2.0
"""Networks of Stable Diffusion 2's size in float32, bfloat16 and int8 with OpenVINO, by turns; and what kernels run.

    python benchmarks/int8.py --folder DIR [--networks vae_decoder unet vae_encoder] [--rounds 3] [--size 768 576]

Weights are random and lie in DIR (`against_diffusers.py`). Here every layer is put into int8 on random inputs, which
shows the speed and not the error; `openmarigold checkpoint export --dtype int8` measures errors and keeps layers.
`--tiny` takes the tiny autoencoder. One network after another, about 9 GiB for the U-Net, 3 GiB for the others.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from against_diffusers import machine, make_weights

WAYS = {
    "float32": ("float", "f32"),
    "bfloat16": ("float", "bf16"),
    "int8": ("int8", "f32"),
    "int8+bf16": ("int8", "bf16"),
}


def main() -> None:
    """Prints a line for each network and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["vae_encoder", "unet", "vae_decoder"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(768, 576))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    make_weights(arguments.folder)
    print(f"{date.today().isoformat()}, {machine('cpu')}, {arguments.size[0]}x{arguments.size[1]}", flush=True)
    for name in arguments.networks:
        measure(name, arguments)


def measure(name: str, arguments: argparse.Namespace) -> None:
    """Writes a network both ways, where it is missing, and times them by turns."""
    import openvino

    paths = networks(name, arguments)
    sample = inputs(name, *arguments.size)
    core, requests = openvino.Core(), {}
    for way in arguments.ways:
        kind, precision = WAYS[way]
        settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": True}
        model = core.read_model(paths[kind])
        model.reshape({key: list(value.shape) for key, value in sample.items()})
        requests[way] = core.compile_model(model, "CPU", settings).create_infer_request()
        requests[way].infer(sample)
    seconds: dict[str, list[float]] = {way: [] for way in requests}
    for _ in range(arguments.rounds):
        for way, request in requests.items():
            started = time.perf_counter()
            request.infer(sample)
            seconds[way].append(time.perf_counter() - started)
    for way, values in seconds.items():
        ratios = [one / other for one, other in zip(seconds[arguments.ways[0]], values, strict=True)]
        print(
            f"{name}, {way}: {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f}), "
            f"{statistics.median(ratios):.2f} times {arguments.ways[0]}; {kernels(requests[way])}",
            flush=True,
        )
    del requests
    gc.collect()


def kernels(request: Any) -> str:
    """Shares of the time by kernel, the largest."""
    time_of: Counter[str] = Counter()
    for node in request.profiling_info:
        time_of[f"{node.node_type} {node.exec_type}"] += node.real_time.total_seconds()
    whole = sum(time_of.values()) or 1
    return ", ".join(f"{name} {100 * part / whole:.0f} %" for name, part in time_of.most_common(5))


def networks(name: str, arguments: argparse.Namespace) -> dict[str, Path]:
    """Files of a network in float32 and with every layer in int8."""
    from openmarigold.checkpoints.checkpoint import read_checkpoint
    from openmarigold.checkpoints.configured import TinyVae
    from openmarigold.networks.conversion import write_network
    from openmarigold.networks.quantization_openvino import write_whole

    tiny = None
    if arguments.tiny and name != "unet":
        folder = Path(f"{arguments.folder}-tiny-vae") / "vae"
        tiny = TinyVae(directory=folder, name="tiny", variant=None, used_for="both")
    root = Path(f"{arguments.folder}-int8") / (f"{name}-tiny" if tiny else name)
    plain, int8 = root / "float", root / "int8"
    if not (plain / "model.xml").exists():
        plain.mkdir(parents=True, exist_ok=True)
        write_network(read_checkpoint(arguments.folder), name, plain, format="openvino", dtype="float32", tiny_vae=tiny)
    if not (int8 / "model.xml").exists():
        int8.mkdir(exist_ok=True)
        write_whole(plain / "model.xml", int8, [inputs(name, 192, 144)])
    return {"float": plain / "model.xml", "int8": int8 / "model.xml"}


def every_layer(source: Path, *, tiny: bool) -> Path:
    """A copy of a checkpoint with every layer in int8, made once: the most that int8 can gain, whatever it costs."""
    from openmarigold.checkpoints.checkpoint import read_checkpoint
    from openmarigold.checkpoints.configured import TinyVae
    from openmarigold.checkpoints.weight_files import NETWORK_FILES, QUANTIZATION
    from openmarigold.networks.conversion import export_checkpoint
    from openmarigold.networks.quantization_openvino import write_whole

    target = Path(f"{source}-every-layer{'-tiny' if tiny else ''}")
    if target.exists():
        return target
    folder = Path(f"{source}-tiny-vae") / "vae"
    vae = TinyVae(directory=folder, name="tiny", variant=None, used_for="both") if tiny else None
    partial = target.with_suffix(".partial")
    export_checkpoint(read_checkpoint(source), partial, format="openvino", dtype="float32", tiny_vae=vae)
    for name, file in NETWORK_FILES["openvino"].items():
        if (network := partial / file).exists():
            plain = network.rename(network.with_stem("plain"))
            network.with_suffix(".bin").rename(plain.with_suffix(".bin"))
            write_whole(plain, network.parent, [inputs(name, 192, 144)])
            plain.unlink()
            plain.with_suffix(".bin").unlink()
    index = partial / "model_index.json"
    stated = {"dtype": "int8", "source": source.name, "networks": {}}
    index.write_text(json.dumps({**json.loads(index.read_text(encoding="utf-8")), QUANTIZATION: stated}))
    partial.rename(target)
    return target


def inputs(name: str, width: int, height: int) -> dict[str, np.ndarray]:
    """Random inputs of a network for a photo of a size [px]."""
    random = np.random.default_rng(0)
    if name == "vae_encoder":
        return {"sample": random.uniform(-1, 1, (1, 3, height, width)).astype(np.float32)}
    h, w = height // 8, width // 8
    if name == "unet":
        sample = random.standard_normal((1, 8, h, w)).astype(np.float32)
        return {"sample": sample, "timestep": np.array([999], dtype=np.int64)}
    return {"latent": random.standard_normal((1, 4, h, w)).astype(np.float32)}


if __name__ == "__main__":
    main()
