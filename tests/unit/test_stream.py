# SPDX-License-Identifier: Apache-2.0
"""Clips: one gauge, little flicker, no drift, cuts at the right frame, constant memory, the same bytes after a kill."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from openmarigold import InvalidValueError, MissingExtraError, Predictor
from openmarigold.config import CallConfig
from openmarigold.modalities import NORMALS
from openmarigold.predictor.stream import Stream, StreamedFrame
from openmarigold.temporal.settings import StreamConfig
from synthetic_clip import FakePredictor, Frame, Room
from tiny import make_photo


def streamed(
    frames: Iterable[Frame], *, predictor: FakePredictor | None = None, **settings: Any
) -> list[StreamedFrame]:
    predictor = predictor or FakePredictor()

    def learned() -> Iterator[np.ndarray]:
        for frame in frames:
            yield predictor.learn(frame.rgb, depth=frame.raw)

    return list(predictor.stream(learned(), stream=StreamConfig(**settings)))


def clip(room: Room, number: int, *, start: int = 0) -> list[Frame]:
    return [room.frame(start + place) for place in range(number)]


def fitted_scale(frame: Frame, depth: np.ndarray) -> float:
    """Of the map to the truth, on what stands still; the truth is exact, so that least squares is right."""
    still = ~frame.is_box
    return float(np.polyfit(frame.depth[still], depth[still], 1)[0])


def normalized(frame: Frame) -> np.ndarray:
    return (frame.raw - frame.raw.min()) / (frame.raw.max() - frame.raw.min())


@pytest.fixture(scope="module")
def long_clip() -> tuple[list[Frame], list[StreamedFrame]]:
    frames = clip(Room(), 500)
    return frames, streamed(frames)


def test_500_frames_flicker_20_times_less_than_frames_that_are_normalized_one_by_one(
    long_clip: tuple[list[Frame], list[StreamedFrame]],
) -> None:
    frames, done = long_clip
    ours = np.log([fitted_scale(frame, out.prediction.depth) for frame, out in zip(frames, done, strict=True)])
    alone = np.log([fitted_scale(frame, normalized(frame)) for frame in frames])
    assert alone.std() > 0.05
    assert ours.std() < alone.std() / 20


def test_the_values_of_still_pixels_flicker_less_than_their_noise(
    long_clip: tuple[list[Frame], list[StreamedFrame]],
) -> None:
    frames, done = long_clip
    still = ~np.any([frame.is_box for frame in frames], axis=0)
    assert still.any()
    maps = np.stack([out.prediction.depth[still] for out in done]) / frames[0].a
    assert np.median(maps.std(axis=0)) < 0.006  # one frame's noise is 0.01 / a


def test_the_scale_does_not_drift(long_clip: tuple[list[Frame], list[StreamedFrame]]) -> None:
    frames, done = long_clip
    scales = np.array([fitted_scale(frame, out.prediction.depth) for frame, out in zip(frames, done, strict=True)])
    assert abs(np.log(scales[-20:].mean() / scales[:20].mean())) < 0.01
    assert [out.shot for out in done] == [0] * 500
    assert not any(out.is_cut for out in done)


def test_without_noise_scale_and_shift_are_recovered_and_the_box_does_not_drag_the_room() -> None:
    frames = clip(Room(smooth=0.0, pixel=0.0005), 60)
    done = streamed(frames)
    for frame, out in zip(frames[1:], done[1:], strict=True):
        assert out.scale * frame.a == pytest.approx(frames[0].a, rel=0.01)
        assert out.scale * frame.b + out.shift == pytest.approx(frames[0].b, abs=0.01)
        still = ~frame.is_box
        truth = frames[0].a * frame.depth + frames[0].b
        assert np.abs(out.prediction.depth - truth)[still].max() < 0.02
        assert np.abs(out.prediction.depth - truth)[frame.is_box].mean() < 0.02 if frame.is_box.any() else True
    assert (done[0].scale, done[0].shift, done[0].inliers) == (1.0, 0.0, 1.0)
    np.testing.assert_array_equal(done[0].prediction.depth, frames[0].raw)


def test_a_model_up_to_scale_has_one_number_a_frame() -> None:
    frames = clip(Room(log=True), 60)
    done = streamed(frames, predictor=FakePredictor(invariance="scale"))
    assert {out.scale for out in done} == {1.0}
    for frame, out in zip(frames, done, strict=True):
        assert np.exp(out.shift) * frame.a == pytest.approx(frames[0].a, rel=0.01)
        depth = out.prediction.depth
        assert np.median(depth / (frames[0].a * frame.depth)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("how", ["flow", "pixels"])
@pytest.mark.parametrize("at", [1, 7, 30])
def test_a_cut_is_found_at_its_frame_and_starts_a_new_gauge(how: str, at: int) -> None:
    frames = [*clip(Room(), at), *clip(Room(seed=5), 12)]
    done = streamed(frames, correspondence=how)
    assert [out.number for out in done if out.is_cut] == [at]
    assert [out.shot for out in done] == [0] * at + [1] * 12
    assert (done[at].scale, done[at].shift) == (1.0, 0.0)
    np.testing.assert_array_equal(done[at].prediction.depth, frames[at].raw)
    assert done[at + 9].scale * frames[at + 9].a == pytest.approx(frames[at].a, rel=0.04)


def test_cuts_are_not_looked_for_where_that_is_switched_off() -> None:
    done = streamed([*clip(Room(), 5), *clip(Room(seed=5), 5)], detect_cuts=False)
    assert {out.shot for out in done} == {0}


def test_pans_flashes_fades_and_a_black_frame_are_no_cuts() -> None:
    frames = clip(Room(height=96, width=128, pan=9.0), 20)
    for place, gain in {4: 1.7, 9: 0.0, 13: 0.7, 14: 0.4, 15: 0.15, 16: 0.4}.items():
        frame = frames[place]
        bright = np.clip(frame.rgb * gain + 10.0, 0, 255).astype(np.uint8)
        frames[place] = Frame(rgb=bright, depth=frame.depth, raw=frame.raw, a=frame.a, b=frame.b, is_box=frame.is_box)
    done = streamed(frames)
    assert not any(out.is_cut for out in done)
    for place in (5, 10, 19):
        assert done[place].scale * frames[place].a == pytest.approx(frames[0].a, rel=0.06)


@pytest.mark.parametrize("look_ahead", [0, 2])
def test_the_gauge_of_a_shot_is_that_of_its_first_frame_that_shows_something(look_ahead: int) -> None:
    frames = clip(Room(), 6)
    for frame in frames[:2]:
        frame.rgb[:] = frame.rgb % 2  # black, with noise
    out = streamed(frames, look_ahead=look_ahead)
    assert not any(frame.is_cut for frame in out) and out[-1].shot == 0
    assert (out[2].scale, out[2].shift) == (1.0, 0.0)
    assert out[5].scale == pytest.approx(frames[2].a / frames[5].a, rel=0.03)
    bounds = out[2].bounds
    assert bounds is not None and bounds[0] == pytest.approx(np.quantile(frames[2].raw, 0.005), abs=0.1)


def test_looking_ahead_emits_late_and_steadier() -> None:
    frames = clip(Room(), 40)
    predictor = FakePredictor()
    stream = Stream(predictor, StreamConfig(look_ahead=3), CallConfig())
    counts = []
    done: list[StreamedFrame] = []
    for frame in frames:
        new = stream.push(predictor.learn(frame.rgb, depth=frame.raw))
        counts.append(len(new))
        done += new
    assert counts == [0, 0, 0] + [1] * 37
    last = stream.finish()
    assert [out.number for out in done + last] == list(range(40))
    late = np.stack([out.prediction.depth for out in done + last])
    plain = np.stack([out.prediction.depth for out in streamed(frames)])
    still = ~np.any([frame.is_box for frame in frames], axis=0)

    def steps(maps: np.ndarray) -> float:
        return float(np.abs(np.diff(maps, axis=0))[:, still].mean())

    assert steps(late) < 0.8 * steps(plain)
    np.testing.assert_array_equal(late[-1], plain[-1])  # nothing comes after it


def test_a_cut_is_not_looked_across() -> None:
    frames = [*clip(Room(), 6), *clip(Room(seed=5), 6)]
    ahead = streamed(frames, look_ahead=4)
    np.testing.assert_array_equal(ahead[5].prediction.depth, streamed(frames)[5].prediction.depth)
    assert [out.number for out in ahead if out.is_cut] == [6]


def test_smoothing_leaves_edges_and_can_be_switched_off() -> None:
    frames = clip(Room(), 12)
    off = streamed(frames, smoothing=0.0)
    for frame, out in zip(frames, off, strict=True):
        expected = frame.raw * np.float32(out.scale) + np.float32(out.shift)
        np.testing.assert_allclose(out.prediction.depth, expected, atol=1e-6)
    on = streamed(frames)
    inner = frames[11].is_box
    np.testing.assert_allclose(on[11].prediction.depth[inner].mean(), off[11].prediction.depth[inner].mean(), atol=0.01)


def test_normals_fit_nothing_but_are_smoothed_and_stay_unit_vectors() -> None:
    rng = np.random.default_rng(3)
    room = Room()
    predictor = FakePredictor(modality=NORMALS, invariance="absolute")
    facing = np.zeros((48, 64, 3), dtype=np.float32)
    facing[..., 2] = 1.0
    frames, maps = clip(room, 12), []
    for frame in frames:
        noisy = facing + rng.normal(0, 0.05, facing.shape).astype(np.float32)
        maps.append(noisy / np.linalg.norm(noisy, axis=-1, keepdims=True))
        predictor.learn(frame.rgb, normals=maps[-1])
    done = list(predictor.stream((frame.rgb for frame in frames), stream=StreamConfig()))
    assert {(out.scale, out.shift, out.bounds) for out in done} == {(1.0, 0.0, None)}
    last = done[-1].prediction.normals
    np.testing.assert_allclose(np.linalg.norm(last, axis=-1), 1, atol=1e-5)
    still = ~np.any([frame.is_box for frame in frames], axis=0)
    assert (1 - last[..., 2])[still].mean() < 0.6 * (1 - maps[-1][..., 2])[still].mean()


def test_bounds_are_set_by_the_first_frames_and_only_widen() -> None:
    done = streamed(clip(Room(), 60))
    bounds = np.array([out.bounds for out in done])
    assert (np.diff(bounds[:, 0]) <= 0).all() and (np.diff(bounds[:, 1]) >= 0).all()
    width = bounds[:, 1] - bounds[:, 0]
    assert (np.diff(width)[10:] < 0.03 * width[10:-1]).all()


@pytest.mark.parametrize(
    ("settings", "start_noise", "at"),
    [
        ({}, "zeros", (1, 5, 11)),
        ({"look_ahead": 3}, "zeros", (1, 2, 7, 12)),
        ({"look_ahead": 2, "previous_latent": 0.3}, "gaussian", (4,)),
        ({"correspondence": "pixels"}, "zeros", (6,)),
    ],
)
def test_a_restored_stream_goes_on_with_the_same_bytes(
    settings: dict[str, Any], start_noise: str, at: tuple[int, ...]
) -> None:
    frames = [*clip(Room(pan=1.0), 9), *clip(Room(seed=5), 6)]
    config, call = StreamConfig(**settings), CallConfig()

    def fake() -> FakePredictor:
        predictor = FakePredictor(start_noise=start_noise)
        for frame in frames:
            predictor.learn(frame.rgb, depth=frame.raw)
        return predictor

    whole = Stream(fake(), config, call)
    expected = [out for frame in frames for out in whole.push(frame.rgb)] + whole.finish()
    for kill in at:
        first = Stream(fake(), config, call)
        done = [out for frame in frames[:kill] for out in first.push(frame.rgb)]
        state = {name: array.copy() for name, array in first.state().items()}
        assert all(array.dtype != object for array in state.values())
        second = Stream.restored(fake(), config, call, state)
        done += [out for frame in frames[kill:] for out in second.push(frame.rgb)] + second.finish()
        assert len(done) == len(expected)
        for out, should in zip(done, expected, strict=True):
            assert out.prediction.depth.tobytes() == should.prediction.depth.tobytes()
            assert (out.number, out.scale, out.shift, out.shot, out.is_cut, out.bounds, out.inliers) == (
                should.number, should.scale, should.shift, should.shot, should.is_cut, should.bounds, should.inliers
            )  # fmt: skip
            assert out.prediction.settings == should.prediction.settings


def test_frames_predicted_at_the_same_time_give_the_same_bytes_and_states(kl_onnx_checkpoint: Any) -> None:
    predictor = Predictor.load(kl_onnx_checkpoint, engine="onnx")
    photos = [make_photo(48, 64, seed=seed // 3) for seed in range(6)]
    config, call = StreamConfig(previous_latent=0.0), CallConfig()
    one_by_one = Stream(predictor, config, call)
    states, expected = [], []
    for photo in photos:
        expected += one_by_one.push(photo)
        states.append(one_by_one.state())
    together = Stream(predictor, config, call)
    for number, (out, state) in enumerate(zip(together.follow(photos), states, strict=False)):
        assert [one.prediction.depth.tobytes() for one in out] == [expected[number].prediction.depth.tobytes()]
        now = together.state()
        assert now.keys() == state.keys()
        assert all(now[name].tobytes() == state[name].tobytes() for name in now)


def test_the_noise_is_that_of_the_clip_with_a_share_of_the_previous_latent(kl_onnx_checkpoint: Any) -> None:
    frames = [*clip(Room(), 3), *clip(Room(seed=5), 2)]
    predictor = FakePredictor(start_noise="gaussian")
    streamed(frames, predictor=predictor, previous_latent=0.6)
    start = [latents[0] for latents in predictor.started if latents is not None]
    assert len(start) == 5
    noise = start[0]
    assert abs(noise.std() - 1) < 0.1
    previous = 3 * noise + 1
    expected = 0.8 * noise + 0.6 * previous / np.sqrt((previous.astype(np.float64) ** 2).mean())
    np.testing.assert_allclose(start[1], expected, rtol=1e-5)
    np.testing.assert_array_equal(start[3], noise)  # after a cut nothing is left of the shot before
    assert not np.array_equal(start[4], noise)

    plain = FakePredictor(start_noise="gaussian")
    streamed(frames, predictor=plain, previous_latent=0.0)
    assert all(np.array_equal(latents, plain.started[0]) for latents in plain.started)
    zeros = FakePredictor()
    streamed(frames, predictor=zeros)
    assert zeros.started == [None] * 5

    real = Predictor.load(kl_onnx_checkpoint, engine="onnx")
    (first, second) = real.stream([make_photo(50, 70)] * 2)
    assert first.prediction.latent is not None
    assert first.prediction.latent.shape[1:] == real.latent_shape((50, 70), real.resolve(CallConfig()))
    assert first.prediction.settings["num_inference_steps"] == 1
    assert not np.array_equal(first.prediction.latent, second.prediction.latent)


def test_memory_stays_flat() -> None:
    room = Room(height=24, width=32)
    frames = clip(room, 40)
    predictor = FakePredictor()
    stream = Stream(predictor, StreamConfig(correspondence="pixels", look_ahead=2), CallConfig())

    def run(number: int) -> None:
        for place in range(number):
            frame = frames[place % len(frames)]
            stream.push(predictor.learn(frame.rgb, depth=frame.raw))
            predictor.started.clear()

    run(140)  # until all key frames are there
    tracemalloc.start()
    try:
        run(20)
        before = tracemalloc.get_traced_memory()[0]
        run(150)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 100_000  # a look alone is 5,000 bytes a frame


def test_another_size_is_named_with_its_frame() -> None:
    predictor = FakePredictor()
    frames = [*clip(Room(), 2), *clip(Room(height=40, width=80), 1)]
    for frame in frames:
        predictor.learn(frame.rgb, depth=frame.raw)
    stream = Stream(predictor, StreamConfig(), CallConfig())
    stream.push(frames[0].rgb)
    stream.push(frames[1].rgb)
    with pytest.raises(InvalidValueError, match="frame 2 is 80x40, and the frames before are 64x48"):
        stream.push(frames[2].rgb)
    assert list(predictor.stream(iter([]))) == []


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 64), (6, 300), (24, 160), (30, 90)])
def test_frames_of_any_shape(height: int, width: int) -> None:
    """OpenCV's flow ends the process for low and wide pictures."""
    predictor = FakePredictor()
    photos = [np.clip(make_photo(height, width) + np.uint8(number), 0, 255) for number in range(4)]
    truth = np.linspace(0.2, 0.8, width, dtype=np.float32)[None].repeat(height, axis=0)
    scales = (1.0, 1.3, 0.8, 1.1)
    frames = [predictor.learn(photo, depth=truth * a) for photo, a in zip(photos, scales, strict=True)]
    out = list(predictor.stream(frames))
    assert len(out) == 4
    if height * width > 1000:
        assert [frame.scale for frame in out] == pytest.approx([1 / a for a in scales], rel=0.05)


