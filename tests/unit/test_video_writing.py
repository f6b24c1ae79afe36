"""What a clip becomes: videos, codes, sound, files of frames, and what is said about them."""

from __future__ import annotations

import io
import json
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clips import HEIGHT, WIDTH, GrayModel, decoded, made, patterns, sound_of, turn, write_clip
from openmarigold.errors import ImageError, InvalidValueError, OutputError
from openmarigold.modalities import find_modality
from openmarigold.modalities.codes import LARGEST_CODE, code_range, to_codes
from openmarigold.modalities.colors import colorize
from openmarigold.modalities.modality import MapKind
from openmarigold.results.provenance import read_provenance
from openmarigold.video import encoding
from openmarigold.video.model import VideoEvent, VideoResult
from openmarigold.video.products import to_even
from openmarigold.video.run import make_video
from openmarigold.video.settings import VideoConfig

pytest.importorskip("av")
FRAMES = patterns(10)
DEPTH_KIND = MapKind(name="depth", channels=1, range=(0.0, 1.0), unit="", space="linear", exr_channels=("Y",))


def gray_depth(picture: np.ndarray, number: int) -> np.ndarray:
    """What `GrayStream` gives."""
    return (picture.mean(axis=-1) / 255).astype(np.float32) + np.float32(number / 1000)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "room.mkv", FRAMES)


def test_ffv1_holds_the_map_to_the_last_code(clip: Path, tmp_path: Path) -> None:
    made(clip, tmp_path, format=("ffv1",))
    _, codes, _ = decoded(tmp_path / "room_depth.mkv", pixel_format="gray16le")
    ranges = np.load(tmp_path / "room_depth_frames.npz")["range_depth"]
    assert len(codes) == 10 and ranges.shape == (10, 2)
    for number, (picture, stored, bounds) in enumerate(zip(FRAMES, codes, ranges, strict=True)):
        low, high = bounds
        depth = gray_depth(picture, number).astype(np.float64)
        assert (stored == np.rint((depth - low) / (high - low) * 65535)).all()
        assert np.abs(low + stored / 65535 * (high - low) - depth).max() <= (high - low) / 65535 / 2 * 1.001


def test_times_of_a_variable_rate_are_kept(tmp_path: Path) -> None:
    times = [0, 1, 5, 9, 10, 11, 30, 31, 40, 80]
    lossless = {"codec": "libx264", "pixel_format": "yuv444p", "options": {"qp": "0"}}
    source = write_clip(tmp_path / "vfr.mp4", FRAMES, pts=times, time_base=Fraction(1, 1000), **lossless)
    made(source, tmp_path, format=("colored", "sidebyside", "ffv1"))
    for name in ("vfr_depth_colored.mp4", "vfr_depth_sidebyside.mp4", "vfr_depth.mkv"):
        pts, _, unit = decoded(tmp_path / name)
        assert [place * unit for place in pts] == [Fraction(time, 1000) for time in times]
    frames = np.load(tmp_path / "vfr_depth_frames.npz")
    assert frames["time_s"].tolist() == [time / 1000 for time in times]
    assert (frames["pts"] * frames["time_base"][0] / frames["time_base"][1]).tolist() == frames["time_s"].tolist()


def test_colors_keep_one_range_and_are_right(clip: Path, tmp_path: Path) -> None:
    made(clip, tmp_path, format=("colored",), crf=1)
    _, pictures, _ = decoded(tmp_path / "room_depth_colored.mp4")
    for number, picture in enumerate(pictures):
        wanted = colorize(gray_depth(FRAMES[number], number))
        assert np.abs(picture.astype(int) - wanted).mean() < 4  # chroma has half the size
    import av

    with av.open(str(tmp_path / "room_depth_colored.mp4")) as video:
        codec = video.streams.video[0].codec_context
        assert (codec.color_range, codec.colorspace, codec.color_trc, codec.color_primaries) == (1, 1, 1, 1)
        assert codec.pix_fmt == "yuv420p" and not codec.has_b_frames


