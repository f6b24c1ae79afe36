# SPDX-License-Identifier: Apache-2.0
"""Normals of depth in steps against analytic scenes, and `data normals`: what it adds, keeps, resumes and refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openmarigold.cli import run
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.normals import add_normals
from openmarigold.data.shard_writer import NewSample, ShardWriter
from openmarigold.data.shards import ShardedDataset
from openmarigold.data.verification import verify
from openmarigold.errors import DataError, InvalidValueError, OutputError
from openmarigold.files import only_run
from openmarigold.geometry import normals_from_depth

HEIGHT, WIDTH, FOCAL = 96, 128, 140.0
CAMERA = {"fx": FOCAL, "fy": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
LOG = MapEncoding(kind="log", near=0.05, far=400.0, levels=16383)  # as rendered data is stored
MILLIMETERS = MapEncoding(kind="linear", meters_per_unit=0.001)


def rays() -> np.ndarray:
    """Right, up, backward, through the pixels' centers; planar depth is their multiple."""
    x = (np.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCAL
    y = (np.arange(HEIGHT) + 0.5 - HEIGHT / 2) / FOCAL
    return np.stack([*np.meshgrid(x, -y), -np.ones((HEIGHT, WIDTH))], axis=-1)


def plane(direction: tuple[float, float, float], distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Depth of a plane at a distance from the camera, and its normals."""
    normal = np.array(direction) / np.linalg.norm(direction)
    with np.errstate(divide="ignore"):
        depth = -distance / (rays() @ normal)
    return np.where(depth > 0, depth, np.inf), np.broadcast_to(normal, (HEIGHT, WIDTH, 3))


def sphere(radius: float, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Depth of a ball straight ahead, 0 next to it, and its normals."""
    center = np.array([0.0, 0.0, -distance])
    along = rays() @ center
    square = (rays() ** 2).sum(axis=-1)
    root = along**2 - square * (distance**2 - radius**2)
    depth = np.where(root > 0, (along - np.sqrt(np.maximum(root, 0.0))) / square, 0.0)
    return depth, np.where(root[..., None] > 0, (rays() * depth[..., None] - center) / radius, 0.0)


def room() -> tuple[np.ndarray, np.ndarray]:
    """Floor, left wall and a tilted back wall."""
    parts = [plane((0, 1, 0), 1.0), plane((1, 0, 0), 1.2), plane((0.3, 0, 1), 4.0)]
    nearest = np.argmin([depth for depth, _ in parts], axis=0)
    depth = np.take_along_axis(np.array([depth for depth, _ in parts]), nearest[None], axis=0)[0]
    return depth, np.take_along_axis(np.array([n for _, n in parts]), nearest[None, ..., None], axis=0)[0]


def stored(depth: np.ndarray, encoding: MapEncoding) -> np.ndarray:
    return encoding.decode(encoding.encode(depth.astype(np.float32)))


def angles(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((found * truth).sum(axis=-1), -1, 1)))


@pytest.mark.parametrize("encoding", [LOG, MILLIMETERS], ids=["log", "millimeters"])
@pytest.mark.parametrize(
    ("scene", "mean", "most"),
    [
        (plane((0.017, 0.01, 1), 3.0), 1.5, 2.5),  # steps that are wider than a window
        (plane((0.14, 0.08, 1), 3.0), 1.0, 2.5),
        (plane((0.5, 0.1, 0.86), 3.0), 1.0, 2.5),
        (sphere(0.8, 2.0), 2.0, 5.0),
        (room(), 1.0, 2.5),
    ],
    ids=["wall at 1 degree", "wall at 9 degrees", "tilted wall", "sphere", "room"],
)
def test_normals_of_stored_depth_are_within_a_few_degrees(
    encoding: MapEncoding, scene: tuple[np.ndarray, np.ndarray], mean: float, most: float
) -> None:
    depth, truth = scene
    found, known = normals_from_depth(stored(depth, encoding), focal=FOCAL, support=5)
    assert known.sum() > 0.97 * (depth > 0).sum()
    error = angles(found, truth)[known]
    assert error.mean() < mean
    assert np.percentile(error, 98) < most


def test_planes_are_exact_and_differences_of_steps_are_not() -> None:
    depth, truth = plane((0.5, 0.1, 0.86), 3.0)
    exact, known = normals_from_depth(depth, focal=FOCAL, support=7)
    assert known.all()
    np.testing.assert_allclose(exact, truth, atol=1e-6)
    rough, _ = normals_from_depth(stored(depth, MapEncoding(kind="linear", meters_per_unit=0.01)), focal=FOCAL)
    fitted, _ = normals_from_depth(
        stored(depth, MapEncoding(kind="linear", meters_per_unit=0.01)), focal=FOCAL, support=7
    )
    assert angles(rough, truth).mean() > 5 * angles(fitted, truth).mean()


def test_windows_do_not_reach_over_edges() -> None:
    near, near_truth = plane((0.6, 0.0, 0.8), 1.0)
    far, far_truth = plane((-0.6, 0.0, 0.8), 3.0)
    left = (np.arange(WIDTH) < WIDTH // 2)[None, :, None]
    found, known = normals_from_depth(np.where(left[..., 0], near, far), focal=FOCAL, support=5)
    truth = np.where(left, near_truth, far_truth)
    assert known.all()
    assert angles(found, truth).max() < 0.1  # the pixels on both sides of the edge too


def test_what_no_plane_fits_is_unknown() -> None:
    noise = 2.0 + np.random.default_rng(3).uniform(0, 1, (HEIGHT, WIDTH))
    noise[:, WIDTH // 2 :] = 2.0
    _, known = normals_from_depth(noise, focal=FOCAL, support=5)
    assert known[:, : WIDTH // 2 - 2].mean() < 0.02 and known[:, WIDTH // 2 :].all()
    depth = np.full((20, 20), 2.0)
    depth[:, 9:] = 0
    depth[5, 15] = 2.0  # alone: has no slope
    normals, known = normals_from_depth(depth, focal=FOCAL, support=5)
    assert known[:, :9].all() and not known[:, 9:].any() and not normals[5, 15].any()


@pytest.mark.parametrize("support", [1, 2, 4, 17, -3])
def test_supports_that_are_refused(support: int) -> None:
    with pytest.raises(InvalidValueError, match=f"support={support} is not accepted; give 0 or an odd number"):
        normals_from_depth(np.ones((5, 5)), focal=1.0, support=support)


# --- The command


def jpeg(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG")
    return buffer.getvalue()


def write_set(folder: Path, *, camera: dict[str, float] | None = CAMERA) -> Path:
    """Two shards: a room with sky, a sphere (PNG); a photo without depth, foliage."""
    rng = np.random.default_rng(1)
    writer = ShardWriter(folder, name="tiny", split="train", encodings={"depth": LOG}, settings={"seed": 4})
    writer.begin()
    sky = room()[0]
    sky[:10], sky[10:14] = 0.0, 100.0
    noise = rng.uniform(1, 3, (HEIGHT, WIDTH))
    depths: list[Any] = [sky, sphere(0.8, 2.0)[0], None, noise]
    items = []
    for number, depth in enumerate(depths):
        rgb = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        items.append(
            NewSample(
                key=f"scene-{number}",
                kind="rooms",
                scene=f"scene-{number}",
                rgb=rgb if number == 1 else jpeg(rgb),
                maps={} if depth is None else {"depth": depth.astype(np.float32)},
                info={"source": f"{number}.png"} | ({} if camera is None else {"intrinsics": camera}),
            )
        )
    writer.write(0, items[:2])
    writer.write(1, items[2:])
    writer.finish(2, {"valid_range": [0.01, 50.0], "license": "CC0", "command": "make"})
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_new_set_has_the_pictures_the_depth_and_normals(tmp_path: Path) -> None:
    source = write_set(tmp_path / "source")
    before = files(source)
    assert run(["data", "normals", str(source), str(tmp_path / "new"), "--workers", "1"]) == 0
    assert files(source) == before
    old, new = ShardedDataset(source), ShardedDataset(tmp_path / "new")
    assert new.keys == ["scene-0", "scene-1", "scene-2"] and list(new.encodings) == ["depth", "normals"]
    for index in range(3):
        roles = ("rgb", "depth") if index < 2 else ("rgb",)
        assert [new.member(index, role) for role in roles] == [old.member(index, role) for role in roles]
        assert new.info(index)["source"] == f"{index}.png" and "assumed_fov" not in new.info(index)
    assert "normals" not in new.read(2).maps
    normals = new.read(0).maps["normals"]
    assert not normals[:14].any()  # no depth, or beyond the range of the set
    known = normals.any(axis=-1)
    assert known[14:].mean() > 0.97
    assert np.median(angles(normals, room()[1])[known]) < 1.0
    ball, truth = new.read(1).maps["normals"], sphere(0.8, 2.0)[1]
    assert angles(ball, truth)[ball.any(axis=-1)].mean() < 2.0
    assert np.linalg.norm(ball[ball.any(axis=-1)], axis=-1) == pytest.approx(1.0, abs=1e-3)
    found = new.manifest
    assert (found["license"], found["valid_range"], found["split"]) == ("CC0", [0.01, 50.0], "train")
    assert found["settings"]["of_source"] == {"seed": 4} and found["settings"]["normal_frame"] == "rub"
    assert found["settings"]["source"] == old.contents and found["command"].startswith("openmarigold data normals")
    assert found["counts"]["left_out"] == {"too few normals": 1}
    assert verify(tmp_path / "new") == []


def test_any_number_of_processes_and_an_interruption_give_the_same_bytes(tmp_path: Path) -> None:
    source = write_set(tmp_path / "source")
    add_normals(source, tmp_path / "one")
    add_normals(source, tmp_path / "two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    (tmp_path / "two" / "shard-00001.tar").unlink()  # as if it had not been written
    kept = (tmp_path / "two" / "shard-00000.tar").stat().st_mtime_ns
    assert add_normals(source, tmp_path / "two").num_shards_kept == 1
    assert (tmp_path / "two" / "shard-00000.tar").stat().st_mtime_ns == kept
    assert files(tmp_path / "one") == files(tmp_path / "two")
    with pytest.raises(DataError, match=r"other settings \(.*support: 5 then, 7 now"):
        add_normals(source, tmp_path / "two", support=7)


def test_unknown_cameras_need_a_field_of_view(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write_set(tmp_path / "source", camera=None)
    assert run(["data", "normals", str(source), str(tmp_path / "new"), "--workers", "1"]) == 2
    assert "scene-0 states no intrinsics; give --fov" in capfd.readouterr().err
    fov = np.degrees(2 * np.arctan(WIDTH / 2 / FOCAL))
    add_normals(source, tmp_path / "assumed", fov=float(fov))
    new = ShardedDataset(tmp_path / "assumed")
    assert new.info(0)["assumed_fov"] == new.manifest["settings"]["fov"] == pytest.approx(49.1, abs=0.1)
    normals = new.read(0).maps["normals"]
    assert np.median(angles(normals, room()[1])[normals.any(axis=-1)]) < 1.0


def test_what_is_refused(tmp_path: Path) -> None:
    source = write_set(tmp_path / "source")
    add_normals(source, tmp_path / "new")
    with pytest.raises(
        DataError, match="has the maps depth, normals; normals are added to a set with depth and without"
    ):
        add_normals(tmp_path / "new", tmp_path / "again")
    with pytest.raises(DataError, match="is the source; choose another folder"):
        add_normals(source, source)
    for settings, message in (
        ({"fov": 0.0}, "fov=0.0 is not accepted; give degrees from 1 to 170"),
        ({"support": 6}, "support=6 is not accepted"),
        ({"min_valid": 2.0}, "min_valid=2.0 must be in"),
        ({"workers": 0}, "workers=0 must be at least 1"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            add_normals(source, tmp_path / "none", **settings)
    assert not (tmp_path / "none").exists()
    for number, camera in enumerate(({"fx": 1.0}, {**CAMERA, "fy": 0.0}, {**CAMERA, "fx": -1.0})):
        broken = write_set(tmp_path / f"broken-{number}", camera=camera)
        with pytest.raises(DataError, match="scene-0: its intrinsics are not fx, fy, cx and cy"):
            add_normals(broken, tmp_path / f"none-{number}")


def test_a_picture_without_neighbors_is_left_out(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "in", name="s", split="train", encodings={"depth": LOG}, settings={})
    writer.begin()
    sizes = {"strip": (2, 40), "whole": (30, 40)}
    of_both: Any = {"kind": "rooms", "scene": "s", "info": {"intrinsics": CAMERA}}
    samples = [
        NewSample(key=key, rgb=np.zeros((*size, 3), np.uint8), maps={"depth": np.full(size, 2, np.float32)}, **of_both)
        for key, size in sizes.items()
    ]
    writer.write(0, samples)
    writer.finish(1, {"valid_range": [0.01, 50.0]})
    counts = add_normals(tmp_path / "in", tmp_path / "out").manifest["counts"]
    assert counts["samples"] == 1 and counts["left_out"] == {"too few normals": 1}


def test_statistics_do_not_count_unknown_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_normals(write_set(tmp_path / "source"), tmp_path / "new")
    assert run(["data", "statistics", str(tmp_path / "new"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["normals"]["all"]
    data = ShardedDataset(tmp_path / "new")
    shares = [1 - data.read(index).maps["normals"].any(axis=-1).mean() for index in (0, 1)]
    assert found["invalid_share"] == pytest.approx(np.mean(shares)) and found["invalid_share"] > 0.1


@pytest.mark.parametrize("scale", [1e-7, 1e7])
def test_the_unit_of_depth_does_not_matter(scale: float) -> None:
    depth, _ = room()
    found, smooth = normals_from_depth(depth * scale, focal=FOCAL)
    expected, also = normals_from_depth(depth, focal=FOCAL)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(smooth, also)


def test_advice_on_a_field_of_view_can_be_followed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "set", camera=None)
    words = ["data", "normals", str(tmp_path / "set"), str(tmp_path / "out")]
    assert run(words) == 2
    assert "give --fov" in capfd.readouterr().err
    assert run([*words, "--fov", "60"]) == 0


def test_a_folder_that_another_run_writes(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    write_set(tmp_path / "set")
    with only_run(tmp_path / "out"), pytest.raises(OutputError, match="another run is writing"):
        add_normals(tmp_path / "set", tmp_path / "out")