@pytest.mark.parametrize("look_ahead", [0, 1])
def test_frames_before_one_that_cannot_be_used_come_out(look_ahead: int) -> None:
    predictor = FakePredictor()
    frames = [*clip(Room(), 4), *clip(Room(height=40, width=80), 1)]
    for frame in frames:
        predictor.learn(frame.rgb, depth=frame.raw)
    stream = Stream(predictor, StreamConfig(look_ahead=look_ahead), CallConfig())
    done: list[StreamedFrame] = []
    with pytest.raises(InvalidValueError, match="frame 4 is 80x40"):
        for new in stream.follow(frame.rgb for frame in frames):
            done += new
    assert [out.number for out in done] == list(range(4 - look_ahead))
    assert [out.number for out in stream.finish()] == list(range(4 - look_ahead, 4))


@pytest.mark.parametrize(
    "settings",
    [
        {"look_ahead": -1},
        {"look_ahead": 65},
        {"look_ahead": True},
        {"smoothing": 1.0},
        {"smoothing": -0.1},
        {"previous_latent": 1.0},
    ],
)
def test_settings_that_are_not_accepted(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match=next(iter(settings))):
        StreamConfig(**settings)


def test_previous_latent_needs_noise_to_be_part_of() -> None:
    with pytest.raises(InvalidValueError, match=r"previous_latent=0\.2 has no effect with fake"):
        Stream(FakePredictor(), StreamConfig(previous_latent=0.2), CallConfig())


