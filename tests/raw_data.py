# SPDX-License-Identifier: Apache-2.0
"""Small raw data sets in the layouts of Hypersim and Virtual KITTI 2, with every defect that is met in the wild."""

from __future__ import annotations

import csv
import io
import os
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from openmarigold.data.preparation import RawFrame, RawSample
from openmarigold.data.readers.hypersim import SPLIT_CSV, HypersimReader

SIZE = (24, 32)
FOCAL_PX = 27.7
SKY = 65535

# Frames of scene ai_001_001, cam_00, and what becomes of them.
HYPERSIM_DEFECTS = {
    2: "truncated",
    3: "missing file",
    4: "wrong size",
    5: "no depth",
    6: "constant depth",
    7: "color not finite",
    8: "truncated",
    11: "damaged",
    12: "constant color",
    13: "wrong size",
    14: "color not finite",
}
HYPERSIM_LEFT_OUT = {10: "too little depth"}
HYPERSIM_GOOD = [0, 1, 9, 15]


def write_hypersim(folder: Path, *, size: tuple[int, int] = SIZE) -> Path:
    """Scene ai_001_001 as a folder with all defects, ai_001_002 as a zip, ai_001_003 (test split), no ai_001_004."""
    rows = [("ai_001_001", "cam_00", number, "True", "train") for number in range(16)]
    rows += [("ai_001_001", "cam_00", 16, "False", "train"), ("ai_001_002", "cam_01", 7, "True", "train")]
    rows += [("ai_001_003", "cam_00", 0, "True", "test"), ("ai_001_004", "cam_00", 0, "True", "train")]
    for number in range(16):
        _write_hypersim_frame(folder / "ai_001_001", number, size)
    write_good_hypersim_frame(folder / "ai_001_003", "cam_00", 0, size)
    write_good_hypersim_frame(folder / "raw" / "ai_001_002", "cam_01", 7, size)
    with zipfile.ZipFile(folder / "ai_001_002.zip", "w") as archive:
        for path in sorted((folder / "raw").rglob("*.hdf5")):
            archive.write(path, path.relative_to(folder / "raw"))
            path.unlink()
    write_split(folder, rows)
    return folder


def write_split(folder: Path, rows: list[tuple[str, str, int, str, str]]) -> None:
    header = ["scene_name", "camera_name", "frame_id"]
    header += ["included_in_public_release", "exclude_reason", "split_partition_name"]
    with (folder / SPLIT_CSV).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows([scene, camera, number, public, "", split] for scene, camera, number, public, split in rows)


