# SPDX-License-Identifier: Apache-2.0
"""Our predictions against `diffusers.MarigoldDepthPipeline`: time, memory and difference, same weights and inputs.

    python benchmarks/against_diffusers.py --folder DIR [--rows exact bf16 ...] [--rounds 3] [--device cuda]

Weights are random, at the full Stable Diffusion 2 architecture (0.95 billion), and lie in DIR, which is made where it
is missing (3.8 GB, and more for what OpenVINO runs). Each pipeline runs in a process of its own, theirs and ours by
turns; a process predicts once with one member to warm up (unless --cold) and then once for the clock. Ratios are theirs
to ours, of the medians, with the smallest and the largest of the rounds. With --records the peer's runs are kept and,
for the same work, used again: an ensemble of ten takes it minutes.

The rows int8 quantize the networks once, before the clock runs, which takes some minutes and about 10 GiB. With random
weights the rule for layers that suffer says little about trained ones; rows with every layer show the most that int8
can gain.

On a CPU the peer is the pipeline as a user calls it, in float32. With `--device cuda` it is its documented recipe, half
precision and torch.compile of the U-Net, and ours is bfloat16, compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH = 576, 768
# Row -> (what it is, members, settings of ours); a tiny autoencoder of random weights predicts something else.
ROWS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "exact": ("1 step, ensemble 1, float32", 1, {"dtype": "float32"}),
    "bf16": ("1 step, ensemble 1, bfloat16", 1, {"dtype": "bfloat16"}),
    "tiny": ("1 step, ensemble 1, bfloat16, tiny both ways", 1, {"dtype": "bfloat16", "tiny": "both"}),
    "int8": ("1 step, ensemble 1, int8 by the rule for layers", 1, {"dtype": "int8"}),
    "int8-tiny": ("1 step, ensemble 1, int8 by the rule, tiny both ways", 1, {"dtype": "int8", "tiny": "both"}),
    "int8-every": ("1 step, ensemble 1, every layer in int8", 1, {"dtype": "int8", "every_layer": True}),
    "int8-every-tiny": (
        "1 step, ensemble 1, every layer in int8, tiny both ways",
        1,
        {"dtype": "int8", "every_layer": True, "tiny": "both"},
    ),
    "ensemble": ("1 step, ensemble 10, bfloat16", 10, {"dtype": "bfloat16"}),
    "ensemble-tiny": ("1 step, ensemble 10, bfloat16, tiny decoder", 10, {"dtype": "bfloat16", "tiny": "decode"}),
}


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the weights; made where it is missing")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["exact", "bf16", "tiny"], help="which comparisons")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each pipeline, by turns")
    parser.add_argument("--cold", action="store_true", help="time the first prediction of a process")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--engine", default="auto", choices=["auto", "openvino", "torch", "onnx"], help="of ours")
    parser.add_argument("--records", type=Path, help="file of the peer's runs")
    parser.add_argument("--peer-only", action="store_true", help="only add to --records")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(json.loads(arguments.worker))
        return
    make_weights(arguments.folder)
    print(f"{date.today().isoformat()}, {machine(arguments.device)}, {WIDTH}x{HEIGHT}", flush=True)
    for members in sorted({ROWS[row][1] for row in arguments.rows}):
        compare([row for row in arguments.rows if ROWS[row][1] == members], members, arguments)


def compare(rows: list[str], members: int, arguments: argparse.Namespace) -> None:
    """Runs the peer and ours by turns and prints a line for each row."""
    common = {
        "folder": str(arguments.folder),
        "members": members,
        "device": arguments.device,
        "warm_members": 0 if arguments.cold else 1,
    }
    ours = {row: {**common, **ROWS[row][2], "who": row, "engine": arguments.engine} for row in rows}
    if not arguments.peer_only:
        for task in ours.values():  # what is converted once is converted before the clock runs
            run({**task, "load_only": True})
    rounds = []
    for number in range(arguments.rounds):
        peer = run_peer({**common, "who": "diffusers", "round": number}, arguments.records)
        if not arguments.peer_only:
            rounds.append((peer, {row: run(task) for row, task in ours.items()}))
    for row in rows if rounds else ():
        times = [(peer["seconds"], answers[row]["seconds"]) for peer, answers in rounds]
        theirs, own = (statistics.median(side) for side in zip(*times, strict=True))
        ratios = [peer / mine for peer, mine in times]
        peaks = [max(peer["peak_gib"] for peer, _ in rounds), max(answers[row]["peak_gib"] for _, answers in rounds)]
        last_peer, last = rounds[-1][0], rounds[-1][1][row]
        expected = np.load(last_peer["depth"])
        difference = np.abs(np.load(last["depth"]) - expected)
        print(
            f"{ROWS[row][0]}: {theirs:.2f} s against {own:.2f} s ({last['engine']}), {theirs / own:.2f} times "
            f"({min(ratios):.2f} to {max(ratios):.2f}); load {last_peer['load_s']:.1f} against {last['load_s']:.1f} s; "
            f"peak memory {peaks[0]:.2f} against {peaks[1]:.2f} GiB, {peaks[1] / peaks[0]:.2f} times; difference "
            f"{difference.max():.1e} at most, {difference.mean():.1e} on average, of a depth with std "
            f"{expected.std():.3f}",
            flush=True,
        )


def run_peer(task: dict[str, Any], records: Path | None) -> dict[str, Any]:
    """The peer's answer, or what it answered to the same task in an earlier run that is on record."""
    answer = recorded(task, records)
    if answer is None:
        answer = run(task)
        if records is not None:
            with records.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"task": task, "answer": answer}) + "\n")
    return answer


