# SPDX-License-Identifier: Apache-2.0
"""Clips that are cut off, and whole clips that seem to be."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clips import HEIGHT, WIDTH, opened, patterns, write_clip
from openmarigold.errors import ImageError

pytest.importorskip("av")
RGB_FRAMES = patterns(8)


def test_truncated_clips_keep_their_frames(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, HEIGHT, WIDTH, 3), dtype=np.uint8)
    whole = write_clip(tmp_path / "whole.mkv", list(noise))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    clip, frames, _ = opened(cut)
    assert 0 < len(frames) < 15
    assert all((frame.rgb == picture).all() for frame, picture in zip(frames[:-1], noise, strict=False))
    assert clip.problem is not None and "is cut off" in clip.problem and "are kept" in clip.problem
    assert "\n" not in clip.problem
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 8 // 10])
    clip, frames, _ = opened(cut)
    assert clip.problem is not None and f"ends after {len(frames) / 25:.3f} s; the {len(frames)} frames" in clip.problem


def test_a_last_frame_that_stays_is_no_end_that_is_missing(tmp_path: Path) -> None:
    import av

    path = tmp_path / "recording.mkv"
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        for number, rgb in enumerate(RGB_FRAMES):
            frame: Any = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            for packet in stream.encode(frame):
                packet.duration = 75 if number == 7 else 1
                output.mux(packet)
    clip, frames, _ = opened(path)
    assert clip.facts.num_frames is not None and clip.facts.num_frames > 70  # it lasts three seconds longer
    assert len(frames) == 8 and clip.problem is None


def test_mp4_without_its_index(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", RGB_FRAMES, codec="libx264", pixel_format="yuv444p")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[:900])
    with pytest.raises(ImageError, match=r"cut.mp4 is cut off: an MP4 whose index \(moov\)"):
        opened(cut)


def test_mp4_that_ends_early(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, HEIGHT, WIDTH, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "fast.mp4", list(noise), codec="libx264", pixel_format="yuv444p")
    import av

    fast = tmp_path / "index_first.mp4"
    with av.open(str(path)) as source, av.open(str(fast), "w", options={"movflags": "+faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    fast.write_bytes(fast.read_bytes()[: fast.stat().st_size // 2])
    clip, frames, _ = opened(fast)
    assert 0 < len(frames) < 30
    assert (
        clip.problem is not None and "index_first.mp4 is cut off: its index lists 30 frames, of which" in clip.problem
    )


def test_avi_with_dropped_frames_is_whole(tmp_path: Path) -> None:
    """Its index also counts the frames that were dropped, which have no bytes."""
    times = list(range(0, 24, 3))
    path = write_clip(tmp_path / "a.avi", RGB_FRAMES, pts=times, codec="mpeg4", pixel_format="yuv420p")
    clip, frames, _ = opened(path)
    assert [frame.time for frame in frames] == [Fraction(time, 25) for time in times] and clip.problem is None
    content = bytearray(path.read_bytes())
    length = content.index(b"strh") + 8 + 32  # of the stream, in frames: ten more, dropped at the end
    content[length : length + 4] = (32).to_bytes(4, "little")
    path.write_bytes(content)
    clip, frames, _ = opened(path)
    assert len(frames) == 8 and clip.facts.num_frames == 32 and clip.problem is None


def test_avi_that_is_cut(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, HEIGHT, WIDTH, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "a.avi", list(noise), codec="mpeg4", pixel_format="yuv420p")
    whole = path.read_bytes()
    assert opened(path)[0].problem is None
    chunks = [match.start() for match in re.finditer(b"00dc", whole[whole.index(b"movi") :])]
    for end in (len(whole) // 2, whole.index(b"movi") + chunks[42]):
        path.write_bytes(whole[:end])
        clip, frames, _ = opened(path)
        assert clip.problem is not None and "is cut off: it states 2.000 s" in clip.problem and len(frames) < 43
