# SPDX-License-Identifier: Apache-2.0
"""Raw data that is damaged or made to harm: one bad file costs itself, never the set, and reads nothing elsewhere."""

from __future__ import annotations

import json
import os
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from benchmark_data import image_bytes, npy, pack, write
from openmarigold.data import archives
from openmarigold.data.archives import open_archive
from openmarigold.data.arrays import load_npy
from openmarigold.data.preparation import prepare
from openmarigold.data.readers.hypersim import HypersimReader
from openmarigold.data.readers.rgbd_folder import FolderReader, read_config
from openmarigold.data.shards import ShardedDataset
from openmarigold.errors import DataError
from raw_data import FOCAL_PX, SIZE, hypersim_arrays, write_good_hypersim_frame, write_split

CONFIG = """
name = "mine"
rgb = "{place}/{frame}.jpg"
depth = "{place}/{frame}.SUFFIX"
meters_per_unit = 0.001
"""
DEPTH = (1000 + 10 * np.arange(192)).reshape(12, 16).astype(np.uint16)


def jpeg(seed: int = 0) -> bytes:
    return image_bytes(np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8), "JPEG")


def prepared(
    source: Path, out: Path, suffix: str = "png"
) -> tuple[ShardedDataset, dict[str, dict[str, Any]], list[str]]:
    config = out.with_name("config.toml")
    config.write_text(CONFIG.replace("SUFFIX", suffix))
    notes: list[str] = []
    prepare(FolderReader(source, read_config(config)), out, note=notes.append)
    rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return ShardedDataset(out), {row["name"]: row for row in rows}, notes


def add_pair(folder: Path, name: str, depth: bytes, suffix: str = "png") -> None:
    write(folder / f"{name}.jpg", jpeg(len(name)))
    write(folder / f"{name}.{suffix}", depth)


