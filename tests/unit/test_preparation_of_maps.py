# SPDX-License-Identifier: Apache-2.0
"""Raw data with normals and intrinsic images: formulas by hand, and each frame that is left out by its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from openmarigold.cli import run
from openmarigold.data.normals import add_normals
from openmarigold.data.preparation import prepare
from openmarigold.data.readers.hypersim import HypersimMaps, HypersimReader, tone_map
from openmarigold.data.readers.hypersim_maps import LIGHTING_MAPS, NORMALS_MAPS, cut_psnr, looking_away
from openmarigold.data.readers.interiorverse import InteriorVerseReader
from openmarigold.data.readers.vkitti2 import VirtualKitti2Reader
from openmarigold.data.shards import ShardedDataset
from openmarigold.data.verification import verify
from openmarigold.errors import DataError
from openmarigold.modalities import find_modality
from raw_data import (
    FOCAL_PX,
    HYPERSIM_LIGHTING,
    HYPERSIM_NORMALS,
    INTERIORVERSE_DEFECTS,
    SIZE,
    hypersim_light,
    hypersim_wall,
    interiorverse_pixels,
    write_hypersim_lighting,
    write_hypersim_normals,
    write_interiorverse,
    write_vkitti2,
)


def hypersim(source: Path, maps: HypersimMaps, **options: Any) -> HypersimReader:
    return HypersimReader(source, size=SIZE, focal_px=FOCAL_PX, maps=maps, **options)


def rejections(folder: Path) -> dict[int, dict[str, Any]]:
    """By the number of the frame."""
    rows = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    return {int(row["name"].rsplit("frame.")[1][:4]): row for row in rows}


def test_hypersim_normals_look_to_the_camera_and_bad_frames_are_named(tmp_path: Path) -> None:
    source = write_hypersim_normals(tmp_path / "raw")
    prepare(hypersim(source, NORMALS_MAPS), tmp_path / "out")
    assert {number: row["reason"] for number, row in rejections(tmp_path / "out").items()} == HYPERSIM_NORMALS
    errors = {number for number, row in rejections(tmp_path / "out").items() if row["is_error"]}
    assert errors == HYPERSIM_NORMALS.keys() - {2}  # NaN is how the source says that it does not know
    data = ShardedDataset(tmp_path / "out")
    assert data.keys == [f"ai_001_001-cam_00-{number:04d}" for number in (0, 1, 5)]
    assert list(data.encodings) == ["normals"] and verify(tmp_path / "out") == []
    truth, _ = hypersim_wall(SIZE)
    for index in range(3):  # turned back, of length 1, and the infinite positions do not matter
        np.testing.assert_allclose(data.read(index).maps["normals"], truth, atol=1e-6)
    assert [data.info(index)["turned_normals"] for index in range(3)] == [0, SIZE[0] * 9, 0]
    assert data.info(0)["intrinsics"]["fx"] == FOCAL_PX


def test_what_looks_away_by_hand() -> None:
    normals = np.zeros((2, 3, 3))
    normals[0] = [(0, 0, 1), (0, 0, -1), (1, 0, -0.0005)]
    normals[1] = [(0, 0, 1), (0, 0, -1), (0, 1, 0)]
    positions = np.zeros((2, 3, 3))
    positions[..., 0] = [0.0, 0.0, 0.0]
    positions[1, 1] = np.inf  # as the one above it: below the camera
    away = looking_away(normals, positions, np.array([0.0, 0.0, 2.0]))
    assert away.tolist() == [[False, True, False], [False, True, False]]
    upside = np.full((2, 3, 3), -np.inf)
    upside[1] = 0.0  # the first row has none above it
    assert looking_away(normals, upside, np.array([0.0, 0.0, 2.0])).tolist() == away.tolist()


def test_hypersim_lighting_adds_up_and_each_rejection_is_named(tmp_path: Path) -> None:
    source = write_hypersim_lighting(tmp_path / "raw")
    for split, kept in (("train", 0), ("test", 7)):
        out = tmp_path / split
        prepare(hypersim(source, LIGHTING_MAPS, split=split), out)
        expected = {number: reason for number, (of, reason) in HYPERSIM_LIGHTING.items() if of == split}
        assert {number: row["reason"] for number, row in rejections(out).items()} == expected
        assert {number for number, row in rejections(out).items() if row["is_error"]} == {6} & expected.keys()
        data = ShardedDataset(out)
        assert data.keys == [f"ai_001_001-cam_00-{kept:04d}"] and verify(out) == []
        maps, light = data.read(0).maps, hypersim_light(kept, SIZE)
        assert list(maps) == ["albedo", "shading", "residual"]
        assert np.array_equal(maps["shading"], light["diffuse_illumination"].astype(np.float32))
        assert np.array_equal(maps["residual"], light["residual"].astype(np.float32))
        if split == "train":
            photo = maps["albedo"] * maps["shading"] + maps["residual"]
            assert np.array_equal(data.read(0).rgb, tone_map(photo, np.ones(SIZE, dtype=bool)))
            assert data.info(0)["cut_psnr_db"] > 40
        else:  # its albedo of 1.25 is cut
            assert maps["albedo"].max() == 1.0 and "cut_psnr_db" not in data.info(0)
        target = find_modality("lighting").to_target(maps, np.ones(SIZE, dtype=bool), "far")
        assert target.values.shape == (3, 3, *SIZE)


def test_light_that_half_precision_cannot_hold_ends_no_run(tmp_path: Path) -> None:
    source = write_hypersim_lighting(tmp_path / "raw", numbers=(7, 0))
    path = next(source.rglob("frame.0007.residual.hdf5"))
    bright = hypersim_light(7, SIZE)["residual"].astype(np.float32)
    bright[0, 0] = 1e6
    with h5py.File(path, "w") as file:
        file["dataset"] = bright
    prepare(hypersim(source, LIGHTING_MAPS, split="all"), tmp_path / "out")
    assert rejections(tmp_path / "out")[7]["reason"] == "light not finite"
    assert ShardedDataset(tmp_path / "out").keys == ["ai_001_001-cam_00-0000"]


def test_psnr_of_cut_light_by_hand() -> None:
    albedo = np.ones((10, 10, 3), dtype=np.float32)
    shading = np.full((10, 10, 3), 0.5, dtype=np.float32)
    residual = np.zeros_like(shading)
    assert cut_psnr(shading, albedo, shading, residual) == float("inf")
    residual[0, 0] = 0.5  # not above the cut
    assert cut_psnr(albedo * shading + residual, albedo, shading, residual) == float("inf")
    # One of 100 pixels is cut to 0.5: shading of 4 on an albedo of 0.1, then a residual of 0.6.
    for light, added, made in ((4.0, 0.0, 0.1 * 0.5), (0.5, 0.6, 0.1 * 0.5 + 0.5)):
        albedo[0, 0], shading[0, 0], residual[0, 0] = 0.1, light, added
        color = albedo * shading + residual
        levels = [np.floor(255 * 0.8 * (value / 0.5) ** (1 / 2.2)) for value in (0.1 * light + added, made)]
        assert cut_psnr(color, albedo, shading, residual) == pytest.approx(
            10 * np.log10(255**2 / ((levels[0] - levels[1]) ** 2 / 100)), abs=0.2
        )


def test_interiorverse_by_hand(tmp_path: Path) -> None:
    source = write_interiorverse(tmp_path / "raw")
    prepare(InteriorVerseReader(source), tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {int(row["name"][5:8]): row["reason"] for row in rows} == INTERIORVERSE_DEFECTS
    data = ShardedDataset(tmp_path / "out")
    assert data.keys == ["L3D1-000", "L3D2-012"] and data.scenes == ["L3D1", "L3D2"] and verify(tmp_path / "out") == []
    maps, raw = data.read(1).maps, {part: interiorverse_pixels(12, part) for part in ("im", "albedo", "material")}
    assert list(maps) == ["albedo", "roughness", "metallicity"]
    assert not any(maps[name][:4].any() for name in maps)  # masked: one channel of the mask is 0
    albedo = np.minimum(raw["albedo"][4:], 1.0) ** (1 / 2.2)
    np.testing.assert_allclose(maps["albedo"][4:], albedo, rtol=1e-3)
    np.testing.assert_allclose(maps["roughness"][4:], raw["material"][4:, :, 0], rtol=1e-3)
    np.testing.assert_allclose(maps["metallicity"][4:], raw["material"][4:, :, 1], rtol=1e-3)
    gray = 255 * np.minimum(raw["im"], 1.0) ** (1 / 2.2)
    assert np.abs(data.read(1).rgb - gray).max() <= 0.51
    valid = find_modality("appearance").valid_mask(maps, (0.0, np.inf))
    assert not valid[:4].any() and valid[4:].all()


def test_lists_and_scenes_of_interiorverse(tmp_path: Path) -> None:
    source = write_interiorverse(tmp_path / "raw")
    line = "scenes_85/L3D2/012_im.exr scenes_85/L3D2/012_albedo.exr"
    assert [frame.key for frame in InteriorVerseReader(source, listed=[line]).list_frames().frames] == ["L3D2-012"]
    (source / "scenes 85").symlink_to(source / "scenes_85")
    spaced = InteriorVerseReader(source, listed=[line.replace("_85", " 85", 1)])
    assert [frame.key for frame in spaced.list_frames().frames] == ["L3D2-012"]
    assert [frame.key for frame in InteriorVerseReader(source, scenes=("L3D2",)).list_frames().frames] == ["L3D2-012"]
    with pytest.raises(DataError, match="names no frame"):
        InteriorVerseReader(source, listed=["012.png"]).list_frames()
    with pytest.raises(DataError, match="has no scene L3D9"):
        InteriorVerseReader(source, scenes=("L3D9",)).list_frames()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no <scene>/000_im\.exr"):
        InteriorVerseReader(tmp_path / "empty").list_frames()


def test_commands_for_maps(tmp_path: Path) -> None:
    interiors = write_interiorverse(tmp_path / "interiors")
    command = ["data", "prepare", "interiorverse", str(interiors), str(tmp_path / "out"), "--workers", "1"]
    assert run(command) == 1  # defective frames
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["name"] == "interiorverse" and manifest["counts"]["samples"] == 2
    raw = write_hypersim_lighting(tmp_path / "raw", size=(768, 1024), numbers=(7, 8))
    scene = ["--modality", "lighting", "--split", "test", "--workers", "1"]
    assert run(["data", "prepare", "hypersim", str(raw), str(tmp_path / "light"), *scene]) == 0
    manifest = json.loads((tmp_path / "light" / "manifest.json").read_text())
    assert list(manifest["maps"]) == ["albedo", "shading", "residual"]
    assert "--modality lighting" in manifest["command"]


def test_normals_of_virtual_kitti_come_from_its_depth(tmp_path: Path) -> None:
    source = write_vkitti2(tmp_path / "raw")
    reader = VirtualKitti2Reader(source, scenes=("Scene01",), variants=("fog",))
    prepare(reader, tmp_path / "depth", limit=1)
    add_normals(tmp_path / "depth", tmp_path / "normals", support=7)
    maps = ShardedDataset(tmp_path / "normals").read(0).maps
    assert not maps["normals"][maps["depth"] > 80].any()  # sky, and what is too far for training
    road = maps["normals"][-20:, :300].astype(np.float64)
    # Depth [cm] is 100,000 / (row - 140): a plane of 1/z, by rows; the crop begins at row 23.
    row = np.arange(352 - 20, 352)[:, None] + 23
    slope, disparity = 1 / 1000, (row - 140) / 1000
    truth = np.stack([0.0 * row, 725.0087 * slope + 0.0 * row, disparity - (row - 187.0) * slope], axis=-1)
    truth /= np.linalg.norm(truth, axis=-1, keepdims=True)
    angles = np.degrees(np.arccos(np.clip((road * truth).sum(axis=-1), -1, 1)))
    assert road.any(axis=-1).mean() > 0.95 and np.median(angles) < 1.0 and np.percentile(angles, 95) < 5.0
