# SPDX-License-Identifier: Apache-2.0
"""Camera walks: bounds of speed and turn, clearance, poses that fit depth, resuming, layout. Without Blender."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmarigold.errors import DataError, InvalidValueError
from openmarigold_render.attribution import attribution_page
from openmarigold_render.cameras import clearance, rejection
from openmarigold_render.rays import Caster
from openmarigold_render.scene import Camera, Lens, Setting, look_at
from openmarigold_render.sequences import PathConfig, plan, render_walks
from openmarigold_render.walks import GAITS, Gait, plan_walk
from rendering_data import FlatPainter, block, floor, scene_of
from test_rendering_scenes import LOOSE

CONFIG = PathConfig(source="tabletops", scenes=2, frames=5, fps=10.0, seed=3, width=96, height=72)
LENS = Lens(width=96, height=72, fov=(math.radians(60.0), math.radians(80.0)))
GAIT = Gait(speed=0.7, turn=math.radians(40.0), clearance=0.3, eye_height=(1.3, 1.7))
# Two adjacent rooms, with a wall between them that has no opening.
WALLS = (
    block(0.0, 0.0, (0.1, 8.0, 3.0)),
    *(block(x, 0.0, (0.1, 8.0, 3.0)) for x in (-4.0, 4.0)),
    *(block(0.0, y, (8.0, 0.1, 3.0)) for y in (-4.0, 4.0)),
)
THINGS = tuple(block(x, y, (0.5, 0.5, 2.2)) for x in (-2.0, 2.0) for y in (-1.5, 1.5))


def anywhere(generator: np.random.Generator, lens: Lens) -> Camera:
    x, y = generator.uniform(-3.6, 3.6, size=2)
    yaw = generator.uniform(0.0, 2.0 * math.pi)
    pose = look_at((x, y, 0.9), (x + math.cos(yaw), y + math.sin(yaw), 0.8))
    return Camera(pose, lens.width, lens.height, lens.focal_px(lens.fov[0]))


SETTING = Setting(kind="rooms", scene=scene_of(floor(), *WALLS, *THINGS), propose=anywhere, rules=LOOSE)
CASTER = Caster(SETTING.scene.instances)


def walk_of(seed: int, *, num_frames: int = 60, fps: float = 10.0) -> tuple[Camera, ...]:
    generator = np.random.default_rng(seed)
    cameras = plan_walk(SETTING, CASTER, LENS, GAIT, generator, num_frames=num_frames, fps=fps)
    assert cameras is not None
    return cameras


def turns(cameras: tuple[Camera, ...]) -> np.ndarray:
    """Angles of the turns from each frame to the next, roll among them [rad]."""
    turned = [one.transform[:3, :3].T @ other.transform[:3, :3] for one, other in pairwise(cameras)]
    return np.array([math.acos(min(1.0, (np.trace(matrix) - 1.0) / 2.0)) for matrix in turned])


@pytest.mark.parametrize("seed", range(4))
def test_walks_are_smooth_clear_and_worth_their_pictures(seed: int) -> None:
    fps = 10.0
    cameras = walk_of(seed, fps=fps)
    assert len(cameras) == 60
    positions = np.stack([camera.position for camera in cameras])
    velocity = np.diff(positions, axis=0) * fps
    speed = np.linalg.norm(velocity, axis=1)
    assert speed.max() <= GAIT.speed and speed.sum() / fps > 0.5
    assert turns(cameras).max() * fps <= GAIT.turn
    # From standing to full speed takes half a second or more, the sway of the hand included.
    assert np.linalg.norm(np.diff(velocity, axis=0), axis=1).max() < 2.0 * GAIT.speed / fps
    assert np.ptp(positions[:, 2]) < 0.1 and 1.25 < positions[:, 2].mean() < 1.75
    assert len({camera.focal_px for camera in cameras}) == 1
    assert clearance(CASTER, positions, 500).min() > 0.95 * GAIT.clearance
    assert len(set(np.sign(positions[:, 0]))) == 1  # stays on its side of the wall
    assert all(rejection(CASTER, camera, SETTING.rules) is None for camera in cameras)


def test_walks_depend_on_their_generator_alone() -> None:
    one, again, other = (np.stack([camera.transform for camera in walk_of(seed)]) for seed in (5, 5, 6))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_a_long_walk_goes_on_from_view_to_view() -> None:
    positions = np.stack([camera.position for camera in walk_of(1, num_frames=400)])
    assert np.linalg.norm(np.diff(positions, axis=0), axis=1).sum() > 8.0


def test_where_there_is_no_room_there_is_no_walk() -> None:
    cell = [
        block(x, y, (0.1 if x else 1.0, 0.1 if y else 1.0, 3.0)) for x, y in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))
    ]
    setting = replace(SETTING, scene=scene_of(floor(), *cell), propose=lambda *_: anywhere_at((0.0, 0.0, 1.0)))
    generator = np.random.default_rng(0)
    gait = replace(GAIT, clearance=0.6)
    caster = Caster(setting.scene.instances)
    assert plan_walk(setting, caster, LENS, gait, generator, num_frames=30, fps=10.0) is None


def anywhere_at(position: tuple[float, float, float]) -> Camera:
    x, y, z = position
    return Camera(look_at(position, (x + 1.0, y, z)), 96, 72, 90.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walks") / "one"
    manifest = render_walks(CONFIG, folder, workers=1, studio=FlatPainter)
    assert manifest["seconds_per_frame"] > 0 and manifest["counts"] == {"samples": 10, "scenes": 2}
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those that hold times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "seconds.jsonl")
    }


def test_a_walk_is_a_folder_with_frames_and_their_poses(finished: Path) -> None:
    assert [walk.name for walk in plan(CONFIG)] == ["tabletops-000000", "tabletops-000001"]
    folder = finished / "tabletops-000001"
    sequence = json.loads((folder / "sequence.json").read_text())
    assert (sequence["format"], sequence["version"]) == ("openmarigold sequence", 1)
    assert (sequence["width"], sequence["height"], sequence["fps"]) == (96, 72, 10.0)
    camera = sequence["camera"]
    assert (camera["cx"], camera["cy"]) == (47.5, 35.5)  # centers of pixels at whole numbers
    assert camera["fx"] == camera["fy"] and 45.0 <= math.degrees(2 * math.atan(48 / camera["fx"])) <= 85.0
    assert [frame["time_s"] for frame in sequence["frames"]] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert sequence["scene"] == folder.name and sequence["source"] == "tabletops" and sequence["seed"] == 3
    for frame in sequence["frames"]:
        depth = np.load(folder / frame["depth"])
        with Image.open(folder / frame["rgb"]) as picture:
            assert picture.size == (96, 72) and picture.mode == "RGB"
        assert depth.dtype == np.float32 and depth.shape == (72, 96) and (depth > 0).mean() > 0.35
        pose = np.array(frame["camera_to_world"])
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-9)
        assert np.linalg.det(pose[:3, :3]) > 0.99 and pose[2, 1] < 0  # y points down


def test_depth_of_one_frame_agrees_with_that_of_the_next_through_their_poses(finished: Path) -> None:
    for folder in sorted(finished.glob("tabletops-*")):
        sequence = json.loads((folder / "sequence.json").read_text())
        camera, frames = sequence["camera"], sequence["frames"]
        for one, other in pairwise(frames):
            depth, there = (np.load(folder / frame["depth"]).astype(np.float64) for frame in (one, other))
            y, x = np.nonzero(depth)
            z = depth[y, x]
            points = np.stack(
                ((x - camera["cx"]) / camera["fx"] * z, (y - camera["cy"]) / camera["fy"] * z, z, np.ones_like(z))
            )
            moved = np.linalg.inv(other["camera_to_world"]) @ np.array(one["camera_to_world"]) @ points
            u = np.round(camera["fx"] * moved[0] / moved[2] + camera["cx"]).astype(int)
            v = np.round(camera["fy"] * moved[1] / moved[2] + camera["cy"]).astype(int)
            inside = (u >= 0) & (u < 96) & (v >= 0) & (v < 72)
            assert inside.mean() > 0.7
            found = there[v[inside], u[inside]]
            error = np.abs(found / moved[2, inside] - 1.0)
            assert np.median(error) < 0.004 and np.mean(error < 0.03) > 0.85  # the rest: edges, and what got hidden


def test_workers_and_interruptions_change_nothing(finished: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = tmp_path / "two"
    for name, data in contents(finished).items():  # as a kill leaves them
        if name.startswith("tabletops-000000/") and ("00001" in name or "depth/00003" in name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    kept = folder / "tabletops-000000" / "rgb" / "00001.png"
    before = kept.stat().st_mtime_ns
    (folder / "plan.json").write_bytes((finished / "plan.json").read_bytes())
    render_walks(CONFIG, folder, workers=2, studio=FlatPainter, progress=lambda *counts: seen.append(counts))
    assert contents(folder) == contents(finished) and kept.stat().st_mtime_ns == before
    assert seen[0] == (1, 10) and seen[-1] == (10, 10)
    rows = [json.loads(line) for line in (folder / "seconds.jsonl").read_text().split("\n") if line]
    assert {row["walk"]: row["frames"] for row in rows} == {"tabletops-000000": 4, "tabletops-000001": 5}
    render_walks(CONFIG, folder, workers=1, studio=FlatPainter)  # nothing is left to do
    assert contents(folder) == contents(finished)


def test_another_run_does_not_write_into_the_folder(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="walks of other settings"):
        render_walks(replace(CONFIG, seed=4), finished, workers=1, studio=FlatPainter)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty and holds no walks"):
        render_walks(CONFIG, tmp_path, workers=1, studio=FlatPainter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scenes": 0}, "scenes=0 is not accepted"),
        ({"frames": 1}, "frames=1 is not accepted; give 2 to"),
        ({"fps": 0.5}, "fps=0.5 is not accepted"),
        ({"height": 10}, "resolution 96x10"),
        ({"fov": (80.0, 40.0)}, "two angles"),
    ],
)
def test_settings_are_checked(change: dict, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        replace(CONFIG, **change)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GAITS)
def test_every_kind_of_scene_has_walks(kind: str, walk_in: Callable[[str], tuple[Camera, ...]]) -> None:
    cameras = walk_in(kind)
    gait = GAITS[kind]
    positions = np.stack([camera.position for camera in cameras])
    assert np.linalg.norm(np.diff(positions, axis=0), axis=1).max() * 15.0 <= gait.speed
    assert turns(cameras).max() * 15.0 <= gait.turn


@pytest.fixture
def walk_in(tmp_path: Path) -> Callable[[str], tuple[Camera, ...]]:
    from openmarigold_render.sampling import SceneSampler

    def find(kind: str) -> tuple[Camera, ...]:
        sampler = SceneSampler(None, tmp_path)
        for attempt in range(20):
            generator = np.random.default_rng(attempt)
            setting = sampler.sample(kind, generator)
            caster = Caster(setting.scene.instances)
            cameras = plan_walk(setting, caster, LENS, GAITS[kind], generator, num_frames=75, fps=15.0)
            if cameras is not None:
                return cameras
        raise AssertionError(kind)

    return find


def test_the_attribution_page_names_the_command() -> None:
    row = {"asset": "chairs/a.obj", "package": "chairs", "license": "CC0", "creator": "Ada", "title": "Chair"}
    settings = {"source": "rooms", "scenes": 2, "frames": 5, "seed": 3}
    page = attribution_page({"settings": settings, "counts": {"samples": 10}, "attribution": [row]})
    assert "`openmarigold-render path rooms --scenes 2 --frames 5 --seed 3 --assets DIR`" in page
