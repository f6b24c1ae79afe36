# SPDX-License-Identifier: Apache-2.0
"""Prepared data sets with maps of any kind, and those of version 0.1, which had depth only."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmarigold.data.encodings import MapEncoding
from openmarigold.data.preview import write_preview
from openmarigold.data.shard_writer import NewSample, ShardWriter
from openmarigold.data.shards import ShardedDataset
from openmarigold.data.sources import Source
from openmarigold.data.statistics import dataset_statistics, write_meta
from openmarigold.data.verification import verify
from openmarigold.errors import DataError

LINEAR = MapEncoding(kind="linear", meters_per_unit=0.001)
FLOAT = MapEncoding(kind="float32")


def make_photo(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def jpeg(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG")
    return buffer.getvalue()


def write_old_layout(folder: Path) -> list[np.ndarray]:
    """A set of three samples as version 0.1 wrote it, the last a photo; returns the depth codes of the others."""
    place = np.dtype([("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4")])
    fields = [("key", "S3"), ("kind", "<u2"), ("scene", "<u4"), ("size", "<u4", (2,)), ("shard", "<u4")]
    table = np.zeros(3, dtype=[*fields, ("rgb", place), ("depth", place), ("json", place)])
    folder.mkdir()
    codes = [np.full((6, 9), 1000 + number, dtype=np.uint16) for number in range(2)]
    samples, offset = [], 0
    with tarfile.open(folder / "shard-00000.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(3):
            info = {"kind": "rooms", "scene": "s", "source": "x.png", "statistics": {"rgb": {"mean": 1.0}}}
            members = {"rgb.jpg": jpeg(make_photo(6, 9, seed=number))}
            if number < 2:
                buffer = io.BytesIO()
                Image.fromarray(codes[number]).save(buffer, "PNG")
                members["depth.png"] = buffer.getvalue()
            members["json"] = json.dumps(info).encode()
            table[number]["key"], table[number]["size"] = f"a-{number}", (6, 9)
            places = {}
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"a-{number}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
                places[suffix] = [offset + 512, len(content), zlib.crc32(content)]
                table[number][suffix.partition(".")[0]] = tuple(places[suffix])
                offset += 512 + -(-len(content) // 512) * 512
            samples.append({"key": f"a-{number}", "kind": "rooms", "scene": "s", "size": [6, 9], "members": places})
    with (folder / "index.npy").open("wb") as file:
        np.save(file, table)
    shard = (folder / "shard-00000.tar").read_bytes()
    facts = {"bytes": len(shard), "sha256": hashlib.sha256(shard).hexdigest()}
    index = {"format": "openmarigold-shards-1", "shard": "shard-00000.tar", **facts, "samples": samples, "rejected": []}
    (folder / "shard-00000.json").write_text(json.dumps(index))
    encoding = {"kind": "linear", "metres_per_unit": 0.001}
    lines = f"{json.dumps(encoding)}\nshard-00000.tar {facts['sha256']}\n"
    manifest = {
        "format": "openmarigold-shards-1",
        "name": "old",
        "split": "train",
        "depth": encoding,
        "settings": {"seed": 1},
        "counts": {"samples": 3, "kinds": {"rooms": 3}, "scenes": {"s": 3}, "defective": {}, "left_out": {}},
        "shards": [{"name": "shard-00000.tar", **facts, "samples": 3}],
        "contents": hashlib.sha256(lines.encode()).hexdigest(),
        "index_sha256": hashlib.sha256((folder / "index.npy").read_bytes()).hexdigest(),
        "valid_range": [1e-05, 65.0],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return codes


def test_a_set_of_version_0_1_is_read(tmp_path: Path) -> None:
    codes = write_old_layout(tmp_path / "old")
    data = ShardedDataset(tmp_path / "old")
    assert data.encodings == {"depth": LINEAR} and data.valid_range == (1e-5, 65.0)
    for number in range(2):
        np.testing.assert_array_equal(data.read(number).maps["depth"], LINEAR.meters(codes[number]))
    assert data.read(2).maps == {} and data.info(2)["source"] == "x.png"
    assert verify(tmp_path / "old") == []
    assert dataset_statistics(tmp_path / "old")[-1].range == pytest.approx((1.0, 1.001))
    assert Source("old", tmp_path).maps == ("depth",)
    write_meta(tmp_path / "old")
    writer = ShardWriter(tmp_path / "old", name="old", split="train", encodings={"depth": LINEAR}, settings={"seed": 1})
    writer.begin()  # continues: the same settings
    assert writer.is_done(0)
    assert writer.finish(1)["maps"] == {"depth": LINEAR.record()}
    assert ShardedDataset(tmp_path / "old").keys == data.keys and verify(tmp_path / "old") == []


def test_maps_of_any_number_of_channels(tmp_path: Path) -> None:
    encodings = {"normals": MapEncoding(kind="float16"), "depth": LINEAR, "albedo": FLOAT}
    writer = ShardWriter(tmp_path / "set", name="many", split="train", encodings=encodings, settings={})
    rng = np.random.default_rng(0)
    maps = {
        "normals": rng.uniform(-1, 1, (6, 9, 3)).astype(np.float32),
        "depth": np.full((6, 9), 1.5, dtype=np.float32),
        "albedo": rng.uniform(0, 1, (6, 9, 3)).astype(np.float32),
    }
    writer.begin()
    whole = NewSample(key="whole", kind="k", scene="s", rgb=make_photo(6, 9), maps=maps)
    part = NewSample(key="part", kind="k", scene="s", rgb=make_photo(6, 9), maps={"depth": maps["depth"]})
    writer.write(0, [whole, part])
    writer.finish(1)
    data = ShardedDataset(tmp_path / "set")
    assert list(data.encodings) == list(encodings) and data.encodings == encodings
    found = data.read(0).maps
    assert list(found) == list(encodings) and {values.dtype for values in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["normals"], maps["normals"].astype(np.float16))
    np.testing.assert_array_equal(found["depth"], maps["depth"])
    np.testing.assert_array_equal(found["albedo"], maps["albedo"])
    assert list(data.read(1).maps) == ["depth"]
    with tarfile.open(tmp_path / "set" / "shard-00000.tar") as archive:
        assert archive.getnames()[1:5] == [
            f"whole.{name}" for name in ("normals.npy", "depth.png", "albedo.npy", "json")
        ]
    assert verify(tmp_path / "set") == []
    write_meta(tmp_path / "set")
    assert "normals_mean" in (tmp_path / "set" / "meta.csv").read_text().splitlines()[0]
    assert dataset_statistics(tmp_path / "set", map_name="albedo")[-1].num_samples == 1
    with pytest.raises(DataError, match="has no map 'flow'; it has normals, depth, albedo"):
        dataset_statistics(tmp_path / "set", map_name="flow")
    write_preview(tmp_path / "set", tmp_path / "sheet.png", columns=1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 288
        pixels = np.asarray(sheet)
    assert np.ptp(pixels[20:180, 6 + 288 : 6 + 2 * 288].astype(int)) > 200, "the normals are seen"


@pytest.mark.parametrize(
    ("encodings", "maps", "message"),
    [
        ({"rgb": FLOAT}, {}, "map name 'rgb' is not accepted"),
        ({"My map": FLOAT}, {}, "map name 'My map' is not accepted"),
        ({"depth": FLOAT}, {"normals": (4, 4, 3)}, "normals is not among the data set's maps .depth."),
        ({"normals": LINEAR}, {"normals": (4, 4, 3)}, "hold maps of one channel; store float16 or float32"),
        ({"normals": MapEncoding(kind="float16")}, {"normals": (4, 4, 3)}, "does not fit float16; store float32"),
        ({"a_rather_long_map_name": FLOAT}, {"a_rather_long_map_name": (4, 4)}, "too long; use at most 73 characters"),
    ],
)
def test_maps_that_cannot_be_stored(
    tmp_path: Path, encodings: dict[str, MapEncoding], maps: dict[str, tuple[int, ...]], message: str
) -> None:
    made = {name: np.full(shape, 1e6, dtype=np.float32) for name, shape in maps.items()}
    with pytest.raises(DataError, match=message):
        writer = ShardWriter(tmp_path, name="x", split="train", encodings=encodings, settings={})
        writer.begin()
        writer.write(0, [NewSample(key="k" * 80, kind="k", scene="s", rgb=make_photo(4, 4), maps=made)])
