# SPDX-License-Identifier: Apache-2.0
"""From pictures with measured maps to a checkpoint's calibration: which signals widen intervals, and by how much.

Scenes are the unit, never pictures: pictures of a scene resemble each other. Some scenes, drawn by a seed, fit the
weights of the signals; the others fit the scales, so that these are exact whatever the weights are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from openmarigold import __version__
from openmarigold.checkpoints.calibration import CalibrationEntry, band_of, level_text, settings_of
from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.checkpoints.configured import read_configured, read_tiny_vae, resolve_settings
from openmarigold.config import PredictConfig
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation.benchmark import Benchmark
from openmarigold.evaluation.benchmark_readers import Entry
from openmarigold.modalities.modality import Band
from openmarigold.predictor import Predictor
from openmarigold.predictor.intervals import signals_of
from openmarigold.seeding import generator_for
from openmarigold.uncertainty.conformal import allowed_loss, check_rule, fit_scale, mean_loss, nonnegative_least_squares

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
MAX_PIXELS = 8192
"""Most pixels that a picture contributes, on a grid. More pixels add no information, and all pixels of many pictures
would not fit into memory."""
_MOST_SHOWN = 5  # missing files that an error names
_SHARE_FOR_WEIGHTS = 0.25
_ROUNDED_UP = 1 + 2e-6  # predictions compute in float32
_LEAST_CONSTANT = 0.05  # of the mean error: an interval is nowhere of no width
_LARGEST_ERROR = 0.99  # quantile at which errors are cut before weights are fitted


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How scales are chosen."""

    name: str = "rcps"
    """One of `conformal.RULES`."""
    delta: float = 0.1
    """For "rcps"."""
    seed: int = 2024
    """Share of the scenes that fit weights."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Errors and signals of the pixels of a picture."""

    scene: tuple[str, str]
    error: Float32[np.ndarray, " n"]
    signals: Float32[np.ndarray, "k n"]


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A calibration, and what its intervals cover on the scenes that fitted it."""

    entry: CalibrationEntry
    coverage: dict[str, float]
    """Coverage by level, over the scenes that fitted the scales. Levels with too few scenes are left out."""


def calibrate(
    benchmark: Benchmark,
    config: PredictConfig,
    *,
    signals: Sequence[str] = (),
    levels: Sequence[float] = LEVELS,
    rule: Rule | None = None,
    max_scenes: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Calibrated:
    """The calibration of a checkpoint for the settings of `config`, from pictures that it was not trained on.

    Args:
        benchmark: pictures with measured maps of what the checkpoint predicts; its places are the scenes.
        config: checkpoint and settings.
        signals: names of signals of the modality's band; none: all that the ensemble size allows.
        levels: shares of pixels that intervals are to hold for.
        rule: how scales are chosen.
        max_scenes: use only the first `max_scenes` scenes; None: all.
        progress: called with (done, total) after each picture.

    Raises:
        InvalidValueError: a level, rule or signal that is not accepted, or predictions that have no intervals.
        DataError: a picture cannot be read, or there are too few scenes for every level.
        CheckpointError: the checkpoint cannot be used.
    """
    rule = rule or Rule()
    checkpoint = read_configured(config)
    band = band_of(checkpoint)
    names = _chosen_signals(band, signals, config)
    _check_call(config, checkpoint, levels, rule)
    entries = _of_first_scenes(benchmark.entries, max_scenes)
    _check_scenes(len({(entry.kind, entry.place) for entry in entries}), names, levels, rule)
    _check_files(benchmark, entries)
    predictor = Predictor.from_config(config, found=checkpoint)
    observed, hashes = [], []
    for done, listed in enumerate(entries, start=1):
        picture, line = _observe(benchmark, listed, predictor, config, band, names)
        observed += [] if picture is None else [picture]
        hashes.append(line)
        progress(done, len(entries))
    fitted = fit_calibration(observed, names, levels, rule)
    if not fitted.scales:
        raise _too_few(fitted.num_scenes, levels)
    entry = CalibrationEntry(
        settings=settings_of(resolve_settings(config, checkpoint), checkpoint),
        error=band.summary,
        **{name: value for name, value in vars(fitted).items() if name != "coverage"},
        rule=rule.name,
        delta=rule.delta if rule.name == "rcps" else None,
        data=Path(str(benchmark.archive.location)).resolve().name,
        data_sha256=hashlib.sha256("".join(hashes).encode(errors="surrogateescape")).hexdigest(),
        software=f"openmarigold {__version__}",
    )
    return Calibrated(entry=entry, coverage=fitted.coverage)


def _check_call(config: PredictConfig, checkpoint: Checkpoint, levels: Sequence[float], rule: Rule) -> None:
    for level in levels:
        if not 0 < level < 1:
            raise InvalidValueError(f"level {level:g} is not accepted; give shares between 0 and 1, such as 0.9")
        check_rule(rule.name, 1.0 - level, rule.delta)
    if not levels:
        raise InvalidValueError("no level was given; give shares between 0 and 1, such as 0.9")
    if read_tiny_vae(config, checkpoint) is not None or config.ensemble_tolerance is not None or config.tiles:
        raise InvalidValueError("intervals are for whole checkpoints without tiles; leave tiny_vae and the like out")


def _check_scenes(number: int, names: Sequence[str], levels: Sequence[float], rule: Rule) -> None:
    """Raise a DataError before the first prediction if `number` scenes are too few for every level."""
    left = number - _num_for_weights(number, names)
    if not any(
        allowed_loss(1.0 - level, left, rule=rule.name, delta=rule.delta) is not None for level in levels if left
    ):
        raise _too_few(left, levels)


def _check_files(benchmark: Benchmark, entries: Sequence[Entry]) -> None:
    """Raise a DataError before the first prediction if files of the pictures are missing."""
    absent = [file for entry in entries for file in entry.files.values() if file not in benchmark.archive.names]
    if absent:
        shown = ", ".join(absent[:_MOST_SHOWN]) + (", ..." if len(absent) > _MOST_SHOWN else "")
        raise DataError(
            f"{benchmark.archive.location} lacks {len(absent)} files of {len(entries)} pictures: {shown}; get them, or "
            "leave their pictures out of manifest.json"
        )


def _num_for_weights(number: int, names: Sequence[str]) -> int:
    """How many of the scenes fit weights."""
    return min(number, max(1, round(_SHARE_FOR_WEIGHTS * number))) if len(names) > 1 else 0


def _too_few(number: int, levels: Sequence[float]) -> DataError:
    told = ", ".join(map(level_text, levels))
    return DataError(
        f"{number} scenes for scales are too few for the levels {told}; give more scenes, lower levels, or rule "
        "conformal, which needs fewer"
    )


def _observe(
    benchmark: Benchmark, listed: Entry, predictor: Predictor, config: PredictConfig, band: Band, names: Sequence[str]
) -> tuple[Observed | None, str]:
    """Errors and signals of a picture (None without a measured pixel on the grid), and a line with the hash of its
    files.
    """
    files = benchmark.files(listed)
    sample = benchmark.sample(listed, files)
    line = f"{listed.name} {benchmark.hash_of(files)}\n"
    maps, found = signals_of(predictor, sample.rgb, config.call, band, names)
    chosen = sample.valid_mask & _grid(sample.valid_mask.shape)
    if not chosen.any():
        return None, line
    error = band.error(maps, sample.maps, sample.valid_mask)[chosen].astype(np.float32)
    stacked = np.stack([found[name][chosen] for name in names])
    return Observed(scene=(listed.kind, listed.place), error=error, signals=stacked), line


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Weights and scales."""

    weights: dict[str, float]
    scales: dict[str, float]
    coverage: dict[str, float]
    num_pictures: int
    num_scenes: int
    num_scenes_for_weights: int


