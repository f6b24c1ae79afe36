# SPDX-License-Identifier: Apache-2.0
"""Runs: plans, settings, workers, resuming. Without Blender, but for the slow test of a real frame."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openmarigold.data.shards import ShardedDataset
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.geometry import normals_from_depth
from openmarigold_render.blender import Quality, Studio, import_bpy, require_bpy
from openmarigold_render.errors import MissingPackageError
from openmarigold_render.maps import DEPTH, normals_picture
from openmarigold_render.primitives import cushion, cylinder
from openmarigold_render.rays import Caster, cast_picture, picture_hits
from openmarigold_render.render import RenderConfig, plan, render_dataset, storable
from openmarigold_render.sampling import MIX
from openmarigold_render.scene import Instance, Light, Material, place
from rendering_data import GRAY, FlatPainter, block, camera_at, floor, scene_of

needs_bpy = pytest.mark.skipif(importlib.util.find_spec("bpy") is None, reason="needs bpy")
TINY = RenderConfig(source="tabletops", count=5, seed=3, width=96, height=72, scenes_per_shard=1)


def contents(folder: Path) -> dict[str, bytes]:
    """All shards, byte by byte."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_plans_give_the_number_of_pictures_that_was_asked_for() -> None:
    for count in (1, 2, 7, 200):
        scenes = plan(replace(TINY, source="mix", count=count))
        assert sum(scene.num_views for scene in scenes) == count
        assert [scene.number for scene in scenes] == list(range(len(scenes)))
    counts = {kind: sum(scene.kind == kind for scene in plan(replace(TINY, source="mix", count=2000))) for kind in MIX}
    for kind, share in MIX.items():
        assert counts[kind] / sum(counts.values()) == pytest.approx(share, abs=0.05)


def test_a_longer_run_begins_with_the_scenes_of_a_shorter_one() -> None:
    short, long = (plan(replace(TINY, source="mix", count=count)) for count in (40, 100))
    assert [scene.name for scene in short] == [scene.name for scene in long[: len(short)]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "count=0 is not accepted"),
        ({"width": 10}, "resolution 10x72"),
        ({"fov": (80.0, 40.0)}, "two angles"),
        ({"exposure": 9.0}, "-4 to 4 stops"),
        ({"maps": ("normals",)}, "maps=normals: depth is missing"),
    ],
)
def test_settings_are_checked(change: dict, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        replace(TINY, **change)


def test_depth_beyond_what_shards_hold_counts_as_sky() -> None:
    depth = np.array(((0.0, 0.01, 1.0), (399.0, 401.0, 1e6)), dtype=np.float32)
    kept = storable(depth)
    assert kept[0, 0] == kept[1, 1] == kept[1, 2] == 0 and kept[0, 2] == 1.0
    DEPTH.encode(kept)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    render_dataset(TINY, folder, workers=1, studio=FlatPainter)
    return folder


def test_a_run_is_a_prepared_data_set_whose_depth_fits_its_camera(finished: Path) -> None:
    data = ShardedDataset(finished)
    assert len(data) == TINY.count and set(data.kinds) == {"tabletops"} and len(set(data.scenes)) == 3
    sample, info = data.read(0), data.info(0)
    assert sample.rgb.shape == (72, 96, 3) and (sample.maps["depth"] > 0).mean() > 0.5
    low, high = TINY.fov
    assert low <= np.degrees(2 * np.arctan(48 / info["intrinsics"]["fx"])) <= high
    manifest = json.loads((finished / "manifest.json").read_text())
    assert (
        manifest["seconds_per_frame"] > 0 and manifest["cpu_seconds_per_frame"] > 0 and manifest["broken_assets"] == {}
    )


def test_maps_change_neither_colors_nor_depth(finished: Path, tmp_path: Path) -> None:
    usual = ShardedDataset(finished)
    names = ("depth", "normals", "albedo", "shading", "residual")
    for maps in (("depth",), names):
        folder = tmp_path / str(len(maps))
        render_dataset(replace(TINY, count=2, maps=maps), folder, workers=1, studio=FlatPainter)
        data = ShardedDataset(folder)
        assert tuple(data.encodings) == maps and data.manifest["settings"].keys() == usual.manifest["settings"].keys()
        for index in range(2):
            assert data.member(index, "depth") == usual.member(index, "depth")
            if len(maps) == 1:
                assert data.member(index, "rgb") == usual.member(index, "rgb")
            else:  # this painter's light has a spot of its own
                found = data.read(index).maps
                assert np.array_equal(found["normals"], usual.read(index).maps["normals"])
                np.testing.assert_allclose(found["albedo"], 0.25)
                dull = found["residual"][1:] - found["albedo"][1:] * found["shading"][1:]
                assert np.abs(dull).max() < 1e-3  # half of the light each


def test_normals_are_those_of_the_surface_that_depth_shows(finished: Path) -> None:
    data = ShardedDataset(finished)
    for index in range(len(data)):
        maps, camera = data.read(index).maps, data.info(index)["intrinsics"]
        known = maps["normals"].any(axis=-1)
        assert np.array_equal(known, maps["depth"] > 0)
        center = (camera["cx"] - 0.5, camera["cy"] - 0.5)
        found, sure = normals_from_depth(maps["depth"], focal=camera["fx"], center=center, support=5)
        angle = np.degrees(np.arccos(np.clip((found * maps["normals"]).sum(axis=-1), -1, 1)))
        assert np.median(angle[sure]) < 2.0 and np.mean(angle[sure] < 15.0) > 0.8


def test_workers_and_interruptions_change_nothing(finished: Path, tmp_path: Path) -> None:
    for number in (0, 2):  # as a kill leaves them: a whole shard without its index, and one that is not there
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / f"shard-{number:05d}.tar").write_bytes((finished / f"shard-{number:05d}.tar").read_bytes())
    (tmp_path / "two" / "shard-00002.json").write_bytes((finished / "shard-00002.json").read_bytes())
    manifest = json.loads((finished / "manifest.json").read_text())
    plan_keys = ("format", "name", "split", "maps", "settings")
    (tmp_path / "two" / "plan.json").write_text(json.dumps({key: manifest[key] for key in plan_keys}))
    seen: list[tuple[int, int]] = []
    render_dataset(TINY, tmp_path / "two", workers=2, studio=FlatPainter, progress=lambda *counts: seen.append(counts))
    assert contents(tmp_path / "two") == contents(finished)
    assert seen[0] == (1, 5) and seen[-1] == (5, 5)  # the last scene, of one picture, was there
    with pytest.raises(DataError, match="other settings"):
        render_dataset(replace(TINY, seed=4), tmp_path / "two", workers=1, studio=FlatPainter)


