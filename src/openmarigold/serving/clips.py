# SPDX-License-Identifier: Apache-2.0
"""Clips of jobs: the settings of a request, and the results, which the code of `openmarigold video` makes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, create_model

from openmarigold.config import CallConfig
from openmarigold.errors import ImageError, InvalidValueError, needs_extra
from openmarigold.images.decoders import TooManyPixelsError
from openmarigold.serving.requests import check_limits, check_resolved, offered, part, validated
from openmarigold.serving.service import Service
from openmarigold.serving.settings import ServeConfig
from openmarigold.temporal.settings import StreamConfig
from openmarigold.text_files import parse_json
from openmarigold.video.model import LoadedModel, VideoEvent
from openmarigold.video.run import make_video, output_config
from openmarigold.video.settings import Product, VideoConfig

_STEM = "clip"
_OF_PIPES = ("input_rate", "raw_size", "raw_format", "pipe", "segment")
_MOST_AHEAD = 16  # frames that are held at full size
_DECODED_FOR_ONE = 20  # decoded frames for each one that may be predicted; decoding takes a hundredth of the time
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")

_CALL, _VIDEO, _STREAM = offered(CallConfig), offered(VideoConfig, without=_OF_PIPES), offered(StreamConfig)

ClipSettings: type[BaseModel] = create_model(
    "ClipSettings",
    __config__=ConfigDict(extra="forbid"),
    __doc__="The settings of `openmarigold video` that a request may give, by the same names.",
    modality=(str | None, None),
    **_CALL,
    **_VIDEO,
    **_STREAM,
)


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """A clip and what is to be made of it."""

    content: bytes
    """The bytes of its file."""
    suffix: str
    modality: str | None
    call: Mapping[str, Any]
    stream: StreamConfig
    video: VideoConfig


def make_clip_request(content: bytes, name: str, given: Mapping[str, Any], limits: ServeConfig) -> ClipRequest:
    """A request of one clip, whose file is called `name`.

    Raises:
        ImageError: no video file of a kind that is taken.
        InvalidValueError: a setting that is not accepted, or more than the server offers.
        MissingExtraError: without the extra `video`.
    """
    with needs_extra("video"):
        import av  # noqa: F401
        import cv2  # noqa: F401
    if not _is_video(content):
        raise ImageError(
            "the clip is not a video file of a kind that is taken; send MP4, MOV, Matroska, WebM, AVI, MPEG, Ogg or FLV"
        )
    given = dict(given)
    formats = given.pop("format", None)
    stated = validated(ClipSettings, given)
    call, video = part(stated, _CALL), part(stated, _VIDEO)
    check_limits(CallConfig(**call), limits)
    if formats is not None and formats != "":
        words = formats.split(",") if isinstance(formats, str) else []
        if not words or not set(words) <= set(get_args(Product)):
            raise InvalidValueError(
                f"format={formats!r:.80} is not known; give one or more of {', '.join(get_args(Product))}"
            )
        video["format"] = tuple(dict.fromkeys(words))
    stream = StreamConfig(**part(stated, _STREAM))
    if stream.look_ahead > _MOST_AHEAD:
        raise InvalidValueError(f"look_ahead={stream.look_ahead} is more than this server takes; give {_MOST_AHEAD}")
    suffix = PurePosixPath(name).suffix.lower()
    return ClipRequest(
        content=content,
        suffix=suffix if _SUFFIX.fullmatch(suffix) else "",
        modality=stated.get("modality"),
        call=call,
        stream=stream,
        video=VideoConfig(**video),
    )


@dataclass(frozen=True, kw_only=True)
class ClipAnswer:
    """The results of a clip."""

    files: list[tuple[str, Path]]
    """Each with what follows the clip's name in its own."""
    problem: str | None
    """Why the clip ended before its end."""
    notes: list[str]
    """Warnings about the clip."""


def predict_clip(
    request: ClipRequest,
    service: Service,
    folder: Path,
    name: str,
    *,
    report: Callable[[int, int | None], object],
    check: Callable[[], object],
) -> ClipAnswer:
    """Predicts a clip into files in `folder`.

    Args:
        request: the clip and its settings.
        service: its models and bounds.
        folder: of this clip alone.
        name: what the results are to begin with.
        report: called with the frames that are done, and how many there are; it may raise to end.
        check: called after each decoded frame, in another thread; it may raise to end.

    Raises:
        OpenMarigoldError: what `video_file` raises.
    """
    source, target = folder / f"{_STEM}{request.suffix}", folder / "out"
    source.write_bytes(request.content)
    limits = service.limits
    _check_size(source, limits)
    base = service.model(request.modality)
    config = replace(base.config, **request.call)
    run = base.sibling(config, output_config(request.video), target)
    check_resolved(request.call, run.request, limits)
    model = LoadedModel(config, request.stream, output_config(request.video), target, run=run)

    def told(event: VideoEvent) -> None:
        if event.note is None:
            if event.done > limits.max_frames:
                raise InvalidValueError(f"the clip has more than {limits.max_frames} frames; give end, every or fps")
            report(event.done, event.total)

    def watch(decoded: int) -> None:
        check()
        if decoded > (most := _DECODED_FOR_ONE * limits.max_frames):
            raise InvalidValueError(f"more than {most} frames of the clip must be decoded; give end, or cut it")

    shared: dict[str, Any] = {"background": config.background, "report": told, "watch": watch}
    try:
        result = make_video(source, target, model=model, video=request.video, **shared)
    except ImageError as error:
        raise type(error)(str(error).replace(str(source), "the clip")) from error
    _rename(target / f"{_STEM}_{model.modality.name}.json", source, PurePosixPath(name).name)
    files = [path for path in sorted(target.rglob("*")) if path.is_file()]
    return ClipAnswer(
        files=[(path.relative_to(target).as_posix().removeprefix(_STEM), path) for path in files],
        problem=None if result.problem is None else result.problem.replace(str(source), "the clip"),
        notes=[note.replace(str(source), "the clip") for note in result.notes],
    )


def _rename(record: Path, source: Path, name: str) -> None:
    """Takes the places of temporary files out of a record, and gives the results the names that they get."""
    found = parse_json(record.read_bytes())
    found["input"] = "the clip"
    found.pop("input_path", None)
    found["outputs"] = {name + output.removeprefix(_STEM): size for output, size in found["outputs"].items()}
    if found.get("problem"):
        found["problem"] = found["problem"].replace(str(source), "the clip")
    record.write_text(json.dumps(found, indent=2) + "\n", encoding="ascii")


def _check_size(source: Path, limits: ServeConfig) -> None:
    import av

    try:
        with av.open(str(source)) as container:
            sizes = [stream.codec_context.width * stream.codec_context.height for stream in container.streams.video]
    except (OSError, ValueError):  # of which PyAV's errors are kinds
        return  # reading the whole file reports the problem
    if max(sizes, default=0) > limits.max_pixels:
        raise TooManyPixelsError(
            f"the clip's frames have more than {limits.max_pixels / 1e6:.1f} megapixels; make it smaller"
        )


def _is_video(content: bytes) -> bool:
    """Whether a file is a container of a kind that names no other files: playlists could make FFmpeg open any."""
    return (
        content[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
        or content.startswith((b"\x1aE\xdf\xa3", b"OggS", b"FLV\x01", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3"))
        or (content[:4] == b"RIFF" and content[8:12] == b"AVI ")
        or (content[:1] == b"G" and content[188:189] == b"G" and content[376:377] == b"G")
    )
