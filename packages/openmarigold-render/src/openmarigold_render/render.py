# SPDX-License-Identifier: Apache-2.0
"""Rendering data sets: scenes from (seed, number), one process a core, into shards that training reads.

Scene n and all its pictures are functions of (seed, split, kind, n) and the settings; which worker renders it, what
that worker rendered before, and whether the run was interrupted change nothing. A shard is a fixed run of scenes, so
whole shards are kept and all others are rendered again.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from openmarigold_render.assets import Assets
from openmarigold_render.blender import Quality, Studio, require_bpy, seed_of
from openmarigold_render.cameras import depth_rejection, picture_rejection, rejection
from openmarigold_render.core import (
    DataError,
    InvalidValueError,
    NewSample,
    Rejection,
    ShardWriter,
    generator_for,
    only_run,
)
from openmarigold_render.development import develop
from openmarigold_render.facts import TIMES_FILE, run_facts
from openmarigold_render.maps import DEFAULT, DEPTH, ENCODINGS, INTRINSIC, Light, MapName, check_maps, normals_picture
from openmarigold_render.processes import in_processes, settle
from openmarigold_render.rays import Caster, Hits, depth_picture, picture_hits, require_embree
from openmarigold_render.sampling import SAMPLES, SEEDS, VIEWS, Kind, SceneSampler, Source, check_settings, kind_of
from openmarigold_render.scene import Camera, Lens, Scene, Setting

Preset = Literal["preview", "train"]

MAX_ATTEMPTS = 10
MAX_PROPOSALS = 120
MAX_FAILED_PICTURES = 4
JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """Settings of a run.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    source: Source
    count: int
    seed: int = 0
    split: Literal["train", "val", "test"] = "train"
    assets: Path | None = None
    width: int = 384
    height: int = 288
    samples: int = 4
    fov: tuple[float, float] = (45.0, 85.0)
    """Smallest and largest horizontal field of view [degrees]."""
    exposure: float = 0.0
    """Lighter or darker than measured [stops]."""
    device: Literal["cpu", "gpu"] = "cpu"
    scenes_per_shard: int = 16
    """Scenes of one shard, which a killed run may have to render again."""
    maps: tuple[MapName, ...] = DEFAULT
    """Maps of each picture; other choices change neither colors nor depth."""

    def __post_init__(self) -> None:
        counts = {"count": (1, 10_000_000), "samples": SAMPLES, "seed": SEEDS, "scenes_per_shard": (1, 10_000)}
        check_settings(self, counts)
        object.__setattr__(self, "maps", check_maps(self.maps))

    def settings(self) -> dict[str, Any]:
        """What the samples depend on but the maps, which the manifest lists; assets by the names of their packages."""
        settings = asdict(self) | {"assets": None}
        del settings["maps"]
        if self.assets is not None:
            settings["assets"] = sorted(Assets(self.assets).found)
        return settings


PRESETS: dict[Preset, dict[str, Any]] = {
    "preview": {"width": 256, "height": 192, "samples": 2},
    "train": {"width": 384, "height": 288, "samples": 4},
}


@dataclass(frozen=True)
class PlannedScene:
    """A scene of a run, and how many pictures of it are wanted."""

    number: int
    kind: Kind
    num_views: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number:06d}"


def plan(config: RenderConfig) -> list[PlannedScene]:
    """The scenes of a run in their order, for as many pictures as are wanted."""
    scenes: list[PlannedScene] = []
    missing = config.count
    while missing > 0:
        number = len(scenes)
        kind = kind_of(config.source, config.seed, f"{config.split} kind", number)
        scenes.append(PlannedScene(number, kind, min(VIEWS, missing)))
        missing -= scenes[-1].num_views
    return scenes


