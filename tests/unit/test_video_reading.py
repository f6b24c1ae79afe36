"""Clips as frames: times, rotation, colors and odd kinds."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clips import HEIGHT, WIDTH, opened, patterns, turn, write_clip, yuv_frame
from openmarigold.errors import ImageError, InvalidValueError
from openmarigold.video.pictures import hlg_light, pq_light
from openmarigold.video.reading import clip_sha256, open_clip
from openmarigold.video.sequences import about_gaps
from openmarigold.video.settings import VideoConfig

pytest.importorskip("av")
RGB_FRAMES = patterns(8)
LOSSLESS = {"codec": "libx264", "pixel_format": "yuv444p", "options": {"qp": "0"}}


def first_pixel(path: Path, **settings: Any) -> list[int]:
    return opened(path, **settings)[1][0].rgb[5, 5].astype(int).tolist()


def test_frames_and_their_times_are_exact(tmp_path: Path) -> None:
    times = [0, 1, 5, 9, 10, 11, 30, 31]  # milliseconds: a variable rate
    path = write_clip(tmp_path / "vfr.mp4", RGB_FRAMES, pts=times, time_base=Fraction(1, 1000), **LOSSLESS)
    clip, frames, notes = opened(path)
    assert [frame.time for frame in frames] == [Fraction(time, 1000) for time in times]
    assert [frame.pts * clip.facts.time_base for frame in frames] == [Fraction(time, 1000) for time in times]
    assert [frame.number for frame in frames] == list(range(8))
    assert clip.problem is None and notes == []
    for frame, picture in zip(frames, RGB_FRAMES, strict=True):
        assert np.abs(frame.rgb.astype(int) - picture).max() <= 1


def test_lossless_rgb_is_equal(tmp_path: Path) -> None:
    frames = opened(write_clip(tmp_path / "a.mkv", RGB_FRAMES))[1]
    assert all((frame.rgb == picture).all() for frame, picture in zip(frames, RGB_FRAMES, strict=True))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_tags(tmp_path: Path, degrees: int, mirror: bool) -> None:
    path = write_clip(tmp_path / "turned.mp4", RGB_FRAMES[:2], **LOSSLESS)
    turn(path, degrees=degrees, mirror=mirror)
    stored = RGB_FRAMES[0][:, ::-1] if mirror else RGB_FRAMES[0]
    upright = np.rot90(stored, -(degrees // 90))  # clockwise
    shown = opened(path)[1][0].rgb
    assert shown.shape == upright.shape
    assert np.abs(shown.astype(int) - upright).max() <= 1


@pytest.mark.parametrize(
    ("matrix", "height", "levels"),
    [  # pure red of each standard in limited range: 16 + 219 Kr, 128 + 224 (0 - Kr) / (2 - 2 Kb), 240
        (1, HEIGHT, (63, 102, 240)),
        (5, HEIGHT, (81, 90, 240)),
        (6, HEIGHT, (81, 90, 240)),
        (9, HEIGHT, (74, 97, 240)),
        (2, HEIGHT, (81, 90, 240)),  # not stated: BT.601 where it is small
        (2, 720, (63, 102, 240)),  # and BT.709 where it is large
    ],
)
def test_color_matrices(tmp_path: Path, matrix: int, height: int, levels: tuple[int, int, int]) -> None:
    frame = yuv_frame("yuv420p", levels, height=height)
    tags = {"colorspace": matrix, "color_range": 1}
    path = write_clip(tmp_path / "red.mkv", [frame], pixel_format="yuv420p", tags=tags)
    assert np.abs(np.array(first_pixel(path)) - (255, 0, 0)).max() <= 2


def test_full_range(tmp_path: Path) -> None:
    frame = yuv_frame("yuv420p", (77, 85, 255))  # pure red of BT.601, 255 Kr = 76
    path = write_clip(tmp_path / "full.mkv", [frame], pixel_format="yuv420p", tags={"colorspace": 5, "color_range": 2})
    assert np.abs(np.array(first_pixel(path)) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize(("level", "gray"), [(64, 0), (502, 128), (940, 255), (283, 64)])
def test_ten_bits(tmp_path: Path, level: int, gray: int) -> None:
    frame = yuv_frame("yuv420p10le", (level, 512, 512))
    tags = {"colorspace": 1, "color_range": 1}
    path = write_clip(tmp_path / "ten.mkv", [frame], pixel_format="yuv420p10le", tags=tags)
    assert np.abs(np.array(first_pixel(path)) - gray).max() <= 1


def test_hdr_is_tone_mapped_and_said(tmp_path: Path) -> None:
    shown = {}
    for transfer, name in ((16, "PQ"), (18, "HLG")):
        for level in (64, 300, 594, 834):
            frame = yuv_frame("yuv420p10le", (level, 512, 512))
            tags = {"colorspace": 9, "color_range": 1, "color_trc": transfer, "color_primaries": 9}
            path = write_clip(tmp_path / f"{name}{level}.mkv", [frame], pixel_format="yuv420p10le", tags=tags)
            _, frames, notes = opened(path)
            red, green, blue = frames[0].rgb[5, 5].astype(int)
            assert max(red, green, blue) - min(red, green, blue) <= 1  # gray stays gray
            shown[name, level] = int(green)
            assert len(notes) == 1 and f"HDR ({name})" in notes[0]
    for name in ("PQ", "HLG"):
        levels = [shown[name, level] for level in (64, 300, 594, 834)]
        assert levels[0] == 0 and levels == sorted(set(levels)) and levels[-1] > 200
    assert pq_light(np.array([0.5081], np.float32))[0] * 203 == pytest.approx(100, rel=0.01)  # ST 2084: 100 cd/m2
    assert hlg_light(np.array([0.5, 1.0], np.float32)) == pytest.approx([1 / 12, 1.0], abs=1e-4)  # BT.2100


def test_alpha_is_laid_over_the_background(tmp_path: Path) -> None:
    import av

    rgba = np.dstack([RGB_FRAMES[0], np.full((HEIGHT, WIDTH), 128, np.uint8)])
    frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="bgra")
    path = write_clip(tmp_path / "alpha.mkv", [frame], pixel_format="bgra")
    over_blue = opened(path, "blue")[1][0].rgb[0, 0].astype(int)
    assert RGB_FRAMES[0][0, 0].tolist() == [40, 40, 40]
    assert np.abs(over_blue - (20, 20, 20 + 127)).max() <= 1


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_alpha_of_webm(tmp_path: Path, codec: str) -> None:
    import av

    rgba = np.dstack([RGB_FRAMES[0], np.full((HEIGHT, WIDTH), 255, np.uint8)])
    rgba[:, : WIDTH // 2, 3] = 0
    frames = [av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="yuva420p") for _ in range(3)]
    options = {"auto-alt-ref": "0", "crf": "4", "b": "1000000"}
    path = write_clip(tmp_path / "a.webm", frames, codec=codec, pixel_format="yuva420p", options=options)
    _, over_blue, notes = opened(path, "blue")
    assert [frame.pts for frame in over_blue] == [0, 40, 80] and not notes
    assert np.abs(over_blue[2].rgb[16, 4].astype(int) - (0, 0, 255)).max() < 12
    assert np.abs(over_blue[2].rgb[28, 44].astype(int) - RGB_FRAMES[0][28, 44]).max() < 12


@pytest.mark.parametrize(("height", "width"), [(31, 47), (1, 1), (33, 48)])
def test_odd_sizes(tmp_path: Path, height: int, width: int) -> None:
    picture = np.full((height, width, 3), 90, np.uint8)
    frames = opened(write_clip(tmp_path / "odd.mkv", [picture] * 2))[1]
    assert frames[0].rgb.shape == (height, width, 3) and (frames[1].rgb == 90).all()


def test_one_frame(tmp_path: Path) -> None:
    clip, frames, _ = opened(write_clip(tmp_path / "one.mkv", RGB_FRAMES[:1]))
    assert len(frames) == 1 and frames[0].time == 0 and clip.problem is None


def test_choice_of_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", patterns(50))  # 25 a second
    times = [float(frame.time) for frame in opened(path, start=0.4, end=0.8)[1]]
    assert times == pytest.approx(np.arange(10, 20) / 25)
    assert [float(frame.time) for frame in opened(path, every=20)[1]] == pytest.approx([0, 0.8, 1.6])
    slow = [float(frame.time) for frame in opened(path, fps=2.0)[1]]
    assert slow == pytest.approx([0, 0.52, 1.0, 1.52], abs=1e-3)
    assert opened(path, start=5.0)[1] == []
    assert len(opened(path, fps=100.0)[1]) == 50


def test_start_far_in_the_clip_is_sought(tmp_path: Path) -> None:
    frames = [np.full((16, 16, 3), number % 200, np.uint8) for number in range(400)]
    options = {"qp": "0", "g": "30"}
    path = write_clip(tmp_path / "long.mp4", frames, codec="libx264", pixel_format="yuv444p", options=options)
    taken = opened(path, start=12.0, end=12.2)[1]
    assert [float(frame.time) for frame in taken] == pytest.approx(np.arange(300, 305) / 25)
    assert [int(frame.rgb[0, 0, 0]) for frame in taken] == pytest.approx([100, 101, 102, 103, 104], abs=1)


def test_frames_from_a_number_on_are_the_same(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", RGB_FRAMES)
    clip = open_clip(path, config=VideoConfig(every=2), background="white", note=print)
    later = list(clip.frames(first=2))
    assert [frame.number for frame in later] == [2, 3]
    assert (later[0].rgb == RGB_FRAMES[4]).all()


def test_pixels_that_are_not_square_are_said(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "sar.mp4", RGB_FRAMES, tags={"sample_aspect_ratio": Fraction(4, 3)}, **LOSSLESS)
    clip, frames, notes = opened(path)
    assert clip.facts.pixel_aspect == Fraction(4, 3) and frames[0].rgb.shape == (HEIGHT, WIDTH, 3)
    assert "not square (4/3)" in notes[0]
    turn(path, degrees=90)
    turned = opened(path)[1][0]
    assert turned.rgb.shape == (WIDTH, HEIGHT, 3) and turned.pixel_aspect == Fraction(3, 4)


def test_interlaced_is_said(tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme"}
    path = write_clip(tmp_path / "i.mkv", RGB_FRAMES, codec="mpeg2video", pixel_format="yuv420p", options=options)
    notes = opened(path)[2]
    assert len(notes) == 1 and "is interlaced" in notes[0]


# Pictures


def test_folder_of_pictures_in_natural_order(tmp_path: Path) -> None:
    for number in (1, 2, 10, 9):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    for source in (tmp_path, tmp_path / "frame*.png", tmp_path / "frame%d.png"):
        clip, frames, _ = opened(source, input_rate=10.0)
        assert [int(frame.rgb[0, 0, 0]) for frame in frames] == [1, 2, 9, 10]
        assert [frame.time for frame in frames] == [Fraction(place, 10) for place in range(4)]
        assert clip.facts.num_frames == 4
    assert clip_sha256(tmp_path) == clip_sha256(tmp_path / "frame*.png")


def test_pictures_of_two_sizes_keep_those_before(tmp_path: Path) -> None:
    for number, width in enumerate((8, 8, 10)):
        Image.new("RGB", (width, 6)).save(tmp_path / f"{number}.png")
    clip, frames, _ = opened(tmp_path)
    assert len(frames) == 2
    assert clip.problem is not None and "from 8x6 to 10x6 at frame 2" in clip.problem


def test_lost_pictures_are_said(tmp_path: Path) -> None:
    for number in (1, 2, 3, 7, 8, 9):
        Image.fromarray(RGB_FRAMES[0]).save(tmp_path / f"f{number}.png")
    assert opened(tmp_path)[2] == [
        f"{tmp_path}: numbers jump once, from f3.png to f7.png; pictures follow each other at one rate"
    ]
    assert about_gaps([Path(f"{time}.png") for time in (100, 133, 166, 200, 233, 270, 301)]) is None
    assert about_gaps([Path(name) for name in ("a.png", "b.png", "c9.png")]) is None


def test_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no picture; give a folder of pictures"):
        opened(tmp_path)
    with pytest.raises(ImageError, match="no file fits"):
        opened(tmp_path / "*.png")


# Damaged and wrong


def test_size_that_changes(tmp_path: Path) -> None:
    parts = b""
    for height in (32, 48):  # MPEG-TS can be concatenated
        frames = patterns(5, height=height)
        path = tmp_path / f"{height}.ts"
        write_clip(path, frames, codec="mpeg2video", pixel_format="yuv420p", container="mpegts")
        parts += path.read_bytes()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(parts)
    clip, frames, _ = opened(joined)
    assert {frame.rgb.shape for frame in frames} == {(32, WIDTH, 3)} and 3 <= len(frames) <= 5
    assert clip.problem is not None and f"from {WIDTH}x32 to {WIDTH}x48 at frame {len(frames)}" in clip.problem


def test_sound_without_pictures(tmp_path: Path) -> None:
    import av

    path = tmp_path / "tone.m4a"
    with av.open(str(path), "w", format="ipod") as output:
        stream = output.add_stream("aac", rate=16000)
        stream.layout = "mono"  # pyright: ignore
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(ImageError, match="has no video, only audio; give a video file"):
        opened(path)


def test_codec_that_is_not_known(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", RGB_FRAMES, codec="mpeg4", pixel_format="yuv420p")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(ImageError, match=r"codec is not known to this FFmpeg.*convert it first"):
        opened(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.mp4", b"this is not a video at all " * 40, "is not a video that can be read"),
        ("notes.txt", b"hello\n" * 100, r"notes\.txt is text, not a video; give"),
        ("empty.mp4", b"", r"is empty \(0 bytes\)"),
        (None, b"", "does not exist; check the name"),
    ],
)
def test_what_is_no_video(tmp_path: Path, name: str | None, content: bytes, message: str) -> None:
    path = tmp_path / (name or "missing.mp4")
    if name:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        opened(path)


def test_clip_without_frames(tmp_path: Path) -> None:
    import av

    path = tmp_path / "none.avi"
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        output.start_encoding()
    with pytest.raises(ImageError, match=r"none\.avi"):
        opened(path)


def test_urls_are_refused() -> None:
    with pytest.raises(ImageError, match=r"https://example\.com/a\.mp4 is a URL; download the clip first"):
        opened("https://example.com/a.mp4")


# Pipes


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """A function that makes bytes the standard input."""
    with contextlib.ExitStack() as closing:

        def pipe(content: bytes) -> None:
            reading, writing = os.pipe()

            def fill() -> None:
                with os.fdopen(writing, "wb") as file, contextlib.suppress(BrokenPipeError):
                    file.write(content)

            threading.Thread(target=fill, daemon=True).start()
            monkeypatch.setattr(sys, "stdin", closing.enter_context(io.TextIOWrapper(os.fdopen(reading, "rb"))))

        yield pipe


def test_matroska_from_a_pipe(tmp_path: Path, piped: Callable[[bytes], None]) -> None:
    piped(write_clip(tmp_path / "a.mkv", RGB_FRAMES).read_bytes())
    clip, frames, _ = opened("-")
    assert len(frames) == 8 and (frames[7].rgb == RGB_FRAMES[7]).all()
    assert clip.problem is None and clip_sha256(Path("-")) is None


def test_frames_of_all_kinds_are_watched(tmp_path: Path, piped: Callable[[bytes], None]) -> None:
    path = write_clip(tmp_path / "a.mkv", RGB_FRAMES)
    piped(path.read_bytes())
    (tmp_path / "pictures").mkdir()
    for number, rgb in enumerate(RGB_FRAMES):
        Image.fromarray(rgb).save(tmp_path / "pictures" / f"{number}.png")
    for source in (path, Path("-"), tmp_path / "pictures"):
        seen: list[int] = []
        config = VideoConfig(every=4)
        clip = open_clip(source, config=config, background="white", note=print, watch=seen.append)
        assert len(list(clip.frames())) == 2 and seen == list(range(1, 9))
        clip.close()


def test_raw_frames_from_a_pipe(piped: Callable[[bytes], None]) -> None:
    piped(b"".join(picture.tobytes() for picture in RGB_FRAMES))
    frames = opened("-", raw_size=f"{WIDTH}x{HEIGHT}", input_rate=50.0)[1]
    assert len(frames) == 8 and (frames[3].rgb == RGB_FRAMES[3]).all()
    assert frames[3].time == Fraction(3, 50)


def test_pipe_without_a_video(piped: Callable[[bytes], None]) -> None:
    piped(b"nothing of use")
    with pytest.raises(ImageError, match="the pipe is not a video that can be read"):
        opened("-")


@pytest.mark.parametrize(
    "settings",
    [
        {"start": -1.0},
        {"start": 2.0, "end": 1.0},
        {"every": 0},
        {"fps": 0.0},
        {"every": 2, "fps": 5.0},
        {"raw_size": "640"},
        {"crf": 52},
        {"format": ()},
    ],
)
def test_settings_that_are_not_accepted(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match=r"give|use"):
        VideoConfig(**settings)
