# SPDX-License-Identifier: Apache-2.0
"""`data paste`: what counts as a thing, what is pasted where and at which depth, and what is kept, resumed, refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from openmarigold.cli import run
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.pasting import paste, things
from openmarigold.data.shard_writer import NewSample, ShardWriter
from openmarigold.data.shards import ShardedDataset
from openmarigold.data.sources import Source
from openmarigold.data.verification import verify
from openmarigold.errors import DataError, InvalidValueError, OutputError
from openmarigold.files import only_run

HEIGHT, WIDTH = 96, 128
RELATIVE = MapEncoding(kind="log", near=0.005, far=200.0, levels=16383)  # as labels are stored
METERS = MapEncoding(kind="log", near=0.05, far=400.0, levels=16383)
RED, GREEN = (200, 40, 40), (40, 200, 40)


def ground() -> np.ndarray:
    """Depth of level ground below a horizon at a third of the height, and a wall at 20 m above."""
    row = np.arange(HEIGHT)[:, None] - HEIGHT / 3
    depth = np.where(row > 0, np.minimum(20.0, 200.0 / np.maximum(row, 1e-3)), 20.0)
    return np.broadcast_to(depth, (HEIGHT, WIDTH)).astype(np.float32)


def fence() -> tuple[np.ndarray, np.ndarray]:
    """Posts and two rails 1 m away, before the ground and the wall."""
    is_fence = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for left in range(10, WIDTH - 6, 24):
        is_fence[30:, left : left + 5] = True
    is_fence[40:44], is_fence[60:64] = True, True
    return np.where(is_fence, 0.9, ground()).astype(np.float32), is_fence


def write(folder: Path, name: str, depths: list[np.ndarray], encoding: MapEncoding, **facts: object) -> Path:
    writer = ShardWriter(folder / name, name=name, split="train", encodings={"depth": encoding}, settings={})
    writer.begin()
    samples = []
    for number, depth in enumerate(depths):
        rgb = np.full((*depth.shape, 3), 90 + 30 * number % 90, dtype=np.uint8)
        if name == "renders":  # edges of things show what is behind them, as in photos
            is_fence = fence()[1]
            rgb[is_fence], rgb[is_fence & ~ndimage.binary_erosion(is_fence)] = RED, GREEN
        samples.append(
            NewSample(key=f"{name}-{number}", kind="any", scene=f"{name}-{number}", rgb=rgb, maps={"depth": depth})
        )
    writer.write(0, samples)
    writer.finish(1, facts)
    return folder / name


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    wall = np.full((HEIGHT, WIDTH), 1.0, dtype=np.float32)
    wall[:, : WIDTH // 4] = 0.0  # unknown
    wall[: HEIGHT // 4] = 3.0
    photos = write(tmp_path, "photos", [wall, wall[::-1].copy()], RELATIVE, unknown_is_far=False)
    return photos, write(tmp_path, "renders", [fence()[0]], METERS)


def test_things_are_the_fence_and_nothing_else() -> None:
    depth, is_fence = fence()
    np.testing.assert_array_equal(things(depth, widest=21), is_fence)
    assert not things(depth, widest=3).any()  # posts are 5 wide
    assert not things(ground(), widest=21).any()


def test_a_lamp_hangs_from_above_and_walls_at_the_border_are_none() -> None:
    depth = np.full((HEIGHT, WIDTH), 4.0, dtype=np.float32)
    lamp = np.zeros(depth.shape, dtype=bool)
    lamp[:30, 60:63], lamp[30:45, 54:69] = True, True
    depth[:, -12:] = 2.0  # a wall that goes on outside
    depth[lamp] = 2.5
    np.testing.assert_array_equal(things(depth, widest=21), lamp)


def test_unknown_pixels_are_behind_things_and_small_specks_are_none() -> None:
    depth = np.full((HEIGHT, WIDTH), 4.0, dtype=np.float32)
    depth[20:40, 20:40] = 0.0
    depth[60:64, 60:64] = 1.0  # 16 pixels
    depth[25:35, 25:35] = 3.9  # a hundred, before nothing known
    found = things(depth, widest=21)
    assert found[25:35, 25:35].all()
    assert found.sum() == 100


def test_pasted_depth_is_in_front_and_the_rest_is_the_picture(sources: tuple[Path, Path], tmp_path: Path) -> None:
    photos, renders = sources
    prepared = paste(photos, [renders], tmp_path / "pasted", count=12, shard_size=5)
    data, behind = ShardedDataset(tmp_path / "pasted"), ShardedDataset(photos)
    assert len(data) == prepared.manifest["counts"]["samples"] == 12
    assert verify(tmp_path / "pasted") == []
    assert not data.unknown_is_far
    covered, unchanged = [], 0
    for index in range(len(data)):
        sample, info = data.read(index), data.info(index)
        assert data.kinds[index] == "pasted"
        assert info["render"] == ["renders", "renders-0"]
        place = behind.keys.index(info["picture"][1])
        assert data.scenes[index] == behind.scenes[place]
        before = behind.read(place)
        changed = sample.maps["depth"] != before.maps["depth"]
        covered.append(changed.mean())
        known = changed & (before.maps["depth"] > 0)
        assert (sample.maps["depth"][known] < before.maps["depth"][known]).all()
        assert np.ptp(np.log(sample.maps["depth"][changed])) < 0.01  # the fence is of one depth, and stays so
        red = sample.rgb[..., 0].astype(int) - sample.rgb[..., 1]
        assert red[changed].mean() > 25
        assert red.min() > -25  # the colors of edges are not taken along
        elsewhere = ~ndimage.binary_dilation(changed, iterations=17)  # JPEG stores color in blocks of 16 pixels
        assert np.abs(sample.rgb[elsewhere].astype(int) - before.rgb[elsewhere]).max(initial=0) <= 6
        unchanged += int(elsewhere.sum())
    assert unchanged > WIDTH * HEIGHT
    assert len({round(float(share), 4) for share in covered}) > 6  # cut and scaled anew


def test_the_same_bytes_with_any_number_of_processes_and_after_an_interruption(
    sources: tuple[Path, Path], tmp_path: Path
) -> None:
    photos, renders = sources

    def contents(name: str, **settings: int) -> str:
        return paste(photos, [renders], tmp_path / name, count=8, shard_size=3, **settings).manifest["contents"]

    first = contents("first")
    assert contents("second", workers=2) == first
    assert contents("other", seed=1) != first
    (tmp_path / "first" / "shard-00001.tar").unlink()
    again = paste(photos, [renders], tmp_path / "first", count=8, shard_size=3)
    assert again.num_shards_kept == 2
    assert again.manifest["contents"] == first


@pytest.mark.parametrize(
    "encoding", [RELATIVE, MapEncoding(kind="linear", meters_per_unit=0.01), MapEncoding(kind="float32")]
)
def test_depth_that_the_pictures_encoding_cannot_hold_is_moved(encoding: MapEncoding, tmp_path: Path) -> None:
    near = 0.0055 if encoding.kind == "log" else 0.02  # things are half as far to nearly as far
    photos = write(tmp_path, "photos", [np.full((HEIGHT, WIDTH), near, dtype=np.float32)], encoding)
    renders = write(tmp_path, "renders", [fence()[0]], METERS)
    paste(photos, [renders], tmp_path / "pasted", count=6)
    found = [ShardedDataset(tmp_path / "pasted").read(index).maps["depth"] for index in range(6)]
    assert min(float(depth.min()) for depth in found) > 0
    low = {"log": 0.005, "linear": 0.01, "float32": 0.0}[encoding.kind]
    assert min(float(depth.min()) for depth in found) >= 0.999 * low
    assert any(np.ptp(depth) > 0 for depth in found)


def test_a_pair_that_does_not_fit_is_left_out(tmp_path: Path) -> None:
    photos = write(tmp_path, "photos", [np.full((HEIGHT, WIDTH), 1.0, dtype=np.float32)], RELATIVE)
    renders = write(tmp_path, "renders", [ground()], METERS)
    prepared = paste(photos, [renders], tmp_path / "pasted", count=2)
    assert prepared.manifest["counts"]["samples"] == 0
    assert prepared.manifest["counts"]["left_out"] == {"no thing fits": 2}


def test_command_line(sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, renders = sources
    words = ["data", "paste", str(photos), str(tmp_path / "pasted"), "--renders", str(renders), "--count", "3"]
    assert run([*words, "--workers", "1"]) == 0
    assert "3 samples in 1 shards, 0 left out" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "pasted" / "manifest.json").read_text())
    assert manifest["command"] == f"openmarigold data paste {photos} DEST --renders {renders} --count 3"
    assert len(Source("pasted", tmp_path)) == 3  # training takes it


def test_what_is_refused(sources: tuple[Path, Path], tmp_path: Path) -> None:
    photos, renders = sources
    with pytest.raises(DataError, match="is a source"):
        paste(photos, [renders], renders, count=1)
    with pytest.raises(InvalidValueError, match="count=0"):
        paste(photos, [renders], tmp_path / "new", count=0)
    with pytest.raises(InvalidValueError, match="renders is empty"):
        paste(photos, [], tmp_path / "new", count=1)
    writer = ShardWriter(tmp_path / "plain", name="plain", split="train", encodings={}, settings={})
    writer.begin()
    writer.write(0, [NewSample(key="a", kind="photos", scene="a", rgb=np.zeros((8, 8, 3), np.uint8))])
    writer.finish(1)
    with pytest.raises(DataError, match="no maps"):
        paste(tmp_path / "plain", [renders], tmp_path / "new", count=1)
    assert not (tmp_path / "new").exists()


def test_terms_of_all_sets_a_moved_folder_and_another_run(tmp_path: Path) -> None:
    pictures = write(tmp_path, "pictures", [ground()], RELATIVE, license="CC BY 4.0", attribution=["me"])
    row = {"asset": "a", "creator": "you", "license": "CC0"}  # as the renderer states them
    renders = write(tmp_path, "renders", [fence()[0]], METERS, attribution=[row, dict(row)])
    found = paste(pictures, [renders], tmp_path / "one", count=1)
    assert found.manifest["license"] == "CC BY 4.0; CC0" and found.manifest["attribution"] == ["me", row]
    (tmp_path / "one").rename(tmp_path / "two")
    assert paste(pictures, [renders], tmp_path / "two", count=1).num_shards_kept == 1
    pytest.importorskip("fcntl")
    with only_run(tmp_path / "two"), pytest.raises(OutputError, match="another run is writing"):
        paste(pictures, [renders], tmp_path / "two", count=1)
