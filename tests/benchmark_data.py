# SPDX-License-Identifier: Apache-2.0
"""Tiny data sets in the formats of the real benchmarks, with the depth that readers must find in them."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openmarigold.evaluation import Estimator
from openmarigold.evaluation.scoring import Predicted, measure_sample
from openmarigold.evaluation.specs import EstimatorSpec
from openmarigold.modalities.protocol import BenchmarkSample, PredictionSpace, Protocol
from tiny import make_photo


def score_sample(
    sample: BenchmarkSample, predicted: Predicted, protocol: Protocol, space: PredictionSpace | None = None
) -> dict[str, float]:
    """The scores of `measure_sample` alone."""
    return dict(measure_sample(sample, predicted, protocol, space).metrics)


def make_depth(height: int, width: int, *, seed: int = 0, low: float = 1.0, high: float = 8.0) -> np.ndarray:
    """Smooth depth [m] with some pixels that were not measured (0)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    slopes = rng.uniform(0.2, 1.0, 2)
    smooth = slopes[0] * rows / height + slopes[1] * columns / width
    depth = low + (high - low) * smooth / smooth.max()
    depth[rng.random(depth.shape) < 0.1] = 0
    return depth


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def image_bytes(pixels: np.ndarray, suffix: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format=suffix, compress_level=1)
    return content.getvalue()


def gray16(depth: np.ndarray, values_per_meter: float) -> bytes:
    return image_bytes(np.rint(depth * values_per_meter).astype(np.uint16))


