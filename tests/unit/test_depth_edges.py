# SPDX-License-Identifier: Apache-2.0
"""Drawn edges: detection, matching, the area under precision and recall, and the folder that holds them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark_data import make_folder_benchmark, score_sample
from openmarigold.cli import run
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.modalities.depth_scores import (
    PROTOCOLS,
    TALLY_SIZE,
    THRESHOLDS,
    depth_edges,
    edge_scores,
    edge_tally,
    num_matches,
)

pytest.importorskip("cv2")
pytest.importorskip("scipy")


def step(low: float, high: float, *, at: int = 20, height: int = 24, width: int = 40) -> np.ndarray:
    depth = np.full((height, width), low)
    depth[:, at:] = high
    return depth


def test_a_step_is_an_edge_as_long_as_it_is_high_enough() -> None:
    # One step of 256 has a gradient of 4 x its height (Sobel): the upper threshold is what it must exceed.
    depth = step(20.0, 30.0)  # of 80 m: 63 and 95 of 255
    seen = [bool(depth_edges(depth, 80.0, threshold).any()) for threshold in THRESHOLDS]
    assert seen == [threshold < 4 * 32 for threshold in THRESHOLDS]
    columns = np.nonzero(depth_edges(depth, 80.0, 20))[1]
    assert set(columns.tolist()) <= {19, 20} and columns.size == 24  # one pixel wide, next to the step
    assert np.array_equal(depth_edges(10 * depth, 800.0, 100), depth_edges(depth, 80.0, 100))


def test_what_is_no_number_or_too_far_counts_as_the_farthest() -> None:
    depth = step(20.0, np.nan)
    assert np.array_equal(depth_edges(depth, 80.0, 100), depth_edges(step(20.0, 500.0), 80.0, 100))
    with pytest.raises(InvalidValueError, match="farthest=inf is not accepted"):
        depth_edges(depth, float("inf"), 100)


def points(*places: tuple[int, int], height: int = 600, width: int = 800) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)  # diagonal 1000: 2 px apart belong together
    for place in places:
        mask[place] = True
    return mask


def test_each_pixel_is_matched_once_and_as_many_as_can_be() -> None:
    assert num_matches(points((5, 5)), points((5, 7))) == 1
    assert num_matches(points((5, 5)), points((5, 8))) == 0
    assert num_matches(points((5, 5)), points((6, 7))) == 0  # the root of 5 is above 2
    assert num_matches(points((5, 5)), points((5, 5), (5, 6), (6, 5))) == 1
    # The nearest pairs first would match 11 with 11 and leave 9 and 13 alone.
    assert num_matches(points((0, 9), (0, 11)), points((0, 11), (0, 13))) == 2
    assert num_matches(points(), points((0, 0))) == num_matches(points((0, 0)), points()) == 0


def tally(drawn: int, matched: list[int], predicted: list[int]) -> np.ndarray:
    rest = [0] * (len(THRESHOLDS) - len(matched))
    return np.array([[drawn, *matched, *rest, *predicted, *rest]], dtype=np.float64)


def test_the_area_by_hand() -> None:
    # One point: its recall counts at all precisions. Thresholds without predicted edges have no precision.
    assert edge_scores(tally(10, [5], [20]))["de_auc"] == pytest.approx(0.5)
    two = tally(10, [10, 2], [20, 2])  # (0.5, 1) and (1, 0.2)
    by_hand = np.mean([1.0 if p <= 0.5 else 1.0 - 0.8 * (p - 0.5) / 0.5 for p in np.arange(100) / 100])
    assert edge_scores(two)["de_auc"] == pytest.approx(by_hand)
    assert edge_scores(np.repeat(two, 3, axis=0))["de_auc"].shape == (3,)
    assert edge_scores(np.zeros((1, TALLY_SIZE)))["de_auc"] == 0.0


def test_edges_where_they_were_drawn_score_more_than_elsewhere() -> None:
    depth = step(5.0, 60.0, height=600, width=800, at=400)
    # The edge is seen in column 399; 2 pixels are the tolerance.
    for at, least, most in ((400, 0.99, 1.0), (401, 0.99, 1.0), (402, 0.0, 0.0), (410, 0.0, 0.0)):
        drawn = np.zeros(depth.shape, dtype=bool)
        drawn[:, at] = True
        score = float(edge_scores(edge_tally(depth, drawn, 80.0)[None])["de_auc"][0])
        assert least <= score <= most, at


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    folder = make_folder_benchmark(tmp_path / "benchmark", count=4)
    for place in sorted(folder.iterdir()):
        if place.is_dir():
            depth = step(1.0, 12.0, height=24, width=32)
            np.save(place / "depth.npy", depth)
            drawn = np.zeros(depth.shape, dtype=np.uint8)
            drawn[:, 19] = 255
            Image.fromarray(drawn).save(place / "edges.png")
    return folder


def test_a_folder_may_hold_drawn_edges(benchmark: Path) -> None:
    opened = open_folder_benchmark(benchmark)
    sample = opened.sample(opened.entries[0])
    assert set(sample.marks) == {"edges"} and np.argwhere(sample.marks["edges"]).shape == (24, 2)
    for name, inverted in (("edges", False), ("edges-disparity", True), ("edges-metric", False)):
        right = sample.maps["depth"]
        scores = score_sample(sample, 1 / right if inverted else right, PROTOCOLS[name])
        assert set(scores) == {"de_auc", "pixels_scored", "negative_scale"}
        wrong = score_sample(sample, np.roll(right, 7, axis=1) ** (-1 if inverted else 1), PROTOCOLS[name])
        assert scores["de_auc"] > 0.5 > wrong["de_auc"] + 0.2, name


def test_without_drawn_edges_the_image_fails_and_other_sizes_are_named(benchmark: Path) -> None:
    first = benchmark / "room-0"
    Image.new("L", (9, 9)).save(first / "edges.png")
    opened = open_folder_benchmark(benchmark)
    with pytest.raises(DataError, match=r"size \[9, 9\], the photo \[24, 32\]"):
        opened.sample(opened.entries[0])
    (first / "edges.png").unlink()
    opened = open_folder_benchmark(benchmark)
    sample = opened.sample(opened.entries[0])
    with pytest.raises(DataError, match=r"room-0: no edges are drawn; give edges\.png"):
        score_sample(sample, sample.maps["depth"], PROTOCOLS["edges"])


def test_the_command_counts_all_images_together(benchmark: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--benchmark", str(benchmark), "--protocol", "edges", "-o", str(tmp_path / "out")]
    predictions = tmp_path / "predictions"
    for number, place in enumerate(sorted(path for path in benchmark.iterdir() if path.is_dir())):
        target = predictions / place.name
        target.mkdir(parents=True)
        np.save(target / "rgb_depth.npy", step(1.0, 12.0, height=24, width=32, at=20 if number else 9))
    assert run([*arguments, "--predictions", str(predictions)]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["protocol"] == "edges" and summary["mean_over"] == "pixels"
    assert summary["kinds"]["all"]["de_auc"] == pytest.approx(0.75)  # one of four is wrong
