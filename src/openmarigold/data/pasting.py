# SPDX-License-Identifier: Apache-2.0
"""Things of rendered pictures in front of other pictures, such as photos: thin things whose depth is known exactly.

A model's own labels of photos lack thin things, and renders do not look like photos. A thing is a connected part of a
render that is nearer than what is seen around it. Copying things between pictures is from instance segmentation (Ghiasi
et al. 2021, "Simple Copy-Paste is a strong data augmentation method").
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Shaped
from PIL import Image

from openmarigold.data.preparation import Prepared
from openmarigold.data.shard_writer import NewSample, Rejection, ShardWriter
from openmarigold.data.shards import Sample, ShardedDataset
from openmarigold.data.statistics import write_meta
from openmarigold.data.units import UnitEngine, run_units
from openmarigold.errors import DataError, InvalidValueError, needs_extra
from openmarigold.files import only_run
from openmarigold.seeding import generator_for

KIND = "pasted"
_DEPTH = "depth"
_WIDEST = (0.08, 0.16, 0.28)
"""Widest things that are taken, as shares of a render's longer side; one of them at random."""
_NEARER = 0.16
"""How much nearer than its surroundings a thing is, in log depth: 15 %."""
_FEWEST_PIXELS = 80
_COVERED = (0.008, 0.45)
"""Share of a picture that the things in front of it cover."""
_ATTEMPTS = 12
_UNKNOWN = 1e6  # depth of pixels without, which are behind everything
_JPEG_QUALITY = 95


