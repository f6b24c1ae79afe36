# SPDX-License-Identifier: Apache-2.0
"""Errors along a clip against values computed by hand, on walls that are seen by a moving camera."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from clip_files import AHEAD, ASIDE, CAMERA, HEIGHT, WIDTH, pose_at, wall_clip, wall_depth
from openmarigold.camera import Camera
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation.clip_scores import pair_frames, score_clip
from openmarigold.modalities import DEPTH
from openmarigold.temporal.metrics import (
    Flicker,
    drift,
    final_drift,
    mean_tae,
    projection_error,
    projection_error_as_published,
    sampled,
    scale_jitter,
    seen_in_both,
    static_pixels,
    true_flow,
    warp_error,
)

EVERYWHERE = np.ones((HEIGHT, WIDTH), dtype=bool)


def both_errors(
    first: np.ndarray, second: np.ndarray, motion: np.ndarray, camera: Camera = CAMERA
) -> tuple[float, float]:
    valid = np.ones(first.shape, dtype=bool)
    kwargs: dict[str, Any] = {"second_valid": valid, "camera": camera, "first_to_second": motion}
    return (
        projection_error(first, second, first_valid=valid, **kwargs),
        projection_error_as_published(first, second, **kwargs),
    )


def scored(clip: Any, predictions: list[np.ndarray], **settings: Any) -> dict[str, float]:
    settings = {"protocol": DEPTH.protocols["scale"], "space": "scale", **settings}
    return score_clip(clip, range(len(clip)), [one.astype(np.float32) for one in predictions], **settings)


# --- TAE


def test_tae_of_a_plane_that_comes_nearer_equals_hand_values() -> None:
    forth = np.linalg.inv(pose_at((0, 0, 1)))  # one meter ahead
    first, second = np.full((HEIGHT, WIDTH), 4.0), np.full((HEIGHT, WIDTH), 3.3)
    assert both_errors(first, second, forth) == pytest.approx((0.3 / 3.3, 0.3 / 3.3))
    assert both_errors(second, first, np.linalg.inv(forth)) == pytest.approx((0.3 / 4, 0.3 / 4))
    assert mean_tae([0.3 / 3.3, 0.3 / 4]) == pytest.approx(100 * (0.3 / 3.3 + 0.3 / 4) / 2)
    assert both_errors(first, np.full((HEIGHT, WIDTH), 3.0), forth) == (0, 0)


def test_tae_of_a_sideways_pan_equals_hand_values() -> None:
    motion = np.linalg.inv(pose_at((0.5, 0, 0)))
    first = np.full((HEIGHT, WIDTH), 4.0)
    assert both_errors(first, first, motion) == (0, 0)
    second = first.copy()
    second[:, :15] = 5.0  # of the 30 columns that both frames show
    assert both_errors(first, second, motion) == pytest.approx((15 / 30 * 0.2, 15 / 30 * 0.2))


def test_the_nearest_point_stays_only_in_the_corrected_tae() -> None:
    camera = Camera(fx=8.0, fy=8.0, cx=5.5, cy=0.0, width=12, height=1)
    first, second = np.full((1, 12), 4.0), np.full((1, 12), 4.0)
    first[0, 2] = second[0, 6] = 2.0  # moves by 4 px to where a point of the wall, which moves by 2, is hidden
    assert both_errors(first, second, pose_at((1, 0, 0)), camera) == pytest.approx((0, 1 / 9))


def test_frames_without_overlap_are_left_out_or_count_as_zero() -> None:
    wall = np.full((HEIGHT, WIDTH), 4.0)
    corrected, published = both_errors(wall, wall, pose_at((100, 0, 0)))
    assert math.isnan(corrected) and published == 0
    assert mean_tae([corrected, 0.1]) == pytest.approx(10)
    assert mean_tae([published, 0.1]) == pytest.approx(5)
    assert math.isnan(mean_tae([corrected]))


def test_points_behind_the_second_camera_have_no_part_in_the_corrected_tae() -> None:
    behind = np.diag([-1.0, 1.0, -1.0, 1.0])
    behind[2, 3] = 2.0
    wall = np.full((HEIGHT, WIDTH), 4.0)
    assert math.isnan(both_errors(wall, wall, behind)[0])


def test_what_was_not_measured_has_no_part() -> None:
    first, valid = np.full((HEIGHT, WIDTH), 4.0), EVERYWHERE.copy()
    first[:, :16], valid[:, :16] = 9.0, False
    error = projection_error(
        first,
        np.full((HEIGHT, WIDTH), 4.0),
        first_valid=valid,
        second_valid=EVERYWHERE,
        camera=CAMERA,
        first_to_second=np.eye(4),
    )
    assert error == 0


# --- Flow and OPW


def test_true_flow_of_a_pan_and_of_a_turn() -> None:
    depth = wall_depth((0, 0, 0))
    flow = true_flow(depth, EVERYWHERE, camera=CAMERA, first_to_second=np.linalg.inv(pose_at((0.5, 0, 0))))
    np.testing.assert_allclose(flow, np.broadcast_to([-2, 0], flow.shape), atol=1e-5)
    turn, angle = np.eye(4), 0.1
    turn[0, 0] = turn[2, 2] = math.cos(angle)
    turn[0, 2], turn[2, 0] = math.sin(angle), -math.sin(angle)
    flow = true_flow(depth, EVERYWHERE, camera=CAMERA, first_to_second=turn)
    x = (20 - 15.5) / 16
    assert flow[11, 20, 0] == pytest.approx(16 * math.tan(math.atan(x) + angle) + 15.5 - 20, abs=1e-4)
    valid = EVERYWHERE.copy()
    valid[3, 4] = False
    assert np.isnan(true_flow(depth, valid, camera=CAMERA, first_to_second=turn)[3, 4]).all()


def test_opw_of_a_pan_equals_a_hand_value() -> None:
    flow = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    flow[..., 0] = -2
    first = np.arange(WIDTH, dtype=float) + np.zeros((HEIGHT, 1))
    second = first + 2  # the same surface, two columns on
    seen = seen_in_both(flow, -flow)
    assert not seen[:, :2].any() and seen[:, 2:].all()
    assert warp_error(first, second, flow=flow, seen=seen) == pytest.approx(0)
    assert warp_error(first, second + 0.5, flow=flow, seen=seen) == pytest.approx(0.5)
    half = second.copy()
    half[:, :15] += 1  # of the 30 columns that both show
    assert warp_error(first, half, flow=flow, seen=seen) == pytest.approx(0.5)
    assert math.isnan(warp_error(first, second, flow=flow, seen=np.zeros_like(seen)))


def test_what_is_hidden_in_one_frame_is_found_by_flow_there_and_back() -> None:
    there, back = np.zeros((1, 12, 2), np.float32), np.zeros((1, 12, 2), np.float32)
    there[0, 2, 0], back[0, 6, 0] = 4, -4  # an object covers what is at column 6
    seen = seen_in_both(there, back)
    assert seen[0, 2] and not seen[0, 6] and seen[0, 7]


def test_sampling_is_bilinear_and_an_unknown_neighbor_spoils_it() -> None:
    picture = np.array([[0.0, 1.0, np.nan], [2.0, 3.0, 4.0]])
    flow = np.zeros((2, 3, 2), np.float32)
    flow[0, 0] = 0.5, 0.5
    flow[1, 0] = 1, 0
    flow[1, 1] = 0.25, -0.5
    flow[1, 2] = 5, 0
    values, inside = sampled(picture, flow)
    assert values[0, 0] == pytest.approx(1.5) and values[1, 0] == 3
    assert math.isnan(values[1, 1]) and not inside[1, 2] and values[1, 2] == 0


# --- Flicker, scales


def test_flicker_is_the_deviation_of_log_depth_without_the_trend() -> None:
    rng, flicker = np.random.default_rng(3), Flicker()
    frames = [2.0 * np.exp(0.01 * t + rng.normal(0, 0.05, (60, 80))) for t in range(30)]
    for first, second in pairwise(frames):
        flicker.add(first, second, np.ones((60, 80), dtype=bool))
    assert flicker.value == pytest.approx(0.05, rel=0.02)
    steady = Flicker()
    steady.add(np.full((2, 2), 1.0), np.full((2, 2), 1.1), np.array([[True, False], [False, False]]))
    assert steady.value == 0 and steady.share_static == 0.25
    assert math.isnan(Flicker().value)


def test_static_pixels_neither_move_nor_change() -> None:
    photo = np.full((1, 4, 3), 100, dtype=np.uint8)
    other, flow = photo.copy(), np.zeros((1, 4, 2), np.float32)
    other[0, 1, 2], other[0, 2, 0] = 101, 98
    flow[0, 3] = 0.2, 0.25
    assert static_pixels(photo, other, flow).tolist() == [[True, True, False, False]]


def test_jitter_and_drift_of_known_scales() -> None:
    scales = [math.exp(0.1 * (-1) ** t) for t in range(20)]
    assert scale_jitter(scales) == pytest.approx(0.1)
    rising = [math.exp(0.01 * t) for t in range(20)]
    assert drift(rising) == pytest.approx(0.18)  # the mean of the last two frames against the first two
    assert final_drift(rising) == pytest.approx(0.19)
    assert all(math.isnan(score([1.0, 0.0])) for score in (scale_jitter, drift, final_drift))


# --- A whole clip


@pytest.mark.parametrize("positions", [AHEAD, ASIDE])
def test_perfect_predictions_have_no_error(positions: Any) -> None:
    clip = wall_clip(positions)
    scores = scored(clip, [0.25 * wall_depth(position) for position in positions])
    for how in ("clip", "frame", "first"):
        for name in ("abs_rel", "tae", "tae_published"):
            assert scores[f"{how}/{name}"] == pytest.approx(0, abs=1e-6)
        assert scores[f"{how}/delta1"] == 1
        assert scores[f"{how}/opw"] == pytest.approx(scores["opw_truth"], abs=1e-6)
    assert scores["opw_truth"] == pytest.approx(0.5 if positions is AHEAD else 0, abs=1e-6)
    assert scores["scale_jitter"] == pytest.approx(0, abs=1e-6) and scores["pixels_scored"] == 1


def test_the_alignments_are_the_whole_clip_each_frame_and_the_first() -> None:
    clip = wall_clip([(0, 0, 0), (0, 0, 0)])
    wall = wall_depth((0, 0, 0))
    scores = scored(clip, [wall, 2 * wall])
    assert scores["frame/abs_rel"] == pytest.approx(0, abs=1e-6)
    assert scores["first/abs_rel"] == pytest.approx((0 + 1) / 2)
    # one factor for [4, 8] against [4, 4] is 48 / 80: depth is 2.4 and 4.8
    assert scores["clip/abs_rel"] == pytest.approx((0.4 + 0.2) / 2)
    assert scores["clip/tae"] == pytest.approx((2.4 / 4.8 + 2.4 / 2.4) / 2)
    assert scores["clip/opw"] == pytest.approx(2.4)
    assert scores["clip/flicker"] == pytest.approx(0)  # one pair is all trend
    assert scores["final_drift"] == pytest.approx(-math.log(2))


@pytest.mark.parametrize(
    ("protocol", "space", "distorted"),
    [
        ("marigold", "affine_depth", lambda depth: 0.2 * depth + 0.1),
        ("log", "affine_depth", lambda depth: 0.3 * depth**0.5),
        ("disparity", "disparity", lambda depth: 3 / depth + 0.5),
    ],
)
def test_a_fit_is_made_as_the_protocol_says(protocol: str, space: str, distorted: Any) -> None:
    depths = [np.linspace(2, 6, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.float32) + t for t in range(3)]
    clip = wall_clip([(0, 0, 0)] * 3, depths=depths)
    scores = scored(clip, [distorted(depth) for depth in depths], protocol=DEPTH.protocols[protocol], space=space)
    assert [scores[f"{how}/abs_rel"] for how in ("clip", "frame", "first")] == pytest.approx([0, 0, 0], abs=1e-5)


def test_a_long_clip_is_fitted_to_every_nth_pixel_and_aligned_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    depths = [rng.uniform(2, 6, (HEIGHT, WIDTH)).astype(np.float32) for _ in range(5)]
    clip = wall_clip([(0, 0, 0)] * 5, depths=depths)
    factors = [1.0, 1.1, 0.9, 1.05, 1.0]
    predictions = [factor * depth for factor, depth in zip(factors, depths, strict=True)]
    whole = scored(clip, predictions)
    monkeypatch.setattr("openmarigold.evaluation.clip_scores.MAX_FIT_PIXELS", 2 * HEIGHT * WIDTH)
    parts = scored(clip, predictions)
    assert parts["clip/abs_rel"] == pytest.approx(whole["clip/abs_rel"], rel=0.02)
    assert parts["scale_jitter"] == pytest.approx(whole["scale_jitter"], rel=1e-5)
    assert whole["scale_jitter"] == pytest.approx(np.std(np.log(factors)), rel=1e-5)


def test_estimated_flow_finds_a_pan() -> None:
    pytest.importorskip("cv2")
    from openmarigold.temporal.flow import estimate_flow
    from tiny import make_photo

    wide = make_photo(64, 100)
    first, second = wide[:, :96], wide[:, 4:]
    flow = estimate_flow(np.ascontiguousarray(first), np.ascontiguousarray(second))
    np.testing.assert_allclose(np.median(flow, axis=(0, 1)), [-4, 0], atol=0.1)
    clip = wall_clip([(0, 0, 0)] * 2)
    pair = pair_frames(clip, 0, clip.read(0), clip.read(1), "estimated")
    assert pair.static.mean() > 0.95


def test_a_lost_pose_leaves_its_pairs_out() -> None:
    clip = wall_clip(ASIDE)
    read = clip.read

    def lost(number: int) -> Any:
        from dataclasses import replace

        return replace(read(number), pose=None) if number == 1 else read(number)

    object.__setattr__(clip, "read", lost)
    scores = scored(clip, [wall_depth(position) for position in ASIDE])
    assert math.isnan(scores["clip/tae"]) and math.isnan(scores["clip/opw"])
    assert scores["clip/abs_rel"] == pytest.approx(0, abs=1e-6)


def test_predictions_that_do_not_fit_are_refused() -> None:
    clip = wall_clip(ASIDE)
    with pytest.raises(InvalidValueError, match="both must have the photo's size"):
        scored(clip, [np.ones((3, 4))] * 3)
    with pytest.raises(DataError, match="two or more"):
        score_clip(clip, [0], [np.ones((3, 4), np.float32)], protocol=DEPTH.protocols["scale"], space="scale")
    with pytest.raises(DataError, match="no measured pixel"):
        scored(wall_clip(ASIDE, depths=[np.zeros((HEIGHT, WIDTH), np.float32)] * 3), [np.ones((HEIGHT, WIDTH))] * 3)