def test_tiles_need_a_start_without_noise() -> None:
    with pytest.raises(InvalidValueError, match="tiles=True was given for a clip with fake, which starts from noise"):
        Stream(FakePredictor(start_noise="gaussian"), StreamConfig(), CallConfig(tiles=True))
    Stream(FakePredictor(), StreamConfig(), CallConfig(tiles=True))


def test_a_state_is_continued_with_what_made_it_alone() -> None:
    predictor = FakePredictor()
    frame = clip(Room(), 1)[0]
    stream = Stream(predictor, StreamConfig(), CallConfig())
    stream.push(predictor.learn(frame.rgb, depth=frame.raw))
    state = stream.state()
    Stream.restored(predictor, StreamConfig(), CallConfig(), state)
    for model, config, call, kept in (
        (FakePredictor(invariance="scale"), StreamConfig(), CallConfig(), state),
        (predictor, StreamConfig(smoothing=0.5), CallConfig(), state),
        (predictor, StreamConfig(), CallConfig(seed=3), state),
        (predictor, StreamConfig(), CallConfig(), {name: state[name] for name in state if name != "made_by"}),
    ):
        with pytest.raises(InvalidValueError, match="the state of a stream was made by"):
            Stream.restored(model, config, call, kept)


def test_flow_without_opencv_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"opencv-python-headless.*openmarigold\[video\]"):
        Stream(FakePredictor(), StreamConfig(), CallConfig())
    frames = clip(Room(), 3)
    assert len(streamed(frames, correspondence="pixels")) == 3
