# SPDX-License-Identifier: Apache-2.0
"""Result files of one photo: depth as numbers (.npy), as 16-bit greys, in colours, and its uncertainty."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, UInt16
from PIL import Image

from openmarigold.depth import colourise
from openmarigold.errors import InvalidValueError, OutputError
from openmarigold.files import write_atomically


def result_paths(output_dir: Path, stem: str, *, uncertainty: bool) -> list[Path]:
    """Paths that `write_prediction` writes, in its order; `uncertainty` adds the fourth.

    >>> [path.name for path in result_paths(Path("out"), "cat", uncertainty=False)]
    ['cat_depth.npy', 'cat_depth.png', 'cat_depth_colored.png']
    """
    suffixes = ["_depth.npy", "_depth.png", "_depth_colored.png"] + ["_uncertainty.npy"] * uncertainty
    return [output_dir / f"{stem}{suffix}" for suffix in suffixes]


def write_prediction(
    depth: Float[np.ndarray, "h w"],
    uncertainty: Float[np.ndarray, "h w"] | None = None,
    *,
    output_dir: Path,
    stem: str,
    overwrite: bool = False,
) -> list[Path]:
    """Paths of the files written for one prediction; each appears whole or not at all.

    `<stem>_depth.npy` float32, affine depth in [0, 1]; `<stem>_depth.png` the same × 65535, rounded, 16 bits;
    `<stem>_depth_colored.png` Spectral colours, near = red; `<stem>_uncertainty.npy` float32, where there is one.
    The folder is made where it is missing. Nothing is written unless everything may be.

    Raises:
        InvalidValueError: a stem that is empty or names another folder.
        OutputError: a file exists and `overwrite` is off, or the folder cannot be written.
    """
    if not stem or Path(stem).name != stem:
        raise InvalidValueError(f"stem={stem!r} is not a plain file name; give it without a folder")
    paths = result_paths(output_dir, stem, uncertainty=uncertainty is not None)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        existing = [path for path in paths if path.exists()]
    except OSError as error:
        raise OutputError(f"cannot write to {output_dir}: {error.strerror or error}; choose another folder") from error
    if existing and not overwrite:
        raise OutputError(f"{existing[0]} exists; allow overwriting or choose another folder")
    writers: list[Callable[[BinaryIO], object]] = [
        lambda file: np.save(file, depth.astype(np.float32)),
        lambda file: Image.fromarray(to_uint16(depth)).save(file, format="PNG"),
        lambda file: Image.fromarray(colourise(depth)).save(file, format="PNG"),
    ]
    if uncertainty is not None:
        writers.append(lambda file: np.save(file, uncertainty.astype(np.float32)))
    for path, writer in zip(paths, writers, strict=True):
        write_atomically(path, _with_open_file(writer))
    return paths


def to_uint16(affine_depth: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Affine depth [0, 1] as 16-bit greys, rounded to the nearest level (truncation would shift by half a level)."""
    return np.rint(np.clip(affine_depth, 0.0, 1.0) * np.float64(65535.0)).astype(np.uint16)


def _with_open_file(writer: Callable[[BinaryIO], object]) -> Callable[[Path], None]:
    """A writer of paths from a writer of open files: NumPy and Pillow choose suffixes and formats by a path's name."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            writer(file)

    return write
