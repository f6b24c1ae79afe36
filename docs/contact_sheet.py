# SPDX-License-Identifier: Apache-2.0
"""Makes the README's picture from the results of `make demo`: each photo above its depth.

.venv/bin/python docs/contact_sheet.py examples/photos out docs/images/results.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from openmarigold.images.kinds import image_suffixes
from openmarigold.images.photo import read_rgb

HEIGHT, GAP = 190, 6


def contact_sheet(photos_dir: Path, results_dir: Path) -> Image.Image:
    """Photos in one row, their colored depth (near red, far violet) in the row below."""
    columns = []
    for path in sorted(photos_dir.iterdir()):
        if path.suffix.lower() not in image_suffixes():
            continue
        photo = Image.fromarray(read_rgb(path))
        depth = Image.open(results_dir / f"{path.stem}_depth_colored.png").convert("RGB")
        size = (round(photo.width * HEIGHT / photo.height), HEIGHT)
        columns.append([image.resize(size, Image.Resampling.LANCZOS) for image in (photo, depth)])
    width = sum(column[0].width + GAP for column in columns) - GAP
    sheet = Image.new("RGB", (width, 2 * HEIGHT + GAP), "white")
    left = 0
    for column in columns:
        for row, image in enumerate(column):
            sheet.paste(image, (left, row * (HEIGHT + GAP)))
        left += column[0].width + GAP
    return sheet


if __name__ == "__main__":
    photos, results, output = map(Path, sys.argv[1:4])
    contact_sheet(photos, results).save(output, quality=88)
