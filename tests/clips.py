"""Tiny clips, made with PyAV, and a model of brightness that needs no network."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from openmarigold.modalities import DEPTH
from openmarigold.predictor.stream_state import StreamedFrame
from openmarigold.results.prediction import Prediction
from openmarigold.video.clip import Clip, ClipFrame
from openmarigold.video.model import VideoResult
from openmarigold.video.reading import open_clip
from openmarigold.video.run import make_video
from openmarigold.video.settings import VideoConfig

HEIGHT, WIDTH = 32, 48


def patterns(number: int, *, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """Pictures that differ from each other: a ramp, and a block that moves to the right."""
    frames = []
    for index in range(number):
        ramp = np.linspace(40, 200, width, dtype=np.uint8)
        rgb = np.stack([np.tile(ramp, (height, 1))] * 3, axis=-1)
        left = (4 * index) % (width - 8)
        rgb[height // 4 : height // 2, left : left + 8] = (220, 40, 40)
        frames.append(rgb)
    return frames


def write_clip(
    path: Path,
    frames: Sequence[Any],
    *,
    codec: str = "ffv1",
    pixel_format: str = "bgr0",
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    options: dict[str, str] | None = None,
    container: str | None = None,
    tags: Mapping[str, Any] | None = None,
    tone_s: float = 0.0,
    tone_codec: str = "aac",
) -> Path:
    """Writes RGB arrays, or frames of PyAV, with these timestamps, and a tone of 440 Hz of `tone_s` seconds."""
    import av

    with av.open(str(path), "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=25, options=options or {})
        first = frames[0]
        height, width = first.shape[:2] if isinstance(first, np.ndarray) else (first.height, first.width)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = stream.time_base = time_base
        stream.codec_context.thread_count = 1
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        sound: Any = output.add_stream(tone_codec, rate=16000) if tone_s else None
        if sound is not None:
            sound.layout = "mono"
        for index, picture in enumerate(frames):
            frame: Any = picture
            if isinstance(picture, np.ndarray):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if pixel_format not in ("rgb24",):
                    frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = (pts[index] if pts else index), time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            for packet in _tone(sound, tone_s):
                output.mux(packet)
    return path


def _tone(stream: Any, seconds: float) -> list[Any]:
    import av

    packets = []
    for start in range(0, int(16000 * seconds), 1024):
        wave = 0.5 * np.sin(2 * np.pi * 440 / 16000 * np.arange(start, start + 1024))
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def yuv_frame(pixel_format: str, values: tuple[int, int, int], *, height: int = HEIGHT, width: int = WIDTH) -> Any:
    """A frame of one color, given by its luma and chroma levels (8 bits, or 10 for a format of 10 bits)."""
    import av

    frame = av.VideoFrame(width, height, pixel_format)
    dtype = np.uint16 if "10" in pixel_format else np.uint8
    for plane, value in zip(frame.planes, values, strict=True):
        rows = np.full((plane.height, plane.line_size // np.dtype(dtype).itemsize), value, dtype=dtype)
        plane.update(rows.tobytes())
    return frame


def turn(path: Path, *, degrees: int, mirror: bool = False) -> None:
    """Writes a rotation (clockwise) into the track header of an MP4 file, after a mirror left to right."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4
    assert content[place] == 0  # version 0: the matrix stands after 40 bytes
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    if mirror:
        a, b = -a, -b
    unit = 1 << 16
    numbers = (a * unit, b * unit, 0, c * unit, d * unit, 0, 0, 0, 1 << 30)
    content[place + 40 : place + 76] = b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
    path.write_bytes(bytes(content))


class GrayStream:
    """Takes the brightness of a frame, plus its number in thousandths, for its depth; `late` frames come out later."""

    def __init__(self, *, late: int = 0, wait_s: float = 0.0, state: Mapping[str, np.ndarray] | None = None) -> None:
        self.late, self.wait_s = late, wait_s
        self.number = int(state["number"]) if state else 0
        self.held = [*state["held"]] if state else []

    def follow(self, frames: Iterable[np.ndarray]) -> Iterator[list[StreamedFrame]]:
        for rgb in frames:
            time.sleep(self.wait_s)
            self.held.append((rgb.mean(axis=-1) / 255).astype(np.float32))
            yield [self._next()] if len(self.held) > self.late else []
        yield [self._next() for _ in range(len(self.held))]

    def _next(self) -> StreamedFrame:
        depth = self.held.pop(0) + np.float32(self.number / 1000)
        number, self.number = self.number, self.number + 1
        prediction = Prediction(maps={"depth": depth}, settings={"invariance": "affine"})
        cut = number == 3
        return StreamedFrame(
            number=number,
            prediction=prediction,
            scale=1.0,
            shift=number / 1000,
            shot=int(number >= 3),
            is_cut=cut,
            bounds=(0.0, 1.0),
            inliers=1.0,
        )

    def state(self) -> dict[str, np.ndarray]:
        return {"number": np.array(self.number), "held": np.array(self.held)}


class GrayModel:
    """A model whose stream is a `GrayStream`."""

    modality = DEPTH
    facts: ClassVar[dict[str, Any]] = {"checkpoint": "gray"}

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.request = {"gray": 1, "late": settings.get("late", 0)}
        self.opened: list[bool] = []

    def check(self) -> None:
        pass

    def open(self, state: dict[str, np.ndarray] | None) -> GrayStream:
        self.opened.append(state is not None)
        return GrayStream(state=state, **self.settings)


def decoded(path: Path, *, pixel_format: str = "rgb24") -> tuple[list[int], list[np.ndarray], Fraction]:
    """Timestamps and pixels of a video, and its unit of time."""
    import av

    with av.open(str(path)) as clip:
        stream = clip.streams.video[0]
        frames = [(int(frame.pts or 0), frame.to_ndarray(format=pixel_format)) for frame in clip.decode(stream)]
        assert stream.time_base is not None
        return [pts for pts, _ in frames], [pixels for _, pixels in frames], stream.time_base


def opened(path: Path | str, background: str = "white", **settings: Any) -> tuple[Clip, list[ClipFrame], list[str]]:
    """A clip that was read to its end, its frames, and what was said about it."""
    notes: list[str] = []
    clip = open_clip(Path(path), config=VideoConfig(**settings), background=background, note=notes.append)
    frames = list(clip.frames())
    clip.close()
    return clip, frames, notes


def made(source: Path, out: Path, *, late: int = 0, overwrite: bool = False, **video: Any) -> VideoResult:
    """What becomes of a clip, in segments of 4 frames."""
    settings = VideoConfig(**{"segment": 4, **video})
    return make_video(source, out, model=GrayModel(late=late), video=settings, overwrite=overwrite)


def sound_of(path: Path) -> tuple[str, list[bytes], float]:
    """Codec, packets and first moment [s] of the sound."""
    import av

    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        packets = [packet for packet in file.demux(stream) if packet.size]
        first = packets[0]
        assert first.pts is not None and stream.time_base is not None
        return stream.codec_context.name, [bytes(packet) for packet in packets], float(first.pts * stream.time_base)
