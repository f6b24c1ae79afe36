# SPDX-License-Identifier: Apache-2.0
"""Small clips of a wall in front of a moving camera, in the layouts of data sets."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from openmarigold.camera import Camera
from openmarigold.evaluation.clips import Clip, ClipFrame
from openmarigold.evaluation.clips.clip import make_frame
from tiny import make_photo

WALL_M = 4.0
HEIGHT, WIDTH = 24, 32
CAMERA = Camera(fx=16.0, fy=16.0, cx=15.5, cy=11.5, width=WIDTH, height=HEIGHT)
AHEAD = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.5), (0.0, 0.0, 1.0))
ASIDE = ((0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (1.0, 0.0, 0.0))  # two pixels a frame


def pose_at(position: Sequence[float]) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = position
    return pose


def wall_depth(position: Sequence[float]) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), WALL_M - position[2], dtype=np.float32)


def wall_clip(positions: Sequence[Sequence[float]], *, depths: Sequence[np.ndarray] | None = None) -> Clip:
    """In memory; other depths than the wall's where they are given."""
    measured = [wall_depth(position) for position in positions] if depths is None else depths

    def read(number: int) -> ClipFrame:
        return make_frame(
            name=f"{number}",
            rgb=make_photo(HEIGHT, WIDTH),
            depth=measured[number],
            camera=CAMERA,
            pose=pose_at(positions[number]),
            time_s=number / 10,
            depth_range=(1e-3, math.inf),
        )

    names = [str(number) for number in range(len(positions))]
    return Clip(name="wall", layout="memory", frame_names=names, read=read, files=lambda number: [])


def save_photo(path: Path, seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_photo(*size, seed=seed)).save(path)


def save_levels(path: Path, depth: np.ndarray, levels_per_meter: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(depth * levels_per_meter).astype(np.uint16)).save(path)


def write_rendered(folder: Path, positions: Sequence[Sequence[float]] = AHEAD, *, png: bool = False) -> Path:
    rows = []
    for number, position in enumerate(positions):
        row = {
            "rgb": f"rgb/{number:05d}.png",
            "depth": f"depth/{number:05d}.{'png' if png else 'npy'}",
            "time_s": number / 10,
            "camera_to_world": pose_at(position).tolist(),
        }
        save_photo(folder / row["rgb"], number)
        if png:
            save_levels(folder / row["depth"], wall_depth(position), 1000)
        else:
            (folder / "depth").mkdir(exist_ok=True)
            np.save(folder / row["depth"], wall_depth(position))
        rows.append(row)
    facts = {
        "format": "openmarigold sequence",
        "version": 1,
        "width": WIDTH,
        "height": HEIGHT,
        "camera": {"fx": 16.0, "fy": 16.0, "cx": 15.5, "cy": 11.5},
        "fps": 10,
        "depth_unit_m": 0.001,
        "frames": rows,
    }
    (folder / "sequence.json").write_text(json.dumps(facts))
    return folder


def write_scannet(folder: Path, positions: Sequence[Sequence[float]] = AHEAD) -> Path:
    matrix = np.eye(4)
    matrix[0, 0] = matrix[1, 1] = 16
    matrix[:2, 2] = 15.5, 11.5
    for name in ("pose", "intrinsic"):
        (folder / name).mkdir(parents=True)
    np.savetxt(folder / "intrinsic" / "intrinsic_depth.txt", matrix)
    for number, position in enumerate(positions):
        save_photo(folder / "color" / f"{number}.jpg", number, (2 * HEIGHT, 2 * WIDTH))
        save_levels(folder / "depth" / f"{number}.png", wall_depth(position), 1000)
        np.savetxt(folder / "pose" / f"{number}.txt", pose_at(position))
    return folder


def write_sintel(root: Path, positions: Sequence[Sequence[float]] = ASIDE, *, flow: bool = True) -> Path:
    def tagged(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.float32(202021.25).tobytes() + content)

    size = np.array([WIDTH, HEIGHT], "<i4").tobytes()
    for number, position in enumerate(positions):
        stem = f"frame_{number + 1:04d}"
        save_photo(root / "final" / "wall_1" / f"{stem}.png", number)
        tagged(root / "depth" / "wall_1" / f"{stem}.dpt", size + wall_depth(position).astype("<f4").tobytes())
        matrix = np.array([[16, 0, 15.5], [0, 16, 11.5], [0, 0, 1]], "<f8")
        to_camera = np.linalg.inv(pose_at(position))[:3].astype("<f8")
        tagged(root / "camdata_left" / "wall_1" / f"{stem}.cam", matrix.tobytes() + to_camera.tobytes())
        if flow and number + 1 < len(positions):
            field = np.zeros((HEIGHT, WIDTH, 2), "<f4")
            field[..., 0] = -2
            tagged(root / "flow" / "wall_1" / f"{stem}.flo", size + field.tobytes())
    return root


def write_tum(folder: Path, positions: Sequence[Sequence[float]] = AHEAD) -> Path:
    """Depth 5 ms after the photos, poses 5 ms before; one photo more has no depth."""
    lists = {"rgb.txt": ["# color images"], "depth.txt": ["# depth maps"], "groundtruth.txt": ["# t x y z qx qy qz qw"]}
    for number, position in enumerate(positions):
        time = 1000 + number / 10
        save_photo(folder / "rgb" / f"{time:.6f}.png", number)
        save_levels(folder / "depth" / f"{time + 0.005:.6f}.png", wall_depth(position), 5000)
        lists["rgb.txt"].append(f"{time:.6f} rgb/{time:.6f}.png")
        lists["depth.txt"].append(f"{time + 0.005:.6f} depth/{time + 0.005:.6f}.png")
        lists["groundtruth.txt"].append(f"{time - 0.005:.4f} {position[0]} {position[1]} {position[2]} 0 0 0 1")
    lists["rgb.txt"].append("1009.000000 rgb/1009.000000.png")
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder
