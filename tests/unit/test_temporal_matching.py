# SPDX-License-Identifier: Apache-2.0
"""Looks and correspondences, against motions that are known."""

from __future__ import annotations

import numpy as np
import pytest

from openmarigold.temporal.looks import box_mean, cut_in_photos, histogram_distance, look_at
from openmarigold.temporal.matching import match_looks
from openmarigold.temporal.smoothing import DisplayBounds
from synthetic_clip import Room


def photo(left: int) -> np.ndarray:
    """A window into a wide picture."""
    return np.ascontiguousarray(Room(height=96, width=200, pan=1.0).frame(0).rgb[:, left : left + 128])


@pytest.mark.parametrize("shift", [0, 3, 40])
def test_flow_finds_a_shift_and_what_left_the_picture(shift: int) -> None:
    here, there = look_at(photo(10 + shift)), look_at(photo(10))
    match, _ = match_looks(here, there, "flow")
    assert match.flow is not None
    inner = match.visible
    inner[:, -shift - 4 :] = False
    assert inner.mean() > 0.4
    assert np.median(match.flow[inner][:, 0]) == pytest.approx(shift, abs=0.15)
    assert np.median(match.flow[inner][:, 1]) == pytest.approx(0, abs=0.15)
    if shift == 40:  # those columns are not in the other picture
        assert match_looks(here, there, "flow")[0].visible[:, -36:].mean() < 0.3


def test_flow_has_the_same_bytes_with_any_number_of_threads() -> None:
    cv2 = pytest.importorskip("cv2")
    threads, found = cv2.getNumThreads(), set()
    try:
        for number in (1, 2, 5):
            cv2.setNumThreads(number)
            match, _ = match_looks(look_at(photo(14)), look_at(photo(10)), "flow")
            assert match.flow is not None
            found.add(match.flow.tobytes() + match.visible.tobytes())
    finally:
        cv2.setNumThreads(threads)
    assert len(found) == 1


def test_pixels_are_the_same_where_nothing_moved() -> None:
    before = photo(10)
    after = before.copy()
    after[20:50, 30:70] = 255 - after[20:50, 30:70]
    match, _ = match_looks(look_at(after), look_at(before), "pixels")
    assert match.flow is None
    assert match.visible[24:46, 34:66].mean() < 0.4
    assert match.visible[70:, 90:].mean() > 0.6


def test_looks_are_small_and_a_black_one_is_blind() -> None:
    look = look_at(np.zeros((480, 642, 3), dtype=np.uint8))
    assert look.factor == 5 and look.features.shape == (96, 129)
    assert look.is_blind and not look_at(photo(0)).is_blind
    white = look_at(np.full((480, 642, 3), 255, dtype=np.uint8))
    assert histogram_distance(look, white) == 1.0 and histogram_distance(look, look) == 0.0
    values = np.arange(480 * 642, dtype=np.float32).reshape(1, 480, 642)
    assert look.points(values)[0, 1, 2] == values[0, 7, 12]


def test_box_mean_is_that_of_the_square_around() -> None:
    picture = np.arange(20, dtype=np.float32).reshape(4, 5)
    assert box_mean(picture, 1)[1, 2] == pytest.approx(picture[:3, 1:4].mean())
    assert box_mean(picture, 1)[0, 0] == pytest.approx(np.mean([0, 0, 1, 0, 0, 1, 5, 5, 6]))


def test_photos_alone_tell_most_cuts() -> None:
    assert cut_in_photos(0.9, 0.9) == "no"  # a flash
    assert cut_in_photos(0.3, 0.1) == "maybe"
    assert cut_in_photos(0.3, 0.6) == "yes"
    assert cut_in_photos(0.05, 0.0) == "yes"


def test_bounds_widen_at_once_then_slowly_and_start_again_at_a_cut() -> None:
    bounds = DisplayBounds()
    ramp = np.linspace(0, 1, 1001, dtype=np.float32).reshape(7, 143)
    low, high = bounds.widened(ramp, new_shot=True)
    assert (low, high) == pytest.approx((0.005 - 0.03 * 0.99, 0.995 + 0.03 * 0.99), abs=1e-4)
    assert bounds.widened(0.5 * ramp, new_shot=False) == (low, high)
    for _ in range(6):
        bounds.widened(ramp, new_shot=False)
    missing = bounds.widened(2 * ramp, new_shot=False)[1] - high
    assert missing == pytest.approx(0.02 * (2 * high - high), rel=1e-3)
    assert bounds.widened(0.5 * ramp, new_shot=True)[1] == pytest.approx(0.5 * high)