def test_times_of_earlier_versions_and_cut_lines_are_borne(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for path in finished.iterdir():
        if path.name.startswith("shard-") and path.name[6:11] != "00002":
            (tmp_path / "run" / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((finished / "manifest.json").read_text())
    plan_keys = ("format", "name", "split", "maps", "settings")
    (tmp_path / "run" / "plan.json").write_text(json.dumps({key: manifest[key] for key in plan_keys}))
    old = json.dumps({"shard": 0, "frames": 2, "seconds": 4000.0})
    (tmp_path / "run" / "seconds.jsonl").write_text(f'{old}\n{{"shard": 1, "fra')
    resumed = render_dataset(TINY, tmp_path / "run", workers=1, studio=FlatPainter)
    assert resumed["seconds_per_frame"] > 1000  # of the old row and the new one
    assert 0 < resumed["cpu_seconds_per_frame"] < 100  # of the new one alone


def test_without_blender_the_message_says_what_to_install(tmp_path: Path) -> None:
    if importlib.util.find_spec("bpy") is not None:
        require_bpy()
        return
    with pytest.raises(MissingPackageError, match=r"bpy.*Python 3\.11: pip install openmarigold-render"):
        render_dataset(TINY, tmp_path / "none", workers=1)


def test_workers_of_a_process_with_blender_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They get its paths, where Blender's scripts with a `bpy` of their own come first."""
    scripts, packages, others = (tmp_path / name for name in ("bpy/5.0/scripts/modules", "packages", "bpy/scripts"))
    for folder, content in ((scripts, "raise ImportError('_bpy')"), (packages, "found = True"), (others, "")):
        (folder / "bpy").mkdir(parents=True)
        (folder / "bpy" / "__init__.py").write_text(content)
    monkeypatch.setattr("sys.path", [str(scripts), str(packages), str(others), *sys.path])
    monkeypatch.delitem(sys.modules, "bpy", raising=False)
    try:
        assert import_bpy().found
    finally:
        sys.modules.pop("bpy", None)
    assert str(scripts) not in sys.path and str(others) in sys.path


# With Blender: pytest --noconftest -m slow, in an environment with bpy and without torch.


@needs_bpy
@pytest.mark.slow
def test_blender_gives_the_same_bytes_with_one_and_two_workers(tmp_path: Path) -> None:
    config = replace(TINY, source="mix", count=24, samples=2)  # every third scene told runs apart once
    render_dataset(config, tmp_path / "one", workers=1)
    render_dataset(config, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    (tmp_path / "two" / "shard-00001.tar").write_bytes(b"")
    render_dataset(config, tmp_path / "two", workers=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@needs_bpy
@pytest.mark.slow
def test_a_real_frame_agrees_with_its_depth_and_object_ids(tmp_path: Path) -> None:
    studio = Studio(Quality(samples=4), tmp_path)
    lamp = Light(kind="area", position=(1.0, -2.0, 3.0), direction=(-0.3, 0.5, -1.0), power=80.0, size=(0.5, 0.5))
    glass = replace(block(0.3, -0.8, (0.2, 0.2, 0.3)), name="glass")
    glass = replace(
        glass, mesh=replace(glass.mesh, materials=(Material(name="glass", transmission=1.0, roughness=0.0),))
    )
    things = (floor(), block(0.0, 0.0, (0.6, 0.6, 0.8), angle=0.3), block(1.0, 2.0, (0.5, 0.5, 1.5)), glass)
    scene = replace(scene_of(*things), lights=(lamp,))
    studio.load(scene)
    camera = camera_at((0.2, -3.0, 1.4), (0.2, 0.0, 0.4), roll=0.1)
    depth, ids = cast_picture(Caster(scene.instances), camera)
    cycles_depth, cycles_ids, _ = studio.passes(camera)
    assert (ids != cycles_ids).mean() < 1e-3
    same = (ids == cycles_ids) & (ids > 0)
    assert np.abs(depth / np.where(same, cycles_depth, 1.0) - 1)[same].max() < 1e-3
    first, again = (studio.render(camera, seed=1) for _ in range(2))
    assert np.array_equal(first, again) and first.max() > 0
    # Brightness changes across the edges of objects more than elsewhere.
    gray = np.log(first.mean(axis=2) + 1e-3)
    step, edge = np.abs(np.diff(gray, axis=1)), np.diff(ids, axis=1) != 0
    assert step[edge].mean() > 3 * step[~edge].mean()


@needs_bpy
@pytest.mark.slow
def test_normals_agree_with_those_that_shade_and_light_adds_up(tmp_path: Path) -> None:
    studio = Studio(Quality(samples=4), tmp_path)
    lamp = Light(kind="area", position=(1.0, -2.0, 3.0), direction=(-0.3, 0.5, -1.0), power=80.0, size=(0.5, 0.5))
    can = Instance(cylinder("can", 0.3, 0.5, GRAY, segments=16), place(-0.5, 0.7, 0.0), "can")
    pillow = Instance(cushion("pillow", (0.6, 0.5, 0.3), GRAY), place(0.9, -0.5, 0.2, 0.4), "pillow")
    metal = block(0.3, -0.8, (0.2, 0.2, 0.3))
    shiny = Material(name="metal", metallic=1.0, roughness=0.3)
    metal = replace(metal, mesh=replace(metal.mesh, materials=(shiny,)))
    scene = replace(scene_of(floor(), block(0.0, 0.5, (0.3, 0.3, 0.8)), can, pillow, metal), lights=(lamp,))
    studio.load(scene)
    camera = camera_at((0.2, -3.0, 1.4), (0.2, 0.0, 0.4), roll=0.1)
    hits = picture_hits(Caster(scene.instances), camera)
    normals = normals_picture(scene.instances, hits, camera)
    _, cycles_ids, world = studio.passes(camera)
    same = (cycles_ids.ravel() == hits.instance + 1).reshape(cycles_ids.shape) & (cycles_ids > 0)
    angle = np.degrees(np.arccos(np.clip((world @ camera.transform[:3, :3] * (1, -1, -1) * normals).sum(-1), -1, 1)))
    assert same.mean() > 0.6 and np.percentile(angle[same], 99) < 0.5 and np.mean(angle[same] > 3) < 2e-3
    plain = studio.render(camera, seed=1)
    light = studio.render_light(camera, seed=1)
    assert np.array_equal(light.color, plain) and np.array_equal(studio.render(camera, seed=1), plain)
    again = studio.render_light(camera, seed=1)
    assert np.array_equal(again.shading, light.shading) and np.array_equal(again.albedo, light.albedo)
    number = cycles_ids.astype(int)
    assert 0.5 < np.median(light.albedo[number == 1]) < 0.6  # of the material, less what its gloss sends back
    assert np.median(light.albedo[number == 5]) == 0 and np.median(light.albedo[number == 0]) == 0  # metal, sky
    residual = light.maps()["residual"]
    assert np.abs(residual[number == 1]).mean() < 0.2 * plain[number == 1].mean()
    assert np.median(residual[number == 0] / plain[number == 0]) == pytest.approx(1.0, abs=1e-3)
