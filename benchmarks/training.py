# SPDX-License-Identifier: Apache-2.0
"""Our training step against a plain loop that does what the published trainer does, in one run on the same models.

    python benchmarks/training.py [--models tiny mid] [--rounds 3] [--steps 1]

The plain loop, written after the description of the published one (docs/faithfulness.md): read the pair, encode color
and depth with the autoencoder in each micro-step, float32 throughout, the loss fetched after every micro-step. Ours:
latents from the cache, bfloat16 autocast, losses left on the device; recipe, loader and loop are those of
`openmarigold train`. Both train the same U-Net from the same base on the same pairs with the same effective batch,
which the plain loop makes of micro-batches of 2, as published, and ours of as many as fit the model (`MODELS`).
Rounds alternate; the ratio is that of the medians. The loader alone is timed too.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.nn import functional

from openmarigold.diffusion import NoiseSchedule
from openmarigold.networks.backbone import load_empty_prompt_embedding, load_vae, save_checkpoint
from openmarigold.training import TrainingPaths, make_task
from openmarigold.training.batches import Batches, plan_batches
from openmarigold.training.loop import make_accelerator
from openmarigold.training.recipe import MarigoldRecipe, parse_recipe
from openmarigold.training.trainer import Trainer

# Widths of the U-Net, widths of the autoencoder, size of a view, our micro-batch; layers as in Stable Diffusion. In
# "narrow" attention between 4,800 cells takes most of the time, and bfloat16 does not speed that up on a CPU.
MODELS = {
    "tiny": ((32, 64, 128, 128), (16, 32, 64, 64), (192, 256), 16),
    "narrow": ((32, 64, 128, 128), (16, 32, 64, 64), (480, 640), 2),
    "mid": ((96, 192, 384, 384), (64, 128, 256, 256), (480, 640), 2),
}
PLAIN_MICRO_BATCH = 2


def write_base(folder: Path, name: str) -> int:
    """A generator with random weights; returns the number of the U-Net's weights."""
    widths, vae_widths, _, _ = MODELS[name]
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        attention_head_dim=tuple(max(1, width // 64) for width in widths),  # pyright: ignore[reportArgumentType]
        cross_attention_dim=256,
        use_linear_projection=True,
        norm_num_groups=16,
    )
    vae = AutoencoderKL(
        block_out_channels=vae_widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=16,
    )
    embedding = torch.randn(1, 2, 256)
    schedule = NoiseSchedule(rescale_betas_zero_snr=False)
    save_checkpoint(folder, vae=vae, unet=unet, empty_prompt_embedding=embedding, schedule=schedule)
    return sum(parameter.numel() for parameter in unet.parameters())


def write_data(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Pairs of noise pictures and slanted planes in the format of the package's own renders."""
    import io
    import tarfile

    from PIL import Image

    (folder / "synthetic").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "synthetic" / "train-00.tar", "w") as archive:
        for number in range(count):
            low = rng.integers(0, 255, (15, 20, 3), dtype=np.uint8)
            rgb = Image.fromarray(low).resize((size[1], size[0]), Image.Resampling.BICUBIC)
            row, column = np.mgrid[0 : size[0], 0 : size[1]]
            depth = 1.0 + rng.uniform(0, 0.02) * row + rng.uniform(0, 0.02) * column
            code = np.rint(np.log(depth / 0.1) / np.log(1000.0) * 4095).astype(np.uint16)
            for suffix, image, kind in ((".rgb.jpg", rgb, "JPEG"), (".depth.png", Image.fromarray(code), "PNG")):
                buffer = io.BytesIO()
                image.save(buffer, kind)
                member = tarfile.TarInfo(f"rooms-{number:03d}{suffix}")
                member.size = len(buffer.getvalue())
                archive.addfile(member, io.BytesIO(buffer.getvalue()))


def make_recipe(base: Path, size: tuple[int, int], *, precision: str, batch: tuple[int, int]) -> MarigoldRecipe:
    """The paper's micro-step on our own data."""
    table: dict[str, Any] = {
        "kind": "depth",
        "base": str(base),
        "data": {"sources": {"synthetic": 1.0}, "size": list(size), "mixture": "micro_batch"},
        "optimization": {
            "num_steps": 1000,
            "batch_size": batch[0],
            "micro_batch_size": batch[1],
            "learning_rate": 3e-5,
            "mixed_precision": precision,
        },
        "checkpoint": {"name": "benchmark"},
    }
    recipe = parse_recipe(table, where="benchmark")
    assert isinstance(recipe, MarigoldRecipe)
    return recipe


class Ours:
    """The steps of `openmarigold train`."""

    def __init__(self, recipe: MarigoldRecipe, folder: Path) -> None:
        self.accelerator = make_accelerator(recipe.optimization.mixed_precision, "cpu")
        paths = TrainingPaths(data_dir=folder / "data", output_dir=folder / "run")
        self.task = make_task(recipe, paths, cache_dir=folder / "latents", accelerator=self.accelerator)
        self.plan = plan_batches(recipe.optimization, num_processes=1)
        self.trainer = Trainer(self.task, recipe.optimization, self.plan, self.accelerator)
        self.step = 0

    def run(self, steps: int) -> float:
        """Samples a second."""
        started = time.perf_counter()
        span = {"start": self.step, "stop": self.step + steps}
        with Batches(self.task, self.plan, **span, num_workers=1, device=self.accelerator.device) as batches:
            for step in range(self.step, self.step + steps):
                result = self.trainer.take_step(step, batches)
        assert np.isfinite(result.loss.item())
        self.step += steps
        return steps * self.plan.batch_size / (time.perf_counter() - started)

    def load(self, steps: int) -> float:
        """Samples a second of the loader alone."""
        started = time.perf_counter()
        for step in range(steps):
            for micro_step in range(self.plan.num_micro_steps):
                self.task.batch(self.plan.slice_of(step, micro_step))
        return steps * self.plan.batch_size / (time.perf_counter() - started)


class Plain:
    """A loop as it is published: encoding on line, float32, one fetch of the loss a micro-step."""

    def __init__(self, recipe: MarigoldRecipe, folder: Path) -> None:
        self.accelerator = make_accelerator("no", "cpu")
        paths = TrainingPaths(data_dir=folder / "data", output_dir=folder / "run")
        # Without a cache: its batches hold pictures, which are encoded here.
        self.task = make_task(recipe, paths, cache_dir=None, accelerator=self.accelerator)
        self.plan = plan_batches(recipe.optimization, num_processes=1)
        self.unet = self.task.model.train()
        self.vae = load_vae(folder / "base" / "vae")
        self.embedding = load_empty_prompt_embedding(folder / "base")
        self.optimizer = torch.optim.Adam(self.unet.parameters(), lr=3e-5, foreach=False, fused=False)
        self.alphas = torch.from_numpy(NoiseSchedule().alphas_cumprod.copy()).float()
        self.step = 0

    def run(self, steps: int) -> float:
        """Samples a second."""
        started = time.perf_counter()
        for _ in range(steps):
            for micro_step in range(self.plan.num_micro_steps):
                arrays = self.task.batch(self.plan.slice_of(self.step, micro_step))
                batch = {name: torch.from_numpy(value) for name, value in arrays.items()}
                with torch.no_grad():
                    rgb = self.vae.encode(batch["rgb_picture"]).latent_dist.mode() * 0.18215
                    depth = self.vae.encode(batch["target_pictures"][:, 0]).latent_dist.mode() * 0.18215
                alpha = self.alphas[batch["timesteps"]].view(-1, 1, 1, 1)
                noisy = alpha.sqrt() * depth + (1 - alpha).sqrt() * batch["noise"]
                wanted = alpha.sqrt() * batch["noise"] - (1 - alpha).sqrt() * depth
                context = self.embedding.expand(len(noisy), -1, -1)
                found = self.unet(torch.cat([rgb, noisy], 1), batch["timesteps"], encoder_hidden_states=context).sample
                mask = batch["valid_mask"].expand_as(wanted)
                loss = functional.mse_loss(found[mask], wanted[mask])
                assert np.isfinite(loss.item())
                (loss / self.plan.num_micro_steps).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
        return steps * self.plan.batch_size / (time.perf_counter() - started)


def measure(name: str, *, rounds: int, steps: int, accumulated: int, folder: Path) -> None:
    """Prints one model's line."""
    count = write_base(folder / "base", name)
    size, micro = MODELS[name][2:]
    write_data(folder / "data", 16, size)
    batch = PLAIN_MICRO_BATCH * accumulated

    def recipe(precision: str, micro_batch: int) -> MarigoldRecipe:
        return make_recipe(folder / "base", size, precision=precision, batch=(batch, min(batch, micro_batch)))

    plain = Plain(recipe("no", PLAIN_MICRO_BATCH), folder)
    ours, exact = Ours(recipe("bf16", micro), folder), Ours(recipe("no", micro), folder)
    runs = {"plain": plain, "ours": ours, "ours, float32": exact}
    rates: dict[str, list[float]] = {key: [] for key in runs}
    for number in range(rounds + 1):
        for key, run in runs.items():
            rate = run.run(1 if number == 0 else steps)
            if number:  # the first round warms up
                rates[key].append(rate)
    middle = {key: statistics.median(values) for key, values in rates.items()}
    loader = ours.load(200)
    print(f"{name}: U-Net of {count / 1e6:.1f} M weights, {size[0]}x{size[1]}, {batch} samples a step")
    for key, values in rates.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"  {key:14} {middle[key]:8.2f} samples/s ({spread}), {middle[key] / middle['plain']:.2f}x")
    print(f"  {'loader alone':14} {loader:8.2f} samples/s, {loader / middle['ours']:.0f}x the step")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--accumulated", type=int, default=8, help="micro-steps of the plain loop (published: 16)")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            settings = {key: value for key, value in vars(arguments).items() if key != "models"}
            measure(name, folder=Path(folder), **settings)


if __name__ == "__main__":
    main()
