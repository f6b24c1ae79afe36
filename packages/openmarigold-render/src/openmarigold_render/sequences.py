# SPDX-License-Identifier: Apache-2.0
"""Rendering camera walks: one folder for each, with colors, exact depth and poses of its frames.

Walk n is a function of (seed, kind, n) and the settings, whichever worker renders it. A frame has its name when it is
whole, and `sequence.json` is written last, so that a run that was interrupted renders what is missing.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from openmarigold_render.assets import Assets, manifest_rows
from openmarigold_render.blender import Quality, Studio, require_bpy, seed_of
from openmarigold_render.cameras import depth_rejection, picture_rejection
from openmarigold_render.core import DataError, InvalidValueError, generator_for, parse_json, write_atomically
from openmarigold_render.development import Development, development_for
from openmarigold_render.facts import TIMES_FILE, seconds_per_frame
from openmarigold_render.processes import in_processes, settle
from openmarigold_render.rays import Caster, cast_picture, require_embree
from openmarigold_render.render import Painter
from openmarigold_render.sampling import SAMPLES, SEEDS, Kind, SceneSampler, Source, check_settings, kind_of
from openmarigold_render.scene import Camera, Lens, Setting
from openmarigold_render.walks import GAITS, plan_walk

FORMAT, VERSION = "openmarigold sequence", 1
RUN_FORMAT = "openmarigold walks"
SEQUENCE_FILE, PLAN_FILE, MANIFEST_FILE = "sequence.json", "plan.json", "manifest.json"
MAX_SCENES = 40
_KEY_FRAMES = 5


@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """Settings of a run.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    source: Source
    scenes: int
    """Number of walks, each in a scene of its own."""
    frames: int = 100
    """Number of frames of each walk."""
    fps: float = 15.0
    seed: int = 0
    assets: Path | None = None
    width: int = 384
    height: int = 288
    samples: int = 4
    fov: tuple[float, float] = (45.0, 85.0)
    """Smallest and largest horizontal field of view [degrees]; a walk keeps its own."""
    exposure: float = 0.0
    """Lighter or darker than measured [stops]."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        counts = {"scenes": (1, 100_000), "frames": (2, 100_000), "fps": (1, 240), "samples": SAMPLES, "seed": SEEDS}
        check_settings(self, counts)

    def settings(self) -> dict[str, Any]:
        """What the frames depend on; assets by the names of their packages. A longer run keeps shorter ones' walks."""
        assets = None if self.assets is None else sorted(Assets(self.assets).found)
        return {**asdict(self), "assets": assets, "fov": list(self.fov)}


@dataclass(frozen=True)
class PlannedWalk:
    """A walk of a run."""

    number: int
    kind: Kind

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number:06d}"


def plan(config: PathConfig) -> list[PlannedWalk]:
    """The walks of a run in their order."""
    return [
        PlannedWalk(number, kind_of(config.source, config.seed, "path kind", number)) for number in range(config.scenes)
    ]


def render_walks(
    config: PathConfig,
    output_dir: Path,
    *,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    studio: Callable[[Quality, Path], Painter] = Studio,
) -> dict[str, Any]:
    """Renders what is not there yet, and returns the manifest.

    Args:
        config: what to render.
        output_dir: where the folders of the walks go.
        workers: number of processes, each on one core.
        progress: called with frames done and wanted.
        studio: makes what draws the colors, in each worker; must be importable there.

    Raises:
        InvalidValueError, DataError, OutputError, MissingPackageError.
    """
    if workers < 1:
        raise InvalidValueError(f"workers={workers} is not accepted; give 1 or above")
    if studio is Studio:
        require_bpy()
    require_embree()
    walks = plan(config)
    _begin(config, output_dir)
    undone = [walk for walk in walks if not (output_dir / walk.name / SEQUENCE_FILE).exists()]

    def report() -> None:
        if progress is not None:
            done = sum(len(list((output_dir / walk.name / "rgb").glob("[0-9]*.png"))) for walk in walks)
            progress(done, len(walks) * config.frames)

    report()
    with tempfile.TemporaryDirectory(prefix="openmarigold-") as folder:
        start = partial(_start_worker, config, Path(folder), output_dir, studio)
        for walk, times in in_processes(start, _render_walk, undone, workers=workers, each_second=report):
            with (output_dir / TIMES_FILE).open("a") as file:
                file.write("\n" + json.dumps({"walk": walk.name, **times}))  # a cut line before it stays by itself
    report()
    return _finish(config, output_dir, walks)


