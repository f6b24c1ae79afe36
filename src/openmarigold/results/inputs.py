# SPDX-License-Identifier: Apache-2.0
"""Photos from a list of files and folders, the names of their results, and the output folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from openmarigold.errors import InvalidValueError, OutputError
from openmarigold.files import as_path, try_to_write
from openmarigold.images.kinds import RAW_SUFFIXES, image_suffixes, looks_like_picture, url_in
from openmarigold.results.provenance import is_result

_NAMED = 5  # files in one note


def listed(inputs: Any) -> list[Path]:
    """One path or several as a list.

    Raises:
        InvalidValueError: no input, or an empty path.
    """
    if not isinstance(inputs, Iterable) or isinstance(inputs, (str, bytes, os.PathLike)):
        inputs = [inputs]  # one path, or what `as_path` refuses
    paths = [as_path(path, "an input") for path in inputs]
    if not paths:
        raise InvalidValueError("no input given; name photos or folders of photos")
    return paths


def list_photos(
    inputs: Sequence[Path], output_dir: Path, left_out: list[Path], passed_over: list[Path]
) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """Photos in order, each once, by the result path without suffix; and rejected inputs, each with the reason.

    Two links to one file are two photos. Results of earlier predictions in folders are added to `left_out`, other
    pictures that are skipped to `passed_over`.
    """
    photos: dict[str, Path] = {}
    seen: set[str] = set()
    problems: list[tuple[Path, str]] = []
    for path in inputs:
        base, found = path.parent, [path]
        if os.path.isdir(path):
            before = len(problems), len(left_out)
            base, found = path, sorted(_photos_in(path, output_dir, problems, left_out, passed_over))
            if not found and len(problems) == before[0]:
                only = ", only results of earlier predictions" if len(left_out) > before[1] else ""
                accepted = ", ".join(sorted(image_suffixes()))
                problems.append((path, f"{path} holds no photo{only}; looked for are {accepted}"))
        for photo in found:
            if problem := _why_not_there(photo) or _why_without_results(photo):
                problems.append((photo, problem))
                continue
            location = photo_location(photo)
            if location in seen:
                continue
            result = (photo.relative_to(base).parent / photo.stem).as_posix()
            other = photos.get(result)
            if other is not None and os.path.realpath(other) != os.path.realpath(photo):
                problems.append((photo, f"{photo} has the same result names as {other}; rename one of them"))
                continue
            photos.setdefault(result, photo)  # of two links with one stem the results are the same
            seen.add(location)
    return photos, problems


def _why_without_results(photo: Path) -> str | None:
    """Why the results of a photo have no name; None where they have one."""
    if photo.stem.strip("."):
        return None
    return f"{photo}: its name has nothing before its suffix, so its results have no name; rename it"


def check_output_dir(output_dir: Path, inputs: Sequence[Path]) -> None:
    """Makes the folder and tries to write to it, so that a long run does not end without results."""
    real = os.path.realpath(output_dir)
    if any(os.path.isdir(path) and os.path.realpath(path) == real for path in inputs):
        raise InvalidValueError(
            f"output folder {output_dir} is also an input, so results would be read as photos; choose another"
        )
    make_output_dir(output_dir)


def make_output_dir(output_dir: Path) -> None:
    """Makes the folder and tries to write to it.

    Raises:
        OutputError: it cannot be made or written.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        try_to_write(output_dir)
    except OSError as error:
        is_dangling = output_dir.is_symlink() and not output_dir.exists()
        reason = "it is a link to what does not exist" if is_dangling else error.strerror
        raise OutputError(
            f"cannot write to output folder {output_dir}: {reason}; choose a folder that can be written"
        ) from error


def photo_location(photo: Path) -> str:
    """Where a photo lies: its folder without links, and its own name, which may be a link.

    It identifies the photo independently of the file's content.
    """
    return os.path.join(os.path.realpath(photo.parent), photo.name)


def _photos_in(
    folder: Path, output_dir: Path, problems: list[tuple[Path, str]], left_out: list[Path], passed_over: list[Path]
) -> Iterator[Path]:
    """Photos in a folder and its subfolders, except hidden folders, links to folders and the output folder.

    Cameras write a JPEG next to a raw photo: only the JPEG is used.
    """

    def unreadable(error: OSError) -> None:
        path = Path(error.filename)
        problems.append((path, f"{path} cannot be read: {error.strerror}; check its permissions"))

    output = os.path.realpath(output_dir)
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(parent) / name) != output
        )
        paths = [Path(parent) / name for name in sorted(files) if not name.startswith(".")]
        pictures = [path for path in paths if path.suffix.lower() in image_suffixes()]
        developed = {path.stem for path in pictures if path.suffix.lower() not in RAW_SUFFIXES}
        for path in paths:
            if path.suffix.lower() not in image_suffixes():
                if _is_file_that(looks_like_picture, path):
                    passed_over.append(path)
            elif path.suffix.lower() in RAW_SUFFIXES and path.stem in developed:
                passed_over.append(path)
            elif _is_file_that(is_result, path):
                left_out.append(path)
            else:
                yield path


def _is_file_that(looks: Callable[[Path], bool], path: Path) -> bool:
    """Whether a file passes the check. False if it cannot be read: reading it as a photo then reports why."""
    try:
        return path.is_file() and looks(path)
    except OSError:
        return False


def _why_not_there(path: Path) -> str | None:
    """Why a path cannot be read; None if it can be read."""
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            return f"{path} is a link to {os.readlink(path)}, which does not exist; fix or remove the link"
        if url := url_in(path):
            return f"{url} is a URL; download the picture first, and give the path of the file"
        return f"{path} does not exist; check the name"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return f"{path} is a link that leads back to itself; fix or remove the link"
        advice = "its name" if error.errno == errno.ENAMETOOLONG else "its name and the permissions of its folder"
        return f"{path} cannot be read: {error.strerror}; check {advice}"
    return None


def about_left_out(paths: Sequence[Path]) -> str:
    """The note about results in the given folders."""
    if len(paths) == 1:
        return f"{paths[0]} is the result of an earlier prediction and is left out; name the file to predict it"
    return (
        f"{len(paths)} pictures, such as {paths[0]}, are results of earlier predictions and are left out; name a file "
        "to predict it"
    )


def about_passed_over(paths: Sequence[Path]) -> str:
    """The note about files in the given folders that look like pictures and are skipped."""
    advice = "of kinds that are not looked for, or raw photos next to a picture of the same name; name a file to try it"
    if len(paths) == 1:
        return f"{paths[0]} looks like a picture and is passed over: {advice}"
    named = ", ".join(str(path) for path in paths[:_NAMED])
    more = f" and {len(paths) - _NAMED} more (with --json, all are listed)" if len(paths) > _NAMED else ""
    return f"{len(paths)} files look like pictures and are passed over: {named}{more}: {advice}"
