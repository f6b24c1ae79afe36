# SPDX-License-Identifier: Apache-2.0
"""Facts in a run's manifest besides its samples: times, and the assets that its pictures show."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openmarigold_render.assets import Assets, manifest_rows
from openmarigold_render.core import parse_json

TIMES_FILE = "seconds.jsonl"


def run_facts(assets: Path | None, output_dir: Path, num_shards: int) -> dict[str, Any]:
    """Seconds per picture, processor seconds per picture, authors of assets, and broken assets."""
    used: Counter[str] = Counter()
    broken: dict[str, str] = {}
    for number in range(num_shards):
        used.update(_assets_of_shard(output_dir / f"shard-{number:05d}.tar"))
        index = parse_json((output_dir / f"shard-{number:05d}.json").read_bytes())
        broken |= {row["name"]: row["detail"] for row in index["rejected"] if row["is_error"]}
    facts: dict[str, Any] = {
        **seconds_per_frame(output_dir),
        "assets_used": dict(sorted(used.items())),
        "broken_assets": dict(sorted(broken.items())),
    }
    if assets is not None and used:
        facts["attribution"] = manifest_rows(Assets(assets).attributions(used))
    return facts


def seconds_per_frame(output_dir: Path) -> dict[str, float | None]:
    """Mean time of a frame, and the processor's; None where no time is known."""
    rows = []
    if (output_dir / TIMES_FILE).exists():
        rows = [row for line in (output_dir / TIMES_FILE).read_text().splitlines() if (row := _times(line))]
    frames = sum(row["frames"] for row in rows)
    timed = [row for row in rows if "cpu_seconds" in row]  # rows of an earlier version have none
    timed_frames = sum(row["frames"] for row in timed)
    return {
        "seconds_per_frame": round(sum(row["seconds"] for row in rows) / frames, 3) if frames else None,
        "cpu_seconds_per_frame": (
            round(sum(row["cpu_seconds"] for row in timed) / timed_frames, 3) if timed_frames else None
        ),
    }


def _times(line: str) -> dict[str, Any] | None:
    """The times in a line of `TIMES_FILE`; None for an empty line and for one that a kill has cut."""
    try:
        return dict(parse_json(line))
    except (ValueError, TypeError):
        return None


def _assets_of_shard(path: Path) -> Iterator[str]:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.endswith(".json"):
                file = archive.extractfile(member)
                assert file is not None
                yield from parse_json(file.read()).get("assets", ())