def hypersim_arrays(number: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Color, distance and entity of a good frame, of the types of the real files."""
    height, width = size
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:height, :width]
    distance = 1.5 + number / 4 + 3.0 * columns / width + rows / height
    color = rng.uniform(0.0, 1.5, (height // 4, width // 4, 1)).repeat(4, axis=0).repeat(4, axis=1)
    entity = np.where(rows < height // 8, -1, 3)
    return (color * np.array([1.0, 0.8, 0.6])).astype(np.float16), distance.astype(np.float16), entity.astype(np.int32)


def write_good_hypersim_frame(scene: Path, camera: str, number: int, size: tuple[int, int]) -> list[Path]:
    paths = _hypersim_paths(scene, camera, number)
    for path, array in zip(paths, hypersim_arrays(number, size), strict=True):
        _write_hdf5(path, array)
    return paths


def _write_hypersim_frame(scene: Path, number: int, size: tuple[int, int]) -> None:
    color, distance, entity = hypersim_arrays(number, size)
    height, width = size
    if number == 1:  # holes and a lamp brighter than float16 can say: a good frame
        distance[10:12] = np.nan
        color[20, 3] = np.inf
    elif number == 4:
        distance = distance[:-1]
    elif number == 5:
        entity[:] = -1
    elif number == 6:
        x, y = np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2
        distance = 3.0005 * np.sqrt(1 + (x**2 + y[:, None] ** 2) / FOCAL_PX**2)
    elif number == 7:
        color[5, 5, 1] = np.nan
    elif number == 9:  # a view out of the window: beyond what millimeters in 16 bits can say
        distance[:, -4:] = 300.0
    elif number == 10:
        entity[:] = -1
        entity[-1, :8] = 3
    elif number == 12:
        color[:] = 0
    elif number == 13:
        color = color[..., 0]
    elif number == 14:
        color[:] = np.inf
    paths = _hypersim_paths(scene, "cam_00", number)
    for path, array in zip(paths, (color, distance, entity), strict=True):
        _write_hdf5(path, array, name="data" if number == 11 and path is paths[1] else "dataset")
    if number == 2:
        paths[0].write_bytes(paths[0].read_bytes()[:-200])
    elif number == 3:
        paths[2].unlink()
    elif number == 8:
        paths[1].write_bytes(b"")


def _hypersim_paths(scene: Path, camera: str, number: int) -> list[Path]:
    final, geometry = (scene / "images" / f"scene_{camera}_{what}_hdf5" for what in ("final", "geometry"))
    names = ("color", "depth_meters", "render_entity_id")
    folders = (final, geometry, geometry)
    return [folder / f"frame.{number:04d}.{name}.hdf5" for folder, name in zip(folders, names, strict=True)]


def _write_hdf5(path: Path, array: np.ndarray, *, name: str = "dataset") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=array, compression="gzip")


class DyingReader(HypersimReader):
    """Takes its process along when it reads the second frame."""

    def read(self, frame: RawFrame) -> RawSample:
        if frame.fields["frame"] == 1:
            os._exit(9)
        return super().read(frame)


# Frames of Scene02, clone, Camera_0, and what becomes of them; its other sequences are good.
VKITTI2_DEFECTS = {
    1: "missing file",
    2: "truncated",
    3: "truncated",
    4: "wrong size",
    5: "no depth",
    6: "constant depth",
    7: "wrong format",
    8: "missing file",
}
VKITTI2_LENGTH = 10


def vkitti2_codes(number: int) -> np.ndarray:
    """Depth [cm] of a street: nearer at the bottom, sky above, a car."""
    rows = np.arange(375)[:, None].repeat(1242, axis=1)
    codes = np.where(rows < 150, SKY, 100_000 // (rows - 140 + number).clip(1)).clip(0, SKY)
    codes[250:300, 500:600] = 1234
    return codes.astype(np.uint16)


def write_vkitti2(folder: Path, *, layout: str = "tars") -> Path:
    """Scenes 01 and 02, variants clone, fog and morning, ten frames; scene 02 has all defects."""
    trees = {what: folder / f"unpacked-{what}" for what in ("rgb", "depth")}
    for scene in ("Scene01", "Scene02"):
        for variant in ("clone", "fog", "morning"):
            for camera in ("Camera_0", "Camera_1"):
                for number in range(VKITTI2_LENGTH):
                    has_defects = (scene, variant, camera) == ("Scene02", "clone", "Camera_0")
                    place = f"{scene}/{variant}/frames/{{}}/{camera}/{{}}_{number:05d}"
                    _write_vkitti2_frame(trees, place, number if has_defects else -1)
    if layout == "tars":
        for what, tree in trees.items():
            with tarfile.open(folder / f"vkitti_2.0.3_{what}.tar", "w") as archive:
                for path in sorted(tree.rglob("*.*")):
                    archive.add(path, path.relative_to(tree).as_posix())
                    path.unlink()
    return folder


_STREET: dict[str, bytes] = {}


def _write_vkitti2_frame(trees: dict[str, Path], place: str, defect: int) -> None:
    if not _STREET:
        pixels = np.random.default_rng(2).integers(0, 255, (25, 54, 3), dtype=np.uint8)
        rgb = pixels.repeat(15, axis=0).repeat(23, axis=1)
        _STREET.update(rgb=_encode(rgb, "JPEG"), depth=_encode(vkitti2_codes(0), "PNG"))
    rgb, depth = _STREET["rgb"], _STREET["depth"]
    if defect == 2:
        rgb = rgb[: len(rgb) // 2]
    elif defect == 3:
        depth = depth[: len(depth) // 2]
    elif defect == 4:
        depth = _encode(vkitti2_codes(0)[:, 1:], "PNG")
    elif defect == 5:
        depth = _encode(np.full((375, 1242), SKY, dtype=np.uint16), "PNG")
    elif defect == 6:
        depth = _encode(np.full((375, 1242), 500, dtype=np.uint16), "PNG")
    elif defect == 7:
        depth = _encode(np.zeros((375, 1242, 3), dtype=np.uint8), "PNG")
    for what, data, suffix, missing in (("rgb", rgb, "jpg", 8), ("depth", depth, "png", 1)):
        path = trees[what] / f"{place.format(what, what)}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if defect != missing:
            path.write_bytes(data)


def _encode(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()
