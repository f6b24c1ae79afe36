# SPDX-License-Identifier: Apache-2.0
"""The report of a run: scores per image and per kind of place, and the facts that are needed to repeat the run.

As JSON, as CSV, and as a page with the best, median and worst images: photo, measured maps, prediction, error.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from openmarigold.errors import DataError, one_line
from openmarigold.evaluation.scoring import summary_of
from openmarigold.evaluation.statistics import KindScore, decode_tally
from openmarigold.files import as_path, write_atomically
from openmarigold.modalities import DEPTH, find_modality
from openmarigold.modalities.modality import Modality
from openmarigold.modalities.protocol import PIXELS_SCORED, SEAM_ENERGY, BenchmarkSample, Maps, Pooling, Score
from openmarigold.printing import printable
from openmarigold.text_files import DamagedTextError, parse_json

SUMMARY_NAME = "summary.json"
IMAGES_NAME = "images.csv"


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """Metrics of one image."""

    name: str
    kind: str
    place: str
    metrics: Mapping[str, float]
    input_hash: str = ""
    """SHA-256 of the files it was scored from."""
    tally: str = ""
    """The image's part of pooled scores, as `encode_tally` writes it."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Scores per image, and per kind of place with `all` last.

    Attributes:
        protocol: how predictions were aligned; scores of two protocols are not comparable.
        scores: what the protocol measures.
        modality: name of what was predicted.
        benchmark: name of the row, "folder" for the generic layout.
        given: facts about what estimators knew besides the photo, such as points; none for most benchmarks.
        over_places: whether means are over places or over images.
        pooled: how scores come from all pixels instead, as the protocol says; None: they are means.
        expected: number of images that the benchmark should have; None where it is not known.
        settings: of the estimator.
        provenance: hashes, versions, hardware.
        failed: images without scores, with the reason.
        times: everything that differs from run to run.
    """

    images: Sequence[ImageScore]
    kinds: Mapping[str, KindScore]
    protocol: str
    scores: Sequence[Score]
    modality: str = DEPTH.name
    benchmark: str = "folder"
    given: Mapping[str, Any] = field(default_factory=dict)
    over_places: bool = True
    pooled: Pooling | None = None
    expected: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def num_flagged(self) -> dict[str, int]:
        """Number of images with a defect that their other scores hide, by the name of the score that shows the
        defect.
        """
        flags = [score.name for score in self.scores if score.flag]
        return {name: sum(image.metrics.get(name, 0.0) > 0 for image in self.images) for name in flags}

    @property
    def share_scored(self) -> float:
        """Mean share of an image's valid pixels that were scored, [0, 1]; a failed image counts as 0."""
        shares = [image.metrics.get(PIXELS_SCORED.name, 1.0) for image in self.images]
        return sum(shares) / max(1, len(shares) + len(self.failed))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: fractions and units of the maps, not percent."""
        return {
            "modality": self.modality,
            "benchmark": self.benchmark,
            **({"given": dict(self.given)} if self.given else {}),
            "protocol": self.protocol,
            "mean_over": "pixels" if self.pooled else "places" if self.over_places else "images",
            "expected_images": self.expected,
            "settings": dict(self.settings),
            "provenance": dict(self.provenance),
            "kinds": {
                name: {
                    "num_places": kind.num_places,
                    "num_images": kind.num_images,
                    **kind.metrics,
                    **({"interval": summary} if (summary := summary_of(kind.metrics)) else {}),
                    "intervals_95": {
                        what: {metric: list(interval) for metric, interval in intervals.items()}
                        for what, intervals in kind.intervals.items()
                    },
                }
                for name, kind in self.kinds.items()
            },
            "images": [
                {
                    "name": image.name,
                    "kind": image.kind,
                    "place": image.place,
                    "input_sha256": image.input_hash,
                    **({"tally": image.tally} if self.pooled else {}),
                    **image.metrics,
                }
                for image in self.images
            ],
            "share_scored": self.share_scored,
            **{f"num_{name}": count for name, count in self.num_flagged.items()},
            "failed": dict(self.failed),
            "times": dict(self.times),
        }


def write_report(report: Report, output_dir: Path | str) -> list[Path]:
    """Paths of `summary.json` and `images.csv`, written atomically."""
    output_dir = as_path(output_dir, "output_dir")
    summary, table = output_dir / SUMMARY_NAME, output_dir / IMAGES_NAME
    text = json.dumps(report.to_dict(), indent=2, allow_nan=False)
    write_atomically(summary, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    rows = [{"name": image.name, "kind": image.kind, "place": image.place, **image.metrics} for image in report.images]

    def write_csv(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(table, write_csv)
    return [summary, table]


def read_report(path: Path | str) -> Report:
    """The report of a run's output folder, or of a summary file.

    Raises:
        DataError: it is missing, damaged or not the summary of a run.
    """
    path = as_path(path, "the run")
    path = path / SUMMARY_NAME if path.is_dir() else path
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); give the --output-dir of `openmarigold evaluate`"
        ) from error
    except DamagedTextError as error:
        raise DataError(f"{path} is not valid JSON ({error}); evaluate again") from error
    try:
        modality = find_modality(content.get("modality", DEPTH.name))  # older runs are of depth and do not state it
        protocol = modality.protocols[content["protocol"]]
        images = _images(content["images"], protocol.pooled)
        protocol = protocol.with_seams() if SEAM_ENERGY.name in images[0].metrics else protocol
        return Report(
            images=images,
            kinds={name: _kind_score(kind) for name, kind in content["kinds"].items()},
            protocol=protocol.name,
            scores=protocol.scores,
            pooled=protocol.pooled,
            modality=modality.name,
            given=dict(content.get("given", {})),
            over_places=content["mean_over"] == "places",
            expected=content["expected_images"],
            **{name: content[name] for name in ("benchmark", "settings", "provenance", "failed", "times")},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is not a summary of `openmarigold evaluate` ({one_line(error)}); evaluate again"
        ) from error


def _images(content: Any, pooled: Pooling | None) -> list[ImageScore]:
    fixed = {"name", "kind", "place", "input_sha256", "tally"}
    images = [
        ImageScore(
            name=image["name"],
            kind=image["kind"],
            place=image["place"],
            input_hash=image["input_sha256"],
            tally="" if pooled is None else checked_tally(image["tally"], pooled),
            metrics={key: _score(value) for key, value in image.items() if key not in fixed},
        )
        for image in content
    ]
    if not images or any(image.metrics.keys() != images[0].metrics.keys() for image in images):
        raise ValueError("images are missing, or they have different scores")
    if not all(isinstance(text, str) for image in images for text in (image.name, image.kind, image.place)):
        raise ValueError("an image whose name, kind or place is not a text")
    return images


def _kind_score(content: Any) -> KindScore:
    fixed = ("num_places", "num_images", "interval", "intervals_95")
    return KindScore(
        num_places=content["num_places"],
        num_images=content["num_images"],
        metrics={key: value for key, value in content.items() if key not in fixed},
        intervals={
            drawn: {metric: (low, high) for metric, (low, high) in intervals.items()}
            for drawn, intervals in content["intervals_95"].items()
        },
    )


def checked_tally(value: object, pooled: Pooling) -> str:
    """A tally from a file.

    Raises:
        ValueError: it is damaged, or not one of this pooling.
    """
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.80} is not a tally")
    decode_tally(value, pooled.size)
    return value


def is_score(value: object) -> bool:
    """Whether a value of a file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _score(value: Any) -> float:
    if not is_score(value):
        raise ValueError(f"{value!r:.80} is not a finite number")
    return float(value)


_PACKAGES = ("openmarigold", "numpy", "pillow", "onnxruntime", "torch", "diffusers")


def describe_machine() -> dict[str, Any]:
    """Versions of the packages that compute the numbers, and the machine."""
    versions = {"python": platform.python_version(), **{package: version_of(package) for package in _PACKAGES}}
    return {
        "versions": versions,
        "hardware": {"machine": platform.machine(), "processor": _processor(), "num_cpus": os.cpu_count()},
        "system": platform.system(),
    }


def version_of(package: str) -> str | None:
    """Version of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


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