def recorded(task: dict[str, Any], records: Path | None) -> dict[str, Any] | None:
    """The peer's answer to the same task in an earlier run on this machine, where such runs are kept."""
    if records is None or not records.is_file():
        return None
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    return next((line["answer"] for line in lines if line["task"] == task), None)


def run(task: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own answers to a task."""
    command = [sys.executable, __file__, "--folder", task["folder"], "--worker", json.dumps(task)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stderr[-3000:])
    return json.loads(result.stdout.strip().splitlines()[-1])


def work(task: dict[str, Any]) -> None:
    """Predicts in this process and prints time, peak memory and where the depth was saved."""
    started = time.perf_counter()
    rgb, latents = inputs(task["members"])
    predict, engine = (load_theirs if task["who"] == "diffusers" else load_ours)(task, rgb, latents)
    answer: dict[str, Any] = {"load_s": time.perf_counter() - started, "engine": engine}
    if not task.get("load_only"):
        if task["warm_members"]:
            predict(1)
        before = time.perf_counter()
        depth = predict(task["members"])
        answer["seconds"] = time.perf_counter() - before
        path = Path(f"{task['folder']}-depth-{task['who']}-{task['members']}.npy")
        np.save(path, depth)
        answer |= {"peak_gib": peak_gib(), "depth": str(path)}
    if task["device"] == "cuda":
        import torch

        answer["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps(answer))


def load_ours(task: dict[str, Any], rgb: np.ndarray, latents: np.ndarray) -> tuple[Any, str]:
    """A function that predicts the picture from some members with this package, and its engine."""
    from openmarigold import Predictor

    options: dict[str, Any] = {"engine": task["engine"], "device": task["device"], "dtype": task["dtype"]}
    if task["device"] == "cuda":
        options["compile"] = "full"
    folder = Path(task["folder"])
    if "every_layer" in task:
        from int8 import every_layer  # next to this script

        folder = every_layer(folder, tiny="tiny" in task)
    elif "tiny" in task:
        options |= {"tiny_vae": f"{task['folder']}-tiny-vae", "tiny_vae_for": task["tiny"]}
    predictor = Predictor.load(folder, **options)

    def predict(members: int) -> np.ndarray:
        return predictor(rgb, latents=latents[:members], ensemble_size=members, num_inference_steps=1).depth

    return predict, predictor.engine.name


def load_theirs(task: dict[str, Any], rgb: np.ndarray, latents: np.ndarray) -> tuple[Any, str]:
    """A function that predicts the picture from some members with diffusers' pipeline, and its name."""
    import torch
    from diffusers import MarigoldDepthPipeline
    from PIL import Image
    from safetensors.torch import load_file

    cuda = task["device"] == "cuda"
    options: dict[str, Any] = {"torch_dtype": torch.float16} if cuda else {}
    pipeline = MarigoldDepthPipeline.from_pretrained(task["folder"], text_encoder=None, tokenizer=None, **options)
    pipeline.to(task["device"])
    embedding = load_file(f"{task['folder']}/empty_prompt_embedding.safetensors")["empty_prompt_embedding"]
    pipeline.empty_text_embedding = embedding.to(task["device"], pipeline.unet.dtype)
    if cuda:
        pipeline.unet = torch.compile(pipeline.unet, mode="reduce-overhead", fullgraph=True)
    pipeline.set_progress_bar_config(disable=True)
    image = Image.fromarray(rgb)
    start = torch.from_numpy(latents).to(task["device"], pipeline.unet.dtype)

    def predict(members: int) -> np.ndarray:
        settings = {"latents": start[:members], "num_inference_steps": 1, "ensemble_size": members}
        return pipeline(image, **settings).prediction[0, :, :, 0]

    return predict, "diffusers"


def inputs(members: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of waves, and starting noise."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(rows / (9 + k) + k) * np.cos(columns / (13 + k)) for k in range(3)]
    rgb = (127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
    latents = np.random.default_rng(0).standard_normal((members, 4, HEIGHT // 8, WIDTH // 8))
    return rgb, latents.astype(np.float32)


def make_weights(folder: Path) -> None:
    """Random weights in the shapes of Stable Diffusion 2 and of its tiny autoencoder, in a process of their own."""
    if folder.exists() and Path(f"{folder}-tiny-vae").exists():
        return
    code = f"from against_diffusers import write_weights; write_weights({str(folder)!r})"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def write_weights(folder: str) -> None:
    """Writes the checkpoint, where it is missing, and the tiny autoencoder."""
    import torch
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    from openmarigold.diffusion import NoiseSchedule
    from openmarigold.networks.backbone import save_checkpoint
    from stable_diffusion import make_unet, make_vae  # next to this script

    torch.manual_seed(0)
    if not Path(folder).exists():
        unet, vae = make_unet(in_channels=8), make_vae()
        with torch.no_grad():
            vae.decoder.conv_out.weight.mul_(3)  # a fresh decoder gives a nearly constant map
        save_checkpoint(
            Path(folder),
            vae=vae,
            unet=unet,
            empty_prompt_embedding=torch.randn(1, 2, 1024),
            schedule=NoiseSchedule(),
            index={
                "_class_name": "MarigoldDepthPipeline",
                "prediction_type": "depth",
                "scale_invariant": True,
                "shift_invariant": True,
                "default_denoising_steps": 1,
                "default_processing_resolution": WIDTH,
            },
        )
    tiny = AutoencoderTiny(latent_channels=4)  # the shape of TAESD, 2.4 million
    save_checkpoint(Path(f"{folder}-tiny-vae"), vae=tiny)


def peak_gib() -> float:
    """The most memory this process has had; `ru_maxrss` would begin with that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        assert found is not None
        return int(found.group(1)) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)


def machine(device: str) -> str:
    """What the pipelines run on."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    return f"{os.cpu_count()} cores of {found.group(1) if found else 'an unknown CPU'}"


if __name__ == "__main__":
    main()
