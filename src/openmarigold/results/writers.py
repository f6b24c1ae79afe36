# SPDX-License-Identifier: Apache-2.0
"""Result files of one photo: depth as numbers, as 16-bit grays and in colors, and its uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from openmarigold.config import OutputConfig
from openmarigold.errors import InvalidValueError, OutputError
from openmarigold.files import as_path, remove_leftovers, write_atomically
from openmarigold.images.exr import require_exr, write_exr
from openmarigold.modalities.colors import color_table, colorize, uncertainty_picture
from openmarigold.modalities.depth import to_uint16
from openmarigold.results.provenance import RECORD_NAME, to_json

_PNG_COMPRESSION = (
    1  # a quarter of the time of Pillow's 6, for a sixth more bytes; writing must keep up with predicting
)

_Writer: TypeAlias = Callable[[Path], object]


def result_paths(output_dir: Path, stem: str, *, uncertainty: bool, output: OutputConfig | None = None) -> list[Path]:
    """Paths that `write_prediction` writes, in its order; `uncertainty` says whether there is one.

    >>> [path.name for path in result_paths(Path("out"), "cat", uncertainty=False)]
    ['cat_depth.npy', 'cat_depth.png', 'cat_depth_colored.png']
    """
    output = output or OutputConfig()
    wanted = {
        "_depth.npy": "npy" in output.format,
        "_depth.png": "png" in output.format,
        "_depth_colored.png": "png" in output.format,
        "_depth_inverted.png": output.inverted,
        "_uncertainty.npy": uncertainty and "npy" in output.format,
        "_uncertainty.png": uncertainty and output.uncertainty_picture,
        "_depth.npz": "npz" in output.format,
        "_depth.exr": "exr" in output.format,
    }
    return [output_dir / f"{stem}{suffix}" for suffix, is_wanted in wanted.items() if is_wanted]


def check_output(output: OutputConfig) -> None:
    """Checks that everything which the settings ask for can be written here, before anything is predicted.

    Raises:
        InvalidValueError: no such color map.
        MissingExtraError: a format or color map without its extra.
    """
    if "exr" in output.format:
        require_exr()
    if "png" in output.format:
        color_table(output.color_map)


def write_prediction(
    depth: Float[np.ndarray, "h w"],
    uncertainty: Float[np.ndarray, "h w"] | None = None,
    *,
    output_dir: Path | str,
    stem: str,
    output: OutputConfig | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Paths of the files written for one prediction; each appears whole or not at all.

    `<stem>_depth.npy` float32, affine depth in [0, 1]; `<stem>_depth.png` the same × 65535, rounded, 16 bits;
    `<stem>_depth_colored.png` colors, in Spectral near = red; `<stem>_uncertainty.npy` float32, where there is one;
    `<stem>_depth.npz` with `depth`, `uncertainty` and `openmarigold`; `<stem>_depth.exr` with the channels Y (depth)
    and uncertainty; `<stem>_depth_inverted.png` 16 bits, near = 65535; `<stem>_uncertainty.png` grays. PNG, npz and EXR
    carry the provenance. The folder is made where it is missing. Nothing is written unless everything may be.

    Raises:
        InvalidValueError: a stem that is empty or names another folder, or a color map that is not known.
        MissingExtraError: a format or color map without its extra.
        OutputError: a file exists and `overwrite` is off, or the folder cannot be written.
    """
    output_dir = as_path(output_dir, "output_dir")
    if not stem or Path(stem).name != stem:
        raise InvalidValueError(f"stem={stem!r} is not a plain file name; give it without a folder")
    output = output or OutputConfig()
    check_output(output)
    paths = result_paths(output_dir, stem, uncertainty=uncertainty is not None, output=output)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        existing = [path for path in paths if path.exists()]
    except OSError as error:
        raise OutputError(f"cannot write to {output_dir}: {error.strerror or error}; choose another folder") from error
    if existing and not overwrite:
        raise OutputError(f"{existing[0]} exists; allow overwriting or choose another folder")
    depth = depth.astype(np.float32, copy=False)
    uncertainty = None if uncertainty is None else uncertainty.astype(np.float32, copy=False)
    writers = _writers(depth, uncertainty, output, provenance or {})
    for path in paths:
        remove_leftovers(path)
        write_atomically(path, writers[path.name.removeprefix(stem)])
    return paths


def _writers(
    depth: Float[np.ndarray, "h w"],
    uncertainty: Float[np.ndarray, "h w"] | None,
    output: OutputConfig,
    provenance: Mapping[str, Any],
) -> dict[str, _Writer]:
    """What writes each kind of file, by the end of its name. Pictures are made only when they are written."""

    def png(picture: Callable[[], np.ndarray], content: str) -> _Writer:
        def save(file: BinaryIO) -> None:
            info = PngInfo()
            if provenance:
                info.add_text(RECORD_NAME, to_json({**provenance, "content": content}))
            Image.fromarray(picture()).save(file, format="PNG", pnginfo=info, compress_level=_PNG_COMPRESSION)

        return _with_open_file(save)

    arrays = {"depth": depth} if uncertainty is None else {"depth": depth, "uncertainty": uncertainty}
    record = to_json({**provenance, "content": f"{' and '.join(arrays)}, float32"}) if provenance else None
    entries = arrays if record is None else {**arrays, RECORD_NAME: np.array(record)}
    channels = {"Y" if name == "depth" else name: values for name, values in arrays.items()}
    spread = depth if uncertainty is None else uncertainty
    return {
        "_depth.npy": _with_open_file(lambda file: np.save(file, depth)),
        "_depth.png": png(lambda: to_uint16(depth), "depth x 65535, near 0"),
        "_depth_colored.png": png(lambda: colorize(depth, color_map=output.color_map), "depth in colors"),
        "_depth_inverted.png": png(lambda: np.uint16(65535) - to_uint16(depth), "(1 - depth) x 65535, near 65535"),
        "_uncertainty.npy": _with_open_file(lambda file: np.save(file, spread)),
        "_uncertainty.png": png(lambda: uncertainty_picture(spread), "uncertainty, white where it is largest"),
        "_depth.npz": _with_open_file(lambda file: np.savez(file, **entries)),  # pyright: ignore[reportArgumentType]
        "_depth.exr": lambda path: write_exr(path, channels, {} if record is None else {RECORD_NAME: record}),
    }


def _with_open_file(writer: Callable[[BinaryIO], object]) -> _Writer:
    """A writer of paths from a writer of open files: NumPy and Pillow choose suffixes and formats by a path's name."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            writer(file)

    return write
