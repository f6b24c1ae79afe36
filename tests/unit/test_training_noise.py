# SPDX-License-Identifier: Apache-2.0
"""Annealed multi-resolution noise against a second, literal writing of the algorithm, and its known facts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from openmarigold.training.noise import multi_resolution_noise


def literal(shape: tuple[int, int, int, int], strength: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The published algorithm line by line, one sample at a time, drawing in the same order."""
    b, _, a, c = shape
    total = torch.randn(shape, generator=generator)
    p, q = a, c
    for i in range(10):
        r = 2 + 2 * torch.rand((), generator=generator).item()
        p, q = max(1, int(p / r**i)), max(1, int(q / r**i))
        level = torch.randn((b, shape[1], p, q), generator=generator)
        for k in range(b):
            up = functional.interpolate(level[k : k + 1], size=(a, c), mode="bilinear", align_corners=False)
            total[k] += up[0] * strength[k] ** i
        if p == 1 or q == 1:
            break
    return total / torch.std(total)


@pytest.mark.parametrize("shape", [(3, 4, 60, 80), (2, 8, 30, 40), (1, 4, 1, 9)])
def test_equals_the_published_algorithm(shape: tuple[int, int, int, int]) -> None:
    strength = torch.linspace(0.05, 0.9, shape[0])
    ours = multi_resolution_noise(
        shape, strength=strength, generator=torch.Generator().manual_seed(3), normalization="batch"
    )
    torch.testing.assert_close(ours, literal(shape, strength, torch.Generator().manual_seed(3)))


def test_batch_normalization_lets_samples_disturb_each_other_and_ours_does_not() -> None:
    """The published quirk: with t = (0, 999) the samples' standard deviations are 0.887 and 1.089."""
    strength = torch.tensor([0.0, 0.9 * 0.999])
    stds = {}
    for mode in ("batch", "sample"):
        draws = [
            multi_resolution_noise(
                (2, 4, 60, 80), strength=strength, generator=torch.Generator().manual_seed(seed), normalization=mode
            ).std(dim=(1, 2, 3))
            for seed in range(12)
        ]
        stds[mode] = torch.stack(draws).mean(dim=0).numpy()
    np.testing.assert_allclose(stds["batch"], [0.887, 1.089], atol=0.02)
    np.testing.assert_allclose(stds["sample"], [1.0, 1.0], atol=1e-5)


def test_strength_zero_is_white_and_high_strength_is_not() -> None:
    noise = multi_resolution_noise(
        (2, 4, 60, 80),
        strength=torch.tensor([0.0, 0.9]),
        generator=torch.Generator().manual_seed(0),
        normalization="sample",
    )
    neighbors = [float((sample[:, :, 1:] * sample[:, :, :-1]).mean()) for sample in noise]
    assert abs(neighbors[0]) < 0.03
    assert neighbors[1] > 0.2


def test_share_of_three_and_four_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a 60x80 latent the loop runs three levels in 42 % of draws and four in 58 %."""
    sizes: list[int] = []
    original = functional.interpolate

    def counting(value: torch.Tensor, **settings: object) -> torch.Tensor:
        sizes[-1] += 1
        return original(value, **settings)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(functional, "interpolate", counting)
    for seed in range(400):
        sizes.append(0)
        multi_resolution_noise(
            (1, 1, 60, 80),
            strength=torch.tensor([0.5]),
            generator=torch.Generator().manual_seed(seed),
            normalization="sample",
        )
    assert set(sizes) == {3, 4}
    assert sizes.count(3) / len(sizes) == pytest.approx(0.42, abs=0.07)
