# SPDX-License-Identifier: Apache-2.0
"""What an evaluation of clips found: scores of each clip, means with intervals over clips; as JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.evaluation.clip_scores import finite_only
from openmarigold.evaluation.report import ImageScore
from openmarigold.evaluation.statistics import ALL_KINDS, Difference, paired_differences, summarize
from openmarigold.files import write_atomically
from openmarigold.modalities.protocol import Score

REPORT_NAME = "report.json"
TABLE_NAME = "report.md"
FORMAT, VERSION = "openmarigold video evaluation", 1


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """Scores of one clip by one estimator."""

    name: str
    kind: str
    """Layout."""
    num_frames: int
    metrics: Mapping[str, float]
    """By the keys of `clip_scores.scores_of`; NaN where nothing could be compared."""
    input_hash: str
    seconds: float
    """Time that the predictions took, including reading the photos."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, NaN as null."""
        return {
            "name": self.name,
            "kind": self.kind,
            "num_frames": self.num_frames,
            "input_sha256": self.input_hash,
            "seconds": self.seconds,
            "metrics": finite_only(self.metrics),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ClipScore:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError for what is damaged."""
        metrics = {name: float("nan" if value is None else value) for name, value in content["metrics"].items()}
        return cls(
            name=str(content["name"]),
            kind=str(content["kind"]),
            num_frames=int(content["num_frames"]),
            input_hash=str(content["input_sha256"]),
            seconds=float(content["seconds"]),
            metrics=metrics,
        )


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of a score over the clips that have it."""

    value: float
    num_clips: int
    interval: tuple[float, float] | None
    """95 %, over clips; None of a single one."""


@dataclass(frozen=True, kw_only=True)
class VideoReport:
    """Scores of estimators on the same clips.

    Attributes:
        clips: scores of each clip, by the estimator's mode.
        scores: what each metric is, by its key.
        settings: of each estimator, by its mode.
        facts: of each clip, by its name.
        provenance: versions, hardware.
        failed: clips without scores, with the reason.
    """

    clips: Mapping[str, Sequence[ClipScore]]
    scores: Mapping[str, Score]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    def means(self, mode: str) -> dict[str, Mean]:
        """Means of an estimator's scores, by metric."""
        return {name: _mean(self.clips[mode], name) for name in self.scores}

    def comparison(self) -> dict[str, dict[str, Any]]:
        """The first estimator against the second, by metric, on the clips where both have it; none for a single one."""
        if len(self.clips) < 2:
            return {}
        first, second = list(self.clips.values())[:2]
        found = {}
        for name in self.scores:
            pairs = [
                (a, b)
                for a, b in zip(first, second, strict=True)
                if np.isfinite(a.metrics[name]) and np.isfinite(b.metrics[name])
            ]
            if not pairs:
                continue
            ours, other = ([_scored(pair[place], name) for pair in pairs] for place in (0, 1))
            change: Difference = paired_differences(other, ours, over_places=False)[name]
            found[name] = {
                "ratio": change.b / change.a if change.a else None,
                "difference": change.difference,
                "interval_95": list(change.intervals["images"]) if len(pairs) > 1 else None,
                "num_clips": len(pairs),
            }
        return found

    def frames_per_second(self, mode: str) -> float:
        """Frames in a second of prediction, over all clips."""
        seconds = sum(clip.seconds for clip in self.clips[mode])
        return sum(clip.num_frames for clip in self.clips[mode]) / seconds if seconds > 0 else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ratios and meters, null where nothing could be compared."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "estimators": {
                mode: {
                    **self.settings.get(mode, {}),
                    "frames_per_s": finite_only({"": self.frames_per_second(mode)})[""],
                    "all": {
                        name: {
                            **finite_only({"mean": mean.value}),
                            "interval_95": None if mean.interval is None else list(mean.interval),
                            "num_clips": mean.num_clips,
                        }
                        for name, mean in self.means(mode).items()
                    },
                    "clips": [clip.to_dict() for clip in clips],
                }
                for mode, clips in self.clips.items()
            },
            "comparison": self.comparison(),
            "clips": {name: dict(facts) for name, facts in self.facts.items()},
            "provenance": dict(self.provenance),
            "failed": dict(self.failed),
        }

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Heading and rows of the table: a score in each row, an estimator in each column, then their ratio."""
        means, comparison = {mode: self.means(mode) for mode in self.clips}, self.comparison()
        heading = ["score", *self.clips, *(["ratio"] if comparison else [])]
        rows = []
        for name, score in self.scores.items():
            aligned = name.partition("/")[0] if "/" in name else ""
            label = score.heading + (f", fit per {aligned}" if aligned else "")
            label = label.replace("per first", "to the first frame")
            row = [label, *(_text(score, means[mode][name]) for mode in self.clips)]
            if comparison:
                ratio = comparison.get(name, {}).get("ratio")
                row.append("–" if ratio is None else f"{ratio:.3g}")
            rows.append(row)
        speed = ["frames a second", *(f"{self.frames_per_second(mode):.2f}" for mode in self.clips)]
        rows.append([*speed, *([""] if comparison else [])])
        return heading, rows

    def markdown(self) -> str:
        """The report as Markdown: the table, the settings, and the failed clips."""
        heading, rows = self.rows()
        protocol = ", ".join(dict.fromkeys(str(facts.get("protocol")) for facts in self.settings.values()))
        names = ", ".join(dict.fromkeys(str(facts.get("estimator")) for facts in self.settings.values()))
        counts = [clip.num_frames for clip in next(iter(self.clips.values()))]
        lines = [
            f"{names}, {len(counts)} clips, {sum(counts)} frames, protocol {protocol}. Means over clips, in brackets "
            "the 95 % interval.",
            "",
            *(f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows)),
        ]
        lines += [f"\n{name} failed: {reason}" for name, reason in self.failed.items()]
        return "\n".join(lines) + "\n"


def write_video_report(report: VideoReport, folder: Path) -> list[Path]:
    """Paths of `report.json` and `report.md`, written atomically.

    Raises:
        OutputError: they cannot be written.
    """
    texts = {
        folder / REPORT_NAME: json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n",
        folder / TABLE_NAME: report.markdown(),
    }
    for path, text in texts.items():
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
    return list(texts)


def _scored(clip: ClipScore, name: str) -> ImageScore:
    return ImageScore(name=clip.name, kind=clip.kind, place=clip.name, metrics={name: clip.metrics[name]})


def _mean(clips: Sequence[ClipScore], name: str) -> Mean:
    known = [_scored(clip, name) for clip in clips if np.isfinite(clip.metrics[name])]
    if not known:
        return Mean(value=float("nan"), num_clips=0, interval=None)
    kind = summarize(known, over_places=False)[ALL_KINDS]
    interval = kind.intervals["images"][name] if len(known) > 1 else None
    return Mean(value=kind.metrics[name], num_clips=len(known), interval=interval)


def _text(score: Score, mean: Mean) -> str:
    if not mean.num_clips:
        return "–"
    text = score.text(mean.value)
    return text if mean.interval is None else f"{text} ({'–'.join(map(score.text, mean.interval))})"
