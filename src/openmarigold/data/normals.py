# SPDX-License-Identifier: Apache-2.0
"""Surface normals from the depth of a prepared data set: the same pictures and maps, and the map `normals`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from openmarigold.camera import Camera
from openmarigold.config import check_fov
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.preparation import Prepared
from openmarigold.data.shard_writer import NewSample, Rejection, ShardWriter
from openmarigold.data.shards import ShardedDataset, decode_rgb
from openmarigold.data.statistics import write_meta
from openmarigold.data.units import UnitEngine, run_units
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.files import only_run
from openmarigold.geometry import normals_from_depth

SUPPORT = 5
"""Side of the windows [px] to which planes are fitted: prepared depth is stored in steps."""

_DEPTH, _NORMALS = "depth", "normals"
_WRITTEN_ANEW = ("kind", "scene", "statistics")  # of a sample's .json
_OF_THE_RUN = ("format", "name", "split", "maps", "settings", "counts", "shards", "contents", "index_sha256", "command")
_JPEG = b"\xff\xd8"


def add_normals(
    source: Path,
    destination: Path,
    *,
    fov: float | None = None,
    support: int = SUPPORT,
    min_valid: float = 0.05,
    workers: int = 1,
    engine: UnitEngine | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Write the data set in `source` with normals to `destination`, or continue an interrupted run.

    Normals (frame "rub", float16, (0, 0, 0) = unknown) are those of the depth within the set's `valid_range`, by
    `geometry.normals_from_depth`. Each shard becomes one; photos without depth keep their place, without normals.

    Args:
        fov: field of view [deg] along the longer side, for samples that state no intrinsics.
        support: side of the windows [px], odd, or 0 for differences of neighbors.
        min_valid: leave out samples with a smaller share of pixels with a normal.
        workers: processes; 1 = this one.
        engine: makes the shards instead, as in `prepare`.
        facts: more for the manifest, besides those of the source.
        progress: called with the samples done and their number.

    Raises:
        DataError: no prepared data set, one without depth or with normals, a damaged sample, or one that states no
            intrinsics, without `fov`.
        InvalidValueError: a setting that is not accepted.
        OutputError: the destination cannot be written, or another run writes it.
    """
    _check_settings(fov=fov, support=support, min_valid=min_valid, workers=workers)
    data = _with_depth(source)
    if source.resolve() == destination.resolve():
        raise DataError(f"{destination} is the source; choose another folder")
    settings = {"source": data.contents, "fov": fov, "support": support, "min_valid": min_valid}
    writer = ShardWriter(
        destination,
        name=data.name,
        split=str(data.manifest["split"]),
        encodings={**data.encodings, _NORMALS: MapEncoding(kind="float16")},
        settings={**settings, "normal_frame": "rub", "of_source": data.manifest["settings"]},
    )
    with only_run(destination):
        writer.begin()
        num_shards = len(data.manifest["shards"])
        todo = [number for number in range(num_shards) if not writer.is_done(number)]
        writer.reopen(bool(todo))
        left = int(np.isin(data.shard_numbers, todo).sum())
        kept = len(data) - left
        progress(kept, len(data))
        task = _Task(data, writer, fov, support, min_valid)
        run_units(task, todo, workers=workers, engine=engine, progress=lambda done: progress(kept + done, len(data)))
        inherited = {key: value for key, value in data.manifest.items() if key not in _OF_THE_RUN}
        manifest = writer.finish(num_shards, {**inherited, **(facts or {})})
        write_meta(destination)
    data.close()
    return Prepared(manifest=manifest, num_shards_kept=num_shards - len(todo))


def _with_depth(source: Path) -> ShardedDataset:
    """A data set to which normals can be added."""
    data = ShardedDataset(source)
    if _DEPTH not in data.encodings or _NORMALS in data.encodings:
        raise DataError(
            f"{source} has the maps {', '.join(data.encodings) or 'none'}; normals are added to a set with "
            f"{_DEPTH} and without {_NORMALS}"
        )
    return data


def _check_settings(*, fov: float | None, support: int, min_valid: float, workers: int) -> None:
    if workers < 1:
        raise InvalidValueError(f"workers={workers} must be at least 1")
    if fov is not None:
        check_fov(fov)
    if not 0 <= min_valid <= 1:
        raise InvalidValueError(f"min_valid={min_valid} must be in [0, 1]")
    normals_from_depth(np.ones((3, 3), np.float32), focal=1.0, support=support)  # checks it before the first sample


@dataclass(frozen=True)
class _Task:
    data: ShardedDataset
    writer: ShardWriter
    fov: float | None
    support: int
    min_valid: float

    def run(self, unit: int, tick: Callable[[], None]) -> None:
        self.writer.write(unit, self._items(unit, tick))

    def _items(self, number: int, tick: Callable[[], None]) -> Iterator[NewSample | Rejection]:
        for index in np.flatnonzero(self.data.shard_numbers == number).tolist():
            yield self._sample(index)
            tick()

    def _sample(self, index: int) -> NewSample | Rejection:
        data, key = self.data, self.data.keys[index]
        maps, info = dict(data.read(index).maps), data.info(index)
        if _DEPTH in maps:
            maps[_NORMALS], stated = self._normals(maps[_DEPTH], self.data.camera(index), key)
            info |= stated
            share = float(maps[_NORMALS].any(axis=-1).mean())
            if share < self.min_valid or share == 0:
                detail = f"{share:.4f} of the pixels have one"
                return Rejection(name=key, reason="too few normals", detail=detail, is_error=False)
        picture = data.member(index, "rgb")
        return NewSample(
            key=key,
            kind=data.kinds[index],
            scene=data.scenes[index],
            rgb=picture if picture.startswith(_JPEG) else decode_rgb(picture),
            maps=maps,
            info={name: value for name, value in info.items() if name not in _WRITTEN_ANEW},
        )

    def _normals(
        self, depth: Float32[np.ndarray, "h w"], camera: Camera | None, key: str
    ) -> tuple[Float32[np.ndarray, "h w 3"], dict[str, Any]]:
        stated: dict[str, Any] = {}
        if camera is not None:
            focal, center = (camera.fx, camera.fy), (camera.cx, camera.cy)
        elif self.fov is not None:
            focal, center = Camera.from_fov(depth.shape, self.fov).fx, None
            stated["assumed_fov"] = self.fov
        else:
            raise DataError(
                f"{key} states no intrinsics; give --fov, the field of view along the longer side [deg] to assume"
            )
        if min(depth.shape) < 3:  # no neighbors
            return np.zeros((*depth.shape, 3), np.float32), stated
        low, high = self.data.valid_range
        inside = (depth > low) & (depth < high)
        normals, smooth = normals_from_depth(depth, focal=focal, center=center, valid_mask=inside, support=self.support)
        return np.where(smooth[..., None], normals, np.float32(0)), stated