def test_side_by_side_of_odd_and_turned_clips(tmp_path: Path) -> None:
    odd = write_clip(tmp_path / "odd.mkv", patterns(3, height=31, width=47))
    made(odd, tmp_path, crf=1)
    _, (picture, *_), _ = decoded(tmp_path / "odd_depth_sidebyside.mp4")
    assert picture.shape == (32, 94, 3)
    assert np.abs(picture[:31, :47].astype(int) - patterns(1, height=31, width=47)[0]).mean() < 4
    assert decoded(tmp_path / "odd_depth_colored.mp4")[1][0].shape == (32, 48, 3)
    record = json.loads((tmp_path / "odd_depth.json").read_text())
    assert record["size"] == [47, 31] and record["padded_size"] == [48, 32]

    lossless = {"codec": "libx264", "pixel_format": "yuv444p", "options": {"qp": "0"}}
    turned = write_clip(tmp_path / "turned.mp4", FRAMES[:2], **lossless)
    turn(turned, degrees=90)
    made(turned, tmp_path)
    assert decoded(tmp_path / "turned_depth_sidebyside.mp4")[1][0].shape == (WIDTH, 2 * HEIGHT, 3)


def test_sound_is_copied(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "talk.mp4", FRAMES, codec="libx264", pixel_format="yuv420p", tone_s=0.4)
    made(source, tmp_path)
    codec, packets, _ = sound_of(tmp_path / "talk_depth_sidebyside.mp4")
    assert codec == "aac" and packets == sound_of(source)[1]
    pts, _, unit = decoded(tmp_path / "talk_depth_sidebyside.mp4")
    assert [place * unit for place in pts] == [Fraction(number, 25) for number in range(10)]
    import av

    with av.open(str(tmp_path / "talk_depth_colored.mp4")) as colored:
        assert not colored.streams.audio


def test_sound_that_mp4_does_not_take_is_encoded(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "talk.mkv", FRAMES, tone_s=0.4, tone_codec="pcm_s16le")
    made(source, tmp_path)
    import av

    with av.open(str(tmp_path / "talk_depth_sidebyside.mp4")) as file:
        assert file.streams.audio[0].codec_context.name == "aac"
        wave = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    spectrum = np.abs(np.fft.rfft(wave[2000:6000]))
    assert np.argmax(spectrum) * 16000 / 4000 == pytest.approx(440, abs=8)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 1)])
def test_ffv1_of_a_line(tmp_path: Path, height: int, width: int) -> None:
    from PIL import Image

    line = tmp_path / "line"
    line.mkdir()
    for number in range(2):
        Image.new("RGB", (width, height), (90, 90, number)).save(line / f"{number}.png")
    made(line, tmp_path, format=("ffv1",))
    assert decoded(tmp_path / "line_depth.mkv", pixel_format="gray16le")[1][0].shape == (height, width)


def test_start_shifts_pictures_and_sound_alike(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "talk.mp4", patterns(25), codec="libx264", pixel_format="yuv420p", tone_s=1.0)
    made(source, tmp_path, start=0.4, end=0.8)
    pts, _, unit = decoded(tmp_path / "talk_depth_sidebyside.mp4")
    assert pts[0] == 0 and len(pts) == 10 and pts[-1] * unit == Fraction(9, 25)
    _, packets, first = sound_of(tmp_path / "talk_depth_sidebyside.mp4")
    assert 0 <= first < 1024 / 16000 and len(packets) == pytest.approx(0.4 * 16000 / 1024, abs=1)
    assert np.load(tmp_path / "talk_depth_frames.npz")["time_s"][0] == pytest.approx(0.4)


def test_files_of_each_frame(clip: Path, tmp_path: Path) -> None:
    made(clip, tmp_path, format=("npy", "png"), every=5)
    folder = tmp_path / "room_depth_frames"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["000000_depth.npy", "000000_depth.png", "000001_depth.npy", "000001_depth.png"]
    depth = np.load(folder / "000001_depth.npy")
    assert (depth == gray_depth(FRAMES[5], 1)).all()
    record = read_provenance(folder / "000001_depth.png")
    assert record["frame"] == {"number": 1, "time_s": 0.2, "scale": 1.0, "shift": 0.001, "shot": 0}
    from PIL import Image

    with Image.open(folder / "000001_depth.png") as image:
        codes = np.asarray(image)
    assert (codes == to_codes(depth, (0.0, 1.0))).all() and codes.max() > 256
    assert record["content"] == "depth = 0.0 + code / 65535 * 1.0"


