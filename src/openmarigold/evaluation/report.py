# SPDX-License-Identifier: Apache-2.0
"""What a run found: scores per image and per kind of place, with what is needed to repeat it; as JSON and CSV."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openmarigold.errors import DataError, one_line
from openmarigold.evaluation.interval_scores import summary_of
from openmarigold.evaluation.statistics import KindScore
from openmarigold.evaluation.tallies import decode_tally
from openmarigold.files import as_path, write_atomically
from openmarigold.modalities import DEPTH, find_modality
from openmarigold.modalities.protocol import PIXELS_SCORED, SEAM_ENERGY, Pooling, Score
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
    """What it adds to pooled scores, as `encode_tally` writes it."""


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
        """Images with something wrong that their other scores hide, by the name of the score that tells it."""
        flags = [score.name for score in self.scores if score.flag]
        return {name: sum(image.metrics.get(name, 0.0) > 0 for image in self.images) for name in flags}

    @property
    def share_scored(self) -> float:
        """Mean share of an image's valid pixels that were scored, [0, 1]; of a failed image none were."""
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
