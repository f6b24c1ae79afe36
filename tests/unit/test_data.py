# SPDX-License-Identifier: Apache-2.0
"""Sources and augmentation: what is read, and that color and depth move together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openmarigold.data.augmentation import random_appearance, random_view
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.shard_writer import NewSample, ShardWriter
from openmarigold.data.sources import Sample, Source
from openmarigold.errors import DataError, RecipeError
from openmarigold.modalities import DEPTH
from openmarigold.seeding import generator_for
from openmarigold.training.recipe import DataConfig
from openmarigold.training.views import Mixture
from training_data import write_training_data


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_data(tmp_path_factory.mktemp("data"))


def test_pairs_are_read_in_meters(data_dir: Path) -> None:
    source = Source("synthetic", data_dir)
    assert source.keys == ["rooms-0", "rooms-1", "rooms-2", "rooms-3", "street-4", "street-5"]
    sample = source.read(1)
    assert sample.rgb.shape == (48, 64, 3) and sample.rgb.dtype == np.uint8
    assert sample.kind == "rooms"
    # A plane that starts at 1 m; one step of the code is 0.17 %.
    assert sample.maps["depth"][0, 0] == pytest.approx(1.0, rel=0.002)
    slope = np.diff(sample.maps["depth"][:, 0])
    assert slope.min() >= 0 and slope.max() < 0.11
    sky = source.read(0).maps["depth"]
    assert bool((sky[:16, :16] == 0).all()) and bool((sky[16:] > 0).all())
    source.close()


def test_photos_have_no_depth(data_dir: Path) -> None:
    source = Source("photos", data_dir)
    assert len(source) == 6 and source.read(5).maps == {}
    source.close()


def test_broken_data_is_named(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown data source 'holidays'; use one of photos"):
        Source("holidays", data_dir)
    with pytest.raises(DataError, match="no train-"):
        Source("synthetic", tmp_path)
    (tmp_path / "photos").mkdir()
    shard = tmp_path / "photos" / "photos-00.tar"
    shard.write_bytes(b"this is not an archive")
    with pytest.raises(DataError, match="not a whole tar file"):
        Source("photos", tmp_path)
    whole = (data_dir / "photos" / "photos-00.tar").read_bytes()
    start = whole.index(b"\xff\xd8")
    shard.write_bytes(whole[:start] + bytes(200) + whole[start + 200 :])
    source = Source("photos", tmp_path)
    with pytest.raises(DataError, match="sample p-0 of source photos is damaged"):
        source.read(0)
    source.read(1)
    source.close()


def test_color_and_depth_stay_together() -> None:
    """Depth equal to the picture's brightness must stay so under every view."""
    ramp = np.add.outer(np.linspace(0, 90, 96), np.linspace(20, 145, 128))  # steep in both directions
    sample = Sample(
        rgb=np.repeat(ramp.astype(np.uint8)[:, :, None], 3, axis=2), maps={"depth": ramp.astype(np.float32)}, kind="x"
    )
    mirrored = 0
    for index in range(40):
        view = random_view(
            sample, generator_for(0, "view", index), modality=DEPTH, size=(48, 64), min_scale=0.4, aspect_jitter=0.2
        )
        assert view.rgb.shape == (48, 64, 3) and view.kind == "x"
        np.testing.assert_allclose(view.rgb[:, :, 0], view.maps["depth"], atol=5)
        mirrored += bool(view.maps["depth"][0, 0] > view.maps["depth"][0, -1])
    assert 8 < mirrored < 32


def test_full_view_keeps_everything() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    view = random_view(
        Sample(rgb=rgb, maps={}, kind="x"),
        generator_for(0, "x", 3),
        modality=DEPTH,
        size=(24, 32),
        min_scale=1.0,
        aspect_jitter=0.0,
    )
    assert np.array_equal(view.rgb, rgb) or np.array_equal(view.rgb, rgb[:, ::-1])


