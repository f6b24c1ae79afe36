# SPDX-License-Identifier: Apache-2.0
"""How steady depth is along a clip: errors of pairs of frames and of whole clips, as pure functions on arrays.

Axes and pixels are a `Camera`'s; poses are camera-to-world, 4x4. TAE: Chen et al. 2025 (Video Depth Anything). OPW:
Wang et al. 2022 (FMNet). The other two are defined here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

from openmarigold.camera import Camera

STATIC_FLOW_PX = 0.3
STATIC_LEVELS = 2
"""A pixel is static where flow is shorter, and no channel of the photo changes by so many levels of 255 or more."""
_SMALLEST_DEPTH = 1e-6
_TENTH = 0.1


def projection_error(
    first: Float[np.ndarray, "h w"],
    second: Float[np.ndarray, "h w"],
    *,
    first_valid: Bool[np.ndarray, "h w"],
    second_valid: Bool[np.ndarray, "h w"],
    camera: Camera,
    first_to_second: Float64[np.ndarray, "4 4"],
) -> float:
    """Mean |second - projected| / second, one direction of TAE as a ratio; NaN where the frames do not overlap.

    Points of `first` move into the second frame and fall on the nearest pixel; of several the nearest to the camera
    stays, and points behind the camera are left out.
    """
    points = _moved(first, camera, first_to_second)[first_valid & (first > 0)]
    points = points[points[:, 2] > _SMALLEST_DEPTH]
    columns, rows, inside = _nearest_pixels(points, camera, second.shape)
    projected = np.full(second.shape, np.inf)
    np.minimum.at(projected, (rows, columns), points[inside, 2])
    compared = np.isfinite(projected) & second_valid & (second > 0)
    return _ratio(second, projected, compared) if compared.any() else float("nan")


def projection_error_as_published(
    first: Float[np.ndarray, "h w"],
    second: Float[np.ndarray, "h w"],
    *,
    second_valid: Bool[np.ndarray, "h w"],
    camera: Camera,
    first_to_second: Float64[np.ndarray, "4 4"],
) -> float:
    """As `projection_error` without its corrections, for numbers that are shown next to published ones.

    All pixels of `first` are moved, whether measured or not; of several that fall on a pixel the last one stays; frames
    that do not overlap have the error 0.
    """
    points = _moved(first, camera, first_to_second).reshape(-1, 3)
    columns, rows, inside = _nearest_pixels(points, camera, second.shape)
    projected = np.zeros(second.shape)
    projected[rows, columns] = points[inside, 2]
    compared = (projected > 0) & second_valid
    return _ratio(second, projected, compared) if compared.any() else 0.0


def mean_tae(errors: Sequence[float]) -> float:
    """TAE of a clip [%] from the errors of its pairs in both directions; those that are NaN are left out.

    >>> round(mean_tae([0.01, 0.03, float("nan")]), 6)
    2.0
    """
    known = [error for error in errors if not np.isnan(error)]
    return 100 * float(np.mean(known)) if known else float("nan")


def true_flow(
    depth: Float[np.ndarray, "h w"],
    valid: Bool[np.ndarray, "h w"],
    *,
    camera: Camera,
    first_to_second: Float64[np.ndarray, "4 4"],
) -> Float32[np.ndarray, "h w 2"]:
    """Where each pixel of a static scene goes in the second frame, minus where it is: x and y [px].

    NaN where the first frame's depth is not known, or the point is behind the second camera.
    """
    points = _moved(depth, camera, first_to_second)
    known = valid & (depth > 0) & (points[..., 2] > _SMALLEST_DEPTH)
    rows, columns = np.indices(depth.shape)
    behind = np.where(known, points[..., 2], 1.0)
    flow = np.stack(
        (
            camera.fx * points[..., 0] / behind + camera.cx - columns,
            camera.fy * points[..., 1] / behind + camera.cy - rows,
        ),
        axis=2,
    )
    flow[~known] = np.nan
    return flow.astype(np.float32)


def seen_in_both(there: Float32[np.ndarray, "h w 2"], back: Float32[np.ndarray, "h w 2"]) -> Bool[np.ndarray, "h w"]:
    """Pixels of the first frame that the second one shows: flow there and back returns to within half a pixel.

    Plus a tenth of the flow's length. Pixels with unknown flow, or outside the second frame, are False.
    """
    returned, inside = sampled(back, there)
    off = np.linalg.norm(there + returned, axis=2)
    length = np.linalg.norm(there, axis=2)
    with np.errstate(invalid="ignore"):
        return inside & (off <= 0.5 + 0.1 * length)


def sampled(
    picture: Float[np.ndarray, "h w *c"], flow: Float32[np.ndarray, "h w 2"]
) -> tuple[Float64[np.ndarray, "h w *c"], Bool[np.ndarray, "h w"]]:
    """The picture at the ends of the flow, bilinear, and which ends lie inside it; the others are 0.

    NaN of one of the four neighbors with a weight above 0 is NaN in the result.
    """
    height, width = flow.shape[:2]
    rows, columns = np.indices((height, width))
    x, y = columns + flow[..., 0].astype(np.float64), rows + flow[..., 1].astype(np.float64)
    with np.errstate(invalid="ignore"):
        # float32 flow of a pixel on the border ends outside by rounding
        inside = (x >= -1e-3) & (x <= width - 1 + 1e-3) & (y >= -1e-3) & (y <= height - 1 + 1e-3)
    x, y = np.clip(np.where(inside, x, 0), 0, width - 1), np.clip(np.where(inside, y, 0), 0, height - 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    result = np.zeros(picture.shape)
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - down - (y - top)) * np.abs(1 - right - (x - left))
            part = picture[np.minimum(top + down, height - 1), np.minimum(left + right, width - 1)]
            weight = weight.reshape(weight.shape + (1,) * (picture.ndim - 2))
            result += np.where(weight > 0, part * weight, 0.0)
    result[~inside] = 0.0
    return result, inside


def warp_error(
    first: Float[np.ndarray, "h w"],
    second: Float[np.ndarray, "h w"],
    *,
    flow: Float32[np.ndarray, "h w 2"],
    seen: Bool[np.ndarray, "h w"],
) -> float:
    """OPW of a pair: mean |first - second at the end of the flow| over what both frames show [m]; NaN for nothing.

    A camera that moves ahead changes true depth too, so true depth has an OPW of its own.
    """
    warped, inside = sampled(second, flow)
    compared = seen & inside & np.isfinite(warped) & np.isfinite(first)
    return float(np.mean(np.abs(first[compared] - warped[compared]))) if compared.any() else float("nan")


def static_pixels(
    first: UInt8[np.ndarray, "h w 3"], second: UInt8[np.ndarray, "h w 3"], flow: Float32[np.ndarray, "h w 2"]
) -> Bool[np.ndarray, "h w"]:
    """Pixels where nothing moved and nothing changed between two frames."""
    change = np.abs(first.astype(np.int16) - second.astype(np.int16)).max(axis=2)
    with np.errstate(invalid="ignore"):
        return (np.linalg.norm(flow, axis=2) < STATIC_FLOW_PX) & (change < STATIC_LEVELS)


@dataclass
class Flicker:
    """Standard deviation over time of log depth on static pixels, from pairs of frames, added one after another.

    The mean change of the clip, its trend, is taken off. The difference of two frames has twice the variance of one.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    pixels: int = 0

    def add(
        self, first: Float[np.ndarray, "h w"], second: Float[np.ndarray, "h w"], static: Bool[np.ndarray, "h w"]
    ) -> None:
        """A pair of frames, of depth above 0 on the static pixels."""
        change = np.log(second[static].astype(np.float64)) - np.log(first[static].astype(np.float64))
        self.count += change.size
        self.pixels += static.size
        self.total += float(change.sum())
        self.squares += float(np.square(change).sum())

    @property
    def value(self) -> float:
        """NaN where no pixel was static."""
        if not self.count:
            return float("nan")
        mean = self.total / self.count
        return float(np.sqrt(max(0.0, self.squares / self.count - mean**2) / 2))

    @property
    def share_static(self) -> float:
        """Share of static pixels among all pixels of the pairs, 0 to 1."""
        return self.count / max(1, self.pixels)