def render_dataset(
    config: RenderConfig,
    output_dir: Path,
    *,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    studio: Callable[[Quality, Path], Painter] = Studio,
) -> dict[str, Any]:
    """Renders what is not there yet, and returns the manifest.

    Args:
        config: what to render.
        output_dir: where the shards go.
        workers: number of processes, each on one core.
        progress: called with pictures done and wanted.
        studio: makes what draws the colors, in each worker; must be importable there.

    Raises:
        InvalidValueError, DataError, OutputError, MissingPackageError.
    """
    if workers < 1:
        raise InvalidValueError(f"workers={workers} is not accepted; give 1 or above")
    if studio is Studio:
        require_bpy()
    require_embree()
    scenes = plan(config)
    size = config.scenes_per_shard
    shards = [scenes[start : start + size] for start in range(0, len(scenes), size)]
    writer = ShardWriter(
        output_dir,
        name=f"rendered-{config.source}",
        split=config.split,
        encodings={name: ENCODINGS[name] for name in config.maps},
        settings=config.settings(),
    )
    with only_run(output_dir):
        writer.begin()
        undone = [number for number in range(len(shards)) if not writer.is_done(number)]
        done = sum(scene.num_views for number, shard in enumerate(shards) if number not in undone for scene in shard)
        if progress is not None:
            progress(done, config.count)
        with tempfile.TemporaryDirectory(prefix="openmarigold-") as folder:
            start = partial(_start_worker, config, Path(folder), studio)
            jobs = [(writer, number, shards[number]) for number in undone]
            for (_, number, _), times in in_processes(start, _render_shard, jobs, workers=workers):
                done += sum(scene.num_views for scene in shards[number])
                with (output_dir / TIMES_FILE).open("a") as file:
                    file.write("\n" + json.dumps({"shard": number, **times}))  # a cut line before it stays by itself
                if progress is not None:
                    progress(done, config.count)
        return writer.finish(len(shards), run_facts(config.assets, output_dir, len(shards)))


@runtime_checkable
class Painter(Protocol):
    """What draws colors: `blender.Studio`."""

    def load(self, scene: Scene) -> None: ...

    def render(self, camera: Camera, *, seed: int) -> Float[np.ndarray, "h w 3"]: ...

    def render_light(self, camera: Camera, *, seed: int) -> Light: ...


