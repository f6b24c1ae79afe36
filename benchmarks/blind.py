# SPDX-License-Identifier: Apache-2.0
"""Sheets for a blind comparison of two folders of predictions: photo and two maps a row, in an order by chance.

    openmarigold predict PHOTOS --output-dir first
    openmarigold predict PHOTOS --output-dir second --checkpoint OTHER
    python benchmarks/blind.py sheets PHOTOS first second SHEETS     # SHEETS/sheet-01.png ..., SHEETS/key.json
    python benchmarks/blind.py count SHEETS/key.json A B B tie ...   # one word a row

Whoever judges sees the sheets alone.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw

from openmarigold.text_files import parse_json

WIDTH, HEIGHT, ROWS = 480, 350, 4


def _photos_of(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in {".jpg", ".jpeg", ".png"}}


def _make_sheets(photos: Path, first: Path, second: Path, sheets: Path, seed: int) -> None:
    chance = random.Random(seed)
    found = _photos_of(photos)
    sheets.mkdir(parents=True, exist_ok=True)
    key: dict[str, list[str]] = {}
    names = list(found)
    for start in range(0, len(names), ROWS):
        sheet = Image.new("RGB", (3 * (WIDTH + 10), ROWS * (HEIGHT + 30)), "white")
        draw = ImageDraw.Draw(sheet)
        for row, name in enumerate(names[start : start + ROWS]):
            order = [first, second]
            chance.shuffle(order)
            number = start + row + 1
            key[str(number)] = [str(folder) for folder in order]
            pictures = [found[name], *(folder / f"{name}_depth_colored.png" for folder in order)]
            for column, (path, title) in enumerate(zip(pictures, ("photo", "A", "B"), strict=True)):
                with Image.open(path) as opened:
                    picture = opened.convert("RGB")
                picture.thumbnail((WIDTH, HEIGHT))
                corner = column * (WIDTH + 10), row * (HEIGHT + 30)
                draw.text((corner[0] + 5, corner[1] + 5), f"{number} {title}", fill="black")
                sheet.paste(picture, (corner[0], corner[1] + 22))
        sheet.save(sheets / f"sheet-{start // ROWS + 1:02d}.png")
    (sheets / "key.json").write_text(json.dumps(key, indent=1), encoding="utf-8")


def _count(key: Path, answers: list[str]) -> None:
    orders = parse_json(key.read_text(encoding="utf-8"))
    if len(answers) != len(orders) or not set(answers) <= {"A", "B", "tie"}:
        raise SystemExit(f"{len(answers)} answers given, {len(orders)} rows; give A, B or tie for each row")
    votes = Counter(
        "tie" if answer == "tie" else orders[str(number)]["AB".index(answer)]
        for number, answer in enumerate(answers, start=1)
    )
    for name, number in votes.most_common():
        print(f"{name}: {number} of {len(answers)}")


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sheets = commands.add_parser("sheets")
    for name in ("photos", "first", "second", "sheets"):
        sheets.add_argument(name, type=Path)
    sheets.add_argument("--seed", type=int, default=7)
    counting = commands.add_parser("count")
    counting.add_argument("key", type=Path)
    counting.add_argument("answers", nargs="+")
    given = parser.parse_args()
    if given.command == "sheets":
        _make_sheets(given.photos, given.first, given.second, given.sheets, given.seed)
    else:
        _count(given.key, given.answers)


if __name__ == "__main__":
    _main()
