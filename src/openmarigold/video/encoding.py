# SPDX-License-Identifier: Apache-2.0
"""Encodes frames into files of segments, and joins segments to a video without encoding again.

A segment needs no other segment: its first frame is a key frame, and no frame refers to a later one, so segments of any
run can be joined. Every encoder has one thread, so that the same frames give the same bytes.
"""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from openmarigold.errors import InvalidValueError, OutputError, one_line
from openmarigold.video.decoding import pictures_in, require_av
from openmarigold.video.pictures import SCALER
from openmarigold.video.products import Track, to_even
from openmarigold.video.time_stamps import FEW_FRAMES, nearest_shift, shifts_of, step_of, with_next

_SEGMENT_FORMAT = "nut"  # keeps every timestamp
_FULL, _LIMITED, _BT709 = 2, 1, 1
_GLOBAL_HEADER = 1 << 22
COPIED_SOUND = frozenset({"aac", "mp3", "mp3float", "ac3", "eac3", "opus", "libopus", "flac", "alac"})
"""Sound codecs that are copied into MP4 unchanged."""


def check_encoders(tracks: Sequence[Track]) -> None:
    """Checks that this FFmpeg has the encoders.

    Raises:
        InvalidValueError: it lacks one.
        MissingExtraError: without PyAV.
    """
    if not tracks:
        return
    av = require_av()
    for track in tracks:
        try:
            av.Codec(track.codec, "w")
        except (av.error.FFmpegError, ValueError) as error:
            raise InvalidValueError(
                f"format {track.product} needs the encoder {track.codec}, which the FFmpeg of PyAV {av.__version__} "
                "lacks; choose ffv1, npy or png, or install PyAV's wheels"
            ) from error


