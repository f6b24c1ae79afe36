# SPDX-License-Identifier: Apache-2.0
"""A page that shows a run's best, median and worst images: photo, measured depth, prediction, error."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from openmarigold.evaluation.benchmark import BenchmarkSample
from openmarigold.evaluation.report import Report
from openmarigold.files import write_atomically
from openmarigold.modalities.colors import colorize
from openmarigold.printing import printable

_WIDTH = 320
_IN_EACH = 3
_FULL_ERROR = 0.5
_STYLE = (
    "body{font:15px sans-serif;margin:2em}td{padding:2px 6px;vertical-align:top}h2{margin:1em 0 .3em}img{display:block}"
)


def write_page(
    report: Report, aligned: Callable[[str], tuple[BenchmarkSample, np.ndarray]], path: Path, *, title: str
) -> None:
    """Writes the page; `aligned(name)` gives an image and its aligned prediction [m].

    Depth is colored by the measured depth's 2 % to 98 % range, near red; the error |pred - gt| / gt from 0 (black) to
    0.5 (white). Pixels that do not count are gray in both measured maps.
    """
    ordered = sorted(report.images, key=lambda image: (image.metrics["abs_rel"], image.name))
    count = min(_IN_EACH, len(ordered))
    middle = (len(ordered) - count) // 2
    groups = {
        "Best": ordered[:count],
        "Median": ordered[middle : middle + count],
        "Worst": ordered[::-1][:count],
    }
    # In a small benchmark an image is in several groups, and it is predicted for the page.
    chosen = dict.fromkeys(image.name for images in groups.values() for image in images)
    urls = {name: [_data_url(tile) for tile in _tiles(*aligned(name))] for name in chosen}
    parts = [f"<h1>{html.escape(printable(title))}</h1>", f"<p>{html.escape(_summary(report))}</p>"]
    for heading, images in groups.items():
        parts.append(f"<h2>{heading}</h2><table>")
        parts.append("<tr><td>photo<td>measured depth<td>prediction, aligned<td>relative error, 0 to 50 %</tr>")
        for image in images:
            scores = f"AbsRel {100 * image.metrics['abs_rel']:.1f} %, δ1 {100 * image.metrics['delta1']:.1f} %"
            if image.metrics["negative_scale"]:
                scores += "; near and far are exchanged (negative scale)"
            parts.append(f'<tr><td colspan="4">{html.escape(printable(image.name))}: {scores}</tr><tr>')
            parts += [f'<td><img alt="" src="{url}">' for url in urls[image.name]]
            parts.append("</tr>")
        parts.append("</table>")
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(printable(title))}</title>'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "</html>\n"
    )
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _summary(report: Report) -> str:
    score = report.kinds["all"]
    shares = ", ".join(
        f"{label} {100 * score.metrics[name]:.1f} % (95 % interval over {what} "
        f"{100 * intervals[name][0]:.1f} to {100 * intervals[name][1]:.1f})"
        for label, name in (("AbsRel", "abs_rel"), ("δ1", "delta1"))
        for what, intervals in score.intervals.items()
    )
    inverted = f"; negative scale in {report.num_negative_scale} images" if report.num_negative_scale else ""
    failed = f"; {len(report.failed)} images failed and are not counted" if report.failed else ""
    scored = f"{100 * report.share_scored:.1f} % of the pixels scored"
    return f"{score.num_images} images of {score.num_places} places: {shares}; {scored}{inverted}{failed}"


def _tiles(sample: BenchmarkSample, pred: Float[np.ndarray, "h w"]) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """The four pictures of an image, small."""
    step = max(1, -(-sample.depth.shape[1] // _WIDTH))
    rgb, gt, valid = sample.rgb[::step, ::step], sample.depth[::step, ::step], sample.valid_mask[::step, ::step]
    pred = pred[::step, ::step]
    low, high = np.quantile(sample.depth[sample.valid_mask], (0.02, 0.98))
    scale = max(high - low, 1e-6)
    with np.errstate(divide="ignore", invalid="ignore"):
        # A missing prediction is wrong by as much as is shown.
        error = np.where(valid, np.nan_to_num(np.abs(pred - gt) / gt, nan=_FULL_ERROR), 0.0)
    pred = np.nan_to_num(pred, nan=low, posinf=high)
    gray = np.repeat((255 * np.clip(error / _FULL_ERROR, 0, 1)).astype(np.uint8)[..., None], 3, axis=2)
    shown = [colorize(np.clip((depth - low) / scale, 0, 1).astype(np.float32)) for depth in (gt, pred)]
    return [rgb, _grayed(shown[0], valid), shown[1], _grayed(gray, valid)]


def _grayed(picture: UInt8[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.where(valid[..., None], picture, np.uint8(96))


def _data_url(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(content, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