def test_full_views_of_any_shape_fit() -> None:
    """Rounding must not put a view outside the picture."""
    sample = Sample(rgb=np.zeros((288, 384, 3), np.uint8), maps={}, kind="x")
    for index in range(300):
        rng = generator_for(0, "full", index)
        view = random_view(sample, rng, modality=DEPTH, size=(192, 256), min_scale=1.0, aspect_jitter=0.1)
        assert view.rgb.shape == (192, 256, 3)


def test_appearance_changes_color_within_range_and_zero_changes_nothing() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)
    assert np.array_equal(random_appearance(rgb, generator_for(0, "a", 0), strength=0.0), rgb)
    changed = [random_appearance(rgb, generator_for(0, "a", i), strength=1.0) for i in range(20)]
    assert all(image.shape == rgb.shape and image.dtype == np.uint8 for image in changed)
    assert sum(not np.array_equal(image, rgb) for image in changed) > 15


def test_depths_beyond_the_limit_of_their_kind_do_not_count(data_dir: Path) -> None:
    config = DataConfig(sources={"synthetic": 1.0}, size=(48, 64), max_depth={"rooms": 1.5, "street": 1.7})
    mixture = Mixture(config, data_dir=data_dir, seed=0)
    for index in range(6):
        original = mixture.sources[0].read(index).maps["depth"]
        view = mixture.view(index)
        limit = 1.5 if index < 4 else 1.7
        assert view.target is None or view.target.bounds[1] < limit
        expected = (original > 0) & (original < limit)
        assert any(np.array_equal(view.valid_mask, mask) for mask in (expected, expected[:, ::-1]))


def test_unknown_pixels_of_labels_are_not_learned_as_far(tmp_path: Path) -> None:
    """A set says what its pixels without depth are, and `invalid_is_far` keeps to it; such views get other rows."""
    depth = np.add.outer(np.linspace(1, 2, 48), np.zeros(64)).astype(np.float32)
    depth[:, :16] = 0
    for name, is_far in (("renders", True), ("labels", False)):
        encodings = {"depth": MapEncoding(kind="float32")}
        writer = ShardWriter(tmp_path / name, name=name, split="train", encodings=encodings, settings={})
        writer.begin()
        rgb = np.zeros((48, 64, 3), np.uint8)
        writer.write(0, [NewSample(key="a", kind="rooms", scene="s", rgb=rgb, maps={"depth": depth})])
        writer.finish(1, {"unknown_is_far": is_far})
    valid, identities = {}, {}
    for far in (True, False):
        config = DataConfig(sources={"renders": 0.5, "labels": 0.5}, size=(48, 64), invalid_is_far=far)
        mixture = Mixture(config, data_dir=tmp_path, seed=0)
        assert mixture.masked_sources == (["labels"] if far else [])  # a run resumes with the same ones
        for number, source in enumerate(mixture.sources):
            valid[far, source.name] = mixture.view(number).valid_mask.mean()
            identities[far, source.name] = mixture.identity(number)
    assert valid == {(True, "renders"): 1, (True, "labels"): 0.75, (False, "renders"): 0.75, (False, "labels"): 0.75}
    assert identities[True, "renders"] == identities[False, "renders"], "as in earlier versions"
    assert identities[True, "labels"] != identities[False, "labels"]


def test_mixture_draws_sources_in_their_shares(data_dir: Path) -> None:
    config = DataConfig(sources={"photos": 3.0, "synthetic": 1.0}, size=(16, 16))
    mixture = Mixture(config, data_dir=data_dir, seed=0)
    deep = [mixture.random_sample(generator_for(0, "draw", i))[0].maps != {} for i in range(400)]
    assert np.mean(deep) == pytest.approx(0.25, abs=0.07)


def test_kinds_that_the_data_does_not_have_are_named(data_dir: Path) -> None:
    config = DataConfig(sources={"synthetic": 1.0}, size=(16, 16), max_depth={"room": 15.0})
    with pytest.raises(RecipeError, match="kind 'room' is not known; the data has rooms, street"):
        Mixture(config, data_dir=data_dir, seed=0)
