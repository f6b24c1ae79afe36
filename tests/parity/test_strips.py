# SPDX-License-Identifier: Apache-2.0
"""The autoencoder in strips of rows against one pass, which diffusers computes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn

from openmarigold.networks import memory
from openmarigold.networks.backbone import decode_to_image, encode_to_latent
from openmarigold.networks.memory import available_memory
from openmarigold.networks.rewrites import fold_upsampling, split_group_norms
from openmarigold.networks.rows import Kept, Moments
from openmarigold.networks.strips import decode_in_strips, encode_in_strips, runs_in_strips
from tiny import make_vae

EXACT = 1e-5  # of the range of the result, float32; docs/speed.md states it
FLOAT64 = 5e-7  # factors of normalizations are float32 even there


def make(*, fold: bool = False, layers: int = 1, **settings: Any) -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = {**make_vae("kl").config, "layers_per_block": layers, **settings}
        vae = AutoencoderKL.from_config(config).eval().requires_grad_(False)
        for module in vae.modules():
            if isinstance(module, nn.GroupNorm):  # fresh ones change nothing, which would hide wrong ones
                module.weight.copy_(1 + 0.3 * torch.randn(module.weight.shape))
                module.bias.copy_(0.3 * torch.randn(module.bias.shape))
    assert isinstance(vae, AutoencoderKL)
    return fold_upsampling(vae) if fold else vae


def distances(vae: AutoencoderKL, size: tuple[int, int], *, num_whole: int, batch: int = 1) -> list[float]:
    """Largest difference to one pass as a share of the range of values: encoder, decoder."""
    generator = torch.Generator().manual_seed(5)
    dtype = vae.dtype
    image = (2 * torch.rand(batch, 3, 8 * size[0], 8 * size[1], generator=generator) - 1).to(dtype)
    latent = torch.randn(batch, 4, *size, generator=generator).to(dtype)
    with torch.inference_mode():
        pairs = [
            (encode_to_latent(vae, image), encode_in_strips(vae, image, num_whole=num_whole)),
            (decode_to_image(vae, latent), decode_in_strips(vae, latent, num_whole=num_whole)),
        ]
    for whole, strips in pairs:
        assert strips.shape == whole.shape
        assert strips.dtype == dtype
    return [float((strips - whole).abs().max() / (whole.max() - whole.min())) for whole, strips in pairs]


@pytest.fixture
def set_strip_height(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes strips of about so many rows, whatever their memory."""

    def change(rows: int) -> None:
        monkeypatch.setattr("openmarigold.networks.rows._STRIP_BYTES", 1)
        monkeypatch.setattr("openmarigold.networks.rows._FEWEST_ROWS", rows)

    return change