def fit_calibration(observed: Sequence[Observed], names: Sequence[str], levels: Sequence[float], rule: Rule) -> Fitted:
    """Weights of the signals by some scenes, and scales by the others; with one signal all scenes fit scales.

    Raises:
        DataError: there is no scene, or only one and several signals.
    """
    scenes = sorted({picture.scene for picture in observed})
    drawn: set[tuple[str, str]] = set()
    if number := _num_for_weights(len(scenes), names):
        rng = generator_for(rule.seed, "scenes that fit weights", len(scenes))
        drawn = {scenes[place] for place in rng.choice(len(scenes), size=number, replace=False)}
    rest = [scene for scene in scenes if scene not in drawn]
    if not rest:
        raise DataError(f"{len(scenes)} scenes are too few to calibrate with; give some hundred")
    weights = np.ones(1) if len(names) == 1 else fit_weights([one for one in observed if one.scene in drawn], names)
    used = [one for one in observed if one.scene in set(rest)]
    scores = [[_scores(one, weights) for one in used if one.scene == scene] for scene in rest]
    scales, coverage = {}, {}
    for level in levels:
        scale = fit_scale(scores, 1.0 - level, rule=rule.name, delta=rule.delta)
        if scale is not None:
            scales[level_text(level)] = float(f"{scale * _ROUNDED_UP:.8g}")
            coverage[level_text(level)] = 1.0 - mean_loss(scores, scale)
    return Fitted(
        weights={name: float(f"{weight:.6g}") for name, weight in zip(names, weights, strict=True)},
        scales=scales,
        coverage=coverage,
        num_pictures=len(used),
        num_scenes=len(rest),
        num_scenes_for_weights=len(drawn),
    )


