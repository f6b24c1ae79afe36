# SPDX-License-Identifier: Apache-2.0
"""A tiny data folder in the format of the training sources, and recipes that train on it in seconds."""

from __future__ import annotations

import contextlib
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from openmarigold.data.encodings import MapEncoding
from openmarigold.data.shard_writer import NewSample, ShardWriter

AUTOENCODER = """
kind = "autoencoder"
data = { sources = { photos = 0.5, synthetic = 0.5 }, size = [32, 32], min_scale = 0.5, appearance = 1.0 }
model = { latent_channels = 4, width = 8, encoder_blocks = [0, 1, 1, 1], decoder_blocks = [1, 1, 1, 0] }
loss = { depth_share = 0.5, latent_noise_std = 0.1, latent_regularization = 0.01 }
optimization = { num_steps = 8, batch_size = 2, learning_rate = 1e-3, warmup_steps = 2, ema_decay = 0.9 }
"""

GENERATOR = """
kind = "generator"
autoencoder = "autoencoder/checkpoint"
data = { sources = { photos = 0.5, synthetic = 0.5 }, size = [32, 48] }
model = { block_out_channels = [32, 32], layers_per_block = 1, head_dim = 16, cross_attention_dim = 16 }
optimization = { num_steps = 6, batch_size = 2, learning_rate = 1e-3, warmup_steps = 2, gradient_clip = 1.0 }
"""

DEPTH = """
kind = "depth"
base = "generator/checkpoint"
data = { sources = { synthetic = 1.0 }, size = [32, 48], min_scale = 0.5, appearance = 1.0, num_variants = 2 }
timesteps = { last_share = 0.25 }
run = { save_period_s = 0.0, validation_period = 5 }
checkpoint = { name = "tiny", processing_resolution = 48, half_precision = true }

[optimization]
num_steps = 12
batch_size = 2
learning_rate = 1e-3
warmup_steps = 2
decay = "cosine"
gradient_clip = 1.0
ema_decay = 0.9
mixed_precision = "bf16"
"""

LOG_AUTOENCODER = """
kind = "log_autoencoder"
data = { sources = { synthetic = 1.0 }, size = [32, 48], min_scale = 0.5, aspect_jitter = 0.1 }
model = { latent_channels = 4, width = 8, encoder_blocks = [0, 1, 1, 1], decoder_blocks = [1, 1, 1, 0] }
optimization = { num_steps = 8, batch_size = 2, learning_rate = 1e-3, warmup_steps = 2, ema_decay = 0.9 }
"""

LITE = """
kind = "lite"
autoencoder = "log-autoencoder/checkpoint"
data = { sources = { synthetic = 1.0 }, size = [32, 48], min_scale = 0.5, aspect_jitter = 0.1, appearance = 1.0 }
views = { other_sizes = [[48, 32]], other_share = 0.5 }
encoder = { variant = "lite0", condition_channels = [2, 3, 4, 5, 6], weights = "random", frozen_stages = 1 }
unet = { block_out_channels = [32, 32], layers_per_block = 1, head_dim = 16, cross_attention_dim = 16 }
run = { save_period_s = 0.0 }
checkpoint = { name = "tiny-lite", processing_resolution = 32 }

[optimization]
num_steps = 6
batch_size = 4
learning_rate = 1e-3
warmup_steps = 2
decay = "cosine"
weight_decay = 0.02
gradient_clip = 1.0
ema_decay = 0.9
mixed_precision = "bf16"
"""


def train_in_turn(folder: Path, **recipes: str) -> Path:
    """Writes data and recipes into a folder, and trains one after another; run and recipe have the keyword's name."""
    from openmarigold.training import train

    write_training_data(folder / "data")
    with contextlib.chdir(folder):
        for name, text in recipes.items():
            (folder / f"{name}.toml").write_text(text)
            train(f"{name}.toml", data_dir=folder / "data", output_dir=folder / name.replace("_", "-"), device="cpu")
    return folder


def write_training_data(folder: Path, *, num_photos: int = 6, num_pairs: int = 6) -> Path:
    """Writes photos/ and synthetic/ with pictures of slanted planes, sky in the upper corner of every third."""
    rng = np.random.default_rng(5)
    (folder / "photos").mkdir(parents=True)
    (folder / "synthetic").mkdir()
    with tarfile.open(folder / "photos" / "photos-00.tar", "w") as archive:
        for number in range(num_photos):
            _add(archive, f"p-{number}.jpg", _jpeg(_picture(rng)))
    with tarfile.open(folder / "synthetic" / "train-00.tar", "w") as archive:
        for number in range(num_pairs):
            kind = "rooms" if number < 4 else "street"
            row, column = np.mgrid[0:48, 0:64]
            depth = 1.0 + rng.uniform(0, 0.1) * row + rng.uniform(0, 0.1) * column
            code = np.clip(np.rint(np.log(depth / 0.1) / np.log(1000.0) * 4095), 1, 4095).astype(np.uint16)
            if number % 3 == 0:
                code[:16, :16] = 0
            buffer = io.BytesIO()
            Image.fromarray(code).save(buffer, "PNG")
            _add(archive, f"{kind}-{number}.rgb.jpg", _jpeg(_picture(rng)))
            _add(archive, f"{kind}-{number}.depth.png", buffer.getvalue())
    return folder


def maps_of(modality: str, rgb: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Made-up maps of a picture for a modality other than depth; a corner is unknown."""
    height, width, _ = rgb.shape
    colors = rgb.astype(np.float32) / 255 * 0.8 + 0.1
    row, column = (place.astype(np.float32) for place in np.mgrid[0:height, 0:width])
    slope = rng.uniform(-0.03, 0.03, 2)
    if modality == "normals":
        vectors = np.stack([slope[0] * row, slope[1] * column, np.ones_like(row)], axis=-1)
        maps = {"normals": vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)}
    elif modality == "appearance":
        maps = {"albedo": colors, "roughness": row / height, "metallicity": column / width}
    else:
        shading = np.repeat(2.0 + slope[0] * row[..., None], 3, axis=-1)
        maps = {"albedo": colors, "shading": shading, "residual": 0.3 * (colors > 0.8)}
    unknown = (row < 8) & (column < 8)
    return {
        name: np.where(unknown if m.ndim == 2 else unknown[..., None], 0, m).astype(np.float32)
        for name, m in maps.items()
    }


def write_prepared(folder: Path, modality: str, *, num_samples: int, seed: int = 5) -> Path:
    """Writes a prepared data set with pictures and maps for a modality other than depth."""
    rng = np.random.default_rng(seed)
    pictures = [_picture(rng) for _ in range(num_samples)]
    samples = [
        NewSample(
            key=f"s-{number}",
            kind="rooms" if number % 2 else "street",
            scene="s",
            rgb=rgb,
            maps=maps_of(modality, rgb, rng),
        )
        for number, rgb in enumerate(pictures)
    ]
    encodings = {name: MapEncoding(kind="float16") for name in samples[0].maps}
    writer = ShardWriter(folder, name=folder.name, split="train", encodings=encodings, settings={})
    writer.begin()
    writer.write(0, samples)
    writer.finish(1)
    return folder


def _picture(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)


def _jpeg(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG")
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