def paste(
    pictures: Path,
    renders: Sequence[Path],
    destination: Path,
    *,
    count: int,
    seed: int = 2024,
    shard_size: int = 256,
    workers: int = 1,
    engine: UnitEngine | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Write a data set of `count` pictures with things of renders in front, or continue an interrupted run.

    A sample is a function of (`seed`, its number) alone. It has the size, the `valid_range` and the unknown pixels of
    its picture. The things keep their shape and are moved together in depth until almost all of them are in front of
    what they cover; where they are not, they are hidden. Their brightness and color move towards the picture's.

    Args:
        pictures: prepared data set with depth; photos without depth are passed over.
        renders: prepared data sets with depth that is exact at edges; each is drawn equally often.
        count: number of samples; those for which no thing fits are left out.
        seed: of all choices.
        shard_size: samples per shard.
        workers: processes; 1 = this one.
        engine: makes the shards instead, as in `preparation.prepare`.
        facts: more for the manifest, besides those of `pictures`.
        progress: called with the samples done and their number.

    Raises:
        DataError: no prepared data set, one without depth or without samples, or a damaged sample.
        InvalidValueError: a setting that is not accepted.
        MissingExtraError: scipy is not installed.
        OutputError: the destination cannot be written, or another run writes it.
    """
    if min(count, shard_size, workers) < 1:
        raise InvalidValueError(f"count={count}, shard_size={shard_size} and workers={workers} must be at least 1")
    _ndimage()  # before anything is written
    behind, before = _opened(pictures), [_opened(folder) for folder in renders]
    if not before:
        raise InvalidValueError("renders is empty; give at least one data set whose things are pasted")
    if destination.resolve() in {folder.resolve() for folder in (pictures, *renders)}:
        raise DataError(f"{destination} is a source; choose another folder")
    settings = {"count": count, "seed": seed, "shard_size": shard_size}
    writer = _writer(destination, behind, before, settings)
    with only_run(destination):
        writer.begin()
        units = [range(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]
        todo = [number for number in range(len(units)) if not writer.is_done(number)]
        writer.reopen(bool(todo))
        kept = count - sum(len(units[number]) for number in todo)
        progress(kept, count)
        task = _Task(behind, tuple(before), writer, seed, tuple(units))
        run_units(task, todo, workers=workers, engine=engine, progress=lambda done: progress(kept + done, count))
        manifest = writer.finish(len(units), {**_inherited(behind, before), **(facts or {})})
        write_meta(destination)
    for data in (behind, *before):
        data.close()
    return Prepared(manifest=manifest, num_shards_kept=len(units) - len(todo))


def _inherited(behind: ShardedDataset, before: Sequence[ShardedDataset]) -> dict[str, Any]:
    """Facts of the pictures' manifest that hold for the set, and the terms of all the sets that it is made of."""
    found = {name: behind.manifest[name] for name in ("valid_range", "unknown_is_far") if name in behind.manifest}
    sets = [behind, *before]
    rows = {json.dumps(row, sort_keys=True): row for data in sets for row in _rows(data.manifest.get("attribution"))}
    stated = [data.manifest.get("license") for data in sets]
    stated += [row.get("license") for row in rows.values() if isinstance(row, Mapping)]  # of a rendered set's assets
    licenses = dict.fromkeys(str(one) for one in stated if one)
    found |= {"license": "; ".join(licenses)} if licenses else {}
    return found | ({"attribution": list(rows.values())} if rows else {})


def _rows(stated: Any) -> list[Any]:
    """An attribution as a list: prepared sets state one line, rendered ones a row for each asset."""
    return stated if isinstance(stated, list) else [stated] if stated else []


def _opened(folder: Path) -> ShardedDataset:
    data = ShardedDataset(folder)
    if _DEPTH not in data.encodings or not len(data):
        raise DataError(
            f"{folder} has {len(data)} samples with {', '.join(data.encodings) or 'no maps'}; depth is needed"
        )
    return data


def _writer(
    destination: Path, behind: ShardedDataset, before: Sequence[ShardedDataset], settings: Mapping[str, int]
) -> ShardWriter:
    return ShardWriter(
        destination,
        name=destination.resolve().name,
        split=str(behind.manifest["split"]),
        encodings={_DEPTH: behind.encodings[_DEPTH]},
        settings={"pictures": behind.contents, "renders": [data.contents for data in before], **settings},
    )


@dataclass(frozen=True)
class _Task:
    pictures: ShardedDataset
    renders: tuple[ShardedDataset, ...]
    writer: ShardWriter
    seed: int
    units: tuple[range, ...]

    def run(self, unit: int, tick: Callable[[], None]) -> None:
        self.writer.write(unit, self._items(unit, tick))

    def _items(self, unit: int, tick: Callable[[], None]) -> Iterator[NewSample | Rejection]:
        for number in self.units[unit]:
            yield self._sample(number)
            tick()

    def _sample(self, number: int) -> NewSample | Rejection:
        rng = generator_for(self.seed, "pasted", number)
        name = f"{KIND}-{number:06d}"
        for _ in range(_ATTEMPTS):
            data = self.renders[int(rng.integers(len(self.renders)))]
            index, place = int(rng.integers(len(data))), int(rng.integers(len(self.pictures)))
            render, picture = data.read(index), self.pictures.read(place)
            if _DEPTH not in render.maps or _DEPTH not in picture.maps:
                continue
            made = _pasted(render, picture, rng)
            if made is None:
                continue
            rgb, depth = made
            return NewSample(
                key=name,
                kind=KIND,
                scene=self.pictures.scenes[place],
                rgb=rgb,
                maps={_DEPTH: self.pictures.encodings[_DEPTH].within(depth)},
                info={
                    "picture": [self.pictures.name, self.pictures.keys[place]],
                    "render": [data.name, data.keys[index]],
                },
            )
        return Rejection(name=name, reason="no thing fits", detail=f"{_ATTEMPTS} pairs were tried", is_error=False)


def things(depth: Float32[np.ndarray, "h w"], *, widest: int) -> Bool[np.ndarray, "h w"]:
    """Pixels where each square window of side `widest` around them shows something at least 15 % farther.

    Windows may lie partly outside the picture, where nothing is farther: a lamp that hangs from above is a thing, the
    ground at the lower border is not.

    Args:
        depth: [m], or up to a factor; 0 is unknown, and behind everything.
        widest: side of the windows [px], odd.
    """
    ndimage = _ndimage()
    log_depth = np.log(np.where(depth > 0, depth, _UNKNOWN))
    # Outside is nearer than everything, so that what goes on there is not surrounded.
    padded = np.pad(log_depth, widest, constant_values=-math.inf)
    # Each window has a farthest value; of all windows that hold a pixel, the nearest of those.
    surroundings = ndimage.grey_closing(padded, size=(widest, widest))[widest:-widest, widest:-widest]
    found = log_depth < surroundings - _NEARER
    parts, number = ndimage.label(found)
    sizes = np.bincount(parts.ravel(), minlength=number + 1)
    sizes[0] = 0
    return sizes[parts] >= _FEWEST_PIXELS


def _pasted(
    render: Sample, picture: Sample, rng: np.random.Generator
) -> tuple[bytes, Float32[np.ndarray, "h w"]] | None:
    """A JPEG file and its depth; None where nothing fits."""
    color, alpha, log_depth = _cut_out(render, picture.rgb.shape[:2], rng)
    behind = picture.maps[_DEPTH]
    covered = (alpha > 0.5) & (behind > 0)
    if covered.sum() < 2 * _FEWEST_PIXELS:
        return None
    ahead = np.log(behind[covered]) - log_depth[covered]
    log_depth = log_depth + np.percentile(ahead, rng.uniform(2.0, 15.0)) + math.log(rng.uniform(0.5, 0.97))
    in_front = log_depth < np.log(np.where(behind > 0, behind, _UNKNOWN)) - 0.02
    alpha = alpha * in_front
    seen = alpha > 0.5
    if not _COVERED[0] <= seen.mean() <= _COVERED[1]:
        return None
    light = _matched(color, seen, picture.rgb, rng)
    mixed = alpha[..., None] * light + (1.0 - alpha[..., None]) * picture.rgb
    if rng.random() < 0.5:
        mixed = _blurred(mixed, float(rng.uniform(0.2, 0.8)))
    file = io.BytesIO()
    Image.fromarray(np.rint(mixed.clip(0, 255)).astype(np.uint8)).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue(), np.where(seen, np.exp(log_depth), behind).astype(np.float32)


def _cut_out(
    render: Sample, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "h w 3"], Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    """Color, coverage and log depth of the things in a random part of a render, at this size."""
    depth, rgb = render.maps[_DEPTH], render.rgb
    height, width = depth.shape
    is_thing = things(depth, widest=round(float(rng.choice(_WIDEST)) * max(height, width)) | 1)
    rgb = _without_rim(rgb, is_thing)
    share = rng.uniform(0.5, 1.0)
    rows, columns = max(2, round(share * height)), max(2, round(share * width))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    part = (slice(top, top + rows), slice(left, left + columns))
    flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
    is_thing, rgb, depth = is_thing[part][:, flip], rgb[part][:, flip], depth[part][:, flip]
    alpha = _resized(is_thing, size)
    log_depth = _resized(np.where(is_thing, np.log(np.where(depth > 0, depth, 1.0)), 0.0), size)
    color = np.stack([_resized(rgb[..., channel], size) for channel in range(3)], axis=-1)
    return color, alpha, log_depth / np.maximum(alpha, np.float32(1e-3))


def _without_rim(rgb: Shaped[np.ndarray, "h w 3"], is_thing: Bool[np.ndarray, "h w"]) -> Shaped[np.ndarray, "h w 3"]:
    """The same colors, but at edges of things those of their inside, since pixels there also show what is behind."""
    ndimage = _ndimage()
    if not is_thing.any():
        return rgb
    inside = ndimage.binary_erosion(is_thing)
    if inside.sum() < 0.3 * is_thing.sum():
        inside = is_thing
    nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    rim = ndimage.binary_dilation(is_thing, iterations=2)
    return np.where(rim[..., None], rgb[nearest[0], nearest[1]], rgb)


def _matched(
    color: Float32[np.ndarray, "h w 3"],
    seen: Bool[np.ndarray, "h w"],
    picture: Shaped[np.ndarray, "h w 3"],
    rng: np.random.Generator,
) -> Shaped[np.ndarray, "h w 3"]:
    """The things' colors, a random part of the way towards the picture's mean brightness and tint."""
    own, wanted = color[seen].mean(axis=0) + 8.0, picture.mean(axis=(0, 1)) + 8.0
    share = rng.uniform(0.0, 1.0)
    brightness = (wanted.mean() / own.mean()) ** share * math.exp(rng.normal(0.0, 0.2))
    tint = (wanted / wanted.mean() * own.mean() / own) ** (0.5 * share)
    return (color * (brightness * tint)).clip(0, 255)


def _blurred(rgb: Shaped[np.ndarray, "h w 3"], sigma: float) -> Shaped[np.ndarray, "h w 3"]:
    return _ndimage().gaussian_filter(rgb, (sigma, sigma, 0))


def _resized(values: Shaped[np.ndarray, "h w"], size: tuple[int, int]) -> Float32[np.ndarray, "H W"]:
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _ndimage() -> Any:
    with needs_extra("data"):
        from scipy import ndimage
    return ndimage