class SceneRenderer:
    """Renders scenes one after another in one process."""

    def __init__(self, config: RenderConfig, folder: Path, studio: Callable[[Quality, Path], Painter] = Studio) -> None:
        self._config = config
        low, high = (math.radians(angle) for angle in config.fov)
        self._lens = Lens(width=config.width, height=config.height, fov=(low, high))
        self._sampler = SceneSampler(config.assets, folder)
        self._studio = studio(Quality(samples=config.samples, device=config.device.upper()), folder)

    def frames(self, scene: PlannedScene) -> Iterator[NewSample | Rejection]:
        """The wanted pictures of a scene, and what was rejected on the way.

        Raises:
            DataError: no attempt gave enough pictures.
        """
        found = 0
        for attempt in range(MAX_ATTEMPTS):
            generator = generator_for(
                self._config.seed, f"{self._config.split} scene {scene.kind}", scene.number, attempt
            )
            self._sampler.broken.clear()
            try:
                setting = self._sampler.sample(scene.kind, generator)
                self._studio.load(setting.scene)
            except DataError as error:
                yield Rejection(name=f"{scene.name}-{attempt}", reason="broken asset", detail=str(error))
                continue
            for name, why in sorted(self._sampler.broken.items()):
                yield Rejection(name=name, reason="broken asset", detail=why)
            for item in self._views(setting, generator, scene, found, attempt):
                found += isinstance(item, NewSample)
                yield item
            if found == scene.num_views:
                return
        raise DataError(
            f"{scene.name}: {MAX_ATTEMPTS} scenes in a row gave {found} of {scene.num_views} pictures; "
            "allow more with a wider --fov"
        )

    def _views(
        self, setting: Setting, generator: np.random.Generator, scene: PlannedScene, found: int, attempt: int
    ) -> Iterator[NewSample | Rejection]:
        caster = Caster(setting.scene.instances)
        accepted: list[Camera] = []
        failed = 0
        reasons: Counter[str] = Counter()
        for _ in range(MAX_PROPOSALS):
            if found == scene.num_views or failed == MAX_FAILED_PICTURES:
                break
            camera = setting.propose(generator, self._lens)
            why = "no place" if camera is None else rejection(caster, camera, setting.rules, accepted)
            if why is not None or camera is None:
                reasons[why or "no place"] += 1
                continue
            hits = picture_hits(caster, camera)
            depth = storable(depth_picture(hits, camera))
            why = depth_rejection(depth, setting.rules)
            key = f"{scene.name}-{found}"
            if why is None:
                linear, light = self._paint(camera, key)
                rgb = develop(linear, depth > 0, generator, exposure=self._config.exposure)
                why = picture_rejection(rgb)
            if why is not None:
                reasons[why] += 1
                failed += 1
                continue
            accepted.append(camera)
            found += 1
            yield NewSample(
                key=key,
                kind=setting.kind,
                scene=scene.name,
                rgb=_jpeg(rgb),
                maps=self._maps(setting.scene, camera, hits, depth, light),
                info=self._info(setting, camera, attempt),
            )
        for why, count in sorted(reasons.items()):
            for number in range(count):
                yield Rejection(name=f"{scene.name}-{attempt}-{number}", reason=why, is_error=False)

    def _paint(self, camera: Camera, key: str) -> tuple[Float[np.ndarray, "h w 3"], dict[MapName, np.ndarray]]:
        """Linear colors, and the intrinsic images that are wanted."""
        if not set(self._config.maps) & set(INTRINSIC):
            return self._studio.render(camera, seed=seed_of(key)), {}
        light = self._studio.render_light(camera, seed=seed_of(key))
        return light.color, light.maps()

    def _maps(
        self, scene: Scene, camera: Camera, hits: Hits, depth: Float[np.ndarray, "h w"], light: Mapping[MapName, Any]
    ) -> dict[str, np.ndarray]:
        found: dict[MapName, np.ndarray] = {"depth": depth, **light}
        if "normals" in self._config.maps:
            normals = normals_picture(scene.instances, hits, camera)
            found["normals"] = np.where(depth[..., None] > 0, normals, np.float32(0))
        return {name: found[name] for name in self._config.maps}

    def _info(self, setting: Setting, camera: Camera, attempt: int) -> dict[str, Any]:
        matrix = camera.intrinsics
        return {
            "intrinsics": {"fx": matrix[0, 0], "fy": matrix[1, 1], "cx": matrix[0, 2], "cy": matrix[1, 2]},
            "camera_to_world": np.round(camera.transform, 6).tolist(),
            "attempt": attempt,
            "facts": dict(setting.facts),
            "assets": list(self._sampler.sources(setting.scene)),
        }


def storable(depth: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Depth [m] within what the shards hold; what is farther counts as sky."""
    near, far = DEPTH.near * 1.001, DEPTH.far
    return np.where((depth <= 0) | (depth > far), 0.0, np.maximum(depth, near)).astype(np.float32)


_renderer: SceneRenderer | None = None


def _start_worker(config: RenderConfig, folder: Path, studio: Callable[[Quality, Path], Painter], ranks: Any) -> None:
    """Makes this process a renderer on a core of its own."""
    global _renderer
    settle(ranks)
    _renderer = SceneRenderer(config, folder, studio)


def _render_shard(job: tuple[ShardWriter, int, list[PlannedScene]]) -> dict[str, float]:
    writer, number, scenes = job
    assert _renderer is not None
    renderer = _renderer
    started, started_cpu = time.perf_counter(), time.process_time()
    writer.write(number, (item for scene in scenes for item in renderer.frames(scene)))
    return {
        "frames": sum(scene.num_views for scene in scenes),
        "seconds": round(time.perf_counter() - started, 3),
        "cpu_seconds": round(time.process_time() - started_cpu, 3),
    }


def _jpeg(rgb: UInt8[np.ndarray, "h w 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