def header(name: str, size: int, *, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = 0, kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 12 if size < 0 else b"\x80" + size.to_bytes(11, "big")
    if size < 0:
        block[124:136] = (256**12 + size).to_bytes(12, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("size", [-1, -512, -1024, 2**64, 2**40])
def test_a_tar_with_a_file_of_no_possible_size_gives_its_other_files(size: int, tmp_path: Path) -> None:
    """A size of -512 sent Python's reader back to the same header for ever."""
    for name in ("a", "z"):
        add_pair(tmp_path / "in" / "x", name, image_bytes(DEPTH))
    pack(tmp_path / "in", tmp_path / "whole.tar")
    whole = (tmp_path / "whole.tar").read_bytes()
    middle = next(at for at in range(0, len(whole), 512) if whole[at:].startswith(b"x/z"))
    bad = header("x/bad.jpg", size) + jpeg().ljust(1024, b"\0")[:1024]
    (tmp_path / "bad.tar").write_bytes(whole[:middle] + bad + header("x/bad.png", 0) + whole[middle:])
    data, rejected, notes = prepared(tmp_path / "bad.tar", tmp_path / "out")
    assert data.keys == ["x-a", "x-z"]
    assert rejected["x/bad.jpg"]["reason"] in ("damaged", "truncated") and str(size) in rejected["x/bad.jpg"]["detail"]
    assert rejected["bad.tar"]["reason"] == "damaged archive" and len(notes) == 1


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_tar_does_not_make_up_memory_for_a_name(kind: bytes, tmp_path: Path) -> None:
    add_pair(tmp_path / "in", "a", b"")
    pack(tmp_path / "in", tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(header("x", 2**45, kind=kind) + (tmp_path / "a.tar").read_bytes())
    with pytest.raises(DataError, match=r"is not a whole tar or zip file .*a header of"):
        open_archive(tmp_path / "b.tar")


def test_a_damaged_header_within_a_tar_and_a_cut_one(tmp_path: Path) -> None:
    """Python's reader takes a damaged header for the end, without a word."""
    for name in "abc":
        write(tmp_path / "in" / name, name.encode() * 600)
    pack(tmp_path / "in", tmp_path / "whole.tar")
    whole = bytearray((tmp_path / "whole.tar").read_bytes())
    assert open_archive(tmp_path / "whole.tar").damage == {}
    with tarfile.open(tmp_path / "whole.tar") as file:
        places = {member.name: (member.offset_data, member.size) for member in file}
    second = places["b"][0] - 512
    whole[second + 100] ^= 1
    (tmp_path / "bad.tar").write_bytes(whole)
    archive = open_archive(tmp_path / "bad.tar")
    assert archive.names == {"a", "c"} and archive.read("c") == b"c" * 600
    assert "is damaged at byte" in archive.damage["bad.tar"]
    (tmp_path / "cut.tar").write_bytes(whole[: places["a"][0] + 100])
    archive = open_archive(tmp_path / "cut.tar")
    with pytest.raises(DataError, match="the tar ends within it"):
        archive.read("a")


def test_sparse_files_in_a_tar_are_refused(tmp_path: Path) -> None:
    block = bytearray(header("a", 512, kind=tarfile.GNUTYPE_SPARSE))
    block[386:410] = b"00000000000\0" + b"00000001000\0"
    block[483:495] = b"77777777777\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(bytes(block) + bytes(512) + header("b", 0) + bytes(1024))
    archive = open_archive(tmp_path / "a.tar")
    assert archive.read("b") == b""
    with pytest.raises(DataError, match="sparse"):
        archive.read("a")


def test_a_zip_member_unpacks_to_no_more_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST_FILE", 1 << 20)
    add_pair(tmp_path / "in" / "x", "good", image_bytes(DEPTH))
    add_pair(tmp_path / "in" / "x", "bomb", bytes(3 << 20))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted((tmp_path / "in").rglob("*.*")):
            file.write(path, path.relative_to(tmp_path / "in"))
    for source in (tmp_path / "a.zip", tmp_path / "in"):
        data, rejected, _ = prepared(source, tmp_path / f"out {source.name}")
        assert data.keys == ["x-good"]
        assert "has 3 MiB; one file may have 1 MiB" in rejected["x/bomb.jpg"]["detail"].replace(", unpacked,", "")
    # A member that has more than it announces.
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "lie.zip").write_bytes(content.replace(struct.pack("<I", 3 << 20), struct.pack("<I", 100)))
    with pytest.raises(DataError, match="is damaged"):
        open_archive(tmp_path / "lie.zip").read("x/bomb.png")


def test_damaged_archives_in_a_folder_cost_their_own_files_only(tmp_path: Path) -> None:
    add_pair(tmp_path / "in" / "x", "good", image_bytes(DEPTH))
    write(tmp_path / "in" / "notes.zip", b"no zip")
    write(tmp_path / "in" / "old.tar", b"\x1f\x8b compressed")
    os.mkfifo(tmp_path / "in" / "pipe.tar")
    os.mkfifo(tmp_path / "in" / "x" / "pipe.jpg")
    write(tmp_path / "in" / "x" / "pipe.png", image_bytes(DEPTH))
    data, rejected, notes = prepared(tmp_path / "in", tmp_path / "out")
    assert data.keys == ["x-good"] and len(notes) == 3
    reasons = {name: row["reason"] for name, row in rejected.items()}
    assert reasons == {
        **dict.fromkeys(("notes.zip", "old.tar", "pipe.tar"), "damaged archive"),
        "x/pipe.jpg": "damaged",
    }


def test_links_to_folders_that_they_lie_in_are_not_followed(tmp_path: Path) -> None:
    """One such link made 41 samples of a picture; folders that link to each other took time beyond measure."""
    folder = tmp_path / "in"
    add_pair(folder / "x", "good", image_bytes(DEPTH))
    (folder / "x" / "loop").symlink_to("..")
    (folder / "elsewhere").symlink_to(tmp_path / "other")
    add_pair(tmp_path / "other" / "y", "linked", image_bytes(DEPTH))
    archive = open_archive(folder)
    linked = {"elsewhere/y/linked.jpg", "elsewhere/y/linked.png"}
    assert archive.names == {"x/good.jpg", "x/good.png", *linked}
    assert len(archive.notes) == 1 and "is a link to a folder that it lies in" in archive.notes[0]
    many = tmp_path / "many"
    for one in range(12):
        write(many / str(one) / "photo", b"")
        for other in range(12):
            (many / str(one) / f"to{other}").symlink_to(f"../{other}")
    archive = open_archive(many)
    assert {f"{one}/photo" for one in range(12)} <= archive.names and len(archive.names) <= 12 * 16


def test_names_in_other_encodings(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\xff")
    add_pair(tmp_path / "in" / "x", name, image_bytes(DEPTH))
    add_pair(tmp_path / "in" / "x", name + "bad", b"")
    pack(tmp_path / "in", tmp_path / "a.tar")
    for source in (tmp_path / "in", tmp_path / "a.tar"):
        out = tmp_path / f"out {source.name}"
        data, rejected, _ = prepared(source, out)
        assert data.info(0)["source"] == f"x/{name}.jpg" and list(rejected) == [f"x/{name}bad.jpg"]
        assert "caf\\udce9\\udcff.jpg" in (out / "meta.csv").read_text(encoding="utf-8")


def npy_header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


BAD_NPY = {
    "terabytes": (npy_header("(1048576, 1048576)"), "truncated"),
    "negative": (npy_header("(-3, -4)"), "truncated"),
    "objects": (npy_header("(2, 2)", "'|O'") + bytes(32), "wrong format"),
    "complex": (npy(np.ones((12, 16), np.complex64)), "wrong format"),
    "compound": (npy(np.zeros((12, 16), [("z", "<f4")])), "wrong format"),
    "times": (npy(np.ones((12, 16), "m8[s]")), "wrong format"),
    "truth": (npy(np.ones((12, 16), bool)), "wrong format"),
    "code": (npy_header("__import__('os').getcwd()"), "damaged"),
    "deep": (npy_header("(" * 60), "damaged"),
    "archive": (b"PK\x03\x04" + bytes(40), "damaged"),
    "beyond float32": (npy(np.full((12, 16), 1e300)), "no depth"),
}


@pytest.mark.filterwarnings("error")
def test_bad_npy_files(tmp_path: Path) -> None:
    for name, (content, _) in BAD_NPY.items():
        add_pair(tmp_path / "in" / "x", name, content, "npy")
    add_pair(tmp_path / "in" / "x", "good", npy(DEPTH.astype(np.float32)), "npy")
    data, rejected, _ = prepared(tmp_path / "in", tmp_path / "out", "npy")
    assert data.keys == ["x-good"]
    assert {row["name"][2:-4]: row["reason"] for row in rejected.values()} == {
        name: reason for name, (_, reason) in BAD_NPY.items()
    }
    np.testing.assert_array_equal(load_npy(npy(DEPTH)), DEPTH)


def test_depth_of_8_bits_is_no_millimeters(tmp_path: Path) -> None:
    add_pair(tmp_path / "in" / "x", "good", image_bytes(DEPTH))
    add_pair(tmp_path / "in" / "x", "picture", image_bytes((DEPTH // 16).astype(np.uint8)))
    data, rejected, _ = prepared(tmp_path / "in", tmp_path / "out")
    assert data.keys == ["x-good"]
    assert rejected["x/picture.jpg"]["detail"] == "x/picture.png has 8 bits; depth is stored in 16-bit grays"


def test_two_runs_report_the_same(tmp_path: Path) -> None:
    add_pair(tmp_path / "in" / "x", "good", image_bytes(DEPTH))
    write(tmp_path / "in" / "x" / "empty.jpg", b"")
    write(tmp_path / "in" / "x" / "empty.png", b"")
    for out in ("a", "b"):
        prepared(tmp_path / "in", tmp_path / out)
    texts = [(tmp_path / out / "rejected.jsonl").read_text() for out in ("a", "b")]
    assert texts[0] == texts[1] and "0x" not in texts[0]


def hostile_hdf5(file: h5py.File, case: str, elsewhere: Path) -> None:
    shape = (*SIZE, 3)
    if case == "complex":
        file["dataset"] = np.ones(shape, np.complex64)
    elif case == "compound":
        file["dataset"] = np.zeros(shape, [("r", "f4"), ("g", "f4")])
    elif case == "text":
        file["dataset"] = np.full(shape, b"1.0")
    elif case == "terabytes":
        file.create_dataset("dataset", (10**6, 10**6, 3), "f4", chunks=(64, 64, 3))
    elif case == "large parts":
        file.create_dataset("dataset", shape, "f4", chunks=(20000, 20000, 1), maxshape=(None, None, 3))
    elif case == "external link":
        file["dataset"] = h5py.ExternalLink(str(elsewhere), "dataset")
    elif case == "soft link to an external link":
        file["there"] = h5py.ExternalLink(str(elsewhere), "/")
        file["dataset"] = h5py.SoftLink("/there/dataset")
    elif case == "external storage":
        raw = elsewhere.with_suffix(".raw")
        raw.write_bytes(np.ones(shape, "f4").tobytes())
        file.create_dataset("dataset", shape, "f4", external=[(str(raw), 0, h5py.h5f.UNLIMITED)])
    elif case == "virtual":
        layout = h5py.VirtualLayout(shape, "f2")
        layout[...] = h5py.VirtualSource(str(elsewhere), "dataset", shape)
        file.create_virtual_dataset("dataset", layout)
    elif case == "group":
        file.create_group("dataset")


HOSTILE_HDF5 = (
    *("complex", "compound", "text", "terabytes", "large parts", "external link", "soft link to an external link"),
    *("external storage", "virtual", "group"),
)


@pytest.mark.filterwarnings("error")
def test_hdf5_of_other_types_sizes_and_places(tmp_path: Path) -> None:
    scene = tmp_path / "in" / "ai_001_001"
    elsewhere = tmp_path / "elsewhere.hdf5"
    with h5py.File(elsewhere, "w") as file:
        file["dataset"] = hypersim_arrays(0, SIZE)[0]
    rows = []
    for number in range(len(HOSTILE_HDF5) + 1):
        color, *_ = write_good_hypersim_frame(scene, "cam_00", number, SIZE)
        rows.append(("ai_001_001", "cam_00", number, "True", "train"))
        if number:
            with h5py.File(color, "w") as file:
                hostile_hdf5(file, HOSTILE_HDF5[number - 1], elsewhere)
    write_split(tmp_path / "in", rows)
    prepare(HypersimReader(tmp_path / "in", size=SIZE, focal_px=FOCAL_PX), tmp_path / "out")
    assert ShardedDataset(tmp_path / "out").keys == ["ai_001_001-cam_00-0000"]
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rejected] == ["wrong format"] * len(HOSTILE_HDF5)
    assert "elsewhere.hdf5, which is not followed" in rejected[5]["detail"]


def test_a_split_that_names_other_places_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path, [("../../etc", "cam_00", 1, "True", "train")])
    with pytest.raises(DataError, match="is not Hypersim's split"):
        HypersimReader(tmp_path).list_frames()


def test_nothing_that_a_reader_raises_ends_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bad", "good"):
        add_pair(tmp_path / "in" / "x", name, image_bytes(DEPTH))
    read = FolderReader.read

    def failing(self: FolderReader, frame: Any) -> Any:
        if "bad" in frame.name:
            raise AttributeError("whatever a library does")
        return read(self, frame)

    monkeypatch.setattr(FolderReader, "read", failing)
    data, rejected, _ = prepared(tmp_path / "in", tmp_path / "out")
    assert data.keys == ["x-good"] and rejected["x/bad.jpg"]["detail"] == "AttributeError: whatever a library does"