def test_exr_of_each_frame(clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("OpenEXR")
    from openmarigold.images.exr import read_exr

    made(clip, tmp_path, format=("exr",), end=0.1)
    channels = read_exr(tmp_path / "room_depth_frames" / "000002_depth.exr")
    assert (channels["Y"] == gray_depth(FRAMES[2], 2)).all()


def test_what_is_stated(clip: Path, tmp_path: Path) -> None:
    result = made(clip, tmp_path, format=("colored",), late=2)
    assert result.num_frames == result.num_predicted == 10 and result.cuts == [3] and result.problem is None
    frames = np.load(tmp_path / "room_depth_frames.npz")
    assert frames["number"].tolist() == list(range(10))
    assert frames["shift"].tolist() == [number / 1000 for number in range(10)]
    assert frames["shot"].tolist() == [0] * 3 + [1] * 7 and frames["is_cut"].nonzero()[0].tolist() == [3]
    assert frames["bounds"].tolist() == [[0.0, 1.0]] * 10 and frames["inliers"].tolist() == [1.0] * 10
    record = json.loads((tmp_path / "room_depth.json").read_text())
    assert record["num_frames"] == 10 and record["cuts"] == [3] and record["checkpoint"] == "gray"
    assert len(record["input_sha256"]) == 64 and record["clip"]["codec"] == "ffv1"
    assert set(record["outputs"]) == {"room_depth_colored.mp4", "room_depth_frames.npz"}
    assert read_provenance(tmp_path / "room_depth_frames.npz")["input_sha256"] == record["input_sha256"]
    import av

    with av.open(str(tmp_path / "room_depth_colored.mp4")) as video:
        assert json.loads(video.metadata["comment"])["input_sha256"] == record["input_sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "room_depth.json",
        "room_depth_colored.mp4",
        "room_depth_frames.npz",
    ]


def test_maps_of_three_channels(clip: Path, tmp_path: Path) -> None:
    """Normals, through the same code."""
    from openmarigold.results.prediction import Prediction

    class Normals(GrayModel):
        modality = find_modality("normals")

        def open(self, state: dict[str, np.ndarray] | None) -> Any:
            stream = super().open(state)
            original = stream._next

            def turned() -> Any:
                item = original()
                depth = item.prediction.maps["depth"]
                normals = np.stack([depth - 0.5, np.zeros_like(depth), np.ones_like(depth)], axis=-1)
                normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
                prediction = Prediction(maps={"normals": normals}, modality="normals")
                object.__setattr__(item, "prediction", prediction)
                object.__setattr__(item, "bounds", None)
                return item

            stream._next = turned
            return stream

    make_video(clip, tmp_path, model=Normals(), video=VideoConfig(format=("colored", "ffv1", "npy")))
    _, codes, _ = decoded(tmp_path / "room_normals.mkv", pixel_format="gbrp16le")
    ranges = np.load(tmp_path / "room_normals_frames.npz")["range_normals"]
    assert ranges.tolist() == [[-1.0, 1.0]] * 10
    normals = np.load(tmp_path / "room_normals_frames" / "000004_normals.npy")
    assert np.abs((codes[4] / LARGEST_CODE * 2 - 1) - normals).max() <= 1.01 / 65535
    assert (tmp_path / "room_normals_colored.mp4").exists()


def test_done_results_are_kept_and_others_are_made_anew(clip: Path, tmp_path: Path) -> None:
    assert not made(clip, tmp_path).skipped
    again = made(clip, tmp_path)
    assert again.skipped and again.num_predicted == 0 and again.num_frames == 10 and again.cuts == [3]
    assert made(clip, tmp_path, overwrite=True).num_predicted == 10
    other = made(clip, tmp_path, crf=30)
    assert other.num_predicted == 10 and any("made again" in note for note in other.notes)
    (tmp_path / "room_depth_colored.mp4").write_bytes(b"cut")
    assert made(clip, tmp_path, crf=30).num_predicted == 10


def test_further_formats_join_those_of_the_same_settings(clip: Path, tmp_path: Path) -> None:
    made(clip, tmp_path, format=("colored", "npy"))
    more = made(clip, tmp_path, format=("ffv1",))
    assert more.num_predicted == 10 and any("existing ones stay" in note for note in more.notes)
    for formats in (("colored",), ("ffv1", "npy")):
        assert made(clip, tmp_path, format=formats).skipped
    assert len(list((tmp_path / "room_depth_frames").glob("*.npy"))) == 10
    made(clip, tmp_path, format=("ffv1",), crf=30)  # other settings: nothing of the old ones may stay next to them
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "room_depth.json",
        "room_depth.mkv",
        "room_depth_frames.npz",
    ]


