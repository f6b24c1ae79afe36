# SPDX-License-Identifier: Apache-2.0
"""Surface normals: frames, training targets, ensembles, pictures, and normals from the depth of another model.

Inside the package normals are unit vectors in the frame "rub" (`openmarigold.geometry`); (0, 0, 0) is "unknown". A
checkpoint states the frame that its decoder gives, and decoded values are converted; files are written in the frame
that is asked for. Source: the published family, github.com/prs-eth/Marigold, and Garcia et al. 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8, UInt16

from openmarigold.camera import Camera, CameraSource
from openmarigold.config import NormalFrame, OutputConfig
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.geometry import angles_between, convert_frame, mirror_normals, normals_from_depth, unit_vectors
from openmarigold.modalities import normals_scores
from openmarigold.modalities.bands import NORMALS_BAND
from openmarigold.modalities.colors import uncertainty_picture
from openmarigold.modalities.depth import ASSUMED_SHIFT
from openmarigold.modalities.modality import MapKind, Maps, Merged, Modality, Picture, Target
from openmarigold.modalities.protocol import BenchmarkSample

REDUCTIONS = ("closest", "mean")
_STRIP_ROWS = 256
_VALID_LENGTH = 0.5  # of a stored vector, that of unknown ones being 0
_TOWARDS_VIEWER = np.array([0.0, 0.0, 1.0], dtype=np.float32)
_SMALLEST_DEPTH = 1e-6
_HALF_RANGE = ", z in [0, 1]"
_SENSOR_SUPPORT = 15  # side of the windows [px]
_FULL_ERROR = 60.0  # degrees: what a page shows white


def merge_normals(members: Float32[np.ndarray, "n 3 h w"], *, reduction: str = "closest") -> Merged:
    """The mean direction of the members ("mean"), or the member that is nearest to it, pixel by pixel ("closest").

    The uncertainty is the mean angle [deg] between the members and the mean direction. Paper: as the published code.

    Raises:
        InvalidValueError: an unknown reduction.
    """
    if reduction not in REDUCTIONS:
        raise InvalidValueError(f"ensemble_reduction={reduction!r} is not known; use one of {', '.join(REDUCTIONS)}")
    mean = unit_vectors(members.mean(axis=0))
    uncertainty = angles_between(members, mean[None]).mean(axis=0, dtype=np.float32)[None]
    if reduction == "mean":
        return Merged(stack=mean, uncertainty=uncertainty)
    nearest = (members * mean).sum(axis=1).argmax(axis=0)
    return Merged(stack=np.take_along_axis(members, nearest[None, None], axis=0)[0], uncertainty=uncertainty)


def _valid_mask(maps: Maps, accepted: tuple[float, float]) -> Bool[np.ndarray, "h w"]:
    """Vectors that have a direction. `accepted` is a range of depth and has no meaning here."""
    with np.errstate(over="ignore"):
        squared = np.square(maps["normals"]).sum(axis=-1)
    return np.asarray((squared > _VALID_LENGTH**2) & (squared < np.inf))


def _to_target(maps: Maps, valid_mask: Bool[np.ndarray, "h w"], invalid: str) -> Target:
    """Unit vectors in [-1, 1]; invalid pixels face the camera ("far") or keep what is stored ("raw")."""
    if not valid_mask.any():
        raise DataError("the normals map has no valid pixel; skip this sample")
    normals = maps["normals"].astype(np.float32)
    if not np.isfinite(normals[valid_mask]).all():
        raise DataError("valid pixels of the normals map are not finite; mark them invalid")
    vectors = np.where(valid_mask[..., None], unit_vectors(normals, axis=-1), _TOWARDS_VIEWER)
    if invalid == "raw":
        vectors = np.where(valid_mask[..., None], vectors, np.nan_to_num(np.clip(normals, -1, 1)))
    return Target(values=np.moveaxis(vectors, -1, 0)[None].astype(np.float32))


def _from_decoded(decoded: Float[np.ndarray, "1 3 h w"]) -> Float[np.ndarray, "3 h w"]:
    return unit_vectors(np.clip(decoded[0], -1.0, 1.0))


def _finish(stack: Float[np.ndarray, "3 h w"]) -> Float[np.ndarray, "3 h w"]:
    """Unit length again: a mean of vectors is shorter."""
    for top in range(0, stack.shape[1], _STRIP_ROWS):  # a whole map of lengths and quotients would be a copy too many
        strip = stack[:, top : top + _STRIP_ROWS]
        strip[:] = unit_vectors(strip)
    return stack


def _levels(normals: Float[np.ndarray, "h w 3"], white: int, green: str) -> Float[np.ndarray, "h w 3"]:
    signs = np.array([1, -1 if green == "dx" else 1, 1], dtype=np.float32)
    return np.rint((np.clip(normals, -1.0, 1.0) * signs + 1.0) * np.float32(white / 2))


def texture(normals: Float[np.ndarray, "h w 3"], *, green: str = "gl") -> UInt8[np.ndarray, "h w 3"]:
    """Normals (frame "rub") as an 8-bit normal map: red right, green up ("gl") or down ("dx"), blue to the viewer."""
    picture = np.empty(normals.shape, dtype=np.uint8)
    for top in range(0, len(picture), _STRIP_ROWS):
        picture[top : top + _STRIP_ROWS] = _levels(normals[top : top + _STRIP_ROWS], 255, green)
    return picture


def to_uint16(
    normals: Float[np.ndarray, "h w 3"], *, green: str = "gl", frame: str = "rub"
) -> UInt16[np.ndarray, "h w 3"]:
    """Components in a frame, from -1 to 1, as 0 to 65535, rounded; with `green` "dx" the second one is negated."""
    levels = np.empty(normals.shape, dtype=np.uint16)
    for top in range(0, len(levels), _STRIP_ROWS):
        strip = convert_frame(normals[top : top + _STRIP_ROWS], "rub", frame, axis=-1)
        levels[top : top + _STRIP_ROWS] = _levels(strip, 65535, green)
    return levels


def _imported(maps: Maps, facts: Mapping[str, Any]) -> Maps:
    frame = facts.get("normal_frame", "rub")
    if frame not in get_args(NormalFrame):
        raise DataError(f"has normal_frame {frame!r:.80}; accepted are {', '.join(get_args(NormalFrame))}")
    return {"normals": convert_frame(maps["normals"], frame, "rub", axis=-1)}


def _measured_from_depth(maps: Maps, facts: Mapping[str, Any]) -> Maps:
    """Normals of measured depth where it is dense and smooth; of fitted planes, as sensors have noise and steps."""
    try:
        fx, fy, x, y = (float(value) for value in facts["intrinsics_px"])
        if not (0 < fx < np.inf and 0 < fy < np.inf and np.isfinite([x, y]).all()):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("has no intrinsics_px [fx, fy, cx, cy], without which depth gives no normals") from error
    depth = maps["depth"]
    if min(depth.shape) < 3:
        raise DataError(f"has {depth.shape[0]}x{depth.shape[1]} pixels; depth gives normals from 3x3")
    support = min(_SENSOR_SUPPORT, (min(depth.shape) - 1) // 2 * 2 + 1)
    center = (x - 0.5, y - 0.5)  # there the first pixel's center lies at (0, 0)
    normals, smooth = normals_from_depth(depth, focal=(fx, fy), center=center, support=support)
    return {"normals": np.where((smooth & _dense(depth > 0, support))[..., None], normals, 0.0)}


def _dense(known: Bool[np.ndarray, "h w"], side: int) -> Bool[np.ndarray, "h w"]:
    """Pixels with at least half of their window known. Without this test, a single line of a laser scan fits planes of
    any tilt.
    """
    counts = []
    for where in (known, np.ones_like(known)):
        sums = np.pad(np.pad(where, side // 2).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        counts.append(sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side])
    return np.asarray(2 * counts[0] >= counts[1])


def panels(sample: BenchmarkSample, maps: Maps, step: int) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
    """Measured and predicted normals as normal maps, and the angle between them, of every `step`-th pixel.

    Pixels that do not count are gray; a missing prediction is wrong by as much as is shown.
    """
    gt, pred, valid = (
        values[::step, ::step] for values in (sample.maps["normals"], maps["normals"], sample.valid_mask)
    )
    missing = ~np.isfinite(pred).all(axis=-1, keepdims=True)
    pred = np.where(missing, 0.0, pred)
    angles = angles_between(unit_vectors(gt, axis=-1), unit_vectors(pred, axis=-1), axis=-1)[..., None]
    levels = np.rint(np.where(missing, 255, 255 * np.clip(angles / _FULL_ERROR, 0, 1))).astype(np.uint8)
    valid, gray = valid[..., None], np.uint8(96)
    return {
        "measured normals": np.where(valid, texture(gt), gray),
        "predicted normals": texture(pred),
        f"angular error, 0 to {_FULL_ERROR:g}°": np.repeat(np.where(valid, levels, gray), 3, axis=2),
    }


def _exported(maps: Maps, output: OutputConfig) -> Maps:
    return {**maps, "normals": convert_frame(maps["normals"], "rub", output.normal_frame, axis=-1)}


def _stated_space(record: Mapping[str, Any], suffix: str) -> str | None:
    frames: dict[object, str] = dict(zip(get_args(NormalFrame), normals_scores.SPACES, strict=True))
    frame = record.get("normal_frame")
    space = frames.get(frame) if isinstance(frame, str) else None
    return f"{space} with green down" if space and suffix == ".png" and record.get("green") == "dx" else space


def _check_output(output: OutputConfig) -> None:
    if output.green == "dx" and output.normal_frame == "opencv":
        raise InvalidValueError(
            "green=dx negates y, which points down in normal_frame=opencv already; give one of both"
        )


def _space_of(index: Mapping[str, Any]) -> object:
    frame, full_range = index.get("normal_frame") or "rub", index.get("use_full_z_range")
    if full_range in (None, True):
        return frame
    return f"{frame}{_HALF_RANGE}" if full_range is False else full_range


_KNOWN_BY: Mapping[CameraSource, str] = MappingProxyType(
    {"exif": " (of the photo's metadata)", "estimated": " (estimated)", "assumed": " (assumed)"}
)


def _from_depth(source: Modality, invariance: str, camera: Camera) -> Modality:
    """Normals of what a model of depth gives for a picture of this camera; the shift of affine depth is assumed."""
    known = f"field of view {camera.fov:.4g} degrees along the longer side{_KNOWN_BY.get(camera.source, '')}"
    if invariance == "affine":
        known += f", {ASSUMED_SHIFT:g} added to depth in [0, 1] (assumed)"

    def from_decoded(decoded: Float[np.ndarray, "t k h w"]) -> Float[np.ndarray, "3 h w"]:
        depth = source.from_decoded(decoded)[0]
        depth = depth + ASSUMED_SHIFT if invariance == "affine" else np.maximum(depth, _SMALLEST_DEPTH)
        focal, center = (camera.fx, camera.fy), (camera.cx, camera.cy)
        normals, _ = normals_from_depth(depth, focal=focal, center=center)
        return np.ascontiguousarray(np.moveaxis(normals, -1, 0))

    return replace(
        NORMALS,
        num_targets=source.num_targets,
        decoded_channels=source.decoded_channels,
        from_decoded=from_decoded,
        quantities=dict.fromkeys(source.quantities, f"{_UNIT_NORMALS}, from {invariance} depth, {known}"),
    )


_UNIT_NORMALS = "unit normals; normal_frame names their axes"
_RUB = Modality(
    name="normals",
    title="surface normals",
    pipeline_classes=("MarigoldNormalsPipeline",),
    prediction_type="normals",
    maps=(
        MapKind(
            name="normals",
            channels=3,
            range=(-1.0, 1.0),
            unit="components of a unit vector",
            space="vector",
            exr_channels=("normals.X", "normals.Y", "normals.Z"),
        ),
    ),
    num_targets=1,
    decoded_channels=3,
    uncertainties=("normals_uncertainty",),
    valid_mask=_valid_mask,
    to_target=_to_target,
    from_decoded=_from_decoded,
    merge=lambda members, invariance, reduction: merge_normals(members, reduction=reduction),
    reductions=REDUCTIONS,
    finish=_finish,
    mirror=lambda maps: {"normals": mirror_normals(maps["normals"])},
    picture=lambda maps, color_map: texture(maps["normals"]),
    check_output=_check_output,
    pictures=(
        Picture(
            suffix="_normals.png",
            content="(normals + 1) x 32767.5, in normal_frame, y negated if green is dx",
            make=lambda maps, output: to_uint16(maps["normals"], green=output.green, frame=output.normal_frame),
        ),
        Picture(
            suffix="_normals_colored.png",
            content="normal map: red right, green up (gl) or down (dx), blue to the viewer",
            make=lambda maps, output: texture(maps["normals"], green=output.green),
        ),
        Picture(
            suffix="_normals_uncertainty.png",
            content="uncertainty, white where it is largest",
            make=lambda maps, output: uncertainty_picture(maps["normals_uncertainty"]),
            wanted=lambda output: output.uncertainty_picture,
            of_uncertainty=True,
        ),
    ),
    quantities=MappingProxyType({"absolute": _UNIT_NORMALS}),
    pixel_loss="angular",
    index_facts=MappingProxyType({"use_full_z_range": True, "normal_frame": "rub"}),
    protocols=normals_scores.PROTOCOLS,
    default_protocol=normals_scores.default_protocol,
    headline_metrics=normals_scores.HEADLINE_METRICS,
    spaces=normals_scores.SPACES,
    prediction_space=lambda invariance: normals_scores.SPACES[0],
    stated_space=_stated_space,
    picture_spaces=frozenset(normals_scores.SPACES),
    baselines=normals_scores.BASELINES,
    panels=panels,
    imported=_imported,
    measured_from=MappingProxyType({"depth": _measured_from_depth}),
    space="rub",
    space_of=_space_of,
    exported=_exported,
    output_facts=lambda output: {"normal_frame": output.normal_frame, "green": output.green},
    derivations=MappingProxyType({"depth": _from_depth}),
    band=lambda invariance: NORMALS_BAND,
)


def _variant(frame: NormalFrame, *, full_range: bool) -> Modality:
    """Normals of checkpoints whose decoder gives another frame, or z in [0, 1] stretched to [-1, 1]."""

    def from_decoded(decoded: Float[np.ndarray, "1 3 h w"]) -> Float[np.ndarray, "3 h w"]:
        vectors = np.clip(decoded[0], -1.0, 1.0)
        if not full_range:
            vectors = np.concatenate([vectors[:2], vectors[2:] * 0.5 + 0.5])
        return convert_frame(unit_vectors(vectors), frame, "rub")

    def to_target(maps: Maps, valid_mask: Bool[np.ndarray, "h w"], invalid: str) -> Target:
        values = convert_frame(_to_target(maps, valid_mask, invalid).values, "rub", frame)
        if not full_range:
            values = np.concatenate([values[:, :2], values[:, 2:] * 2.0 - 1.0], axis=1)
        return Target(values=values.astype(np.float32))

    return replace(
        _RUB,
        space=frame if full_range else f"{frame}{_HALF_RANGE}",
        from_decoded=from_decoded,
        to_target=to_target,
        index_facts=MappingProxyType({"use_full_z_range": full_range, "normal_frame": frame}),
    )


_VARIANTS = [_variant(frame, full_range=full_range) for frame in get_args(NormalFrame) for full_range in (True, False)]
NORMALS = replace(_RUB, variants=MappingProxyType({v.space: v for v in _VARIANTS if v.space != _RUB.space}))
