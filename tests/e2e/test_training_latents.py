# SPDX-License-Identifier: Apache-2.0
"""Latents that training encodes and keeps, and the batches that are drawn from them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from openmarigold.errors import DataError, RecipeError
from openmarigold.networks.backbone import load_vae
from openmarigold.training import latents, train
from openmarigold.training.latents import Latents
from openmarigold.training.loop import make_accelerator
from openmarigold.training.marigold import MarigoldTask
from openmarigold.training.recipe import DataConfig, MarigoldRecipe, read_recipe
from openmarigold.training.views import BatchSlice, Mixture
from training_data import DEPTH


def open_latents(workspace: Path, cache_dir: Path | None, config: DataConfig, *, form: str = "latents") -> Latents:
    return Latents(
        Mixture(config, data_dir=workspace / "data", seed=0),
        vae=load_vae(workspace / "autoencoder" / "checkpoint" / "vae"),
        cache_dir=cache_dir,
        accelerator=make_accelerator("no", "cpu"),
        target_form=form,  # pyright: ignore[reportArgumentType]
    )


PAIRS = DataConfig(sources={"synthetic": 1.0}, size=(32, 48), num_variants=2)


def test_interrupted_encoding_continues(in_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latents of an encoding that was killed between two shards are those of one that was not."""
    monkeypatch.setattr(latents, "SHARD_BYTES", 1000)  # two views
    open_latents(in_workspace, tmp_path / "whole", PAIRS)
    names = sorted(path.name for path in (tmp_path / "whole").glob("*/*.rows"))
    assert len(names) == 6
    encode, calls = Latents._encode, []

    def failing(*arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 10:  # of 24: in the third shard
            raise KeyboardInterrupt
        return encode(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Latents, "_encode", failing)
    with pytest.raises(KeyboardInterrupt):
        open_latents(in_workspace, tmp_path / "killed", PAIRS)
    first = sorted(path.name for path in (tmp_path / "killed").glob("*/*.rows"))
    assert len(first) == 2 and set(first) < set(names)
    open_latents(in_workspace, tmp_path / "killed", PAIRS)
    assert len(calls) == 10 + 16, "only the four files that were not whole are encoded again"
    (folder,) = (path.name for path in (tmp_path / "whole").iterdir())
    for name in names:
        killed, whole = (tmp_path / run / folder / name for run in ("killed", "whole"))
        assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("form", "more"),
    [
        ("none", {}),
        ("latents", {}),
        ("maps", {}),
        ("latents", {"latents": "float32"}),
        ("maps", {"latents": "float32"}),
    ],
)
def test_kept_latents_are_those_computed_anew(
    in_workspace: Path, tmp_path: Path, form: str, more: dict[str, Any]
) -> None:
    config = dataclasses.replace(PAIRS, min_scale=0.5, appearance=1.0, **more)
    indices = np.array([3, 0, 11, 3])
    found = []
    for cache_dir in (tmp_path / "kept", None):
        source = open_latents(in_workspace, cache_dir, config, form=form)
        batch = {name: torch.from_numpy(value) for name, value in source.batch(indices).items()}
        found.append(source.encoded(batch))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value.nan_to_num(9.0), found[1][name].nan_to_num(9.0)), name


@pytest.mark.parametrize(
    ("form", "old"),
    [
        ("latents", {"target_latent": "depth_latent"}),
        ("maps", {"target": "norm_depth", "bounds": "depth_range"}),
    ],
)
def test_a_cache_of_version_0_1_is_read(in_workspace: Path, tmp_path: Path, form: str, old: dict[str, str]) -> None:
    new = open_latents(in_workspace, tmp_path / "new", PAIRS, form=form)
    rows = np.stack([new._store(index)[new._name(index)] for index in range(new.num_views)])
    shard = tmp_path / "old" / "synthetic" / "shard-00000.npy"
    fields = []
    for name in rows.dtype.names:
        base, shape = rows.dtype[name].subdtype
        fields.append((old.get(name, name), base, shape[1:] if name == "target" else shape))  # it had no targets
    renamed = np.zeros(len(rows), dtype=fields)
    for name in rows.dtype.names:
        renamed[old.get(name, name)] = rows[name].reshape(renamed[old.get(name, name)].shape)
    shard.parent.mkdir(parents=True)
    np.save(shard, renamed)
    (tmp_path / "old" / "cache.json").write_text(json.dumps(new._described(new._vae)))
    anew = open_latents(in_workspace, tmp_path / "old", PAIRS, form=form)
    assert not list((tmp_path / "old").glob("*/*.rows")), "nothing was encoded again"
    batches = [source.batch(np.arange(12)) for source in (new, anew)]
    assert batches[0].keys() == batches[1].keys()
    for name, values in batches[0].items():
        np.testing.assert_array_equal(values, batches[1][name])
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"shard-00000\.npy .*remove it, and it will be encoded again"):
        open_latents(in_workspace, tmp_path / "old", PAIRS, form=form).batch(np.arange(12))
    # Another mixture does not use them.
    other = open_latents(in_workspace, tmp_path / "old", dataclasses.replace(PAIRS, num_variants=4), form=form)
    assert other.batch(np.arange(12)) and len(list((tmp_path / "old").glob("*/*.rows"))) == 1


