# SPDX-License-Identifier: Apache-2.0
"""Fences that one looks through, lamps on cords, animals, and the scenes that show them; without Blender."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openmarigold_render import barriers
from openmarigold_render.cameras import rejection
from openmarigold_render.procedural import ProceduralCatalog
from openmarigold_render.rays import Caster, cast_picture
from openmarigold_render.sampling import SceneSampler
from openmarigold_render.scene import Instance, Lens, Setting
from openmarigold_render.thin import fenced_path, hung_room, sample_thin

LENS = Lens(width=96, height=72)
OPEN = [kind for kind in barriers.FENCES if "wall" not in kind]


def share_hit(mesh_or_scene: Instance, *, across: float, height: float) -> float:
    """Share of level rays along +Y, over the fence's own rectangle, that it stops."""
    x, z = np.meshgrid(np.linspace(-0.45, 0.45, 160) * across, np.linspace(0.02, 0.99, 160) * height)
    origins = np.stack((x.ravel(), np.full(x.size, -3.0), z.ravel()), axis=1)
    return float(Caster([mesh_or_scene]).cast(origins, np.array(((0.0, 1.0, 0.0),))).hit.mean())


@pytest.mark.parametrize("kind", barriers.FENCES)
@pytest.mark.parametrize("seed", range(4))
def test_a_piece_of_fence_has_its_length_and_stands_on_the_ground(kind: str, seed: int) -> None:
    mesh = barriers.FENCES[kind][1](np.random.default_rng(seed), 2.0)
    low, high = mesh.bounds
    assert -1.5 < low[0] < -0.85 and 0.8 < high[0] < 1.5
    assert -0.08 < low[2] < 0.07
    assert 0.35 < high[2] < 2.1


@pytest.mark.parametrize("kind", OPEN)
def test_one_looks_through_a_fence(kind: str) -> None:
    shares = []
    for seed in range(6):
        mesh = barriers.FENCES[kind][1](np.random.default_rng(seed), 2.0)
        shares.append(share_hit(Instance(mesh, np.eye(4), kind), across=2.0, height=float(mesh.size[2])))
    assert min(shares) > 0.005
    assert max(shares) < 0.75


def test_all_kinds_of_fences_are_drawn() -> None:
    generator = np.random.default_rng(0)
    names = {barriers.any_fence(generator, 2.0).name for _ in range(80)}
    assert {"cane fence", "lath fence", "rope fence", "railing", "stick fence", "fence"} <= names


@pytest.mark.parametrize("drop", [0.3, 1.4])
@pytest.mark.parametrize("seed", range(5))
def test_a_hanging_lamp_reaches_from_its_lowest_point_to_the_ceiling(drop: float, seed: int) -> None:
    low, high = barriers.hanging_lamp(np.random.default_rng(seed), drop).bounds
    assert low[2] == pytest.approx(0.0, abs=0.01)
    assert high[2] == pytest.approx(drop, abs=1e-3)
    assert high[0] - low[0] < 0.45


@pytest.mark.parametrize("seed", range(8))
def test_an_animal_stands_on_the_ground_with_its_head_in_front(seed: int) -> None:
    mesh = barriers.animal(np.random.default_rng(seed))
    assert mesh.bounds[0][2] == pytest.approx(0.0, abs=1e-6)
    assert 0.1 < mesh.size.max() < 1.6
    (_, start, _), (_, end, _) = mesh.bounds
    reach = 0.35 * (end - start)
    front = mesh.vertices[mesh.vertices[:, 1] < start + reach]
    back = mesh.vertices[mesh.vertices[:, 1] > end - reach]
    assert front[:, 2].max() > back[:, 2].max()  # ears above tail


@pytest.mark.parametrize("size", [0.3, 2.5])
def test_a_rock_has_its_size_and_its_foot_in_the_ground(size: float) -> None:
    low, high = barriers.rock(np.random.default_rng(2), size).bounds
    assert 0.6 * size < high[0] - low[0] < 1.7 * size
    assert low[2] < 0.02 * size < high[2]


def test_the_same_seed_gives_the_same_scene(tmp_path: Path) -> None:
    for seed in (0, 4):
        first, second = (sample_thin(np.random.default_rng(seed), ProceduralCatalog(tmp_path)) for _ in range(2))
        assert first.facts == second.facts and first.kind == "thin"
        for a, b in zip(first.scene.instances, second.scene.instances, strict=True):
            assert a.name == b.name
            assert np.array_equal(a.transform, b.transform)
            assert np.array_equal(a.mesh.vertices, b.mesh.vertices)


def accepted_views(setting: Setting, count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Depth and object ids of views that the scene's rules accept."""
    caster, generator = Caster(setting.scene.instances), np.random.default_rng(seed)
    found = []
    for _ in range(300):
        camera = setting.propose(generator, LENS)
        if camera is None or rejection(caster, camera, setting.rules) is not None:
            continue
        found.append(cast_picture(caster, camera))
        if len(found) == count:
            break
    return found


def test_paths_are_seen_through_their_fences() -> None:
    shares = []
    for seed in range(3):
        setting = fenced_path(np.random.default_rng(seed))
        assert setting.facts["place"] == "path"
        names = np.array([one.mesh.name for one in setting.scene.instances])
        views = accepted_views(setting, 4)
        assert len(views) == 4
        for depth, ids in views:
            seen = names[ids[ids > 0] - 1]
            shares.append(np.mean([("fence" in name) or name in ("railing", "garden wall") for name in seen]))
            assert depth[depth > 0].min() > 0.1
    assert np.mean(np.array(shares) > 0.01) > 0.5
    assert max(shares) < 0.9


def test_rooms_have_lamps_that_hang_from_the_ceiling(tmp_path: Path) -> None:
    catalog, hung = ProceduralCatalog(tmp_path), 0
    for seed in range(4):
        setting = hung_room(np.random.default_rng(seed), catalog)
        height = setting.facts["size"][2]
        for one in setting.scene.instances:
            if one.mesh.name == "hanging lamp":
                hung += 1
                top = float(one.mesh.bounds[1][2] + one.transform[2, 3])
                assert height - 0.02 < top < height + 0.3  # cords of lamps that hang higher end in the ceiling
        assert len(accepted_views(setting, 2)) == 2
    assert hung >= 6


def test_the_sampler_knows_the_kind(tmp_path: Path) -> None:
    sampler = SceneSampler(None, tmp_path)
    places = {sampler.sample("thin", np.random.default_rng(seed)).facts["place"] for seed in (0, 4)}
    assert places == {"path", "room"}