def _begin(config: PathConfig, output_dir: Path) -> None:
    """Makes the folder, or checks that it is one that the same settings left unfinished."""
    planned = {"format": RUN_FORMAT, "version": VERSION, "settings": config.settings()}
    path = output_dir / PLAN_FILE
    if path.exists():
        found = parse_json(path.read_bytes())
        if found != planned:
            raise DataError(f"{output_dir} holds walks of other settings; give another --output, or the same settings")
        return
    if output_dir.exists() and any(output_dir.iterdir()):
        raise DataError(f"{output_dir} is not empty and holds no walks; give another --output")
    output_dir.mkdir(parents=True, exist_ok=True)
    _write_json(path, planned)


def _finish(config: PathConfig, output_dir: Path, walks: Sequence[PlannedWalk]) -> dict[str, Any]:
    sequences = [parse_json((output_dir / walk.name / SEQUENCE_FILE).read_bytes()) for walk in walks]
    used = Counter(name for sequence in sequences for name in sequence["assets"])
    manifest: dict[str, Any] = {
        "format": RUN_FORMAT,
        "version": VERSION,
        "settings": config.settings(),
        "walks": [walk.name for walk in walks],
        "counts": {"samples": len(walks) * config.frames, "scenes": len(walks)},
        **seconds_per_frame(output_dir),
        "assets_used": dict(sorted(used.items())),
    }
    if config.assets is not None and used:
        manifest["attribution"] = manifest_rows(Assets(config.assets).attributions(used))
    _write_json(output_dir / MANIFEST_FILE, manifest)
    return manifest