# Every pair of rows, fold and num_whole; strips of one row cost most, so their images are small.
@pytest.mark.parametrize(
    ("rows", "fold", "num_whole", "size", "batch"),
    [
        (1, False, 1, (1, 1), 1),
        (1, True, 2, (2, 3), 2),
        (1, False, 2, (2, 1), 1),
        (3, True, 1, (1, 1), 1),
        (3, False, 2, (5, 7), 2),
        (3, True, 1, (6, 4), 1),
        (64, False, 1, (5, 7), 2),
        (64, True, 2, (6, 4), 1),
    ],
)
def test_strips_equal_one_pass(
    rows: int,
    fold: bool,
    num_whole: int,
    size: tuple[int, int],
    batch: int,
    set_strip_height: Callable[[int], None],
) -> None:
    set_strip_height(rows)
    assert max(distances(make(fold=fold), size, num_whole=num_whole, batch=batch)) < EXACT


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": 2, "block_out_channels": (8, 16, 32, 32)},
        {"mid_block_add_attention": False},
        {"use_quant_conv": False, "use_post_quant_conv": False},
        {"act_fn": "gelu"},
    ],
)
def test_other_structures_in_float64(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmarigold.networks.rows._STRIP_BYTES", 1)
    monkeypatch.setattr("openmarigold.networks.strips._LOGITS", 100)  # queries in parts of 2 to 3
    vae = make(**settings).double()
    assert runs_in_strips(vae)
    for num_whole in (1, 2):
        assert max(distances(vae, (5, 7), num_whole=num_whole)) < FLOAT64


@pytest.mark.parametrize(("rows", "size"), [(1, (2, 3)), (3, (5, 7))])
def test_bfloat16_strips_are_as_near_to_float32_as_one_pass(
    rows: int, size: tuple[int, int], set_strip_height: Callable[[int], None]
) -> None:
    set_strip_height(rows)
    assert max(distances(make(fold=True).bfloat16(), size, num_whole=1)) < 0.05  # numbers of 8 bits


def test_a_change_at_one_end_reaches_the_other() -> None:
    """Statistics are those of the whole image: tiles would not see what lies far away."""
    vae, latent = make(), torch.zeros(1, 4, 40, 4)
    changed = latent.clone()
    changed[:, :, 0] = 5
    top, bottom = (decode_in_strips(vae, value, num_whole=1)[:, :, -1] for value in (latent, changed))
    assert (top - bottom).abs().max() > 1e-3


def test_moments_of_strips_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    image = 1000 + torch.randn(2, 6, 11, 5, generator=generator)  # a large mean, in which squares would be lost
    norm = nn.GroupNorm(3, 6).requires_grad_(False)
    nn.init.normal_(norm.weight, generator=generator)
    found = Moments()
    for strip in image.split([1, 4, 6], dim=2):
        found.add(strip)
    factor, summand = found.normalization(norm)
    exact = nn.GroupNorm(3, 6).requires_grad_(False).double()
    exact.weight.copy_(norm.weight)
    found_image = image.double() * factor + summand
    torch.testing.assert_close(found_image, exact(image.double()), rtol=0, atol=2e-3)  # 1000 in float32


def test_rows_that_are_no_longer_needed_are_freed() -> None:
    image = torch.arange(24.0).reshape(1, 2, 4, 3)
    kept = Kept((1, 2, 4, 3))
    for row in range(4):
        kept.append(image[:, :, row : row + 1])
    torch.testing.assert_close(kept.rows(1, 3), image[:, :, 1:3])
    kept.free_before(2)
    torch.testing.assert_close(kept.rows(2, 4), image[:, :, 2:])
    with pytest.raises((RuntimeError, ValueError)):
        kept.rows(0, 1)


def test_unknown_layers_do_not_run_in_strips() -> None:
    assert runs_in_strips(make()) and runs_in_strips(make(fold=True))
    assert not runs_in_strips(make_vae("tiny"))
    assert not runs_in_strips(split_group_norms(make()))
    changes: list[tuple[str, str, nn.Module]] = [
        ("decoder.mid_block", "resnets", nn.ModuleList([nn.Identity(), nn.Identity()])),
        ("decoder.up_blocks.1.resnets.0", "conv1", nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")),
        ("encoder.down_blocks.0.resnets.0", "nonlinearity", nn.Softmax(dim=2)),
        ("encoder.mid_block.attentions", "0", nn.Identity()),
        ("decoder", "conv_norm_out", nn.BatchNorm2d(8)),
    ]
    for place, name, layer in changes:
        vae = make()
        setattr(vae.get_submodule(place), name, layer)
        assert not runs_in_strips(vae), place


PEAK = """
import re, sys, torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from openmarigold.networks import rows
from openmarigold.networks.backbone import decode_to_image
from openmarigold.networks.strips import decode_in_strips

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) / 2**10

torch.set_num_threads(1)
rows._STRIP_BYTES //= 8  # as the channels are an eighth of Stable Diffusion's
vae = AutoencoderKL(block_out_channels=(16, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
                    up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, norm_num_groups=8).eval()
latent = torch.zeros(1, 4, 96, 128)
with torch.inference_mode():
    decode_in_strips(vae, latent[..., :8, :8])
    before = peak()
    {"whole": decode_to_image, "strips": decode_in_strips}[sys.argv[1]](vae, latent)
    print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.slow
def test_strips_take_less_than_half_of_the_memory() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    peaks = []
    for way in ("whole", "strips"):
        command = [sys.executable, "-c", PEAK, way]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        peaks.append(float(re.findall(r"[\d.]+", result.stdout)[-1]))
    assert peaks[1] <= 0.5 * peaks[0], peaks


def test_available_memory_heeds_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTAINERS", tmp_path)
    assert available_memory("cpu") == 5000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 2000000\ninactive_file 400000\n")
    assert available_memory("cpu") == 900_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory("cpu") == 5000 * 1024
    assert available_memory("mps") == float("inf")
