# SPDX-License-Identifier: Apache-2.0
"""Result files of one photo: maps as numbers and as pictures, and their uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from jaxtyping import UInt8

from openmarigold.camera import Camera
from openmarigold.config import OutputConfig
from openmarigold.errors import InvalidValueError, OutputError
from openmarigold.files import Leftovers, as_path, make_directory, write_atomically
from openmarigold.images.exr import require_exr, write_exr
from openmarigold.images.png import save_png
from openmarigold.modalities import DEPTH, Modality
from openmarigold.modalities.modality import Maps, Picture
from openmarigold.results.provenance import RECORD_NAME, to_json
from openmarigold.results.surfaces import SPACE_FORMATS, check_space_formats, space_writers

Writer: TypeAlias = Callable[[Path], object]


def result_paths(
    output_dir: Path,
    stem: str,
    *,
    uncertainty: bool,
    bounds: tuple[str, ...] = (),
    output: OutputConfig | None = None,
    modality: Modality = DEPTH,
    settings: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Paths that `write_prediction` writes, in its order; `uncertainty` = with uncertainty maps.

    `bounds` are the names of the maps of an interval.

    `settings` are those in the record: some pictures exist only with certain settings.

    >>> [path.name for path in result_paths(Path("out"), "cat", uncertainty=False)]
    ['cat_depth.npy', 'cat_depth.png', 'cat_depth_colored.png']
    """
    output = output or OutputConfig()
    maps = [kind.file_name for kind in modality.maps]
    numbers = "npy" in output.format
    formats = [name for name in ("npz", "exr", *SPACE_FORMATS) if name in output.format]
    pictures = [picture for picture in modality.pictures if picture.wanted(output) and picture.applies(settings or {})]
    suffixes = [f"_{name}.npy" for name in maps if numbers]
    suffixes += [one.suffix for one in pictures if not (one.of_uncertainty or one.of_interval)]
    suffixes += [f"_{name}.npy" for name in modality.uncertainties if uncertainty and numbers]
    suffixes += [picture.suffix for picture in pictures if picture.of_uncertainty and uncertainty]
    suffixes += [f"_{name}.npy" for name in bounds if numbers]
    suffixes += [picture.suffix for picture in pictures if picture.of_interval and bounds]
    suffixes += [f"_{modality.name}.{name}" for name in formats]
    return [output_dir / f"{stem}{suffix}" for suffix in suffixes]


def check_output(output: OutputConfig, modality: Modality = DEPTH) -> None:
    """Check before prediction that the requested files can be written here.

    Raises:
        InvalidValueError: no such color map, or points of a modality that shows no surface.
        MissingExtraError: a format or color map without its extra.
    """
    if "exr" in output.format:
        require_exr()
    check_space_formats(output, modality)
    modality.check_output(output)


def needs_photo(output: OutputConfig) -> bool:
    """Whether a requested file shows the photo's colors. If not, a run does not keep the photo."""
    return not set(SPACE_FORMATS).isdisjoint(output.format)


def write_prediction(
    maps: Maps,
    uncertainties: Maps | None = None,
    bounds: Maps | None = None,
    *,
    output_dir: Path | str,
    stem: str,
    output: OutputConfig | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    modality: Modality = DEPTH,
    camera: Camera | None = None,
    rgb: UInt8[np.ndarray, "h w 3"] | None = None,
) -> list[Path]:
    """Paths of the files written for one prediction; each appears whole or not at all.

    For each map `<stem>_<map>.npy`, float32; for each uncertainty and each bound of an interval the same;
    `<stem>_<modality>.npz` with all of them and `openmarigold`; `<stem>_<modality>.exr` with a channel each;
    `<stem>_<modality>.ply` and `.glb` with points or a mesh in the colors of `rgb`; and the pictures of the modality.
    For depth these are: `<stem>_depth.png`, depth × 65535, rounded, 16 bits; `<stem>_depth_colored.png`, in Spectral
    near = red; `<stem>_depth_inverted.png`, 16 bits, near = 65535; `<stem>_uncertainty.png`, grays;
    `<stem>_depth_lo.png` and `_hi.png`, 16 bits, whose provenance states the levels per unit. PNG, npz and EXR carry
    the provenance. The folder is made where it is missing. If one file may not be written, none is written.

    Raises:
        InvalidValueError: a stem that is empty or names another folder, a color map that is not known, or points and
            meshes of what shows none: another modality, a panorama, depth that is unknown everywhere.
        MissingExtraError: a format or color map without its extra.
        OutputError: a file exists and `overwrite` is off, or the folder cannot be written.
    """
    output_dir = as_path(output_dir, "output_dir")
    output = output or OutputConfig()
    shown: dict[str, Any] = {"output": output, "modality": modality}
    _check_stem(stem)
    check_output(output, modality)
    paths = result_paths(
        output_dir, stem, uncertainty=bool(uncertainties), bounds=tuple(bounds or ()), settings=provenance, **shown
    )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        existing = [path for path in paths if path.exists()]
    except OSError as error:
        raise OutputError(f"cannot write to {output_dir}: {error.strerror or error}; choose another folder") from error
    if existing and not overwrite:
        raise OutputError(f"{existing[0]} exists; allow overwriting or choose another folder")
    of_suffix = prediction_writers(maps, uncertainties, bounds, provenance=provenance, camera=camera, rgb=rgb, **shown)
    write_results(paths, stem, of_suffix)
    return paths