def fit_weights(observed: Sequence[Observed], names: Sequence[str]) -> np.ndarray:
    """Weights of at least 0 with which the signals fit the errors best; each picture counts the same."""
    errors = np.concatenate([one.error for one in observed]).astype(np.float64)
    errors = np.minimum(errors, np.quantile(errors, _LARGEST_ERROR, method="lower"))
    counts = np.concatenate([np.full(one.error.size, 1.0 / one.error.size) for one in observed])
    columns = np.concatenate([one.signals for one in observed], axis=1).T.astype(np.float64)
    root = np.sqrt(counts)[:, None]
    weights = nonnegative_least_squares(columns * root, errors * root[:, 0])
    floor = _LEAST_CONSTANT * float(np.average(errors, weights=counts))
    place = list(names).index("constant") if "constant" in names else None
    if place is not None:
        weights[place] = max(weights[place], floor)
    return np.array([float(f"{weight:.6g}") for weight in weights])


def _scores(picture: Observed, weights: np.ndarray) -> np.ndarray:
    """Errors divided by half widths, in float32 as in predictions."""
    half = np.zeros(picture.error.size, dtype=np.float32)
    for weight, signal in zip(weights, picture.signals, strict=True):
        if weight > 0:
            half += np.float32(weight) * signal
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(picture.error > 0, picture.error.astype(np.float64) / half, 0.0)


def _chosen_signals(band: Band, signals: Sequence[str], config: PredictConfig) -> list[str]:
    has_ensemble = config.ensemble_size > 1
    for name in signals:
        if name not in band.signals:
            raise InvalidValueError(f"signal {name!r} is not known; use {', '.join(band.signals)}")
        if name in band.of_ensemble and not has_ensemble:
            raise InvalidValueError(f"signal {name!r} needs an ensemble; give ensemble_size 2 or more")
    return list(dict.fromkeys(signals)) or [
        name for name in band.signals if has_ensemble or name not in band.of_ensemble
    ]


def _of_first_scenes(entries: Sequence[Entry], number: int | None) -> list[Entry]:
    scenes = list(dict.fromkeys((entry.kind, entry.place) for entry in entries))[:number]
    return [entry for entry in entries if (entry.kind, entry.place) in set(scenes)]


def _grid(shape: tuple[int, int]) -> np.ndarray:
    """Every n-th pixel of rows and columns, so that at most about `MAX_PIXELS` are True."""
    step = max(1, math.ceil(math.sqrt(shape[0] * shape[1] / MAX_PIXELS)))
    grid = np.zeros(shape, dtype=bool)
    grid[::step, ::step] = True
    return grid