class WalkRenderer:
    """Renders walks one after another in one process."""

    def __init__(
        self, config: PathConfig, folder: Path, output_dir: Path, studio: Callable[[Quality, Path], Painter] = Studio
    ) -> None:
        self._config, self._output_dir = config, output_dir
        low, high = (math.radians(angle) for angle in config.fov)
        self._lens = Lens(width=config.width, height=config.height, fov=(low, high))
        self._sampler = SceneSampler(config.assets, folder)
        self._studio = studio(Quality(samples=config.samples, device=config.device.upper()), folder)

    def render(self, walk: PlannedWalk) -> int:
        """Renders the frames of a walk that are not there yet, and returns how many those were.

        Raises:
            DataError: no scene of this number had a walk.
        """
        for attempt in range(MAX_SCENES):
            generator = generator_for(self._config.seed, f"path scene {walk.kind}", walk.number, attempt)
            try:
                setting = self._sampler.sample(walk.kind, generator)
                caster = Caster(setting.scene.instances)
                cameras = plan_walk(
                    setting, caster, self._lens, GAITS[walk.kind], generator,
                    num_frames=self._config.frames, fps=self._config.fps,
                )  # fmt: skip
                if cameras is None:
                    continue
                self._studio.load(setting.scene)
            except DataError:  # a broken asset
                continue
            colors: dict[int, np.ndarray] = {}
            developed = self._developed(walk, setting, caster, cameras, generator, colors)
            if developed is not None:
                return self._write(walk, setting, caster, cameras, developed, colors, attempt)
        raise DataError(f"{walk.name}: no walk in {MAX_SCENES} scenes; use fewer --frames, or more --fps")

    def _paint(self, walk: PlannedWalk, camera: Camera, number: int) -> Float[np.ndarray, "h w 3"]:
        return self._studio.render(camera, seed=seed_of(f"{walk.name}-{number}"))

    def _developed(
        self,
        walk: PlannedWalk,
        setting: Setting,
        caster: Caster,
        cameras: Sequence[Camera],
        generator: np.random.Generator,
        colors: dict[int, np.ndarray],
    ) -> Development | None:
        """One development for all frames, from some of them, whose colors it adds; None where they look bad."""
        numbers = np.unique(np.linspace(0, len(cameras) - 1, _KEY_FRAMES).round().astype(int)).tolist()
        depths = [cast_picture(caster, cameras[number])[0] for number in numbers]
        if any(depth_rejection(depth, setting.rules) is not None for depth in depths):
            return None
        for number in numbers:
            colors[number] = self._paint(walk, cameras[number], number)
        linear, measured = np.concatenate([colors[number] for number in numbers]), np.concatenate(depths) > 0
        development = development_for(linear, measured, generator, exposure=self._config.exposure)
        if any(picture_rejection(development(colors[number])) is not None for number in numbers):
            return None
        return development

    def _write(
        self,
        walk: PlannedWalk,
        setting: Setting,
        caster: Caster,
        cameras: Sequence[Camera],
        development: Development,
        colors: Mapping[int, np.ndarray],
        attempt: int,
    ) -> int:
        folder = self._output_dir / walk.name
        for name in ("rgb", "depth"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        rows = []
        count = 0
        for number, camera in enumerate(cameras):
            rgb_name, depth_name = f"rgb/{number:05d}.png", f"depth/{number:05d}.npy"
            if not ((folder / rgb_name).exists() and (folder / depth_name).exists()):
                depth, _ = cast_picture(caster, camera)
                linear = colors[number] if number in colors else self._paint(walk, camera, number)
                write_atomically(folder / depth_name, partial(_save_array, depth))
                write_atomically(folder / rgb_name, partial(_save_picture, development(linear)))
                count += 1
            rows.append(
                {
                    "rgb": rgb_name,
                    "depth": depth_name,
                    "time_s": number / self._config.fps,
                    "camera_to_world": camera.transform.tolist(),
                }
            )
        matrix = cameras[0].intrinsics
        sequence = {
            "format": FORMAT,
            "version": VERSION,
            "width": self._config.width,
            "height": self._config.height,
            "camera": {
                "fx": float(matrix[0, 0]),
                "fy": float(matrix[1, 1]),
                "cx": float(matrix[0, 2]) - 0.5,  # pixel centers at whole numbers
                "cy": float(matrix[1, 2]) - 0.5,
            },
            "fps": self._config.fps,
            "frames": rows,
            "scene": walk.name,
            "seed": self._config.seed,
            "source": walk.kind,
            "attempt": attempt,
            "facts": dict(setting.facts),
            "assets": list(self._sampler.sources(setting.scene)),
        }
        _write_json(folder / SEQUENCE_FILE, sequence)
        return count


_renderer: WalkRenderer | None = None


def _start_worker(
    config: PathConfig, folder: Path, output_dir: Path, studio: Callable[[Quality, Path], Painter], ranks: Any
) -> None:
    """Makes this process a renderer on a core of its own."""
    global _renderer
    settle(ranks)
    _renderer = WalkRenderer(config, folder, output_dir, studio)


def _render_walk(walk: PlannedWalk) -> dict[str, float]:
    assert _renderer is not None
    started, started_cpu = time.perf_counter(), time.process_time()
    frames = _renderer.render(walk)
    return {
        "frames": frames,
        "seconds": round(time.perf_counter() - started, 3),
        "cpu_seconds": round(time.process_time() - started_cpu, 3),
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _save_array(array: Float[np.ndarray, "h w"], path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _save_picture(rgb: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    with path.open("wb") as file:
        Image.fromarray(rgb).save(file, "PNG")