def npy(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def add_folder_image(
    benchmark: Path, name: str, kind: str, place: str, depth: np.ndarray, *, scale: int = 1000, seed: int = 0
) -> None:
    """Adds an image to a benchmark in the generic layout."""
    folder = benchmark / name
    write(folder / "rgb.jpg", image_bytes(make_photo(*depth.shape, seed=seed), "JPEG"))
    write(folder / "depth.png", gray16(depth, scale))
    write(folder / "meta.json", json.dumps({"kind": kind, "place": place, "depth_scale": scale}).encode())
    manifest = benchmark / "manifest.json"
    entries = json.loads(manifest.read_text()) if manifest.exists() else []
    manifest.write_text(json.dumps([*entries, {"name": name, "kind": kind, "place": place}]))


def make_folder_benchmark(directory: Path, count: int = 6) -> Path:
    """`count` images of 24x32, two to a place, rooms and streets in turn."""
    for index in range(count):
        kind = ("room", "outdoor")[index // 2 % 2]
        add_folder_image(
            directory, f"{kind}-{index}", kind, f"place-{index // 2}", make_depth(24, 32, seed=index), seed=index
        )
    return directory


def make_nyuv2_mat(path: Path, depths: list[np.ndarray], scenes: list[str]) -> None:
    """MATLAB 7.3: HDF5 behind a header of 512 bytes, axes reversed, strings as references to 16-bit characters."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        photos = [make_photo(*depth.shape, seed=index) for index, depth in enumerate(depths)]
        file["images"] = np.stack([photo.transpose(2, 1, 0) for photo in photos])
        file["rawDepths"] = np.stack([depth.T for depth in depths]).astype(np.float32)
        references = []
        for index, scene in enumerate(scenes):
            file[f"#refs#/{index}"] = np.array([[ord(letter)] for letter in scene], np.uint16)
            references.append(file[f"#refs#/{index}"].ref)
        file.create_dataset("scenes", data=np.array([references], h5py.ref_dtype), dtype=h5py.ref_dtype)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512, b" "))


def make_nyuv2_extracted(root: Path, depths: list[np.ndarray], *, split: str = "test") -> None:
    """The repacked layout: a scene's folder with rgb_0001.png and depth_0001.png [mm]."""
    for index, depth in enumerate(depths, start=1):
        folder = root / split / "kitchen_0004"
        write(folder / f"rgb_{index:04d}.png", image_bytes(make_photo(*depth.shape, seed=index)))
        write(folder / f"depth_{index:04d}.png", gray16(depth, 1000))


KITTI_DATE, KITTI_DRIVE = "2011_09_26", "2011_09_26_drive_0002_sync"


def kitti_paths(frame: int) -> tuple[str, str]:
    """Paths of a frame in the lists."""
    return (
        f"{KITTI_DATE}/{KITTI_DRIVE}/image_02/data/{frame:010d}.png",
        f"{KITTI_DRIVE}/proj_depth/groundtruth/image_02/{frame:010d}.png",
    )


def make_kitti(root: Path, depths: list[np.ndarray], *, list_name: str = "eigen_test_files_with_gt.txt") -> None:
    """Raw photos, annotated depth [1/256 m] below val/, and a list with a frame that was never annotated."""
    lines = [f"{kitti_paths(99)[0]} None 721.5377"]
    for frame, depth in enumerate(depths):
        rgb_path, depth_path = kitti_paths(frame)
        write(root / rgb_path, image_bytes(make_photo(*depth.shape, seed=frame)))
        write(root / "val" / depth_path, gray16(depth, 256))
        lines.append(f"{rgb_path} {depth_path} 721.5377")
    write(root / list_name, "\n".join(lines).encode())


def make_eth3d(root: Path, depths: dict[str, np.ndarray]) -> None:
    """Photos by `<scene>/<name>` and raw float32 depth under the photo's own name, inf where there is none."""
    for number, (name, depth) in enumerate(depths.items()):
        scene, stem = name.split("/")
        photo = image_bytes(make_photo(*depth.shape, seed=number), "JPEG")
        write(root / scene / "images" / "dslr_images" / f"{stem}.JPG", photo)
        raw = np.where(depth > 0, depth, np.inf).astype("<f4").tobytes()
        write(root / scene / "ground_truth_depth" / "dslr_images" / f"{stem}.JPG", raw)


def make_diode(root: Path, depths: dict[str, np.ndarray]) -> None:
    """`indoors/scene_00019/scan_00183/name`: photo, depth [h, w, 1] and a mask that says where it is valid."""
    for number, (name, depth) in enumerate(depths.items()):
        write(root / f"{name}.png", image_bytes(make_photo(*depth.shape, seed=number)))
        write(root / f"{name}_depth.npy", npy(depth.astype(np.float32)[..., None]))
        write(root / f"{name}_depth_mask.npy", npy((depth > 0).astype(np.float32)))


def make_scannet(root: Path, depths: dict[str, np.ndarray], *, photo_scale: int = 1) -> None:
    """Exported frames by `<scene>/<frame>`: larger photos, depth [mm], and a list."""
    lines = []
    for number, (name, depth) in enumerate(depths.items()):
        scene, frame = name.split("/")
        size = [photo_scale * side for side in depth.shape]
        write(root / scene / "color" / f"{frame}.jpg", image_bytes(make_photo(*size, seed=number), "JPEG"))
        write(root / scene / "depth" / f"{frame}.png", gray16(depth, 1000))
        lines.append(f"{scene}/color/{frame}.jpg {scene}/depth/{frame}.png")
    write(root / "scannet_val_sampled_list_800_1.txt", "\n".join(lines).encode())


def pack(folder: Path, archive: Path, *, prefix: str = "") -> None:
    """The folder's files as a tar or zip, by the archive's suffix; `prefix` as some tools write it ("./")."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in files:
                packed.write(path, prefix + path.relative_to(folder).as_posix())
        return
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as packed:
        for path in files:
            packed.add(path, prefix + path.relative_to(folder).as_posix())


def look(rgb: np.ndarray) -> np.ndarray:
    """A stand-in for a model: some function of the photo."""
    return rgb.astype(np.float32).mean(axis=2) / 255


def spec(estimate: Callable[[np.ndarray], np.ndarray] = look, **settings: Any) -> EstimatorSpec:
    return EstimatorSpec(
        name="look", load=lambda: Estimator(estimate), invariance="affine_depth", settings={"model": "look", **settings}
    )


def summary(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "summary.json").read_text())
    assert content.pop("times")["wall_s"] >= 0
    return content
