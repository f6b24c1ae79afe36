# SPDX-License-Identifier: Apache-2.0
"""Latents are named by sample and autoencoder: runs with other sources, shares and parts of the data share them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openmarigold.data.preparation import prepare
from openmarigold.data.readers.rgbd_folder import FolderReader, read_config
from openmarigold.data.shards import Sample
from openmarigold.errors import RecipeError
from openmarigold.networks.backbone import load_vae
from openmarigold.training.latents import Latents
from openmarigold.training.loop import make_accelerator
from openmarigold.training.settings import DataConfig
from openmarigold.training.views import Mixture
from own_pictures import prepare_own_pictures, write_own_pictures
from stable_diffusion import write_stable_diffusion

# Every view is a whole picture, plain or mirrored, so nothing is left to chance.
PLAIN: dict[str, Any] = {"buckets": ((48, 64), (64, 40)), "mixture": "micro_batch", "mirror": "both", "num_variants": 2}
DRAWN: dict[str, Any] = {**PLAIN, "min_scale": 0.5, "appearance": 0.5}
MINE, BOTH = {"mine": 1.0}, {"other": 0.7, "mine": 0.3}


def config(sources: dict[str, float], **more: Any) -> DataConfig:
    return DataConfig(**{"sources": sources, "size": (48, 64), **PLAIN, **more})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prepared sets of 24 pictures and a tiny autoencoder."""
    folder = tmp_path_factory.mktemp("shared")
    prepare_own_pictures(folder / "raw", folder / "data")
    other = write_own_pictures(folder / "raw-other", seed=4)
    prepare(FolderReader(other, read_config(other / "dataset.toml")), folder / "data" / "other")
    write_stable_diffusion(folder / "sd", prediction_type="v_prediction")
    return folder


@pytest.fixture
def opened(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Latents, int]]:
    """Opens latents and counts the views that are encoded for it."""
    vae = load_vae(workspace / "sd" / "vae")
    encode, calls = Latents._encode, []

    def counting(latents: Latents, picture: torch.Tensor) -> torch.Tensor:
        calls.append(picture.shape)
        return encode(latents, picture)

    monkeypatch.setattr(Latents, "_encode", counting)

    def open_them(cache_dir: Path | None, data: DataConfig, *, form: Any = "none") -> tuple[Latents, int]:
        calls.clear()
        mixture = Mixture(data, data_dir=workspace / "data", seed=0)
        accelerator = make_accelerator("no", "cpu")
        return Latents(mixture, vae=vae, cache_dir=cache_dir, accelerator=accelerator, target_form=form), len(calls)

    return open_them


def test_another_mixture_encodes_only_what_is_new(tmp_path: Path, opened: Any) -> None:
    cache = tmp_path / "cache"
    latents, count = opened(cache, config(MINE))
    assert count == latents.num_views == 48
    assert len(list(cache.iterdir())) == 2, "a folder for each size of views"
    both, count = opened(cache, config(BOTH))
    assert (both.num_views, count) == (96, 48)
    assert opened(cache, config({"mine": 0.5, "other": 0.5}))[1] == 0
    part, count = opened(cache, config(BOTH, num_samples={"other": 5}, held_out=0.3, num_variants=4))
    assert count == 0 and part.num_views == (18 + 5) * 4
    # The rows are those of the mixture's own views.
    anew, _ = opened(None, config(BOTH))
    for index in (0, 47, 48, 95):
        kept, made = (found.encoded(tensors(found.batch(np.array([index])))) for found in (both, anew))
        assert torch.equal(kept["rgb_latent"], made["rgb_latent"])


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def test_random_views_are_shared_where_samples_draw_them(tmp_path: Path, opened: Any) -> None:
    by_number, by_sample = config(MINE, **DRAWN), config(MINE, **DRAWN, draws="sample")
    cache = tmp_path / "cache"
    assert [opened(cache, data)[1] for data in (by_number, by_sample, by_sample)] == [48, 48, 0]
    assert opened(cache, dataclasses.replace(by_number, sources=BOTH))[1] == 96, "another source moves all numbers"
    assert opened(cache, dataclasses.replace(by_sample, sources=BOTH))[1] == 48
    assert opened(cache, dataclasses.replace(by_sample, min_scale=0.6))[1] == 48


