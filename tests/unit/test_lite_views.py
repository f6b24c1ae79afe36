# SPDX-License-Identifier: Apache-2.0
"""Views of marigold-lite on the device, and the samples that they are cut from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from openmarigold.errors import DataError
from openmarigold.modalities import DEPTH
from openmarigold.training.lite.recipes import ViewConfig
from openmarigold.training.lite.samples import Samples, cut_depth, draw_views, make_views
from openmarigold.training.settings import DataConfig
from openmarigold.training.views import Mixture
from training_data import write_training_data

STORED = (96, 128)
DATA = DataConfig(sources={"synthetic": 1.0}, size=(32, 48), min_scale=0.5, aspect_jitter=0.2, appearance=1.0)


def draw(seed: int = 0, count: int = 64, data: DataConfig = DATA, views: ViewConfig | None = None) -> dict:
    drawn = draw_views(np.random.default_rng(seed), count, stored=STORED, data=data, views=views or ViewConfig())
    return {name: torch.from_numpy(values) for name, values in drawn.arrays.items()}


def still(count: int = 1) -> DataConfig:
    """No change but mirroring."""
    return DataConfig(sources={"synthetic": 1.0}, size=STORED)


def slope() -> torch.Tensor:
    """Codes whose value is 100 times the column plus the row."""
    row, column = np.mgrid[0 : STORED[0], 0 : STORED[1]]
    return torch.from_numpy((100 * column + row).astype(np.int16))


def test_views_lie_within_their_pictures_whatever_the_angle() -> None:
    affine = draw(count=500)["affine"]
    corners = torch.tensor([[x, y, 1.0] for x in (-1, 1) for y in (-1, 1)]).T
    assert (affine @ corners).abs().max() <= 1.0 + 1e-5


def test_a_view_that_is_not_varied_is_the_picture_or_its_mirror_image() -> None:
    arrays = draw(data=still(), views=ViewConfig(rotation=0.0), count=8)
    cut = cut_depth(slope().expand(8, -1, -1), arrays["affine"], size=STORED)
    whole = cut_depth(slope()[None], torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]), size=STORED)[0]
    mirrored = [bool(torch.allclose(view, whole.flip(2))) for view in cut]
    assert all(
        bool(torch.allclose(view, whole)) != is_mirrored for view, is_mirrored in zip(cut, mirrored, strict=True)
    )
    assert 0 < sum(mirrored) < 8


def test_color_and_depth_are_cut_at_the_same_place() -> None:
    plain = DataConfig(sources={"synthetic": 1.0}, size=(64, 80), min_scale=0.5, aspect_jitter=0.2)
    arrays = draw(data=plain, views=ViewConfig(rotation=20.0, rotated_share=1.0), count=16)
    code = slope().expand(16, -1, -1).clone()
    code[:, :, 64:] += 10_000  # an edge in depth, where color has one too
    rgb = torch.zeros(16, *STORED, 3, dtype=torch.uint8)
    rgb[:, :, 64:] = 255
    image, log_depth = make_views(rgb, code, arrays, size=(64, 80), generator=torch.Generator().manual_seed(0))
    far = (
        log_depth[:, 0]
        > cut_depth(torch.full((1, *STORED), 12_000, dtype=torch.int16), arrays["affine"][:1], size=(1, 1)).item()
    )
    bright = image.mean(dim=1) > 0
    assert (far == bright).float().mean() > 0.99


def test_rolled_views_keep_straight_lines_and_pixels_square() -> None:
    data = DataConfig(sources={"synthetic": 1.0}, size=(64, 64))
    arrays = draw(data=data, views=ViewConfig(rotation=30.0, rotated_share=1.0), count=32)
    pixels = arrays["affine"] * torch.tensor([STORED[1] / 2, STORED[0] / 2])[:, None]
    right, down = pixels[:, :, 0], pixels[:, :, 1]
    assert torch.allclose(right.norm(dim=1), down.norm(dim=1), rtol=1e-4)
    assert torch.allclose((right * down).sum(dim=1), torch.zeros(32), atol=1e-2)


def test_colors_change_and_stay_in_range() -> None:
    rgb = torch.randint(0, 256, (64, *STORED, 3), dtype=torch.uint8)
    code = slope().expand(64, -1, -1)
    arrays = draw()
    first, depth = make_views(rgb, code, arrays, size=(32, 48), generator=torch.Generator().manual_seed(1))
    again, _ = make_views(rgb, code, arrays, size=(32, 48), generator=torch.Generator().manual_seed(1))
    plain = draw(data=DataConfig(sources={"synthetic": 1.0}, size=(32, 48), min_scale=0.5, aspect_jitter=0.2))
    unchanged, same_depth = make_views(rgb, code, plain, size=(32, 48), generator=torch.Generator())
    assert torch.equal(first, again)
    assert first.min() >= -1.0 and first.max() <= 1.0
    assert torch.equal(depth.nan_to_num(), same_depth.nan_to_num())
    assert (first - unchanged).abs().mean() > 0.1


def test_samples_keep_depth_to_a_hundredth_of_a_percent(tmp_path: Path) -> None:
    write_training_data(tmp_path)
    mixture = Mixture(DataConfig(sources={"synthetic": 1.0}, size=(32, 48)), data_dir=tmp_path, seed=0, modality=DEPTH)
    samples = Samples(mixture, num_workers=2)
    truth = mixture.sources[0].read(0)
    whole = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    found = cut_depth(torch.from_numpy(samples.codes(np.arange(1))), whole, size=(48, 64))[0, 0].exp().numpy()
    valid = truth.maps["depth"] > 0
    assert np.array_equal(~np.isnan(found), valid)
    assert np.abs(found[valid] / truth.maps["depth"][valid] - 1).max() < 1e-4
    assert np.array_equal(samples.pick(np.arange(1))[0][0], truth.rgb)


def test_samples_of_two_shapes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_training_data(tmp_path)
    mixture = Mixture(DataConfig(sources={"synthetic": 1.0}, size=(32, 48)), data_dir=tmp_path, seed=0, modality=DEPTH)
    read = Samples._read
    monkeypatch.setattr(Samples, "_read", lambda self, index: tuple(part[index % 2 :] for part in read(self, index)))
    with pytest.raises(DataError, match="several shapes, such as 64x47 and 64x48"):
        Samples(mixture, num_workers=1)


def test_samples_of_two_sizes_and_one_shape_are_brought_to_the_larger_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_training_data(tmp_path)
    mixture = Mixture(DataConfig(sources={"synthetic": 1.0}, size=(32, 48)), data_dir=tmp_path, seed=0, modality=DEPTH)
    plain = Samples(mixture, num_workers=1)
    read = Samples._read

    def smaller(self: Samples, index: int) -> tuple[np.ndarray, np.ndarray]:
        rgb, code = read(self, index)
        return (rgb, code) if index != 1 else (rgb[::2, ::2], code[::2, ::2])

    monkeypatch.setattr(Samples, "_read", smaller)
    mixed = Samples(mixture, num_workers=1)
    assert mixed.size == plain.size == (48, 64)
    rgb, code = mixed.pick(np.array([1, 0]))
    before, codes = plain.pick(np.array([1, 0]))
    assert rgb.shape == before.shape and np.array_equal(rgb[1], before[1]) and np.array_equal(code[1], codes[1])
    assert np.array_equal(code[0], codes[0, ::2, ::2].repeat(2, axis=0).repeat(2, axis=1))
    assert np.abs(rgb[0].astype(int) - before[0]).mean() < 12
    small, small_code = mixed.pick(np.array([1]))
    assert small.shape == (1, 24, 32, 3) and np.array_equal(small_code[0], codes[0, ::2, ::2])