def scale_jitter(scales: Sequence[float]) -> float:
    """Standard deviation over time of the logarithm of the frames' scales; NaN unless all are above 0.

    >>> round(scale_jitter([1.0, 1.1, 1.0, 1.1]), 4)
    0.0477
    """
    return float(np.std(np.log(scales))) if _positive(scales) else float("nan")


def drift(scales: Sequence[float]) -> float:
    """Mean log scale of the last tenth of a clip (at least one frame) minus that of the first tenth; NaN as above."""
    if not _positive(scales):
        return float("nan")
    logs = np.log(scales)
    part = max(1, round(_TENTH * len(logs)))
    return float(logs[-part:].mean() - logs[:part].mean())


def final_drift(scales: Sequence[float]) -> float:
    """Log scale of the last frame minus that of the first; NaN as above."""
    return float(np.log(scales[-1]) - np.log(scales[0])) if _positive(scales) else float("nan")


def _positive(scales: Sequence[float]) -> bool:
    return len(scales) > 0 and bool(np.all(np.isfinite(scales)) and np.min(scales) > 0)


def _moved(
    depth: Float[np.ndarray, "h w"], camera: Camera, first_to_second: Float64[np.ndarray, "4 4"]
) -> Float64[np.ndarray, "h w 3"]:
    """The points of a depth map in the axes of the second camera."""
    rows, columns = np.indices(depth.shape)
    z = depth.astype(np.float64)
    points = np.stack(((columns - camera.cx) / camera.fx * z, (rows - camera.cy) / camera.fy * z, z), axis=2)
    return points @ first_to_second[:3, :3].T + first_to_second[:3, 3]


def _nearest_pixels(
    points: Float64[np.ndarray, "n 3"], camera: Camera, size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, " n"]]:
    """Columns and rows of the points that fall into a picture, and which those are."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        x = np.round(camera.fx * points[:, 0] / points[:, 2] + camera.cx)
        y = np.round(camera.fy * points[:, 1] / points[:, 2] + camera.cy)
        inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
    return x[inside].astype(int), y[inside].astype(int), inside


def _ratio(
    second: Float[np.ndarray, "h w"], projected: Float64[np.ndarray, "h w"], compared: Bool[np.ndarray, "h w"]
) -> float:
    depth = np.maximum(second[compared], _SMALLEST_DEPTH).astype(np.float64)
    return float(np.mean(np.abs(depth - projected[compared]) / depth))