class TrackEncoder:
    """Encodes frames of one track into a file, or an open one."""

    def __init__(
        self,
        track: Track,
        target: Path | Any,
        *,
        time_base: Fraction,
        rate: Fraction,
        crf: int,
        pixel_aspect: Fraction,
        container: str = _SEGMENT_FORMAT,
        comment: str | None = None,
    ) -> None:
        self._av = require_av()
        self._track, self._target = track, target
        self._settings: dict[str, Any] = {
            "time_base": time_base,
            "rate": rate,
            "crf": crf,
            "aspect": pixel_aspect,
        }
        self._container_name, self._comment = container, comment
        self._output: Any = None
        self._stream: Any = None

    def write(self, pixels: Shaped[np.ndarray, "h w *c"], pts: int) -> None:
        """Encodes one frame.

        Raises:
            OutputError: the file cannot be written.
        """
        with written(self._target, self._av):
            if self._output is None:
                self._output, self._stream = self._opened(pixels)
            frame = self._frame(pixels)
            frame.pts, frame.time_base = pts, self._settings["time_base"]
            self._output.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Writes the remaining packets.

        Raises:
            OutputError: the file cannot be written.
        """
        if self._output is None:
            return
        with written(self._target, self._av):
            self._output.mux(self._stream.encode(None))
            self._output.close()

    def _opened(self, pixels: np.ndarray) -> tuple[Any, Any]:
        """The container and its stream, for frames of the same size as `pixels`."""
        settings, h264 = self._settings, self._track.codec == "libx264"
        target = str(self._target) if isinstance(self._target, Path) else self._target
        output = self._av.open(target, "w", format=self._container_name, options=_exact(self._container_name))
        if self._comment is not None:
            output.metadata["comment"] = self._comment
        # Without B-frames, frames are decoded and shown in the same order, so that segments can be joined.
        private = f"threads=1{_without_avx512()}"
        options = (
            {"preset": "veryfast", "crf": str(settings["crf"]), "bf": "0", "threads": "1", "x264-params": private}
            if h264
            else {
                "level": "3",
                "slices": "4" if min(pixels.shape[:2]) > 1 else "1",
                "slicecrc": "1",
                "g": "1",
                "threads": "1",
            }
        )
        stream = output.add_stream(self._track.codec, rate=settings["rate"], options=options)
        shown = to_even(pixels) if h264 else pixels
        stream.height, stream.width = shown.shape[:2]
        stream.pix_fmt = self._track.pixel_format
        codec = stream.codec_context
        codec.time_base = stream.time_base = settings["time_base"]
        codec.thread_count = 1
        codec.flags |= _GLOBAL_HEADER
        codec.sample_aspect_ratio = settings["aspect"]
        if h264:
            codec.color_range, codec.colorspace = _LIMITED, _BT709
            codec.color_primaries = codec.color_trc = _BT709
        return output, stream

    def _frame(self, pixels: np.ndarray) -> Any:
        if self._track.codec == "libx264":
            rgb = np.ascontiguousarray(to_even(pixels))
            frame = self._av.VideoFrame.from_ndarray(rgb, format="rgb24")
            return frame.reformat(
                format="yuv420p",
                interpolation=SCALER,
                src_color_range=_FULL,
                dst_colorspace=_BT709,
                dst_color_range=_LIMITED,
                threads=1,
            )
        codes = np.ascontiguousarray(pixels)
        return self._av.VideoFrame.from_ndarray(codes, format=self._track.pixel_format)


def _without_avx512() -> str:
    """A setting of x264 against AVX-512 code, which gives other bytes in some runs of the same frames.

    x264's macroblock trees are the cause (docs/experiments.md). If the CPU's features are not known, the setting turns
    the trees off, which makes files 1.7 times as large.
    """
    for name in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):  # the latter before NumPy 2
        try:
            features = importlib.import_module(name).__cpu_features__
        except (ImportError, AttributeError):
            continue
        return ":asm=avx2" if features.get("AVX512F") else ""
    return ":mbtree=0"


def join(
    segments: Sequence[Path], target: Path, *, container: str, time_base: Fraction, comment: str, sound: Sound | None
) -> None:
    """Writes the packets of segments, and sound, to one file; under another name until it is complete.

    Raises:
        OutputError: it cannot be written.
    """
    av = require_av()
    partial = target.with_name(f".{target.name}.partial")
    try:
        with written(target, av):
            _join(av, segments, partial, container, time_base, comment, sound)
            os.replace(partial, target)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _join(
    av: Any, segments: Sequence[Path], partial: Path, container: str, unit: Fraction, comment: str, sound: Sound | None
) -> None:
    options = _exact(container) | ({"movflags": "+faststart"} if container == "mp4" else {})
    with av.open(str(partial), "w", format=container, options=options) as output:
        output.metadata["comment"] = comment
        with av.open(str(segments[0]), "r") as first:
            stream = output.add_stream_from_template(first.streams.video[0])
            stream.time_base = unit
        pictures = _packets(av, segments, stream)
        if sound is None:
            for packet in pictures:
                output.mux(packet)
            return
        for packet in _in_order(pictures, sound.packets(output)):
            output.mux(packet)


def _packets(av: Any, segments: Sequence[Path], stream: Any) -> Iterator[Any]:
    for segment in segments:
        with av.open(str(segment), "r") as part:
            for packet in part.demux(part.streams.video[0]):
                if packet.size:
                    if packet.dts is None:  # as FFmpeg reads NUT files of 7 frames; without B-frames both are equal
                        packet.dts = packet.pts
                    packet.stream = stream
                    yield packet


def _in_order(one: Iterator[Any], other: Iterator[Any]) -> Iterator[Any]:
    """The packets of two streams by time."""
    first, second = next(one, None), next(other, None)
    while first is not None or second is not None:
        if second is None or (first is not None and first.dts * first.time_base <= second.dts * second.time_base):
            yield first
            first = next(one, None)
        else:
            yield second
            second = next(other, None)


class Sound:
    """The sound of a clip between two moments, with times relative to the first one."""

    def __init__(self, source: Path, *, start: Fraction, end: Fraction | None, rate: Fraction, is_cut: bool) -> None:
        """`start` and `end` [s] are in the clip's time, `rate` is that of its frames.

        If `is_cut`, packets before the start are left out. Otherwise they are kept: decoders need them before the first
        sound.
        """
        self._source, self._start, self._end, self._rate, self._is_cut = source, start, end, rate, is_cut

    def packets(self, output: Any) -> Iterator[Any]:
        """Adds a stream to the output and yields its packets: unchanged if MP4 accepts the codec, else as AAC."""
        av = require_av()
        clip = self._opened()
        stream = next(one for one in clip.streams if one.type == "audio" and one.codec_context is not None)
        copied = stream.codec_context.name in COPIED_SOUND
        if copied:
            added = output.add_stream_from_template(stream)
        else:
            added = output.add_stream("aac", rate=_aac_rate(stream.codec_context.sample_rate))
            added.layout = "mono" if stream.codec_context.channels == 1 else "stereo"
            added.codec_context.thread_count = 1
        return self._copied(clip, stream, added) if copied else self._encoded(av, clip, stream, added)

    def _wanted(self, packets: Iterator[Any], unit: Fraction) -> Iterator[Any]:
        """Packets between the two moments, with times relative to the start, which increase."""
        offset, last = round(self._start / unit), None
        for packet in self._in_clip_time(packets, unit):
            time = packet.pts * unit
            if self._end is not None and time >= self._end:
                return
            if (time >= self._start or not self._is_cut) and (last is None or packet.pts > last):
                last = packet.pts
                packet.pts -= offset
                packet.dts = packet.pts
                yield packet

    def _in_clip_time(self, packets: Iterator[Any], unit: Fraction) -> Iterator[Any]:
        """Packets that hold sound; where their timestamps restart, those of the pictures say how far they are moved."""
        shift, before, end = Fraction(0), None, Fraction(0)
        for packet, following in with_next(packet for packet in packets if packet.size and packet.pts is not None):
            stated = packet.pts * unit
            if before is not None and before - stated > FEW_FRAMES / self._rate:
                if following is not None and following.pts * unit > before:  # one bad timestamp
                    packet.pts = round(end / unit)
                    yield packet
                    continue
                shift = nearest_shift(self._shifts, end - stated)
            before, end = stated, stated + shift + (packet.duration or 0) * unit
            packet.pts += round(shift / unit)
            yield packet

    @cached_property
    def _shifts(self) -> list[Fraction]:
        """How far [s] the pictures are moved where their timestamps restart."""
        with self._opened() as clip:
            stream = pictures_in(clip)[0]
            step = step_of(self._rate, stream.time_base)
            return [shift * stream.time_base for shift in shifts_of(_readable(clip, stream), step=step)]

    def _opened(self) -> Any:
        options = {"protocol_whitelist": "file"}
        return require_av().open(f"file:{self._source}", "r", options=options, metadata_errors="replace")

    def _copied(self, clip: Any, stream: Any, added: Any) -> Iterator[Any]:
        with clip, suppress(clip_errors()):
            for packet in self._wanted(_readable(clip, stream), stream.time_base):
                packet.stream = added
                yield packet

    def _encoded(self, av: Any, clip: Any, stream: Any, added: Any) -> Iterator[Any]:
        resampler = av.AudioResampler(format="fltp", layout=added.layout.name, rate=added.rate)
        with clip, suppress(clip_errors()):
            for packet in self._wanted(_readable(clip, stream), stream.time_base):
                for frame in packet.decode():
                    for ready in resampler.resample(frame):
                        yield from added.encode(ready)
        yield from added.encode(None)


def _readable(clip: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream; a read error ends them, those before it are kept."""
    with suppress(clip_errors()):
        yield from clip.demux(stream)


def _aac_rate(rate: int) -> int:
    """The nearest rate that AAC has."""
    return min((8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000), key=lambda one: abs(one - rate))


def clip_errors() -> type[Exception]:
    """The class of PyAV's errors for damaged packets; sound ends there."""
    error: type[Exception] = require_av().error.FFmpegError
    return error


def _exact(container: str) -> dict[str, str]:
    """Options that keep versions, random numbers and times of day out of a file."""
    return {"fflags": "+bitexact"} if container in ("matroska", "mp4") else {}


@contextmanager
def written(target: Any, av: Any) -> Iterator[None]:
    """Turns FFmpeg's errors during writing into one line.

    Raises:
        OutputError: the file cannot be written.
        BrokenPipeError: the reader of a pipe closed it.
    """
    try:
        yield
    except (OutputError, BrokenPipeError):
        raise
    except (av.error.FFmpegError, OSError) as error:
        if getattr(error, "errno", None) == errno.EPIPE:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe") from error
        text = getattr(error, "strerror", None) or one_line(error)
        name = target if isinstance(target, Path) else "to stdout"
        raise OutputError(f"cannot write {name}: {text}; check the folder and free space") from error
