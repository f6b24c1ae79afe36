# SPDX-License-Identifier: Apache-2.0
"""Opens the clip that a user names: a video file, pictures in a folder, a pattern of their names, or `-` for a pipe."""

from __future__ import annotations

import sys
from pathlib import Path

from openmarigold.errors import ImageError, InvalidValueError
from openmarigold.files import files_sha256, remembered_sha256
from openmarigold.images.kinds import url_in
from openmarigold.images.pixels import parse_color
from openmarigold.video.clip import Clip, Note, Watch
from openmarigold.video.decoding import VideoClip
from openmarigold.video.sequences import PictureClip, find_pictures, is_pattern
from openmarigold.video.settings import VideoConfig

PIPE = Path("-")


def open_clip(
    source: Path, *, config: VideoConfig, background: str, note: Note, watch: Watch = lambda number: None
) -> Clip:
    """The clip at a path; `watch` is called with the number of frames read so far; what it raises ends them.

    Raises:
        ImageError: there is none, or it cannot be read.
        InvalidValueError: a background that is not a color, or settings of raw frames for a file.
        MissingExtraError: without PyAV, for all but pictures.
    """
    color = parse_color(background)
    if source == PIPE:
        if sys.stdin is None or sys.stdin.isatty():
            raise InvalidValueError("- reads a clip from a pipe, and nothing is piped in; give a file, or pipe one")
        return VideoClip(sys.stdin.buffer, name="the pipe", config=config, background=color, note=note, watch=watch)
    if config.raw_size is not None:
        raise InvalidValueError("raw_size is for raw frames from a pipe; give - as the clip, or leave it out")
    if source.is_dir() or is_pattern(source):
        pictures = find_pictures(source)
        return PictureClip(pictures, name=str(source), config=config, background=background, note=note, watch=watch)
    _check_file(source)
    return VideoClip(source, name=str(source), config=config, background=color, note=note, watch=watch)


def clip_sha256(source: Path) -> str | None:
    """SHA-256 of a clip's bytes, for pictures of their names and bytes; None for a pipe.

    Raises:
        ImageError: it cannot be read.
    """
    if source == PIPE:
        return None
    try:
        if source.is_dir() or is_pattern(source):
            return files_sha256(find_pictures(source))
        _check_file(source)
        return remembered_sha256(source)
    except OSError as error:
        raise ImageError(f"{source} cannot be read: {error.strerror}; check its permissions") from error


def stem_of(source: Path) -> str:
    """The beginning of the names of results."""
    if source == PIPE:
        return "pipe"
    if source.is_dir():
        return source.resolve().name or "frames"
    return source.parent.resolve().name or "frames" if is_pattern(source) else source.stem


def _check_file(path: Path) -> None:
    if (url := url_in(path)) and not path.exists():
        raise ImageError(f"{url} is a URL; download the clip first, and give the path of the file")
    if not path.exists():
        raise ImageError(f"{path} does not exist; check the name")
    if not path.is_file():
        raise ImageError(f"{path} is not a regular file; give a video file, a folder of pictures, or - for a pipe")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes); copy it again")