def test_latents_are_encoded_once(in_workspace: Path) -> None:
    output = in_workspace / "cached"
    train(Path("depth.toml"), data_dir=in_workspace / "data", output_dir=output, stop_after_steps=1)
    (shard,) = (output / "latents").glob("*/*.rows")
    written = shard.stat().st_mtime_ns
    train(Path("depth.toml"), data_dir=in_workspace / "data", output_dir=output, stop_after_steps=2)
    assert shard.stat().st_mtime_ns == written
    assert list((output / "latents").glob("*/*.rows")) == [shard]


def test_latents_of_another_autoencoder_are_others(in_workspace: Path, tmp_path: Path) -> None:
    first = open_latents(in_workspace, tmp_path / "cache", PAIRS)
    other = load_vae(in_workspace / "autoencoder" / "checkpoint" / "vae")
    with torch.no_grad():
        next(iter(other.parameters())).add_(1.0)
    mixture = Mixture(PAIRS, data_dir=in_workspace / "data", seed=0)
    settings: dict[str, Any] = {"accelerator": make_accelerator("no", "cpu"), "target_form": "latents"}
    second = Latents(mixture, vae=other, cache_dir=tmp_path / "cache", **settings)
    assert len(list((tmp_path / "cache").iterdir())) == 2 and first.fingerprint != second.fingerprint
    places = np.arange(3)
    assert not np.array_equal(first.batch(places)["rgb_latent"], second.batch(places)["rgb_latent"])


@pytest.mark.parametrize("form", ["latents", "maps"])
def test_a_damaged_file_of_latents_is_named(in_workspace: Path, tmp_path: Path, form: str) -> None:
    open_latents(in_workspace, tmp_path / "cache", PAIRS, form=form)
    (path,) = (tmp_path / "cache").glob("*/*.rows")
    content = path.read_bytes()
    for damaged in (content[:-100], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{path.name} .*remove it, and it will be encoded again"):
            open_latents(in_workspace, tmp_path / "cache", PAIRS, form=form)


def test_data_without_any_valid_depth_is_refused(in_workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source synthetic: none of its 12 views has valid depth; check the unit"):
        open_latents(
            in_workspace, tmp_path / "cache", dataclasses.replace(PAIRS, max_depth={"rooms": 0.1, "street": 0.1})
        )


def test_noise_on_color_latents_stays_within_its_limit(in_workspace: Path, tmp_path: Path) -> None:
    share = BatchSlice(step=3, micro_step=0, group_size=64, rows=slice(0, 64))
    for value in (0.0, 0.5):
        (tmp_path / "noisy.toml").write_text(
            DEPTH.replace("num_variants = 2", f"num_variants = 2, latent_noise = {value}")
        )
        recipe = read_recipe(tmp_path / "noisy.toml")
        assert isinstance(recipe, MarigoldRecipe)
        recipe = dataclasses.replace(recipe, optimization=dataclasses.replace(recipe.optimization, batch_size=64))
        settings = {"data_dir": in_workspace / "data", "cache_dir": tmp_path / "latents"}
        task = MarigoldTask(recipe, accelerator=make_accelerator("no", "cpu"), **settings)
        batch = task.batch(share)
        if not value:
            assert "rgb_noise" not in batch
            continue
        spread = batch["rgb_noise"].std(axis=(1, 2, 3))
        assert 0.0 < spread.min() < 0.1 and 0.4 < spread.max() < 0.55
        np.testing.assert_array_equal(batch["rgb_noise"], task.batch(share)["rgb_noise"])


def test_the_network_sees_the_photo_before_the_noisy_target(in_workspace: Path) -> None:
    settings = {"data_dir": in_workspace / "data", "cache_dir": None}
    recipe = read_recipe(Path("depth.toml"))
    assert isinstance(recipe, MarigoldRecipe)
    task = MarigoldTask(recipe, accelerator=make_accelerator("no", "cpu"), **settings)
    drawn = task.batch(BatchSlice(step=0, micro_step=0, group_size=2, rows=slice(0, 2)))
    batch = task.latents.encoded({name: torch.from_numpy(value) for name, value in drawn.items()})

    class Network(torch.nn.Module):
        def forward(self, sample: torch.Tensor, timesteps: torch.Tensor, **context: torch.Tensor) -> SimpleNamespace:
            assert torch.equal(sample[:, :4], batch["rgb_latent"])
            return SimpleNamespace(sample=torch.zeros_like(sample[:, 4:]))

    assert task.loss(Network(), batch).count > 0


def test_kinds_are_drawn_as_often_as_asked(in_workspace: Path) -> None:
    config = dataclasses.replace(PAIRS, kind_weights={"street": 4.0})
    mixture = Mixture(config, data_dir=in_workspace / "data", seed=0)
    share = BatchSlice(step=0, micro_step=0, group_size=3000, rows=slice(0, 3000))
    _, chosen, _ = mixture.choose("test", share, 3000)
    # Eight views of rooms with weight 1, four of streets with weight 4: one in 24, four in 24.
    np.testing.assert_allclose(np.bincount(chosen, minlength=12) / 3000, [1 / 24] * 8 + [4 / 24] * 4, atol=0.02)
    nothing = dataclasses.replace(config, kind_weights={"rooms": 0.0, "street": 0.0})
    with pytest.raises(RecipeError, match="leaves nothing of source synthetic"):
        Mixture(nothing, data_dir=in_workspace / "data", seed=0)
