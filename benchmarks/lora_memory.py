# SPDX-License-Identifier: Apache-2.0
"""Memory of fine-tuning at Stable Diffusion 2's full size: the whole U-Net, and low-rank updates of it.

    python benchmarks/lora_memory.py [--size 480 640] [--rank 16] [--device cuda] [--moments]

Builds the shapes of Stable Diffusion 2 (866 million weights in the U-Net) with random values, encodes a picture once,
and takes a step of `openmarigold train` in a process of its own for each row: float32 (bfloat16 in the last row),
micro-batch 1, gradient checkpointing. It prints the largest memory of the process (of the device with --device cuda).
Without --moments the whole U-Net makes no optimizer step, and its two moments, 8 bytes a weight, are added to what was
measured: so the benchmark runs on machines that are too small for such a training. Low-rank updates make their step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from openmarigold.diffusion import NoiseSchedule
from openmarigold.networks.backbone import save_checkpoint
from openmarigold.training import TrainingPaths, make_task
from openmarigold.training.batches import Batches, plan_batches
from openmarigold.training.loop import make_accelerator
from openmarigold.training.loss import Loss
from openmarigold.training.memory import estimate_memory
from openmarigold.training.monitor import peak_memory
from openmarigold.training.recipe import parse_recipe
from openmarigold.training.trainer import Trainer

GIB = 2**30
VARIANTS: dict[str, dict[str, Any]] = {
    "the whole U-Net": {},
    "low-rank": {"lora": {"half_base": False}},
    "low-rank, frozen weights in bfloat16": {"lora": {"half_base": True}},
}


def write_base(folder: Path) -> None:
    """Stable Diffusion 2's shapes before its first layer is widened; random weights."""
    from stable_diffusion import make_unet, make_vae  # next to this script

    torch.manual_seed(0)
    unet, vae = make_unet(in_channels=4), make_vae()
    schedule = NoiseSchedule(rescale_betas_zero_snr=False)
    embedding = torch.randn(1, 2, 1024)
    parts: dict[str, Any] = {"vae": vae, "unet": unet, "empty_prompt_embedding": embedding, "schedule": schedule}
    save_checkpoint(folder, dtype=torch.float16, **parts)


def measure(folder: Path, variant: str, size: list[int], rank: int, device: str, moments: bool) -> dict[str, float]:
    """Encodes what is missing, takes a step, and returns bytes and seconds."""
    if variant == "base":
        write_base(folder / "base")
        return {}
    changes = VARIANTS.get(variant, {})
    half = bool(changes.get("lora", {}).get("half_base"))
    table: dict[str, Any] = {
        "kind": "depth",
        "base": str(folder / "base"),
        "data": {"sources": {"synthetic": 1.0}, "size": size},
        "optimization": {
            "num_steps": 10,
            "batch_size": 1,
            "learning_rate": 3e-5,
            "gradient_checkpointing": True,
            "mixed_precision": "bf16" if half else "no",
        },
        "lora": {**changes["lora"], "rank": rank} if changes else {},
        "checkpoint": {"name": "benchmark"},
    }
    recipe: Any = parse_recipe(table, where="benchmark")
    accelerator = make_accelerator(recipe.optimization.mixed_precision, device)
    paths = TrainingPaths(data_dir=folder / "data", output_dir=folder / "run")
    task: Any = make_task(recipe, paths, cache_dir=folder / "latents", accelerator=accelerator)
    if not variant:
        return {}
    plan = plan_batches(recipe.optimization, num_processes=1)
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    loaded = peak_memory(accelerator.device)
    trainer, started = Trainer(task, recipe.optimization, plan, accelerator), time.perf_counter()
    estimate = estimate_memory(task.model, recipe.optimization, activations=task.activation_bytes(1))
    added = 0
    with Batches(task, plan, start=0, stop=1, num_workers=1, device=accelerator.device) as batches:
        if changes or moments:
            trainer.take_step(0, batches)
        else:
            with accelerator.autocast():
                loss = Loss(*trainer._module(batches.next()[0]))
            accelerator.backward(loss.mean)
            added = estimate.moments
    seconds = time.perf_counter() - started
    peak = peak_memory(accelerator.device)
    return {"loaded": loaded, "peak": peak + added, "added": added, "estimate": estimate.total, "seconds": seconds}


def main() -> None:
    """Measures each row in a process of its own, and prints it."""
    from training import write_data  # the script next to this one

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, default=[480, 640])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--moments", action="store_true", help="the whole U-Net makes its optimizer step, too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measure(given.folder, given.one, given.size, given.rank, given.device, given.moments)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data", 1, tuple(given.size))
        found: dict[str, dict[str, float]] = {}
        # The first two write the base and encode. They are processes, too, since a child's peak begins at its parent's.
        for variant in ("base", "", *VARIANTS):
            command = [sys.executable, __file__, *sys.argv[1:], "--one", variant, "--folder", name]
            # Freed tensors go back to the system at once, so that the peak is of what is in use.
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                sys.exit(done.stderr[-2000:])
            found[variant] = json.loads(done.stdout.splitlines()[-1])
    whole = found["the whole U-Net"]["peak"]
    print(f"torch {torch.__version__}, {given.device}, views {given.size[0]}x{given.size[1]}, rank {given.rank}")
    for variant in VARIANTS:
        row = found[variant]
        note = f", of which {row['added'] / GIB:.2f} are computed" if row["added"] else ""
        print(
            f"  {variant:38} {row['peak'] / GIB:6.2f} GiB{note}, {row['peak'] / whole:.2f}x; estimated "
            f"{row['estimate'] / GIB:.2f}; {row['loaded'] / GIB:.2f} to load; {row['seconds']:.0f} s"
        )


if __name__ == "__main__":
    main()