def test_files_that_are_not_known_to_be_of_the_clip_are_not_replaced(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "room_depth.mkv").write_bytes(b"somebody's")
    with pytest.raises(OutputError, match=r"room_depth\.mkv exists, and there is no record that it is a result"):
        made(clip, tmp_path, format=("ffv1",))
    assert (tmp_path / "room_depth.mkv").read_bytes() == b"somebody's"
    made(clip, tmp_path, format=("ffv1",), overwrite=True)
    (tmp_path / "room_depth.json").unlink()  # the video itself says which clip it is of
    assert made(clip, tmp_path, format=("ffv1",)).num_predicted == 10


def test_results_of_another_clip_are_not_replaced(clip: Path, tmp_path: Path) -> None:
    made(clip, tmp_path / "out")
    other = write_clip(tmp_path / "room.mkv", patterns(4))
    with pytest.raises(OutputError, match=r"are results of .*room\.mkv; allow overwriting \(--overwrite\)"):
        made(other, tmp_path / "out")
    assert made(other, tmp_path / "out", overwrite=True).num_frames == 4


def test_damaged_clip_gives_what_was_read(tmp_path: Path) -> None:
    noise = list(np.random.default_rng(0).integers(0, 255, (30, HEIGHT, WIDTH, 3), dtype=np.uint8))
    whole = write_clip(tmp_path / "whole.mkv", noise)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    result = made(cut, tmp_path / "out")
    assert result.problem is not None and "is cut off" in result.problem and 5 < result.num_frames < 25
    assert len(decoded(tmp_path / "out" / "cut_depth_colored.mp4")[0]) == result.num_frames
    assert made(cut, tmp_path / "out").problem == result.problem  # also where it is skipped


def test_a_name_that_is_too_long_is_told_at_once(clip: Path, tmp_path: Path) -> None:
    long = tmp_path / f"{'n' * 230}.mkv"
    long.write_bytes(clip.read_bytes())
    model = GrayModel()
    with pytest.raises(OutputError, match=r"is 5 bytes too long for the names of its results; rename it"):
        make_video(long, tmp_path / "out", model=model, video=VideoConfig())
    assert not model.opened


def test_no_frame_between_the_moments(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="has no frame from 5 s to 6 s; choose another start and end"):
        made(clip, tmp_path, start=5.0, end=6.0)


