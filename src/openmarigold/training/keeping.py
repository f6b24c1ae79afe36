# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a run: whether the last one is finished, and the best and the numbered ones next to it, whose
files are links where possible.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmarigold.files import atomic_directory, write_atomically
from openmarigold.text_files import DamagedTextError, parse_json, parse_json_lines

LAST_DIR, BEST_DIR, NUMBERED_DIR = "checkpoint", "checkpoint-best", "checkpoints"
FINISHED_FILE = "finished.json"
# Parts that may differ between the checkpoints of a run.
_TRAINED = ("unet", "vae", "image_encoder", "adapter", "README.md")


def keep_checkpoint(checkpoint: Path, kept: Path, *, trained_of: Path | None = None) -> None:
    """Make `kept` equal to `checkpoint`, except for trained networks and further files that `trained_of` gives.

    Checkpoints are replaced as whole folders and their files never change, so a link to a file is as good as a copy.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_directory(kept) as folder:
        for path in sorted(checkpoint.rglob("*")):
            place = path.relative_to(checkpoint)
            if path.is_dir():
                (folder / place).mkdir(exist_ok=True)
                continue
            origin = path
            if trained_of is not None and place.parts[0] in _TRAINED:
                own = trained_of / place  # earlier versions did not write every file, such as the card
                origin = own if own.is_file() and not filecmp.cmp(own, path, shallow=False) else path
            _link(origin, folder / place)
        if trained_of is not None:
            _link_further_files(trained_of, folder)


def _link_further_files(origin: Path, folder: Path) -> None:
    """Links the files that only `origin` has, which its owner added, such as a calibration."""
    for path in sorted(origin.rglob("*")):
        place = folder / path.relative_to(origin)
        if path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(path, place)


def _link(origin: Path, place: Path) -> None:
    try:
        os.link(origin, place)
    except OSError:  # another file system, or one without links
        shutil.copy2(origin, place)


def mark_finished(output_dir: Path, facts: Mapping[str, Any] | None) -> None:
    """Writes what the complete last checkpoint was made with (JSON-ready); None: it is incomplete.

    Raises:
        OutputError: it cannot be written.
    """
    path = output_dir / FINISHED_FILE
    if facts is None:
        path.unlink(missing_ok=True)
    else:
        text = json.dumps(facts, indent=2) + "\n"
        write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def is_finished(output_dir: Path, facts: Mapping[str, Any]) -> bool:
    """Whether the last checkpoint is there, complete, and was made with the same facts."""
    try:
        found, wanted = parse_json((output_dir / FINISHED_FILE).read_bytes()), parse_json(json.dumps(facts))
    except (OSError, DamagedTextError):
        return False
    last = output_dir / LAST_DIR
    return found == wanted and (last / "model_index.json").is_file() and any(last.glob("unet/*.safetensors"))


def kept_checkpoints(output_dir: Path) -> list[Path]:
    """The best and the numbered checkpoints of a run."""
    numbered = sorted((output_dir / NUMBERED_DIR).glob("step-*"))
    best = output_dir / BEST_DIR
    return [*numbered, *([best] if best.is_dir() else [])]


def best_step(log: Path, name: str, *, higher_is_better: bool, newest: Mapping[str, Any] | None = None) -> int | None:
    """The step with the best score `name` in `validation.jsonl` and in a `newest` line that is not in it yet.

    It is the first of equals; None if no line has one.
    """
    finite = _finite_scores(log, name, newest)
    if not finite:
        return None
    sign = -1.0 if higher_is_better else 1.0
    return min(finite, key=lambda step: (sign * finite[step], step))


def validations_since_best(log: Path, name: str, *, higher_is_better: bool) -> int:
    """How many validations in a row, up to the last one, were no better than the best one before them."""
    best = best_step(log, name, higher_is_better=higher_is_better)
    return 0 if best is None else sum(step > best for step in _finite_scores(log, name))


def scores_of(log: Path, step: int) -> dict[str, float]:
    """The scores of a step in `validation.jsonl`; empty where it was not validated."""
    for line in parse_json_lines(log.read_bytes()) if log.is_file() else ():
        if isinstance(line, dict) and line.get("step") == step:
            return {name: float(value) for name, value in line.items() if name != "step"}
    return {}


def _finite_scores(log: Path, name: str, newest: Mapping[str, Any] | None = None) -> dict[int, float]:
    """The score `name` of each step in `validation.jsonl`, and in a `newest` line."""
    scores: dict[int, float] = {}
    for line in [*(parse_json_lines(log.read_bytes()) if log.is_file() else ()), newest]:
        if isinstance(line, dict) and isinstance(line.get(name), (int, float)) and isinstance(line.get("step"), int):
            scores[line["step"]] = float(line[name])
    return {step: score for step, score in scores.items() if score == score}


def forget_checkpoints(output_dir: Path) -> None:
    """Remove the checkpoints that an earlier run kept."""
    mark_finished(output_dir, None)
    for path in (output_dir / BEST_DIR, output_dir / NUMBERED_DIR):
        shutil.rmtree(path, ignore_errors=True)
