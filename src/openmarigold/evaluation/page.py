# SPDX-License-Identifier: Apache-2.0
"""A page that shows a run's best, median and worst images: photo, measured maps, prediction, error."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from openmarigold.evaluation.report import Report
from openmarigold.files import as_path, write_atomically
from openmarigold.modalities.modality import Modality
from openmarigold.modalities.protocol import BenchmarkSample, Maps, Score
from openmarigold.printing import printable

_WIDTH = 320
USUAL_IMAGES = 9
_STYLE = (
    "body{font:15px sans-serif;margin:2em}td{padding:2px 6px;vertical-align:top}h2{margin:1em 0 .3em}img{display:block}"
)


def write_page(
    report: Report,
    modality: Modality,
    aligned: Callable[[str], tuple[BenchmarkSample, Maps]],
    path: Path | str,
    *,
    title: str,
    num_images: int = USUAL_IMAGES,
) -> None:
    """Writes the page; `aligned(name)` gives an image and its aligned prediction, shown by the modality's `panels`.

    A third of `num_images`, 3 or above, are the best, a third the median ones, a third the worst.
    """
    scores = {score.name: score for score in report.scores}
    headline = [scores[name] for name in modality.headline(report.protocol)]
    flags = [score for score in report.scores if score.flag]
    sign = -1 if headline[0].higher_is_better else 1
    ordered = sorted(report.images, key=lambda image: (sign * image.metrics[headline[0].name], image.name))
    count = min(num_images // 3, len(ordered))
    middle = (len(ordered) - count) // 2
    groups = {
        "Best": ordered[:count],
        "Median": ordered[middle : middle + count],
        "Worst": ordered[::-1][:count],
    }
    # In a small benchmark an image is in several groups, and it is predicted for the page.
    chosen = dict.fromkeys(image.name for images in groups.values() for image in images)
    tiles = {name: _tiles(modality, *aligned(name)) for name in chosen}
    parts = [f"<h1>{html.escape(printable(title))}</h1>", f"<p>{html.escape(_summary(report, headline))}</p>"]
    for heading, images in groups.items():
        columns = "".join(f"<td>{html.escape(column)}" for column in tiles[images[0].name])
        parts.append(f"<h2>{heading}</h2><table><tr>{columns}</tr>")
        for image in images:
            shown = ", ".join(_shown(score, image.metrics) for score in headline)
            remarks = [score.flag for score in flags if image.metrics[score.name] > 0]
            line = html.escape("; ".join([f"{printable(image.name)}: {shown}", *remarks]))
            parts.append(f'<tr><td colspan="{len(tiles[image.name])}">{line}</tr><tr>')
            parts += [f'<td><img alt="" src="{url}">' for url in tiles[image.name].values()]
            parts.append("</tr>")
        parts.append("</table>")
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(printable(title))}</title>'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "</html>\n"
    )
    write_atomically(as_path(path, "the page"), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _summary(report: Report, headline: Sequence[Score]) -> str:
    total = report.kinds["all"]
    shares = ", ".join(
        f"{_shown(score, total.metrics)} (95 % interval over {drawn} "
        f"{' to '.join(map(score.text, intervals[score.name]))})"
        for score in headline
        for drawn, intervals in total.intervals.items()
    )
    parts = [f"{total.num_images} images of {total.num_places} places: {shares}"]
    parts.append(f"{100 * report.share_scored:.1f} % of the pixels scored")
    parts += [
        f"in {report.num_flagged[score.name]} images {score.flag}"
        for score in report.scores
        if report.num_flagged.get(score.name)
    ]
    if report.failed:
        parts.append(f"{len(report.failed)} images failed and are not counted")
    return "; ".join(parts)


def _shown(score: Score, metrics: Mapping[str, float]) -> str:
    return f"{score.label} {score.text(metrics[score.name])} {score.unit}".rstrip()


def _tiles(modality: Modality, sample: BenchmarkSample, maps: Maps) -> dict[str, str]:
    """The pictures of an image, small, by heading."""
    step = max(1, -(-sample.rgb.shape[1] // _WIDTH))
    pictures = {"photo": sample.rgb[::step, ::step], **modality.panels(sample, maps, step)}
    return {heading: _data_url(picture) for heading, picture in pictures.items()}


def _data_url(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(content, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
