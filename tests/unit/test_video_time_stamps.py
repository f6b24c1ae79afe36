# SPDX-License-Identifier: Apache-2.0
"""Clips whose timestamps restart or are out of order, with their sound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clips import decoded, made, opened, patterns, sound_of, write_clip
from openmarigold.video.encoding import Sound
from openmarigold.video.time_stamps import IncreasingTimes, nearest_shift, shifts_of, with_next

pytest.importorskip("av")


def test_times_that_restart_follow_those_before(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.ts", patterns(12), codec="libx264", pixel_format="yuv420p", container="mpegts")
    joined = tmp_path / "joined.ts"
    joined.write_bytes(path.read_bytes() * 3)
    clip, frames, notes = opened(joined)
    assert [frame.time for frame in frames] == [Fraction(number, 25) for number in range(36)]
    assert clip.problem is None
    told = "timestamps that restart 2 times (back by 0.880 s in total); what follows is moved to the end"
    assert notes == [f"{joined} has {told}"]
    assert [frame.time for frame in opened(joined, start=0.6, end=0.8)[1]] == [
        Fraction(place, 25) for place in range(15, 20)
    ]


@pytest.mark.parametrize(
    ("stated", "times"),
    [
        ([0, 10, 20, 30], [0, 10, 20, 30]),
        ([None, None, 90, None], [5, 15, 90, 100]),
        ([0, 10, 20, 20, 15, 30], [0, 10, 20, 21, 22, 30]),  # a little out of order
        ([0, 10, 90, 0, 10, 200, 0], [0, 10, 90, 100, 110, 300, 310]),
        ([0, 10, 20, 30, 40, 50, 60, 0, 80, 90], [0, 10, 20, 30, 40, 50, 60, 61, 80, 90]),  # one bad timestamp
        ([0, 90, 0, 10, 70, 0, 90, 100], [0, 90, 100, 110, 170, 171, 190, 200]),
    ],
)
def test_increasing_times(stated: list[int | None], times: list[int]) -> None:
    increasing = IncreasingTimes(10)
    pairs = with_next(stated)
    assert [increasing.next(time, following=following, origin=5) for time, following in pairs] == times


def test_one_bad_timestamp_moves_only_its_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", patterns(60))
    content = path.read_bytes()
    cluster = content.rindex(b"\x1f\x43\xb6\x75")
    bad = content.index(b"\x81" + (2000 - 1920).to_bytes(2, "big"), cluster) + 1  # frame 50, from the cluster's 1.92 s
    path.write_bytes(content[:bad] + (-1920).to_bytes(2, "big", signed=True) + content[bad + 2 :])
    clip, frames, notes = opened(path)
    expected = [Fraction(number, 25) for number in range(60)]
    expected[50] = expected[49] + Fraction(1, 1000)
    assert [frame.time for frame in frames] == expected and clip.problem is None
    assert notes == [f"{path} has timestamps that do not increase; such frames get the next moment"]


def test_many_restarts_give_one_note(tmp_path: Path) -> None:
    part = write_clip(tmp_path / "a.ts", patterns(6), codec="libx264", pixel_format="yuv420p", container="mpegts")
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part.read_bytes() * 20)
    notes = opened(joined)[2]
    assert len(notes) == 1 and "restart 19 times" in notes[0]


def test_shifts_from_packets_are_those_of_frames() -> None:
    decoded = [-20, -10, 0, 10, 20, 30]
    shown = [0, 40, 20, 10, 30, 50]  # with B-frames
    packets = [SimpleNamespace(size=1, pts=pts, dts=dts) for pts, dts in zip(shown, decoded, strict=True)] * 3
    increasing = IncreasingTimes(10)
    for time in sorted(shown) * 3:
        increasing.next(time)
    assert shifts_of(packets, step=10) == [60, 120] and increasing.last == 170
    assert nearest_shift([Fraction(1), Fraction(2)], Fraction(19, 10)) == 2
    assert nearest_shift([Fraction(1)], Fraction(5)) == 5


def test_one_bad_timestamp_of_a_packet_is_no_shift() -> None:
    packets = [SimpleNamespace(size=1, pts=time, dts=time) for time in [0, 10, 20, 30, 40, 50, 60, 0, 80, 90]]
    assert shifts_of(packets, step=10) == []
    assert shifts_of(packets * 2, step=10) == [100]


def test_one_bad_timestamp_of_sound_moves_only_its_packet(tmp_path: Path) -> None:
    unit, times = Fraction(1, 1000), [*range(0, 1000, 20), 0, *range(1020, 2000, 20)]
    sound = Sound(tmp_path / "none", start=Fraction(0), end=None, rate=Fraction(25), is_cut=False)
    packets = [SimpleNamespace(size=1, pts=time, dts=time, duration=20) for time in times]
    assert [packet.pts for packet in sound._wanted(iter(packets), unit)] == list(range(0, 2000, 20))


def test_a_read_error_keeps_the_shifts_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    part = write_clip(tmp_path / "a.ts", patterns(12), codec="libx264", pixel_format="yuv420p", container="mpegts")
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part.read_bytes() * 2)

    @contextmanager
    def damaged() -> Iterator[Any]:
        def packets(stream: Any) -> Iterator[Any]:
            yield from file.demux(stream)
            raise av.error.InvalidDataError(1, "damaged")

        with av.open(str(joined)) as file:
            yield SimpleNamespace(streams=file.streams, demux=packets)

    sound = Sound(joined, start=Fraction(0), end=None, rate=Fraction(25), is_cut=False)
    monkeypatch.setattr(sound, "_opened", damaged)
    assert sound._shifts == [Fraction(12, 25)]


@pytest.mark.parametrize("tone_codec", ["aac", "mp2"])  # copied, and encoded
def test_sound_of_a_joined_clip_stays_with_its_pictures(tmp_path: Path, tone_codec: str) -> None:
    import av

    video: dict[str, Any] = {"codec": "libx264", "pixel_format": "yuv420p", "container": "mpegts"}
    part = write_clip(tmp_path / "part.ts", patterns(25), tone_s=1.0, tone_codec=tone_codec, **video)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part.read_bytes() * 2)
    made(joined, tmp_path)
    path = tmp_path / "joined_depth_sidebyside.mp4"
    pts, _, unit = decoded(path)
    assert [(place - pts[0]) * unit for place in pts] == [Fraction(place, 25) for place in range(50)]
    with av.open(str(path)) as file:
        stream: Any = file.streams.audio[0]
        times = [float(packet.pts * stream.time_base) for packet in file.demux(stream) if packet.size]
    assert times == sorted(set(times)) and max(np.diff(times)) < 0.2
    assert times[-1] == pytest.approx(2.0, abs=0.15) and len(times) == pytest.approx(2 / (1024 / 16000), abs=4)


@pytest.mark.parametrize("number", [7, 14])
def test_sound_with_segments_of_seven_frames(tmp_path: Path, number: int) -> None:
    """FFmpeg reads no decoding time of the first packet of such a segment."""
    source = write_clip(
        tmp_path / "talk.mp4", patterns(number), codec="libx264", pixel_format="yuv420p", tone_s=number / 25
    )
    made(source, tmp_path, segment=7)
    pts, _, unit = decoded(tmp_path / "talk_depth_sidebyside.mp4")
    assert [place * unit for place in pts] == [Fraction(place, 25) for place in range(number)]
    assert sound_of(tmp_path / "talk_depth_sidebyside.mp4")[1] == sound_of(source)[1]
