# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's `calibration.json`: how wide intervals must be, and for which weights and settings.

`openmarigold calibrate` writes the file. A file from an untrusted source can only set numbers: the result is an
interval or one error.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from openmarigold.checkpoints.checkpoint import Checkpoint, read_checkpoint
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.checkpoints.weight_files import readable
from openmarigold.config import CallConfig
from openmarigold.errors import CheckpointError, InvalidValueError
from openmarigold.files import file_sha256, write_atomically
from openmarigold.modalities.modality import Band
from openmarigold.printing import quoted_logger
from openmarigold.text_files import DamagedTextError, from_table, parse_json

CALIBRATION_FILE = "calibration.json"
FORMAT = "openmarigold-calibration-1"
_MAX_BYTES = 2**20
_LARGEST_NUMBER = 1e12
"""Upper limit of weights and scales. Below it, their products with signals stay finite as float32."""
_log = quoted_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class CalibratedSettings:
    """Settings of a call that change its errors. The checkpoint's defaults replace None."""

    ensemble_size: int
    num_inference_steps: int
    processing_resolution: int
    final_step: str | None
    start_noise: str | None
    timestep_spacing: str | None
    ensemble_mirror: bool
    ensemble_reduction: str | None
    """None: the modality's first one, or a single member."""


@dataclass(frozen=True, kw_only=True)
class CalibrationEntry:
    """Intervals for one choice of settings."""

    settings: CalibratedSettings
    error: str
    """How errors were measured: `Band.summary`."""
    weights: dict[str, float]
    """Weight of each signal of the modality's band. The weighted sum is the half width before scaling."""
    scales: dict[str, float]
    """Factor of the weighted sum for each level. The level is written as text ("0.9")."""
    rule: str
    """How scales were chosen: one of `conformal.RULES`."""
    delta: float | None
    """For "rcps": the probability that the scenes were too easy, so that the scale is too small."""
    num_pictures: int
    num_scenes: int
    """Number of scenes on which scales were fitted."""
    num_scenes_for_weights: int
    """Number of other scenes, on which weights were fitted."""
    data: str
    """Name of the data set of the pictures."""
    data_sha256: str
    software: str

    def __post_init__(self) -> None:
        numbers = [*self.weights.values(), *self.scales.values()]
        if not self.weights or not all(0 <= number <= _LARGEST_NUMBER for number in numbers):
            raise CheckpointError(f"weights and scales must be numbers from 0 to {_LARGEST_NUMBER:g}")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """All of a checkpoint's calibration."""

    format: str = FORMAT
    modality: str
    space: str
    invariance: str
    weights_sha256: str
    """`checkpoint_sha256` of the weights for which the calibration is valid."""
    exported_from: str | None = None
    """`checkpoint_sha256` of the weights on which it was fitted, if these weights are a copy in another form."""
    entries: tuple[CalibrationEntry, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise CheckpointError(f"format is {self.format!r:.60}; this version reads {FORMAT!r}")

    def with_entry(self, entry: CalibrationEntry) -> Calibration:
        """A copy with the entry added. It replaces an entry for the same settings."""
        others = [other for other in self.entries if other.settings != entry.settings]
        entries = sorted([*others, entry], key=lambda one: dataclasses.astuple(one.settings)[:3])
        return replace(self, entries=tuple(entries))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The values that define the interval of a prediction."""

    level: float
    scale: float
    weights: Mapping[str, float]
    band: Band
    facts: Mapping[str, Any]
    """For provenance."""

    def half_width(
        self, stack: Float[np.ndarray, "c h w"], uncertainty: Float[np.ndarray, "u h w"] | None
    ) -> Float[np.ndarray, "h w"]:
        """Half of the interval's width in the band's space, at the size of the networks' output."""
        return np.float32(self.scale) * weighted_sum(self.band, self.weights, stack, uncertainty)


def weighted_sum(
    band: Band,
    weights: Mapping[str, float],
    stack: Float[np.ndarray, "c h w"],
    uncertainty: Float[np.ndarray, "u h w"] | None,
) -> Float[np.ndarray, "h w"]:
    """The half width before it is scaled, float32."""
    total = np.zeros(stack.shape[1:], dtype=np.float32)
    for name, weight in weights.items():
        if weight > 0:
            total += np.float32(weight) * band.signals[name](stack, uncertainty).astype(np.float32)
    return total


def level_text(level: float) -> str:
    """The text of a level in a calibration. It has every digit, so that two different levels have different texts.

    >>> level_text(0.9), level_text(0.9000001)
    ('0.9', '0.9000001')
    """
    return repr(float(level))


def settings_of(config: CallConfig, checkpoint: Checkpoint) -> CalibratedSettings:
    """The settings of a resolved call that a calibration depends on."""
    single = config.ensemble_size == 1
    names = [setting.name for setting in fields(CalibratedSettings)]
    values = {name: getattr(config, name) for name in names}
    reduction = config.ensemble_reduction
    usual = single or reduction in (None, checkpoint.predicts.reductions[0])
    return CalibratedSettings(**{**values, "ensemble_reduction": None if usual else reduction})


def read_calibration(checkpoint: Checkpoint) -> Calibration | None:
    """The calibration in the checkpoint's folder; None if there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    return _read(checkpoint.directory / CALIBRATION_FILE)


def _read(path: Path) -> Calibration | None:
    if not path.is_file():
        return None
    with readable():
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path} has more than {_MAX_BYTES} bytes; calibrate again")
        content = path.read_bytes()
    try:
        return from_table(Calibration, parse_json(content), where=str(path), error=CheckpointError)
    except DamagedTextError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); calibrate again") from error


def write_calibration(calibration: Calibration, directory: Path) -> Path:
    """Writes `calibration.json` into a checkpoint's folder, atomically; returns its path.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = directory / CALIBRATION_FILE
    text = json.dumps(dataclasses.asdict(calibration), indent=1)
    write_atomically(path, lambda place: place.write_text(text + "\n", encoding="utf-8"))
    return path


def band_of(checkpoint: Checkpoint) -> Band:
    """The definition of intervals for the checkpoint's predictions.

    Raises:
        InvalidValueError: there are none.
    """
    band = None if checkpoint.derived else checkpoint.modality.band(checkpoint.invariance)
    if band is None:
        derived = f", computed from {checkpoint.modality.title}" if checkpoint.derived else ""
        raise InvalidValueError(
            f"no interval is defined for {checkpoint.predicts.title}{derived} (invariance {checkpoint.invariance}); "
            "leave interval out"
        )
    return band


def choose_interval(checkpoint: Checkpoint, config: CallConfig, *, has_tiny_vae: bool = False) -> Interval | None:
    """The interval that a resolved call asks for; None if it asks for none.

    Raises:
        InvalidValueError: no calibration exists, or none fits these weights, these settings or this level.
        CheckpointError: the calibration is damaged.
    """
    level = config.interval
    if level is None:
        return None
    band = band_of(checkpoint)
    where = f"interval={level_text(level)}: {checkpoint.name}"
    calibrate = "fit one with `openmarigold calibrate` (docs/uncertainty.md)"
    found = read_calibration(checkpoint)
    if found is None:
        raise InvalidValueError(f"{where} has no {CALIBRATION_FILE}; {calibrate}, or leave interval out")
    weights_sha256 = checkpoint_sha256(checkpoint)
    if found.weights_sha256 != weights_sha256 or has_tiny_vae:
        other = "another autoencoder (tiny_vae)" if has_tiny_vae else f"other weights ({found.weights_sha256:.12})"
        raise InvalidValueError(f"{where} runs with {other} than it was calibrated with; {calibrate}")
    predicts = checkpoint.predicts
    if (found.modality, found.space, found.invariance) != (predicts.name, predicts.space, checkpoint.invariance):
        raise InvalidValueError(
            f"{where} was calibrated as {found.modality} ({found.space}, {found.invariance}), and predicts "
            f"{predicts.name} ({predicts.space}, {checkpoint.invariance}); {calibrate}"
        )
    if config.tiles or config.ensemble_tolerance is not None:
        name = "tiles" if config.tiles else "ensemble_tolerance"
        raise InvalidValueError(f"{where} is calibrated without {name}; leave {name} or interval out")
    entry = _matching(found, settings_of(config, checkpoint), where)
    if entry.error != band.summary or not set(entry.weights) <= set(band.signals):
        raise InvalidValueError(f"{where} was calibrated by another version, for other errors; {calibrate}")
    needs_ensemble = any(entry.weights[name] > 0 for name in band.of_ensemble & entry.weights.keys())
    if needs_ensemble and config.ensemble_size == 1:
        raise CheckpointError(f"{where}: the calibration of one member has a signal of ensembles; {calibrate}")
    scale = entry.scales.get(level_text(level))
    if scale is None:
        raise InvalidValueError(
            f"{where} is calibrated for the levels {', '.join(entry.scales) or 'none'}; give one of these, or "
            "calibrate with --levels"
        )
    facts = {
        "level": level,
        "scale": scale,
        "rule": entry.rule,
        **({} if entry.delta is None else {"delta": entry.delta}),
        "error": entry.error,
        "calibration_sha256": file_sha256(checkpoint.directory / CALIBRATION_FILE),
    }
    return Interval(level=level, scale=scale, weights=entry.weights, band=band, facts={"interval": facts})


def _matching(found: Calibration, settings: CalibratedSettings, where: str) -> CalibrationEntry:
    """The entry for these settings.

    Raises:
        InvalidValueError: no entry fits; the message names the setting that differs.
    """
    names = [setting.name for setting in fields(CalibratedSettings)]
    nearest: list[str] = []
    for entry in found.entries:
        differ = [name for name in names if getattr(entry.settings, name) != getattr(settings, name)]
        if not differ:
            return entry
        if not nearest or len(differ) < len(nearest):
            nearest = differ
    name = next(iter(nearest), "ensemble_size")
    given = getattr(settings, name)
    known = ", ".join(
        dict.fromkeys(str(value) for entry in found.entries if (value := getattr(entry.settings, name)) != given)
    )
    raise InvalidValueError(
        f"{where} is calibrated for {name} {known or 'nothing'}, and {name} is {given}; give a "
        "calibrated value, calibrate for this one, or leave interval out"
    )


def carry_calibration(source: Checkpoint, found: Calibration | None, folder: Path, *, same_networks: bool) -> None:
    """Write a checkpoint's calibration into a copy of it in another form; log it if the copy gets none.

    Args:
        source: the checkpoint that was copied.
        found: its calibration.
        folder: the copy.
        same_networks: False if the copy has another autoencoder.
    """
    if found is None:
        return
    if not same_networks or found.weights_sha256 != checkpoint_sha256(source):
        reason = "is of other weights" if same_networks else "does not hold for another autoencoder"
        _log.warning("the calibration of %s %s: the copy has none", source.name, reason)
        return
    copy = read_checkpoint(folder, wanted=source.modality.name)
    origin = found.exported_from or found.weights_sha256
    write_calibration(replace(found, weights_sha256=checkpoint_sha256(copy), exported_from=origin), folder)


def new_calibration(checkpoint: Checkpoint, entry: CalibrationEntry, folder: Path) -> Calibration:
    """The calibration in a folder with one more entry. Earlier entries stay if they are for the same weights."""
    predicts = checkpoint.predicts
    empty = Calibration(
        modality=predicts.name,
        space=predicts.space,
        invariance=checkpoint.invariance,
        weights_sha256=checkpoint_sha256(checkpoint),
    )
    try:
        found = _read(folder / CALIBRATION_FILE)
    except CheckpointError as error:
        _log.warning("%s; a new one takes its place", error)
        found = None
    same = found is not None and found.weights_sha256 == empty.weights_sha256
    return (found if found is not None and same else empty).with_entry(entry)
