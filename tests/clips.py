"""Tiny clips, made with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

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
    tags: dict[str, int] | None = None,
    tone_s: float = 0.0,
    tone_codec: str = "aac",
) -> Path:
    """Writes RGB arrays, or frames of PyAV, with these time stamps, and a tone of 440 Hz of `tone_s` seconds."""
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