def test_what_targets_depend_on_names_them_too(tmp_path: Path, opened: Any) -> None:
    cache = tmp_path / "cache"
    assert opened(cache, config(MINE), form="maps")[1] == 48
    assert opened(cache, config(MINE, valid_range={"rooms": (0.5, 3.0)}), form="maps")[1] == 48
    assert opened(cache, config(BOTH, valid_range={"other": (0.5, 3.0)}), form="maps")[1] == 48
    assert opened(cache, config(MINE, latents="float32"), form="maps")[1] == 48


def test_samples_are_named_by_their_bytes(workspace: Path, tmp_path: Path) -> None:
    """The same pictures prepared again, with one other: the others keep their names."""
    raw = write_own_pictures(tmp_path / "raw")
    (raw / "den" / "color" / "000.jpg").write_bytes((raw / "den" / "color" / "001.jpg").read_bytes())
    prepare(FolderReader(raw, read_config(raw / "dataset.toml")), tmp_path / "data" / "mine")
    mixtures = [Mixture(config(MINE), data_dir=folder, seed=0) for folder in (workspace / "data", tmp_path / "data")]
    first, second = ([mixture.identity(index) for index in range(48)] for mixture in mixtures)
    assert len(set(first)) == 48 and len(set(first) & set(second)) == 46
    moved = Mixture(config({"other": 0.5, "mine": 0.5}), data_dir=workspace / "data", seed=1)
    assert len(set(first) & {moved.identity(index) for index in range(96)}) == 48


def test_published_views_pick_pixels_of_the_normalized_picture(workspace: Path) -> None:
    """By hand: near and far are quantiles of the whole picture; then a pixel of the view is the one at its center."""
    settings = {**PLAIN, "buckets": (), "size": (24, 32), "resampling": "published", "invalid": "raw"}
    mixture = Mixture(config(MINE, **settings), data_dir=workspace / "data", seed=0)
    (source,) = mixture.sources
    sample = source.read(0)
    plain, mirrored = mixture.view(0), mixture.view(1)
    height, width = sample.rgb.shape[:2]
    assert (height, width) == (48, 64)
    rows, columns = np.arange(24) * 2 + 1, np.arange(32) * 2 + 1  # the center of two pixels belongs to the second
    depth = sample.maps["depth"].astype(np.float64)
    near, far = np.quantile(depth[(depth > 1e-5) & (depth < 20.0)], (0.02, 0.98))
    expected = np.clip((depth - near) / (far - near) * 2 - 1, -1, 1)[rows][:, columns]
    assert plain.target is not None and mirrored.target is not None
    np.testing.assert_allclose(plain.target.values[0, 0], expected, atol=1e-6)
    np.testing.assert_allclose(plain.target.bounds, (near, far), rtol=1e-6)
    colors = sample.rgb[rows][:, columns].transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(plain.rgb, colors, atol=1e-6)
    flipped = sample.rgb[:, ::-1][rows][:, columns].transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(mirrored.rgb, flipped, atol=1e-6)
    turned = np.clip((depth[:, ::-1] - near) / (far - near) * 2 - 1, -1, 1)[rows][:, columns]
    np.testing.assert_allclose(mirrored.target.values[0, 0], turned, atol=1e-6)
    with pytest.raises(RecipeError, match='resampling="published" takes whole pictures; leave out min_scale'):
        config(MINE, resampling="published", min_scale=0.5)


def test_a_photo_has_no_target_in_published_views(workspace: Path) -> None:
    mixture = Mixture(config(MINE, resampling="published"), data_dir=workspace / "data", seed=0)
    photo = Sample(rgb=np.zeros((48, 64, 3), np.uint8), maps={}, kind="rooms")
    assert mixture._published(photo, 0, True).target is None
