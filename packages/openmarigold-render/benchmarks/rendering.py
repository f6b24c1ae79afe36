# SPDX-License-Identifier: Apache-2.0
"""Measures what `openmarigold-render pictures` promises: speed, agreement of color and depth, planarity, focal length.

    python benchmarks/rendering.py [--pictures 24] [--assets DIR]

Renders the `train` preset on one core into a temporary folder. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from openmarigold.data.shards import ShardedDataset
from openmarigold.seeding import generator_for
from openmarigold_render.blender import Quality, Studio
from openmarigold_render.cameras import rejection
from openmarigold_render.procedural import ProceduralCatalog
from openmarigold_render.rays import Caster, cast_picture
from openmarigold_render.render import RenderConfig, render_dataset
from openmarigold_render.rooms import sample_room
from openmarigold_render.scene import Camera, Lens, transform_points

NUM_ROOMS = 4


def speed(pictures: int, assets: Path | None) -> dict[str, float]:
    """Seconds a picture on one core, all included, by kind."""
    found = {}
    for source in ("rooms", "tabletops", "streets"):
        with tempfile.TemporaryDirectory() as folder:
            config = RenderConfig(source=source, count=pictures, assets=assets, seed=99)
            manifest = render_dataset(config, Path(folder) / "data", workers=1)
            invalid = [
                ShardedDataset(Path(folder) / "data").info(k)["statistics"]["invalid_ratio"] for k in range(pictures)
            ]
        found[f"{source}, seconds a picture"] = manifest["seconds_per_frame"]
        found[f"{source}, share invalid"] = round(float(np.mean(invalid)), 4)
    return found


def agreement() -> dict[str, float]:
    """Of cast depth and object ids with Cycles' own, and of planes and focal length with the truth, in rooms."""
    lens = Lens(width=384, height=288)
    other_ids, errors, planes, focals, shifts = [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        catalog = ProceduralCatalog(Path(folder))
        studio = Studio(Quality(), Path(folder))
        for number in range(NUM_ROOMS):
            generator = generator_for(7, "benchmark", number)
            setting = sample_room(generator, catalog)
            caster = Caster(setting.scene.instances)
            views = (setting.propose(generator, lens) for _ in range(500))
            camera = next(view for view in views if view is not None and rejection(caster, view, setting.rules) is None)
            depth, ids = cast_picture(caster, camera)
            studio.load(setting.scene)
            cycles_depth, cycles_ids, _ = studio.passes(camera)
            other_ids.append(float((ids != cycles_ids).mean()))
            same = (ids == cycles_ids) & (depth > 0) & (cycles_depth > 0)
            errors.append(float(np.quantile(np.abs(depth[same] / cycles_depth[same] - 1), 0.999)))
            floor = ids == 1
            if floor.sum() > 2000:
                planes.append(_unevenness(depth, floor))
                focals.append(_focal_error(camera, depth, floor))
            shifts.append(_edge_shift(studio.render(camera, seed=1), ids))
    return {
        "pixels whose object id differs from Cycles'": float(np.mean(other_ids)),
        "depth differs from Cycles', relative, 99.9 %": max(errors),
        "floors, largest deviation from a plane, relative": max(planes),
        "focal length from the floor's depth, relative error": max(focals),
        "brightness changes across object edges, against those two pixels away": float(np.mean(shifts)),
    }


def _unevenness(depth: np.ndarray, plane: np.ndarray) -> float:
    row, column = np.nonzero(plane)
    design = np.stack((column + 0.5, row + 0.5, np.ones(len(row))), axis=1)
    inverse = 1 / depth[plane].astype(np.float64)
    solution, *_ = np.linalg.lstsq(design, inverse, rcond=None)
    return float(np.abs(design @ solution / inverse - 1).max())


def _focal_error(camera: Camera, depth: np.ndarray, floor: np.ndarray) -> float:
    row, column = np.nonzero(floor)
    rays = np.stack((column + 0.5 - camera.width / 2, row + 0.5 - camera.height / 2, np.ones(len(row))), axis=1)

    def height_spread(focal: float) -> float:
        points = rays / (focal, focal, 1.0) * depth[floor][:, None]
        return float(transform_points(camera.transform, points)[:, 2].std())

    candidates = camera.focal_px * np.linspace(0.98, 1.02, 801)
    best = candidates[int(np.argmin([height_spread(float(focal)) for focal in candidates]))]
    return abs(float(best) / camera.focal_px - 1)


def _edge_shift(linear: np.ndarray, ids: np.ndarray) -> float:
    gray = np.log(linear.mean(axis=2) + 1e-3)
    change = np.abs(np.diff(gray, axis=1))
    edge = np.diff(ids, axis=1) != 0
    nearby = np.roll(edge, 2, axis=1) & ~edge
    return float(change[edge].mean() / change[nearby].mean())


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--assets", type=Path, default=None)
    parser.add_argument("--no-speed", action="store_true")
    options = parser.parse_args()
    # Speed first: workers do not start from a process that has loaded bpy.
    result = {} if options.no_speed else speed(options.pictures, options.assets)
    result |= agreement()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
