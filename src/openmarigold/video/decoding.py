# SPDX-License-Identifier: Apache-2.0
"""A video file or pipe as a clip, decoded by FFmpeg's libraries through PyAV (extra `video`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from openmarigold.errors import ImageError, needs_extra, one_line
from openmarigold.images.pixels import Color
from openmarigold.video.clip import DEFAULT_RATE, Choice, ClipFacts, ClipFrame, Note, Watch, about_how_many, exact
from openmarigold.video.pictures import HLG, PQ, UprightRgb, swaps_sides
from openmarigold.video.sequences import about_size
from openmarigold.video.settings import VideoConfig
from openmarigold.video.time_stamps import IncreasingTimes, step_of, with_next

_MICROSECOND = Fraction(1, 10**6)
_SEEK_FROM_S = 10.0  # for an earlier start, the clip is decoded from its beginning
_MISSING_S = 0.5  # accepted error of the duration that a container states
_MISSING_OF_TRACK_S = 0.1  # the same, if the duration of the pictures themselves is stated
_TEXT_ART = frozenset({"tty", "bin", "xbin", "adf", "idf"})  # FFmpeg draws any text as pictures
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these read no alpha
_PICTURE_OF_SOUND = 0x400  # FFmpeg's disposition of covers
_WHAT_TO_GIVE = "give a video file, a folder of pictures, or - for a pipe"


def require_av() -> Any:
    """PyAV.

    Raises:
        MissingExtraError: it is not installed.
    """
    with needs_extra("video", "PyAV"):
        import av
    return av


def pictures_in(container: Any) -> list[Any]:
    """The streams of pictures in an open file, without covers of sound. The first one is the clip."""
    return [one for one in container.streams if one.type == "video" and not int(one.disposition) & _PICTURE_OF_SOUND]


class VideoClip:
    """A clip that FFmpeg decodes: a file or a pipe."""

    def __init__(
        self,
        source: Path | BinaryIO,
        *,
        name: str,
        config: VideoConfig,
        background: Color,
        note: Note,
        watch: Watch = lambda number: None,
    ) -> None:
        """Opens the clip. `watch` is called with the number of frames decoded so far; what it raises ends them.

        Raises:
            ImageError: it is not a video, has no pictures, or needs a codec that is missing.
            MissingExtraError: without PyAV.
        """
        self._av = require_av()
        self._source, self._name, self._config, self._note = source, name, config, note
        self._watch = watch
        self._rgb_of = UprightRgb(background=background, note=lambda text: note(f"{name} {text}"))
        self._open()
        self.problem: str | None = None
        self.facts = self._facts()
        self._num_packets = self._num_damaged = self._num_marked = 0
        self._ended_by: str | None = None
        self._told_disorder = False
        if self.facts.pixel_aspect != 1:
            note(
                f"{name} has pixels that are not square ({self.facts.pixel_aspect}); maps have its pixels, and players "
                "stretch the MP4 files"
            )

    def frames(self, first: int = 0) -> Iterator[ClipFrame]:
        """See `Clip`."""
        times = IncreasingTimes(step_of(self.facts.rate, self.facts.time_base))
        yield from self._taken(first, times)
        self._tell_restarts(times)

    def _taken(self, first: int, times: IncreasingTimes) -> Iterator[ClipFrame]:
        choice, number, size, end = Choice(self._config), 0, None, Fraction(0)
        self._seeked = self._seek()
        for decoded, (frame, after) in enumerate(with_next(self._checked_start(self._decoded())), start=1):
            self._watch(decoded)
            pts = times.next(frame.pts, following=None if after is None else after.pts, origin=self._origin)
            if times.is_disordered and not self._told_disorder:
                self._told_disorder = True
                self._note(f"{self._name} has timestamps that do not increase; such frames get the next moment")
            time = (pts - self._origin) * self.facts.time_base
            end = time + (int(frame.duration or 0) * self.facts.time_base or 1 / self.facts.rate)
            self._num_marked += bool(frame.is_corrupt)
            if choice.is_over(time):
                return
            if not choice.takes(time):
                continue
            if number >= first or size is None:
                matrix = _display_matrix(frame)
                now = (frame.width, frame.height) if swaps_sides(matrix) else (frame.height, frame.width)
                if size is not None and now != size:
                    self.problem = about_size(self._name, size, now, number, time)
                    return
                size = now
            if number >= first:
                transfer = int(getattr(frame, "color_trc", 0) or 0)
                if transfer not in (PQ, HLG):
                    transfer = int(self._stream.codec_context.color_trc or 0)
                rgb = self._rgb_of(frame, transfer=transfer, matrix=matrix)
                aspect = self.facts.pixel_aspect
                aspect = 1 / aspect if swaps_sides(matrix) else aspect
                yield ClipFrame(number=number, pts=pts, time=time, rgb=rgb, pixel_aspect=aspect)
            number += 1
        self.problem = self._why_short(end, number)
        if times.last is None:
            raise ImageError(f"{self._name} holds no frame that can be decoded; {_WHAT_TO_GIVE}")

    def close(self) -> None:
        """Closes the file."""
        with suppress(self._av.error.FFmpegError, OSError):
            self._container.close()

    def _open(self) -> None:
        options = {"protocol_whitelist": "file"}  # a playlist must not fetch anything from a network
        demuxer: dict[str, Any] = {}
        if self._config.raw_size is not None:
            width, height = self._config.raw_width_height
            rate = exact(self._config.input_rate or DEFAULT_RATE)
            demuxer = {"format": "rawvideo"}
            options = {
                "video_size": f"{width}x{height}",
                "pixel_format": self._config.raw_format,
                "framerate": f"{rate.numerator}/{rate.denominator}",
            }
        given: Any = f"file:{self._source}" if isinstance(self._source, Path) else _Piped(self._source)
        try:
            self._container: Any = self._av.open(given, "r", options=options, metadata_errors="replace", **demuxer)
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            raise ImageError(self._why_not_open(error)) from error
        self._stream: Any = self._video_stream()
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = 2
        self._alpha_decoder = self._decoder_of_alpha()

    def _why_not_open(self, error: Exception) -> str:
        if isinstance(self._source, Path):
            with suppress(OSError), self._source.open("rb") as file:
                if file.read(12)[4:8] == b"ftyp":
                    return (
                        f"{self._name} is cut off: an MP4 whose index (moov), which is at its end, is missing or "
                        "damaged; copy it again, or repair it"
                    )
        elif self._config.raw_size is not None:
            return f"{self._name}: raw frames of {self._config.raw_format} cannot be read ({one_line(error)})"
        return f"{self._name} is not a video that can be read ({_reason(error)}); {_WHAT_TO_GIVE}"

    def _video_stream(self) -> Any:
        if self._container.format.name in _TEXT_ART:
            raise ImageError(f"{self._name} is text, not a video; {_WHAT_TO_GIVE}")
        found = pictures_in(self._container)
        if not found:
            has = ", ".join(f"{one.type}" for one in self._container.streams) or "no stream at all"
            raise ImageError(f"{self._name} has no video, only {has}; {_WHAT_TO_GIVE}")
        stream = found[0]
        if stream.codec_context is None:
            raise ImageError(
                f"{self._name}: its codec is not known to this FFmpeg ({self._av.__version__} of PyAV); convert it "
                "first, for example to H.264"
            )
        return stream

    def _decoder_of_alpha(self) -> Any:
        """A decoder that also reads alpha, if the stream has alpha that its usual decoder ignores; else None."""
        codec = self._stream.codec_context
        name = _WITH_ALPHA.get(codec.name)
        if name is None or self._stream.metadata.get("alpha_mode") != "1":
            return None
        try:
            decoder = self._av.CodecContext.create(name, "r")
        except (self._av.error.FFmpegError, ValueError):
            self._note(
                f"{self._name} has alpha, which needs the decoder {name}; this FFmpeg lacks it, alpha is not read"
            )
            return None
        decoder.extradata, decoder.thread_count = codec.extradata, codec.thread_count
        return decoder

    def _facts(self) -> ClipFacts:
        stream, container, config = self._stream, self._container, self._config
        rate = stream.average_rate or stream.guessed_rate or Fraction(DEFAULT_RATE)
        time_base = stream.time_base or 1 / rate
        start = container.start_time
        self._origin = round(start * _MICROSECOND / time_base) if start is not None else (stream.start_time or 0)
        codec = stream.codec_context
        stated = self._stated_duration()
        duration = float(container.duration * _MICROSECOND) if container.duration else None
        aspect = stream.sample_aspect_ratio or Fraction(1)
        self._sound = [one for one in container.streams if one.type == "audio" and one.codec_context is not None]
        return ClipFacts(
            name=self._name,
            time_base=time_base,
            rate=rate,
            origin=self._origin,
            num_frames=about_how_many(config, duration=duration if stated is None else stated[0], rate=rate),
            pixel_aspect=aspect if aspect > 0 else Fraction(1),
            sound=bool(self._sound) and isinstance(self._source, Path),
            stated={
                "kind": "video",
                "container": container.format.name,
                "codec": codec.name,
                "pixel_format": codec.pix_fmt,
                "width": codec.width,
                "height": codec.height,
                "time_base": str(time_base),
                "rate": str(rate),
                "pixel_aspect": str(aspect),
                "color_matrix": int(codec.colorspace),
                "color_range": int(codec.color_range),
                "color_transfer": int(codec.color_trc),
                "sound": [one.codec_context.name for one in self._sound],
            },
        )

    def _stated_duration(self) -> tuple[float, float] | None:
        """Duration of the pictures [s], as the file states it, and its largest error [s]; None if it states none."""
        stream = self._stream
        if self._counts_dropped and stream.frames:
            is_whole = isinstance(self._source, Path) and _is_whole_riff(self._source)
            return float(stream.frames * stream.time_base), _MISSING_S if is_whole else 0.0
        if stream.duration:
            return float(stream.duration * stream.time_base), _MISSING_S
        match = re.match(r"(\d+):(\d+):([\d.]+)$", stream.metadata.get("DURATION", ""))  # Matroska
        if match:
            return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]), _MISSING_OF_TRACK_S
        if len(self._container.streams) == 1 and self._container.duration:
            return float(self._container.duration * _MICROSECOND), _MISSING_S
        return None

    @property
    def _counts_dropped(self) -> bool:
        """Whether the number of frames that the file states includes frames that were dropped and have no bytes."""
        return bool(self._container.format.name == "avi")

    def _seek(self) -> bool:
        """Seeks to a key frame before the start if that is far from the beginning; returns whether it did."""
        start = self._config.start or 0.0
        if start < _SEEK_FROM_S or not isinstance(self._source, Path):
            return False
        moment = int(exact(start) / _MICROSECOND) + (self._container.start_time or 0)
        try:
            self._container.seek(moment, backward=True)
        except self._av.error.FFmpegError:
            self._reopen()
            return False
        return True

    def _reopen(self) -> None:
        self.close()
        self._open()

    def _checked_start(self, frames: Iterator[Any]) -> Iterator[Any]:
        """The frames; decoded from the beginning if seeking went too far."""
        first = next(frames, None)
        if self._seeked:
            start = exact(self._config.start or 0.0)
            if first is None or first.pts is None or (first.pts - self._origin) * self.facts.time_base > start:
                self._seeked = False
                self._reopen()
                yield from self._decoded()
                return
        if first is not None:
            yield first
            yield from frames

    def _decoded(self) -> Iterator[Any]:
        """Frames in order; a read error ends them, frames that cannot be decoded are left out and counted."""
        self._num_packets = self._num_damaged = self._num_marked = 0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (self._av.error.FFmpegError, OSError) as error:
                self._ended_by = _reason(error)
                return
            self._num_packets += bool(packet.size)
            try:
                if self._alpha_decoder is None:
                    yield from packet.decode()
                else:
                    yield from self._alpha_decoder.decode(packet if packet.size else None)
            except self._av.error.EOFError:
                return
            except self._av.error.FFmpegError:
                self._num_damaged += 1
            else:
                self._num_damaged += bool(packet.size and packet.is_corrupt)

    def _tell_restarts(self, times: IncreasingTimes) -> None:
        """One note on all restarts, however many there are."""
        if times.num_restarts:
            often = "restart once" if times.num_restarts == 1 else f"restart {times.num_restarts} times"
            seconds = float(times.went_back * self.facts.time_base)
            self._note(
                f"{self._name} has timestamps that {often} (back by {seconds:.3f} s in total); what follows is moved "
                "to the end"
            )

    def _why_short(self, end: Fraction, number: int) -> str | None:
        """Why the clip is incomplete, if its frames ended at `end` [s] or some are damaged; None if it is complete."""
        kept = f"; the {number} frames before are kept"
        if self._ended_by is not None:
            return f"{self._name} is cut off or damaged after {float(end):.3f} s ({self._ended_by}){kept}"
        if not self._seeked and not self._counts_dropped and (listed := self._stream.frames):
            if self._num_packets < listed:
                found = f"its index lists {listed} frames, of which {self._num_packets} are there"
                return f"{self._name} is cut off: {found}{kept}"
        elif (stated := self._stated_duration()) is not None:
            seconds, off = stated
            if seconds - float(end) > max(off, 1.5 / float(self.facts.rate)):
                return f"{self._name} is cut off: it states {seconds:.3f} s and ends after {float(end):.3f} s{kept}"
        if damaged := max(self._num_damaged, self._num_marked):
            return f"{self._name} is damaged: {damaged} of its frames cannot be decoded in full; the others are kept"
        return None


class _Piped:
    """A pipe for PyAV, which can only read it in order."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        return self._file.read(size)


def _is_whole_riff(path: Path) -> bool:
    """Whether a RIFF file, such as an AVI, is as long as the sizes in it say; then frames at its end were dropped."""
    try:
        size, begin = path.stat().st_size, 0
        with path.open("rb") as file:
            while begin < size:  # an AVI above 1 GiB has several parts
                file.seek(begin)
                header = file.read(8)
                if header[:4] != b"RIFF":
                    return begin > 0
                begin += 8 + int.from_bytes(header[4:], "little")
    except OSError:
        return False
    return begin == size


def _display_matrix(frame: Any) -> bytes | None:
    """The display matrix of a frame, which states its rotation; None if it is upright."""
    if not frame.rotation and "DISPLAYMATRIX" not in {one.type.name for one in frame.side_data}:
        return None
    found = frame.side_data.get("DISPLAYMATRIX")
    return None if found is None else bytes(found)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or one_line(error))