def prediction_writers(
    maps: Maps,
    uncertainties: Maps | None = None,
    bounds: Maps | None = None,
    *,
    output: OutputConfig,
    provenance: Mapping[str, Any] | None = None,
    modality: Modality = DEPTH,
    camera: Camera | None = None,
    rgb: UInt8[np.ndarray, "h w 3"] | None = None,
) -> dict[str, Writer]:
    """What writes each file of a prediction, by the end of its name; nothing is written yet.

    Points and meshes are made here, so what they refuse is known before a file is replaced.

    Raises:
        InvalidValueError: points or meshes of what shows none: another modality, a panorama, depth that is unknown
            everywhere.
    """
    record = {**provenance, **modality.output_facts(output)} if provenance else {}
    maps, uncertainties, bounds = (_as_float32(values or {}) for values in (maps, uncertainties, bounds))
    return {
        **_writers(maps, uncertainties, bounds, output, record, modality),
        **space_writers(maps, uncertainties, modality=modality, output=output, settings=record, camera=camera, rgb=rgb),
    }


def write_results(
    paths: Iterable[Path], stem: str, of_suffix: Mapping[str, Writer], leftovers: Leftovers | None = None
) -> None:
    """Writes files of one prediction, each whole or not at all; `leftovers` is for a run that writes many.

    Raises:
        OutputError: a file cannot be written.
    """
    leftovers = leftovers or Leftovers()
    for path in paths:
        make_directory(path.parent)
        leftovers.remove(path)
        write_atomically(path, of_suffix[path.name.removeprefix(stem)])


def _check_stem(stem: str) -> None:
    if not isinstance(stem, str) or not stem or "\0" in stem or Path(stem).name != stem:
        raise InvalidValueError(f"stem={stem!r} is not a plain file name; give it without a folder")


def _as_float32(maps: Maps) -> dict[str, np.ndarray]:
    return {name: values.astype(np.float32, copy=False) for name, values in maps.items()}


def _writers(
    maps: Maps,
    uncertainties: Maps,
    bounds: Maps,
    output: OutputConfig,
    provenance: Mapping[str, Any],
    modality: Modality,
) -> dict[str, Writer]:
    """The writer of each kind of file, by the end of its name. Pictures are made when they are written."""

    def png(picture: Picture) -> Writer:
        def save(file: BinaryIO) -> None:
            shown = bounds if picture.of_interval else uncertainties if picture.of_uncertainty else maps
            content = picture.content if isinstance(picture.content, str) else picture.content(shown)
            texts = {RECORD_NAME: to_json({**provenance, "content": content})} if provenance else {}
            pixels = picture.make(shown, output)
            save_png(file, pixels, texts)

        return with_open_file(save)

    def npy(values: np.ndarray) -> Writer:
        return with_open_file(lambda file: np.save(file, values))

    numbers = modality.exported(maps, output)
    others = {**uncertainties, **bounds}
    arrays = {**numbers, **others}
    record = to_json({**provenance, "content": f"{' and '.join(arrays)}, float32"}) if provenance else None
    entries = arrays if record is None else {**arrays, RECORD_NAME: np.array(record)}
    header = {} if record is None else {RECORD_NAME: record}
    return {
        **{f"_{kind.file_name}.npy": npy(numbers[kind.name]) for kind in modality.maps},
        **{f"_{name}.npy": npy(values) for name, values in others.items()},
        **{picture.suffix: png(picture) for picture in modality.pictures},
        f"_{modality.name}.npz": with_open_file(lambda file: np.savez(file, **entries)),  # pyright: ignore
        f"_{modality.name}.exr": lambda path: write_exr(path, _exr_channels(numbers, others, modality), header),
    }


def _exr_channels(maps: Maps, others: Maps, modality: Modality) -> dict[str, np.ndarray]:
    channels: dict[str, np.ndarray] = {}
    for kind in modality.maps:
        values = maps[kind.name]
        planes = [values] if values.ndim == 2 else list(np.moveaxis(values, -1, 0))
        channels |= dict(zip(kind.exr_channels, planes, strict=True))
    return {**channels, **others}


def with_open_file(writer: Callable[[BinaryIO], object]) -> Writer:
    """A writer of paths from a writer of open files: NumPy and Pillow choose suffixes and formats by a path's name."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            writer(file)

    return write
