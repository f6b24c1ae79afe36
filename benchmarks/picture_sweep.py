# SPDX-License-Identifier: Apache-2.0
"""Reads and predicts every file of folders of pictures, and counts what becomes of each.

    python benchmarks/picture_sweep.py --json sweep.json FOLDER...

A picture's size is compared with an independent decoder's: OpenImageIO (extra `formats`), or Pillow where that one does
not open the file. Both sizes are upright. Exit status 1 when anything but a clear refusal or a right size came out.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import sys
import traceback
import warnings
from pathlib import Path

from PIL import Image

from openmarigold import Predictor
from openmarigold.errors import ImageError
from openmarigold.images.photo import read_rgb
from openmarigold.printing import printable


def main() -> int:
    """Sweeps the folders of the command line, prints a table and the files behind its last two columns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, help="write what became of each file")
    arguments = parser.parse_args()
    predictor = Predictor.load()
    fates: dict[str, dict[str, str]] = {}
    print("| collection | files | predicted | of these with a note | refused in one line | traceback | other size |")
    print("|---|---|---|---|---|---|---|")
    for folder in arguments.folders:
        fate = {
            str(path.relative_to(folder)): fate_of(path, predictor)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }
        counts = collections.Counter(told.split(":")[0] for told in fate.values())
        fates[folder.name] = fate
        predicted = counts["predicted"] + counts["noted"]
        columns = [len(fate), predicted, counts["noted"], counts["refused"], counts["traceback"], counts["size"]]
        print(f"| {printable(folder.name)} | {' | '.join(map(str, columns))} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(fates, indent=1))
    bad = [(name, told) for fate in fates.values() for name, told in fate.items() if told.startswith(("trace", "size"))]
    for name, told in bad:
        print(printable(f"{name}: {told}"))
    return 1 if bad else 0


def fate_of(path: Path, predictor: Predictor) -> str:
    """What became of a file: predicted, noted, refused, size or traceback, and why."""
    notes: list[str] = []
    try:
        rgb = read_rgb(path, note=notes.append)
    except ImageError as error:
        told = str(error)
        one_line = "\n" not in told.replace(str(path), "") and str(path) in told
        return f"refused: {told.replace(str(path), '')}" if one_line else f"traceback: message {told!r}"
    except Exception:  # noqa: BLE001 - this is what is looked for
        return f"traceback: {traceback.format_exc()}"
    expected = independent_size(path)
    if expected is not None and rgb.shape[:2] not in expected:
        return f"size: {rgb.shape[:2]}, expected {expected}; {notes}"
    try:
        depth = predictor(rgb).depth
    except Exception:  # noqa: BLE001 - this is what is looked for
        return f"traceback: {traceback.format_exc()}"
    if depth.shape != rgb.shape[:2]:
        return f"size: depth {depth.shape} of a photo {rgb.shape[:2]}"
    return f"noted: {'; '.join(notes)}" if notes else "predicted"


def independent_size(path: Path) -> set[tuple[int, int]] | None:
    """Upright size (height, width) by another decoder; None where it does not open the file."""
    with contextlib.suppress(ImportError, UnicodeEncodeError):
        import OpenImageIO

        file = OpenImageIO.ImageInput.open(str(path))
        if file is not None:
            spec = file.spec()
            size = spec.full_height or spec.height, spec.full_width or spec.width
            turned = spec.get_int_attribute("Orientation", 1) >= 5
            return {
                size[::-1] if turned else size,
                ((spec.width, spec.height) if turned else (spec.height, spec.width)),
            }
        OpenImageIO.geterror()
    with contextlib.suppress(Exception), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
        return {(width, height) if turned else (height, width)}
    return None


if __name__ == "__main__":
    sys.exit(main())
