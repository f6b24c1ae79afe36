# SPDX-License-Identifier: Apache-2.0
"""Small raw data sets in the layouts of Hypersim and Virtual KITTI 2, with every defect that is met in the wild."""

from __future__ import annotations

import csv
import io
import os
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from openmarigold.data.preparation import RawFrame, RawSample
from openmarigold.data.readers.hypersim import SPLIT_CSV, HypersimReader
from openmarigold.images.exr import write_exr

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
    7: "one pixel not finite",
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
    folder.mkdir(parents=True, exist_ok=True)
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


# Frames of scene ai_001_001, cam_00, and why they are left out or defective as normals.
HYPERSIM_NORMALS = {2: "normals not finite", 3: "missing file", 4: "wrong size", 6: "wrong size"}
CAMERA_POSITION = np.array([10.0, -4.0, 2.0])
TO_WORLD = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
"""Columns: right, up and backward of the camera in the world."""


def hypersim_wall(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Normals (right, up, backward) and points of a wall 4 units ahead and a floor 1 unit below the camera."""
    height, width = size
    x, y = np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2
    rays = np.stack([*np.meshgrid(x / FOCAL_PX, -y / FOCAL_PX), -np.ones(size)], axis=-1)
    with np.errstate(divide="ignore"):
        floor = np.where(rays[..., 1] < 0, -1.0 / rays[..., 1], np.inf)
    is_floor = floor < 4.0
    normals = np.where(is_floor[..., None], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    return normals, rays * np.minimum(floor, 4.0)[..., None]


def write_hypersim_normals(folder: Path, *, size: tuple[int, int] = SIZE) -> Path:
    """Frames 0 to 6: 0 plain, 1 turned away on the left, infinite positions, lengths of 2; and `HYPERSIM_NORMALS`."""
    write_split(folder, [("ai_001_001", "cam_00", number, "True", "train") for number in range(7)])
    scene = folder / "ai_001_001"
    _write_hdf5(scene / "_detail/cam_00/camera_keyframe_positions.hdf5", np.tile(CAMERA_POSITION, (6, 1)))
    for number in range(7):
        _, _, entity = write_good_hypersim_frame(scene, "cam_00", number, size)
        normals, points = hypersim_wall(size)
        positions = CAMERA_POSITION + points @ TO_WORLD.T
        if number == 1:
            normals[:, :9] *= -1.0
            normals[5:8] *= 2.0
            positions[3, 4:9] = np.inf
        elif number == 2:
            normals[7, 7, 1] = np.nan
        elif number == 4:
            normals = normals[:-1]
        for name, values in (("normal_cam", normals), ("normal_world", normals @ TO_WORLD.T), ("position", positions)):
            if number != 3 or name != "position":
                _write_hdf5(entity.with_name(f"frame.{number:04d}.{name}.hdf5"), values.astype(np.float32))
    return folder


# Frames of scene ai_001_001, cam_00: the split, and what becomes of them as intrinsic images.
HYPERSIM_LIGHTING = {
    1: ("train", "pixels without a surface"),
    2: ("train", "albedo out of range"),
    3: ("train", "negative light"),
    4: ("train", "light not finite"),
    5: ("train", "light too bright"),
    6: ("train", "wrong size"),
    8: ("test", "pixels without a surface"),
}


def hypersim_light(number: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Albedo, shading and residual of a good frame, in half precision."""
    rng = np.random.default_rng(100 + number)
    shape = (size[0] // 4, size[1] // 4, 3)
    ranges = {"diffuse_reflectance": (0.1, 0.9), "diffuse_illumination": (0.2, 1.5), "residual": (0.0, 0.1)}
    found = {name: rng.uniform(*bounds, shape) for name, bounds in ranges.items()}
    return {name: values.repeat(4, axis=0).repeat(4, axis=1).astype(np.float16) for name, values in found.items()}


def write_hypersim_lighting(folder: Path, *, size: tuple[int, int] = SIZE, numbers: Iterable[int] = range(9)) -> Path:
    """Frames 0 to 6 of the training split, 7 and 8 of the test split; 0 is good, 7 good with an albedo above 1."""
    splits = {number: "train" if number < 7 else "test" for number in numbers}
    write_split(folder, [("ai_001_001", "cam_00", n, "True", split) for n, split in splits.items()])
    for number in splits:
        color, _, entity = write_good_hypersim_frame(folder / "ai_001_001", "cam_00", number, size)
        light = hypersim_light(number, size)
        if number in (2, 7):
            light["diffuse_reflectance"][3, 3, 0] = 1.25
        elif number == 3:
            light["residual"][4, 4, 2] = -0.25
        elif number == 4:
            light["diffuse_illumination"][4, 4] = np.inf
        elif number == 5:  # a dark thing in bright light, which the cut takes away
            light["diffuse_reflectance"][:4, :3] = 0.04
            light["diffuse_illumination"][:4, :3] = 20.0
        photo = light["diffuse_reflectance"] * light["diffuse_illumination"].astype(np.float32) + light["residual"]
        _write_hdf5(color, photo.astype(np.float32))
        _write_hdf5(entity, np.where(np.arange(size[1]) == 3, -1 if number in (1, 8) else 3, 3) + np.zeros(size, int))
        if number == 6:
            light["residual"] = light["residual"][..., 0]
        for name, values in light.items():
            _write_hdf5(color.with_name(f"frame.{number:04d}.{name}.hdf5"), values)
    return folder


# Frames of InteriorVerse's scene L3D1 and what becomes of them.
INTERIORVERSE_DEFECTS = {1: "missing file", 2: "damaged", 3: "wrong format", 4: "wrong size", 5: "color not finite"}


def write_interiorverse(folder: Path) -> Path:
    """Scene L3D1 with frames 0 to 5, of which 0 is good, and L3D2 with frame 12."""
    for scene, numbers in (("L3D1", range(6)), ("L3D2", [12])):
        for number in numbers:
            for part in ("im", "albedo", "material", "mask", "depth"):
                pixels = interiorverse_pixels(number, part)
                channels = {name: pixels[..., place] for place, name in enumerate("RGB")}
                path = folder / "scenes_85" / scene / f"{number:03d}_{part}.exr"
                path.parent.mkdir(parents=True, exist_ok=True)
                if (number, part) == (3, "albedo"):
                    channels = {"Y": channels["R"]}
                elif (number, part) == (4, "material"):
                    channels = {name: values[1:] for name, values in channels.items()}
                if (number, part) != (1, "mask"):
                    write_exr(path, channels, {})
                if (number, part) == (2, "im"):
                    path.write_bytes(path.read_bytes()[:200])
    return folder


def interiorverse_pixels(number: int, part: str) -> np.ndarray:
    """A part of a frame in linear light; brighter than 1 here and there, not a number behind the mask."""
    rng = np.random.default_rng(number)
    pixels = {
        "im": rng.uniform(0.0, 1.3, (16, 20, 3)),
        "albedo": rng.uniform(0.05, 1.2, (16, 20, 3)),
        "material": rng.uniform(0.0, 1.0, (16, 20, 3)),
        "mask": np.ones((16, 20, 3)),
        "depth": np.ones((16, 20, 3)),
    }
    pixels["mask"][:4, :, 1] = 0.0
    pixels["albedo"][0, 0] = np.nan
    if number == 5:
        pixels["im"][3, 3, 2] = np.inf
    return pixels[part].astype(np.float32)


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