def test_full_disk_is_one_line_and_keeps_segments(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openmarigold.video.work import Work

    original, calls = Work.begin, []

    def begin(self: Work) -> Path:
        calls.append(1)
        if len(calls) == 2:
            raise OutputError("cannot write x: No space left on device; check the folder and free space")
        return original(self)

    monkeypatch.setattr(Work, "begin", begin)
    with pytest.raises(OutputError, match="No space left on device"):
        made(clip, tmp_path)
    monkeypatch.setattr(Work, "begin", original)
    result = made(clip, tmp_path)
    assert result.resumed_at == 4 and result.num_predicted == 6 and result.num_frames == 10


def test_error_of_the_model_ends_the_run(clip: Path, tmp_path: Path) -> None:
    class Failing(GrayModel):
        def open(self, state: dict[str, np.ndarray] | None) -> Any:
            stream = super().open(state)
            original = stream._next

            def next_() -> Any:
                if stream.number == 6:
                    raise InvalidValueError("no more")
                return original()

            stream._next = next_
            return stream

    with pytest.raises(InvalidValueError, match="no more"):
        make_video(clip, tmp_path, model=Failing(), video=VideoConfig(segment=4))
    assert [path.name for path in (tmp_path / ".room_depth.work").glob("0*")] == ["000000"]  # nothing that is half done
    assert made(clip, tmp_path).resumed_at == 4


def test_progress(clip: Path, tmp_path: Path) -> None:
    events: list[VideoEvent] = []
    make_video(clip, tmp_path, model=GrayModel(), video=VideoConfig(), report=events.append)
    assert [(event.done, event.total) for event in events if event.note is None] == [(n, 10) for n in range(1, 11)]


# Codes


@pytest.mark.parametrize(
    ("values", "bounds", "expected"),
    [
        ((0.2, 0.8), (0.1, 0.9), (0.0, 1.0)),
        ((0.2, 0.8), (0.1, 0.901), (0.0, 1.0)),  # a range that widens a little keeps its codes
        ((-0.2, 1.4), (0.1, 0.9), (-1.0, 2.0)),  # what is beyond it is not cut
        ((3.0, 9.0), (3.0, 9.0), (0.0, 16.0)),
        ((0.5, 0.5), None, (0.0, 1.0)),  # nothing is fitted: the range of the map
    ],
)
def test_ranges_of_codes(
    values: tuple[float, float], bounds: tuple[float, float] | None, expected: tuple[float, float]
) -> None:
    found = code_range(np.array([values], np.float32), DEPTH_KIND, bounds)
    assert found == expected


def test_codes_are_rounded_and_bounded() -> None:
    codes = to_codes(np.array([[0.0, 1.0, 0.5, 2.0, np.nan]], np.float32), (0.0, 1.0))
    assert codes.tolist() == [[0, 65535, 32768, 65535, 0]]


def test_even_sides_repeat_the_last_row_and_column() -> None:
    padded = to_even(np.arange(15, dtype=np.uint8).reshape(1, 5, 3))
    assert padded.shape == (2, 6, 3) and (padded[1] == padded[0]).all() and (padded[0, 5] == padded[0, 4]).all()


# Pipes


class _Out(io.BytesIO):
    def close(self) -> None:
        pass


def to_stdout(monkeypatch: pytest.MonkeyPatch, source: Path, **video: Any) -> tuple[bytes, VideoResult]:
    caught = _Out()

    class Stdout:
        buffer = caught

        @staticmethod
        def isatty() -> bool:
            return False

    monkeypatch.setattr(sys, "stdout", Stdout)
    result = make_video(source, Path("-"), model=GrayModel(), video=VideoConfig(**video))
    monkeypatch.undo()
    return caught.getvalue(), result


def test_raw_codes_to_a_pipe(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, result = to_stdout(monkeypatch, clip, format=("ffv1",), pipe="raw")
    codes = np.frombuffer(content, "<u2").reshape(10, HEIGHT, WIDTH)
    assert (codes[7] == to_codes(gray_depth(FRAMES[7], 7), (0.0, 1.0))).all()
    assert result.notes == ["from frame 0 on, code 0 is 0 and 65535 is 1"]


def test_raw_colors_and_matroska_to_a_pipe(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, _ = to_stdout(monkeypatch, clip, format=("colored",), pipe="raw")
    colors = np.frombuffer(content, np.uint8).reshape(10, HEIGHT, WIDTH, 3)
    assert (colors[2] == colorize(gray_depth(FRAMES[2], 2))).all()
    content, _ = to_stdout(monkeypatch, clip, format=("ffv1",))
    (tmp_path / "piped.mkv").write_bytes(content)
    pts, codes, _ = decoded(tmp_path / "piped.mkv", pixel_format="gray16le")
    assert pts == [40 * number for number in range(10)]
    assert (codes[9] == to_codes(gray_depth(FRAMES[9], 9), (0.0, 1.0))).all()


def test_a_pipe_takes_one_video(clip: Path) -> None:
    with pytest.raises(InvalidValueError, match="stdout, which takes one video; give colored, sidebyside or ffv1"):
        make_video(clip, Path("-"), model=GrayModel(), video=VideoConfig())


@pytest.mark.parametrize(
    ("features", "setting"), [({"AVX512F": True}, ":asm=avx2"), ({"AVX512F": False}, ""), ({}, ""), (None, ":mbtree=0")]
)
def test_x264_does_without_the_code_that_is_not_exact(
    features: dict[str, bool] | None, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def numpy_module(name: str) -> Any:
        if features is None:
            raise ImportError(name)
        return SimpleNamespace(__cpu_features__=features)

    monkeypatch.setattr("openmarigold.video.encoding.importlib.import_module", numpy_module)
    assert encoding._without_avx512() == setting
