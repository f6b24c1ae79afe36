# SPDX-License-Identifier: Apache-2.0
"""`train --init`: a recipe for the prepared sets of a folder, with sizes, kinds and schedule from what is there.

Torch-free.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openmarigold.checkpoints.single_file import is_single_file, read_single_file
from openmarigold.data.remote import DataFolder, RemoteFolder
from openmarigold.data.shards import INDEX_FILE, MANIFEST_FILE, ShardedDataset, is_prepared
from openmarigold.errors import DataError, OutputError
from openmarigold.files import write_atomically
from openmarigold.modalities import find_modality
from openmarigold.text_files import DamagedTextError, parse_json
from openmarigold.training.recipe import parse_recipe, with_overrides
from openmarigold.training.settings import DEFAULT_MODALITY

DEFAULT_BASE = "prs-eth/marigold-depth-v1-1"
LARGEST_AREA = 480 * 640  # px of a view, as published
MOST_BUCKETS = 6
LEAST_IN_BUCKET = 4
VALIDATION_SPLITS = ("val", "test")
"""What the manifest of a prepared set that is not for training states."""
_VALIDATED = 100  # pictures of each of these sets
_HELD_OUT = 0.1  # of the scenes where there is no such set
_BATCH_SIZE, _MICRO_BATCH_SIZE = 16, 2
_PASSES = 40  # over the data, within these numbers of steps
_LEAST_STEPS, _MOST_STEPS = 400, 20_000
_COMMENTS = {
    "base": "what is fine-tuned: a Marigold, or a Stable Diffusion; a folder or an id on the hub",
    "data.sources": "share of the samples",
    "data.buckets": "height and width of views; each picture takes the one that is nearest to its shape",
    "data.draws": "so that other recipes can share the latents of --cache-dir",
    "data.held_out": "share of the scenes that are for validation",
    "validation.sources": "sets for validation, and how many of their pictures are scored",
    "optimization.num_steps": "may grow later: the run continues",
    "optimization.learning_rate": "by the rule of docs/training.md; ten times as high for low-rank updates (lora.rank)",
    "optimization.batch_size": "over all processes",
    "optimization.micro_batch_size": "at once on one device; 1 needs less memory",
    "optimization.gradient_checkpointing": "less memory, a third slower",
    "checkpoint.processing_resolution": "longer side that photos are resized to",
}


def find_sets(data_dir: DataFolder, modality: str) -> dict[str, ShardedDataset]:
    """The prepared sets in a folder, or one level further down, that have the maps of a modality; by name.

    A folder with another manifest.json, such as a benchmark, does not count.

    Raises:
        DataError: there is none, or one is damaged.
    """
    if isinstance(data_dir, RemoteFolder):
        names = sorted(set(data_dir.folders_with(MANIFEST_FILE)) & set(data_dir.folders_with(INDEX_FILE)))
    else:
        folders = sorted(path for depth in ("*", "*/*") for path in data_dir.glob(depth) if is_prepared(path))
        names = [path.relative_to(data_dir).as_posix() for path in folders if (path / INDEX_FILE).is_file()]
    sets = {name: ShardedDataset(data_dir / name) for name in names}
    needed = {kind.name for kind in find_modality(modality).maps}
    fitting = {name: data for name, data in sets.items() if needed <= data.encodings.keys() and len(data)}
    if not fitting:
        found = f"only {', '.join(sets)}, without" if sets else "no prepared set with"
        raise DataError(
            f"{data_dir} holds {found} maps of {find_modality(modality).title}; make one with `openmarigold data "
            f"prepare folder RAW {data_dir / 'mine'}`"
        )
    return fitting


def choose_buckets(sizes: Mapping[tuple[int, int], int]) -> list[tuple[int, int]]:
    """Heights and widths of views for pictures of these sizes (with their numbers), the most frequent one first.

    Each keeps the shape of its pictures up to sides that are rounded down to multiples of 8: none is larger than
    `LARGEST_AREA`, and pictures are not enlarged. Rare shapes join the nearest.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for (height, width), count in sizes.items():
        scale = min(1.0, math.sqrt(LARGEST_AREA / (height * width)))
        counts[(_side(height * scale), _side(width * scale))] += count
    while len(counts) > 1:
        rarest = min(counts, key=lambda size: (counts[size], size))
        if len(counts) <= MOST_BUCKETS and counts[rarest] >= LEAST_IN_BUCKET:
            break
        count = counts.pop(rarest)
        counts[min(counts, key=lambda size: shape_distance(size, rarest))] += count
    return [size for size, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def shape_distance(size: tuple[int, int], other: tuple[int, int]) -> tuple[float, float]:
    """How far two heights and widths are from each other: first their shapes (to 2 %), then their areas."""
    shape = abs(math.log(size[1] / size[0]) - math.log(other[1] / other[0]))
    return float(round(shape / 0.02)), abs(math.log(size[0] * size[1]) - math.log(other[0] * other[1]))


def make_recipe(data_dir: DataFolder, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The table of a recipe that fine-tunes a Marigold on all prepared sets of a folder.

    Those of `VALIDATION_SPLITS` are validated on, unless `overrides` name them in data.sources. What follows from other
    values (the schedule from the number of steps, the rate from the base) follows `overrides`.

    Raises:
        DataError: no prepared set with the maps, or none that is for training.
        RecipeError: an override that is not accepted.
    """
    given = with_overrides({}, overrides)
    modality, base = str(given.get("modality", DEFAULT_MODALITY)), str(given.get("base", DEFAULT_BASE))
    sets, validated = _divided(find_sets(data_dir, modality), data_dir, given)
    sizes: Counter[tuple[int, int]] = Counter()
    for data in sets.values():
        sizes.update((int(height), int(width)) for height, width in data.sizes.tolist())
    buckets, total = choose_buckets(sizes), sum(sizes.values())
    # Several sets: shares by the square root of their size, so that small ones are seen, and not too often.
    roots = {name: math.sqrt(len(data)) for name, data in sets.items()}
    steps = _num_steps(given, total)
    table: dict[str, Any] = {
        "kind": "depth",
        "modality": modality,
        "seed": 2024,
        "base": base,
        "data": {
            "sources": {name: round(root / sum(roots.values()), 3) for name, root in roots.items()},
            "size": list(buckets[0]),
            "buckets": [list(size) for size in buckets],
            "mixture": "micro_batch",
            "mirror": "both",
            "num_variants": 2,
            "draws": "sample",
            "held_out": 0.0 if validated else _HELD_OUT,
        },
        **_schedule(given, base, steps),
        "validation": {
            **({"sources": dict.fromkeys(validated, _VALIDATED)} if validated else {}),
            "num_images": 100,
            "num_inference_steps": 1,
            "spacing": "trailing",
            "ensemble_size": 1,
        },
        "run": {"validation_period": max(1, steps // 10)},
        "checkpoint": {
            "name": f"marigold-{next(iter(sets)).replace('/', '-')}",
            "num_inference_steps": 4,
            "processing_resolution": max(buckets[0]),
        },
    }
    table = with_overrides(table, overrides)
    parse_recipe(table, where="--set")
    return table


def _divided(
    sets: dict[str, ShardedDataset], data_dir: DataFolder, given: Mapping[str, Any]
) -> tuple[dict[str, ShardedDataset], list[str]]:
    """The sets to train on, and the names of those to validate on; `given` are the overrides.

    Raises:
        DataError: none is for training.
    """
    section = given.get("data")
    wanted = section.get("sources") if isinstance(section, dict) else None
    named = set(wanted) & sets.keys() if isinstance(wanted, dict) else set()
    validated = [n for n, data in sets.items() if data.manifest.get("split") in VALIDATION_SPLITS and n not in named]
    trained = {name: data for name, data in sets.items() if name in (named or sets.keys() - set(validated))}
    if not trained:
        raise DataError(
            f"{data_dir} holds only sets for validation ({', '.join(validated)}); prepare one with `--split train`, or "
            f"name what to train on with --set 'data.sources={{ \"{validated[0]}\" = 1.0 }}'"
        )
    return trained, validated


def _schedule(given: Mapping[str, Any], base: str, num_steps: int) -> dict[str, dict[str, Any]]:
    """The sections that follow from the base and from the number of steps."""
    is_generator, is_epsilon = _facts_of_base(base)
    learned_anew = {"prediction_type": "v_prediction"} if is_epsilon else {}
    return {
        "timesteps": {"zero_terminal_snr": True, "spacing": "trailing", **learned_anew},
        "optimization": {
            "num_steps": num_steps,
            "batch_size": _BATCH_SIZE,
            "micro_batch_size": _MICRO_BATCH_SIZE,
            "learning_rate": learning_rate_rule(
                is_generator=is_generator,
                batch_size=_count(given, "optimization", "batch_size") or _BATCH_SIZE,
                low_rank=_count(given, "lora", "rank") is not None,
            ),
            "warmup_steps": min(100, num_steps // 20),
            "decay": "exponential",
            "final_learning_rate_factor": 0.01,
            "gradient_checkpointing": True,
            "mixed_precision": "bf16" if shutil.which("nvidia-smi") else "no",
        },
    }


def _count(given: Mapping[str, Any], section: str, key: str) -> int | None:
    """A whole number above 0 among the overrides; None without one. What else is there is refused later."""
    values = given.get(section)
    value = values.get(key) if isinstance(values, Mapping) else None
    return value if isinstance(value, int) and value >= 1 else None


def learning_rate_rule(*, is_generator: bool, batch_size: int, low_rank: bool = False) -> float:
    """The learning rate to begin with, to two digits.

    3e-5 for a batch of 32 from an image generator, as published; a third for a model that is trained already. With the
    square root of the batch, since Adam's steps have the size of the rate whatever the gradient's noise is. Ten times
    as much for low-rank updates, which begin at zero and move a small part of each weight.

    >>> learning_rate_rule(is_generator=True, batch_size=32), learning_rate_rule(is_generator=False, batch_size=8)
    (3e-05, 5e-06)
    """
    rate = 3e-5 * math.sqrt(batch_size / 32) * (1.0 if is_generator else 1 / 3) * (10.0 if low_rank else 1.0)
    return float(f"{rate:.1e}")


def _num_steps(given: Mapping[str, Any], total: int) -> int:
    """Those that are given, or as many as so many samples want."""
    steps = _count(given, "optimization", "num_steps")
    return steps or int(round(min(max(_PASSES * total / _BATCH_SIZE, _LEAST_STEPS), _MOST_STEPS), -2))


def write_recipe(data_dir: DataFolder, path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Writes a recipe for the prepared sets of a folder, and returns its table. Raises what `make_recipe` raises.

    Raises:
        OutputError: the file is there already, or cannot be written.
    """
    if path.exists():
        raise OutputError(f"{path} exists; remove it, or give --init another name")
    table = make_recipe(data_dir, overrides)
    text = f"# Made by `openmarigold train --init` for the prepared sets in {data_dir}; docs/training.md\n"
    write_atomically(path, lambda partial: partial.write_text(text + to_toml(table), encoding="utf-8"))
    return table


def to_toml(table: Mapping[str, Any]) -> str:
    """A recipe's table as TOML, a section each, with comments."""
    lines = [_line(key, value) for key, value in table.items() if not isinstance(value, Mapping)]
    for section, values in table.items():
        if isinstance(values, Mapping):
            lines += ["", f"[{section}]", *(_line(f"{section}.{key}", value) for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any) -> str:
    comment = f"  # {_COMMENTS[name]}" if name in _COMMENTS else ""
    return f"{name.rsplit('.')[-1]} = {_toml(value)}{comment}"


def _toml(value: Any) -> str:
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)  # TOML writes them alike
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(str(key))} = {_toml(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)


def _side(length: float) -> int:
    """The largest multiple of 8 within a length, but for rounding errors of the length itself."""
    return max(8, math.floor(length / 8 + 1e-6) * 8)


def _facts_of_base(base: str) -> tuple[bool, bool]:
    """Whether a base is an image generator, and whether it predicts epsilon, so that another answer must be learned."""
    folder = Path(base)
    if is_single_file(base):
        return True, read_single_file(folder).prediction_type == "epsilon"
    unet, schedule = (_json(folder / part) for part in ("unet/config.json", "scheduler/scheduler_config.json"))
    is_generator = unet["in_channels"] == unet.get("out_channels") if "in_channels" in unet else "marigold" not in base
    is_epsilon = bool(schedule) and schedule.get("prediction_type", "epsilon") == "epsilon"
    return is_generator, is_epsilon


def _json(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_bytes())
    except (OSError, DamagedTextError):
        return {}
    return found if isinstance(found, dict) else {}
