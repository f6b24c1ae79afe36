# SPDX-License-Identifier: Apache-2.0
"""From Virtual KITTI 2 and from folders with a dataset.toml to shards: every defect and every mistake by name."""

from __future__ import annotations

import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openmarigold.data import preparation
from openmarigold.data.preparation import prepare
from openmarigold.data.readers.rgbd_folder import FolderReader, read_config
from openmarigold.data.readers.vkitti2 import VirtualKitti2Reader, choose_variants
from openmarigold.data.shards import ShardedDataset
from openmarigold.data.verification import verify
from openmarigold.errors import DataError, InvalidValueError
from raw_data import VKITTI2_DEFECTS, vkitti2_codes, write_vkitti2


def rejections(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """The files without what shards state about the files on disk that they were made from."""
    return {path.name: re.sub(rb'"sources": "\w+",', b"", path.read_bytes()) for path in sorted(folder.iterdir())}


# --- Virtual KITTI 2


@pytest.fixture(scope="module")
def vkitti2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vkitti2(tmp_path_factory.mktemp("vkitti2"))


def test_street_frames_pass_and_each_bad_one_is_named(vkitti2: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    reader = VirtualKitti2Reader(vkitti2, variants=("clone",), scenes=("Scene02",))
    prepare(reader, tmp_path, note=notes.append)
    data = ShardedDataset(tmp_path)
    good = [number for number in range(10) if number not in VKITTI2_DEFECTS]
    expected = [f"Scene02-clone-Camera_0-{number:05d}" for number in good]
    assert data.keys == expected + [f"Scene02-clone-Camera_1-{number:05d}" for number in range(10)]
    found = {row["name"]: row["reason"] for row in rejections(tmp_path)}
    name = "Scene02/clone/frames/rgb/Camera_0/rgb_{:05d}.jpg"
    assert found == {name.format(number): reason for number, reason in VKITTI2_DEFECTS.items()}
    assert notes == ["Scene02 has 10 frames a camera here, 233 in the full set"]
    sample = data.read(0)
    # Crop, centimeters, and the sky as the far plane: outside the range that training uses, and not "no depth".
    codes = vkitti2_codes(0)[23:375, 13:1229]
    np.testing.assert_allclose(sample.maps["depth"], codes / 100, rtol=1e-6)
    assert sample.maps["depth"][0, 0] == np.float32(655.35) and data.valid_range == (1e-5, 80.0)
    assert sample.rgb.shape == (352, 1216, 3) and sample.kind == "street"
    assert data.info(0)["intrinsics"] == {"fx": 725.0087, "fy": 725.0087, "cx": 608.0, "cy": 164.5}


def test_uncropped_jpeg_files_are_kept_and_layouts_do_not_matter(vkitti2: Path, tmp_path: Path) -> None:
    folders = write_vkitti2(tmp_path / "folders", layout="folders")
    options: dict[str, Any] = {"variants": ("fog",), "scenes": ("Scene01",), "crop": False}
    prepare(VirtualKitti2Reader(vkitti2, **options), tmp_path / "a", limit=3)
    prepare(VirtualKitti2Reader(folders, **options), tmp_path / "b", limit=3)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    path = folders / "unpacked-rgb" / "Scene01/fog/frames/rgb/Camera_0/rgb_00001.jpg"
    data = ShardedDataset(tmp_path / "a")
    assert data.member(1, "rgb") == path.read_bytes()
    assert data.sizes[1].tolist() == [375, 1242]
    assert data.info(1)["intrinsics"] == {"fx": 725.0087, "fy": 725.0087, "cx": 621.0, "cy": 187.5}


def test_scenes_and_variants(vkitti2: Path) -> None:
    def selection(**options: Any) -> tuple[set[str], set[str]]:
        frames = VirtualKitti2Reader(vkitti2, **options).list_frames().frames
        return {frame.scene for frame in frames}, {str(frame.fields["variant"]) for frame in frames}

    assert selection() == ({"Scene02"}, {"clone", "morning"})
    assert selection(split="val") == ({"Scene01"}, {"clone", "morning"})
    assert selection(variants=("e2e-ft",)) == ({"Scene01", "Scene02"}, {"fog", "morning"})
    assert selection(variants=("e2e-ft",), split="val") == ({"Scene01"}, {"fog", "morning"})
    assert len(choose_variants(("published",))) == 6 and len(choose_variants(("all",))) == 10
    assert choose_variants(("fog", "published", "clone")) == tuple(sorted({"fog", *choose_variants(("published",))}))
    listed = ["rgb/Scene01/fog/frames/rgb/Camera_1/rgb_00003.jpg depth/whatever.png"]
    assert selection(listed=listed) == ({"Scene01"}, {"fog"})
    lost = VirtualKitti2Reader(vkitti2, listed=["Scene20/fog/frames/rgb/Camera_1/rgb_00003.jpg"]).list_frames()
    assert [rejection.reason for rejection in lost.rejected] == ["missing file"]
    with pytest.raises(InvalidValueError, match="variant 'snow' is not known; use published"):
        VirtualKitti2Reader(vkitti2, variants=("snow",))
    with pytest.raises(InvalidValueError, match="scene 'Scene03' is not known"):
        VirtualKitti2Reader(vkitti2, scenes=("Scene03",))
    with pytest.raises(InvalidValueError, match="split='test' is not known"):
        VirtualKitti2Reader(vkitti2, split="test")
    with pytest.raises(DataError, match=r"'x\.jpg' names no frame"):
        selection(listed=["x.jpg"])


def test_sources_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(DataError, match="holds no Scene"):
        VirtualKitti2Reader(tmp_path).list_frames()
    with pytest.raises(DataError, match="does not exist"):
        VirtualKitti2Reader(tmp_path / "none").list_frames()


# --- Any folder


def write_folder(folder: Path, config: str) -> Path:
    rng = np.random.default_rng(3)
    for scene in ("hall", "kitchen 1"):
        for number in range(3):
            path = folder / scene / "color" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(path)
            codes = (1000 + 10 * np.arange(192) + 100 * number).reshape(12, 16)
            codes[0, 0], codes[0, 1] = 0, 9999
            for suffix in ("png", "npy"):
                target = folder / scene / "depth" / f"{number}.{suffix}"
                target.parent.mkdir(exist_ok=True)
                if suffix == "png":
                    Image.fromarray(codes.astype(np.uint16)).save(target)
                else:
                    meters = (codes / 1000).astype(np.float32)
                    meters[0, :3] = [np.nan, np.inf, -1]
                    np.save(target, meters[None])
    (folder / "dataset.toml").write_text(config)
    return folder


PNG = """
name = "mine"
rgb = "{place}/color/{frame}.jpg"
depth = "{place}/depth/{frame}.png"
meters_per_unit = 0.002
kind = "rooms"
scene = "{place}"
invalid = [9999]
license = "CC0"
"""


def prepare_folder(source: Path, destination: Path, **options: Any) -> ShardedDataset:
    reader = FolderReader(source, read_config(source / "dataset.toml"), **options)
    prepare(reader, destination)
    assert verify(destination) == []
    return ShardedDataset(destination)


def test_png_folder_keeps_codes_and_jpeg_files(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", PNG)
    data = prepare_folder(source, tmp_path / "out")
    assert data.keys == [f"{place}-{number}" for place in ("hall", "kitchen-1") for number in range(3)]
    assert data.scenes == ["hall"] * 3 + ["kitchen 1"] * 3 and set(data.kinds) == {"rooms"} and data.name == "mine"
    depth = data.read(1).maps["depth"]
    assert depth is not None and depth[0, :2].tolist() == [0, 0]
    assert depth[1, 0] == np.float32(0.002 * (1000 + 160 + 100))
    assert data.encodings["depth"].meters_per_unit == 0.002
    assert data.member(0, "rgb") == (source / "hall" / "color" / "0.jpg").read_bytes()
    listed = prepare_folder(source, tmp_path / "listed", listed=["hall/color/2.jpg hall/depth/2.png"])
    assert listed.keys == ["hall-2"]
    lines = ["kitchen 1/color/0.jpg", "kitchen 1/color/2.jpg\tkitchen 1/depth/2.png", "hall/color/1.jpg more words"]
    spaced = prepare_folder(source, tmp_path / "spaced", listed=lines)
    assert spaced.keys == ["kitchen-1-0", "kitchen-1-2", "hall-1"]


def test_distances_become_planar_and_float32(tmp_path: Path) -> None:
    config = PNG.replace(".png", ".npy").replace("0.002", "1.0") + 'depth_is = "distance"\nfx = 20.0\ncx = 7.0\n'
    data = prepare_folder(write_folder(tmp_path / "in", config), tmp_path / "out")
    depth = data.read(0).maps["depth"]
    assert depth is not None and depth[0, :3].tolist() == [0, 0, 0]
    x, y = (5.5 - 7.0) / 20, (4.5 - 6.0) / 20
    stored = (1000 + 10 * (4 * 16 + 5)) / 1000
    assert depth[4, 5] == pytest.approx(stored / math.sqrt(1 + x**2 + y**2), rel=1e-6)
    assert data.encodings["depth"].kind == "float32"
    assert data.info(0)["intrinsics"] == {"fx": 20.0, "fy": 20.0, "cx": 7.0, "cy": 6.0}


def test_log_codes_of_a_range(tmp_path: Path) -> None:
    config = PNG + 'encoding = "log"\nmin_depth = 2.2\nmax_depth = 5.0\n'
    data = prepare_folder(write_folder(tmp_path / "in", config), tmp_path / "out")
    depth = data.read(0).maps["depth"]
    assert depth is not None
    stored = 0.002 * (1000 + 10 * np.arange(192).reshape(12, 16))
    inside = (stored >= 2.2) & (stored <= 5.0)
    inside[0, :2] = False
    np.testing.assert_array_equal(depth > 0, inside)
    np.testing.assert_allclose(depth[inside], stored[inside], rtol=2e-5)


def test_exr_depth(tmp_path: Path) -> None:
    pytest.importorskip("OpenEXR")
    from openmarigold.images.exr import write_exr

    source = write_folder(tmp_path / "in", PNG.replace(".png", ".exr").replace("meters_per_unit = 0.002\n", ""))
    meters = np.linspace(1, 4, 192, dtype=np.float32).reshape(12, 16)
    for path in sorted(source.rglob("*.npy")):
        write_exr(path.with_suffix(".exr"), {"Z": meters}, {})
    (source / "hall" / "depth" / "1.exr").write_bytes(b"nothing")
    write_exr(source / "hall" / "depth" / "2.exr", {"R": meters, "G": meters}, {})
    data = prepare_folder(source, tmp_path / "out")
    assert data.keys == ["hall-0", "kitchen-1-0", "kitchen-1-1", "kitchen-1-2"]
    np.testing.assert_array_equal(data.read(0).maps["depth"], meters)
    assert [row["reason"] for row in rejections(tmp_path / "out")] == ["damaged", "wrong format"]


def test_defects_of_any_folder(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", PNG.replace(".png", ".npy"))
    depth = source / "hall" / "depth"
    (depth / "0.npy").write_bytes((depth / "0.npy").read_bytes()[:300])
    (depth / "1.npy").unlink()
    np.save(depth / "2.npy", np.ones((3, 4, 5)))
    kitchen = source / "kitchen 1" / "depth"
    np.save(kitchen / "0.npy", np.linspace(1, 2, 165, dtype=np.float32).reshape(11, 15))
    np.save(kitchen / "1.npy", np.array("text"))
    data = prepare_folder(source, tmp_path / "out")
    assert data.keys == ["kitchen-1-2"]
    found = {row["name"]: row["reason"] for row in rejections(tmp_path / "out")}
    assert found == {
        "hall/color/0.jpg": "truncated",
        "hall/color/1.jpg": "missing file",
        "hall/color/2.jpg": "wrong format",
        "kitchen 1/color/0.jpg": "wrong size",
        "kitchen 1/color/1.jpg": "wrong format",
    }


def test_other_photos_become_png_and_keys_are_unique(tmp_path: Path) -> None:
    config = PNG.replace("{place}/color/{frame}.jpg", "{place}/color/{path}.png").replace("{frame}", "{path}")
    source = write_folder(tmp_path / "in", config)
    color = source / "hall" / "color"
    pixels = np.arange(12 * 16 * 4, dtype=np.uint8).reshape(12, 16, 4)
    for name in ("a b", "a-b", "deep/er"):
        (color / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(color / f"{name}.png")
        (source / "hall" / "depth" / name).parent.mkdir(exist_ok=True)
        (source / "hall" / "depth" / f"{name}.png").write_bytes((source / "hall" / "depth" / "0.png").read_bytes())
    data = prepare_folder(source, tmp_path / "out")
    assert len(set(data.keys)) == 3 and data.keys[2] == "hall-deep-er" and data.keys[0].startswith("hall-a-b-")
    assert data.read(0).rgb.shape == (12, 16, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("color = 1", "unknown key color; accepted: name"),
        ("licens = 'x'", "unknown key licens; did you mean license"),
        ("fx = 'wide'", "fx='wide' is not accepted; it must be a number"),
        ("max_depth = true", "max_depth=True is not accepted; it must be a number"),
        ("scene = 3", "scene=3 is not accepted; it must be a text"),
        ("invalid = 4", "invalid=4 is not accepted; it must be a list, each a number"),
        ("depth_is = 'sideways'", "must be planar or distance"),
        ("depth_is = 'distance'", "fx is needed"),
        ("encoding = 'log'", "needs max_depth"),
        ("encoding = 'zip'", "must be auto, log or float32"),
        ("kind = '{type}'", "kind has the field 'type', which rgb="),
        ("meters_per_unit = 0", "meters_per_unit is needed"),
        ("min_depth = 3.0\nmax_depth = 2.0", "below max_depth"),
        ("rgb = 'one.jpg'", "has no field"),
        ("depth = '{frame}.tiff'", "must end in one of .png, .npy, .exr"),
        ("name = ", "cannot be read"),
    ],
)
def test_mistakes_in_the_toml_file(change: str, message: str, tmp_path: Path) -> None:
    key = change.split(" ")[0]
    lines = [line for line in PNG.splitlines() if not line.startswith(f"{key} ")]
    (tmp_path / "dataset.toml").write_text("\n".join([*lines, change]))
    with pytest.raises(DataError, match=r"dataset\.toml") as found:
        read_config(tmp_path / "dataset.toml")
    assert message in str(found.value)


def test_missing_toml_and_patterns_that_fit_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_config(tmp_path / "dataset.toml")
    (tmp_path / "dataset.toml").write_text('name = "x"')
    with pytest.raises(DataError, match="rgb is missing"):
        read_config(tmp_path / "dataset.toml")
    source = write_folder(tmp_path / "in", PNG.replace(".jpg", ".jpeg"))
    with pytest.raises(DataError, match=r"has no file like rgb='\{place\}/color/\{frame\}\.jpeg'; it holds dataset"):
        prepare_folder(source, tmp_path / "out")
    source = write_folder(tmp_path / "in", PNG)
    with pytest.raises(DataError, match=r"'a\.jpg' is not like rgb="):
        prepare_folder(source, tmp_path / "out", listed=["a.jpg"])


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "raw", PNG)
    hall = source / "hall"
    name = os.fsdecode(b"caf\xe9\n")
    (hall / "color/0.jpg").rename(hall / f"color/{name}.jpg")
    (hall / "depth/0.png").rename(hall / f"depth/{name}.png")
    prepared = prepare_folder(source, tmp_path / "out")
    assert len(prepared) == 6
    assert "caf\\udce9" in (tmp_path / "out" / "meta.csv").read_text(encoding="utf-8")


def test_changed_and_repaired_files_are_read_again(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", PNG)
    first, second = (source / place / "depth" / "0.png" for place in ("hall", "kitchen 1"))
    good, before = first.read_bytes(), first.stat()
    first.write_bytes(good[:40])
    future = time.time() + 1e6  # as of a camera with a wrong clock
    os.utime(source / "hall" / "color" / "1.jpg", (future, future))
    reader = FolderReader(source, read_config(source / "dataset.toml"))
    assert prepare(reader, tmp_path / "out", shard_size=2).manifest["counts"]["defective"] == {"damaged": 1}
    assert prepare(reader, tmp_path / "out", shard_size=2).num_shards_kept == 3
    first.write_bytes(good)
    os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns))  # as unpacking an archive does
    found = prepare(reader, tmp_path / "out", shard_size=2)
    assert found.num_shards_kept == 2 and found.manifest["counts"]["defective"] == {}
    Image.fromarray(np.full((12, 16), 500, np.uint16) + np.arange(16, dtype=np.uint16)).save(second)
    with pytest.MonkeyPatch.context() as patch:  # a run that ends in between leaves no finished set
        patch.setattr(preparation, "run_units", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(reader, tmp_path / "out", shard_size=2)
    with pytest.raises(DataError):
        ShardedDataset(tmp_path / "out")
    assert prepare(reader, tmp_path / "out", shard_size=2).num_shards_kept == 2
    assert ShardedDataset(tmp_path / "out").read(3).maps["depth"].max() < 1.1


def test_damaged_exif_is_no_orientation(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", PNG.replace(".jpg", ".png"))
    for photo in source.glob("*/color/*.jpg"):
        with Image.open(photo) as image:
            image.save(photo.with_suffix(".png"), exif=b"Exif\0\0garbage!garbage!")
    assert len(prepare_folder(source, tmp_path / "out")) == 6 and not rejections(tmp_path / "out")


@pytest.mark.parametrize("orientation", [3, 6])
def test_depth_of_a_photo_that_is_turned_is_not_guessed(orientation: int, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", PNG)
    photo = source / "hall" / "color" / "1.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(photo) as image:
        image.load()
        image.save(photo, exif=exif)
    data = prepare_folder(source, tmp_path / "out")
    (rejection,) = rejections(tmp_path / "out")
    assert rejection["reason"] == "turned" and "save both upright" in rejection["detail"]
    assert "hall-1" not in data.keys
    codes = np.asarray(Image.open(source / "hall" / "depth" / "1.png"))
    Image.fromarray(np.rot90(codes, -1).copy()).save(source / "hall" / "depth" / "1.png")
    if orientation == 6:  # now its depth has the upright photo's shape
        assert prepare_folder(source, tmp_path / "again").read(1).rgb.shape == (16, 12, 3)
