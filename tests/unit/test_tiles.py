# SPDX-License-Identifier: Apache-2.0
"""Details of large photos from tiles: plans, weights, bands; tiles that are exact up to a gauge, and wrong ones."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from openmarigold.camera import Camera
from openmarigold.config import CallConfig
from openmarigold.images.exif import Photo
from openmarigold.images.photo import resize
from openmarigold.images.tiles import axis_weights, interpolate, lowpass, plan_tiles, smallest_tile
from openmarigold.metrics import seam_energy
from openmarigold.modalities import DEPTH, NORMALS, Modality, find_modality
from openmarigold.predictor.sampling import Consensus, MemberNoise, PreparedPhoto
from openmarigold.predictor.tiles import Box, at_photos_size

LOG = find_modality("depth", "log")
SEEN = 64
"""The side that the networks of these tests see."""


def grating(height: int, width: int, period: int = 4) -> np.ndarray:
    """A photo with edges everywhere, so that tiles may be as small as the networks see."""
    rows, columns = np.mgrid[:height, :width] // period
    return np.repeat(((rows + columns) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)


def prepared(rgb: np.ndarray, seen: tuple[int, int]) -> PreparedPhoto:
    return PreparedPhoto(
        photo=Photo(rgb=rgb),
        camera=Camera.assumed((rgb.shape[0], rgb.shape[1])),
        processing_size=seen,
        image=np.zeros((1, 3, 8, 8), dtype=np.float32),
        noise=MemberNoise((4, 1, 1), rgb=rgb, seed=0, zeros=True, latents=None),
    )


def scene(height: int, width: int) -> np.ndarray:
    """Depth in (0.1, 1): a slope, waves, and boxes with sharp edges."""
    rows, columns = np.mgrid[:height, :width] / min(height, width)
    depth = 0.45 + 0.3 * rows + 0.08 * np.sin(9 * columns) + 0.05 * np.cos(23 * rows)
    for top, left in ((0.13, 0.21), (0.41, 0.67), (0.77, 0.33)):
        depth[(np.abs(rows - top) < 0.06) & (np.abs(columns - left) < 0.09)] *= 0.6
    return depth / depth.max()


def shrunk(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resize(depth.astype(np.float32)[None], size, antialias=True)


def consensus(stack: np.ndarray, uncertainty: np.ndarray | None = None) -> Consensus:
    return Consensus(stack=stack, uncertainty=uncertainty, latent=np.zeros((1, 4, 1, 1), dtype=np.float32))


def seen_size(height: int, width: int) -> tuple[int, int]:
    shorter = min(height, width)
    return max(8, height * SEEN // shorter), max(8, width * SEEN // shorter)


def tiled(
    depth: np.ndarray,
    tile: Callable[[np.ndarray, Box], np.ndarray],
    *,
    invariance: str = "affine",
    modality: Modality = DEPTH,
    rgb: np.ndarray | None = None,
    order: Callable[[Iterable[Any]], Iterable[Any]] = list,
    uncertainty: float | None = None,
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """What comes of a photo whose whole is seen blurred, and whose tiles are `tile(truth, box)`."""
    height, width = depth.shape[-2:]
    seen = seen_size(height, width)
    spread = None if uncertainty is None else np.full((1, *seen), uncertainty, dtype=np.float32)
    whole = consensus(resize(np.atleast_3d(depth.T).T.astype(np.float32), seen, antialias=True), spread)

    def predict(boxes: Sequence[Box]) -> Iterator[tuple[int, Consensus]]:
        for number in order(range(len(boxes))):
            rows, columns = boxes[number]
            crop = np.atleast_3d(depth.T).T[:, rows, columns].astype(np.float32)
            size = seen_size(*crop.shape[1:])
            stack = tile(resize(crop, size, antialias=True), boxes[number]).astype(np.float32)
            its_spread = None if uncertainty is None else np.full((1, *stack.shape[1:]), uncertainty, np.float32)
            yield number, consensus(stack, its_spread)

    photo = prepared(grating(height, width) if rgb is None else rgb, seen)
    return at_photos_size(
        whole,
        photo,
        predict,
        modality=modality,
        invariance=invariance,
        side="shorter",
        config=CallConfig(tiles=True, processing_resolution=SEEN),
    )


def affine_oracle(stack: np.ndarray, box: Box) -> np.ndarray:
    rng = np.random.default_rng(box[0].start * 10_007 + box[1].start)
    noise = 0.000005 * rng.standard_normal(stack.shape)
    return rng.uniform(0.5, 1.6) * stack + rng.uniform(-0.2, 0.2) + noise


def scale_oracle(stack: np.ndarray, box: Box) -> np.ndarray:
    rng = np.random.default_rng(box[0].start * 10_007 + box[1].start)
    return rng.uniform(0.3, 3.0) * stack * np.exp(0.000005 * rng.standard_normal(stack.shape))


def borders(facts: dict[str, Any], shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Lines where tiles begin and end."""
    return [
        (axis, place)
        for level in facts["tiles"]["levels"]
        for axis, name in ((0, "tops"), (1, "lefts"))
        for start in level[name]
        for place in (start, start + level["size"][axis])
        if 0 < place < shape[axis]
    ]


def test_tiles_cover_a_photo_with_the_overlap_that_is_asked_for() -> None:
    for photo, tile in (((1000, 1500), (256, 341)), ((257, 4000), (256, 256)), ((40, 10_000), (256, 341))):
        plan = plan_tiles(photo, tile)
        for side, size, starts in zip(plan.photo, plan.tile, (plan.tops, plan.lefts), strict=True):
            assert size == min(side, tile[0 if starts is plan.tops else 1])
            assert starts[0] == 0 and starts[-1] == side - size
            assert all(start % 8 == 0 for start in starts[:-1])
            assert all(first + size - second >= 0.25 * size - 8 for first, second in itertools.pairwise(starts))
    assert plan_tiles((64, 64), (64, 64)).number == 1
    assert list(plan_tiles((10, 12), (10, 8), step=4).boxes()) == [
        (slice(0, 10), slice(0, 8)),
        (slice(0, 10), slice(4, 12)),
    ]


@pytest.mark.parametrize(("length", "tile"), [(1000, 256), (300, 256), (700, 256), (65, 64), (9, 4)])
def test_weights_sum_to_one_exactly_and_rise_without_a_jump(length: int, tile: int) -> None:
    starts = plan_tiles((length, length), (tile, tile)).tops
    weights = axis_weights(starts, tile, np.arange(length, dtype=np.float64))
    assert weights.dtype == np.float32 and weights.min() >= 0
    assert (weights.sum(axis=0, dtype=np.float32) == 1).all()
    both = weights[:, None, :, None] * weights[None, :, None, :]  # all tiles of a photo
    assert (both.sum(axis=(0, 1), dtype=np.float32) == 1).all()
    for start, weight in zip(starts, weights, strict=True):
        outside = np.ones(length, dtype=bool)
        outside[start : start + tile] = False
        assert (weight[outside] == 0).all()
    # Two tiles that overlap in 4 pixels: 0.5 - 0.5 cos(pi (k + 0.5) / 4).
    rising = axis_weights((0, 4), 8, np.arange(4, 8, dtype=np.float64))[1]
    np.testing.assert_allclose(rising, [0.0381, 0.3087, 0.6913, 0.9619], atol=2e-4)


def test_what_is_coarse_stays_and_what_is_fine_goes() -> None:
    rows = np.arange(128)
    wave = np.broadcast_to(np.cos(2 * np.pi * rows / 32)[:, None], (128, 96)).astype(np.float32)
    smooth = lowpass(np.stack([np.full((128, 96), 0.7, np.float32), wave]), 8.0)
    np.testing.assert_allclose(smooth[0], 0.7, rtol=1e-6)
    # A Gaussian dampens a wave of frequency f by exp(-2 (pi f sigma)^2).
    assert np.abs(smooth[1, 32:96]).max() == pytest.approx(np.exp(-2 * (np.pi * 8 / 32) ** 2), rel=0.02)


def test_values_between_pixels_are_those_of_resizing() -> None:
    stack = np.random.default_rng(0).random((2, 9, 7)).astype(np.float32)
    rows, columns = ((np.arange(n) + 0.5) * m / n - 0.5 for n, m in ((31, 9), (20, 7)))
    np.testing.assert_allclose(interpolate(stack, rows, columns), resize(stack, (31, 20), antialias=False), atol=1e-6)


def test_tiles_are_as_small_as_the_edges_of_the_photo_allow() -> None:
    # An edge at column 200 of 1000: for 80 % of the columns to have it within reach, half a tile must be 600.
    half = np.zeros((500, 1000, 3), dtype=np.uint8)
    half[:, 200:] = 255
    assert smallest_tile(half) == pytest.approx(1200, abs=12)
    # Bars of 100: an edge every 100 px. 80 % of the pixels are within 40 px of one.
    bars = np.repeat(np.tile(np.repeat(np.uint8([0, 255]), 100), 5)[None], 500, axis=0)
    assert smallest_tile(np.repeat(bars[..., None], 3, axis=2)) == pytest.approx(80, abs=12)
    assert smallest_tile(np.full((300, 400, 3), 7, np.uint8)) >= 400  # no edge at all: nothing to see in tiles
    assert smallest_tile(np.zeros((1, 1, 3), np.uint8)) >= 1


@pytest.mark.parametrize("shape", [(512, 640), (641, 511), (400, 1203)])
@pytest.mark.parametrize(
    ("invariance", "modality", "oracle"), [("affine", DEPTH, affine_oracle), ("scale", LOG, scale_oracle)]
)
def test_exact_tiles_give_the_exact_map(
    shape: tuple[int, int], invariance: str, modality: Modality, oracle: Callable[..., np.ndarray]
) -> None:
    truth = scene(*shape)
    stack, _, facts = tiled(truth, oracle, invariance=invariance, modality=modality)
    assert facts["tiles"]["number"] > 20
    assert [level["rejected"] for level in facts["tiles"]["levels"]] == [0] * len(facts["tiles"]["levels"])
    error = np.abs(stack[0] / stack[0].max() - truth)
    whole = resize(shrunk(truth, seen_size(*shape)), shape, antialias=False)[0]
    assert stack.shape == (1, *shape) and stack.dtype == np.float32
    assert np.sqrt((error**2).mean()) < 0.5 * np.sqrt(((whole - truth) ** 2).mean())  # a pixel at edges remains
    assert np.median(error) < 0.002


@pytest.mark.parametrize(
    ("invariance", "modality", "oracle"), [("affine", DEPTH, affine_oracle), ("scale", LOG, scale_oracle)]
)
def test_exact_tiles_leave_no_seams(invariance: str, modality: Modality, oracle: Callable[..., np.ndarray]) -> None:
    rows, columns = np.mgrid[:512, :640] / 512
    truth = 0.2 + 0.3 * rows + 0.3 * columns + 0.01 * np.sin(9 * columns)  # changes on every line about as next to it
    stack, _, facts = tiled(truth, oracle, invariance=invariance, modality=modality)
    for line in borders(facts, (512, 640)):
        assert abs(seam_energy(stack[0], [line]) - seam_energy(truth, [line])) < 0.01
    pasted = stack[0].copy()
    pasted[:, 320:] += 0.01
    assert seam_energy(pasted, [(1, 320)]) > 1  # what a seam of 1 % of the range would be


def test_the_size_of_pixels_is_reached_where_tiles_are_seen_in_full() -> None:
    """Tiles at the photo's own pixels: no resizing is left, so only the coarse part and the noise can be wrong."""
    truth = 0.5 + 0.2 * np.random.default_rng(3).random((256, 320))
    stack, _, facts = tiled(truth, lambda stack, box: 0.8 * stack + 0.1)
    assert min(facts["tiles"]["levels"][-1]["size"]) == SEEN
    assert np.abs(stack[0] - truth)[8:-8, 8:-8].max() < 0.02  # the whole photo's map is off by 0.1
    assert np.corrcoef(stack[0].ravel(), truth.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(
    "wrong",
    [
        lambda stack, box: np.full_like(stack, 0.3),
        lambda stack, box: 1 - stack,
        lambda stack, box: np.random.default_rng(1).random(stack.shape),
        lambda stack, box: np.full_like(stack, np.nan),
    ],
    ids=["constant", "inverted", "noise", "not finite"],
)
def test_wrong_tiles_are_rejected(wrong: Callable[..., np.ndarray]) -> None:
    truth = scene(500, 700)
    stack, uncertainty, facts = tiled(truth, wrong)
    assert [level["rejected"] for level in facts["tiles"]["levels"]] == [
        len(level["tops"]) * len(level["lefts"]) for level in facts["tiles"]["levels"]
    ]
    assert uncertainty is None
    np.testing.assert_array_equal(stack, resize(shrunk(truth, seen_size(500, 700)), (500, 700), antialias=False))


def test_where_one_tile_is_wrong_the_whole_photos_map_stays() -> None:
    truth = scene(500, 700)

    def one_inverted(stack: np.ndarray, box: Box) -> np.ndarray:
        return 1 - stack if box[0].start == 0 and box[1].start == 0 else affine_oracle(stack, box)

    stack, _, facts = tiled(truth, one_inverted)
    assert all(level["rejected"] == 1 for level in facts["tiles"]["levels"])
    whole = resize(shrunk(truth, seen_size(500, 700)), (500, 700), antialias=False)[0]
    np.testing.assert_allclose(stack[0, :40, :40], whole[:40, :40], atol=1e-6)
    assert np.abs(stack[0] - truth).mean() < 0.8 * np.abs(whole - truth).mean()


@pytest.mark.parametrize("order", [reversed, lambda numbers: sorted(numbers, key=lambda n: (n * 7919) % 101)])
def test_any_order_of_tiles_gives_the_same_bytes(order: Callable[..., Any]) -> None:
    truth = scene(400, 520)
    first, spread, facts = tiled(truth, affine_oracle, uncertainty=0.01)
    other, other_spread, other_facts = tiled(truth, affine_oracle, uncertainty=0.01, order=order)
    assert spread is not None and other_spread is not None
    assert first.tobytes() == other.tobytes() and spread.tobytes() == other_spread.tobytes() and facts == other_facts


def test_uncertainty_takes_the_scale_of_the_map() -> None:
    truth = scene(400, 520)
    _, spread, _ = tiled(truth, lambda stack, box: 0.5 * stack + 0.2, uncertainty=0.01)
    assert spread is not None and spread.shape == (1, 400, 520)
    np.testing.assert_allclose(spread, 0.02, rtol=0.06)  # the tiles have half of the photo's range
    # Up to scale: tiles of 2.5 times the photo's values.
    factor = 1 / 2.5
    stack, spread, _ = tiled(
        truth / 2.5, lambda stack, box: 2.5 * stack, uncertainty=0.01, invariance="scale", modality=LOG
    )
    assert stack.max() == pytest.approx(0.4, rel=0.02) and spread is not None
    np.testing.assert_allclose(spread, 0.01 * factor, rtol=0.1)


def test_details_beyond_the_range_do_not_cut_the_farthest() -> None:
    """Depth up to scale: a far spot that the whole photo's map blurs is farther than 1, and so all is divided."""
    truth = np.full((256, 320), 0.25) * (1 + 0.3 * np.mgrid[:256, :320][0] / 256)
    truth[100:104, 200:204] = 1.0
    stack, _, _ = tiled(truth, lambda stack, box: stack, invariance="scale", modality=LOG)
    assert stack.max() == 1.0
    assert stack[0, 101, 201] / stack[0, 101, 150] == pytest.approx(truth[101, 201] / truth[101, 150], rel=0.15)


def test_normals_have_no_gauge_and_get_details() -> None:
    height, width = 400, 520
    rows, columns = np.mgrid[:height, :width]
    normals = np.stack([0.3 * np.sin(columns / 3.1), 0.6 * np.sin(rows / 90), np.ones((height, width))])
    normals /= np.linalg.norm(normals, axis=0)
    stack, _, facts = tiled(normals, lambda stack, box: stack, modality=NORMALS, uncertainty=2.0)
    found = NORMALS.finish(stack)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1.0, rtol=1e-5)
    whole = NORMALS.finish(
        resize(
            resize(normals.astype(np.float32), seen_size(height, width), antialias=True),
            (height, width),
            antialias=False,
        )
    )
    angles = [np.degrees(np.arccos(np.clip((map_ * normals).sum(axis=0), -1, 1))).mean() for map_ in (found, whole)]
    assert angles[0] < 0.25 * angles[1]
    _, _, facts = tiled(
        normals, lambda stack, box: np.repeat(stack.mean((1, 2)), 1)[:, None, None] + 0 * stack, modality=NORMALS
    )
    assert sum(level["rejected"] for level in facts["tiles"]["levels"]) == facts["tiles"]["number"]


def test_a_strip_of_extreme_shape() -> None:
    truth = scene(40, 10_000)
    seen = (8, 2048)  # what `processing_size` gives for sides of 1:250
    photo = prepared(grating(40, 10_000), seen)

    def predict(boxes: Sequence[Box]) -> Iterator[tuple[int, Consensus]]:
        for number, (rows, columns) in enumerate(boxes):
            crop = truth[rows, columns]
            yield number, consensus(0.7 * shrunk(crop, seen_size(*crop.shape)) + 0.1)

    stack, _, facts = at_photos_size(
        consensus(shrunk(truth, seen)),
        photo,
        predict,
        modality=DEPTH,
        invariance="affine",
        side="shorter",
        config=CallConfig(tiles=True, processing_resolution=SEEN),
    )
    assert stack.shape == (1, 40, 10_000) and facts["tiles"]["number"] > 100
    whole = resize(shrunk(truth, seen), (40, 10_000), antialias=False)[0]
    assert np.isfinite(stack).all()
    assert np.abs(stack[0] - truth).mean() < 0.5 * np.abs(whole - truth).mean()


def test_tiles_that_show_no_more_than_the_whole_change_nothing() -> None:
    truth = scene(70, 90)
    stack, _, facts = tiled(truth, affine_oracle)
    assert facts == {"tiles": {"number": 0, "levels": []}}
    np.testing.assert_array_equal(stack, resize(shrunk(truth, seen_size(70, 90)), (70, 90), antialias=False))


def test_memory_is_that_of_the_map_and_a_band() -> None:
    """4 bytes a pixel are the map, at most 8 the tiles of all levels."""
    height, width = 1500, 2000
    seen = seen_size(height, width)
    photo = prepared(grating(height, width, period=125), seen)
    slope = (np.arange(seen[0])[:, None] / seen[0] + np.zeros(seen)).astype(np.float32)

    def predict(boxes: Sequence[Box]) -> Iterator[tuple[int, Consensus]]:
        for number, (rows, _) in enumerate(boxes):
            size = seen_size(rows.stop - rows.start, boxes[number][1].stop - boxes[number][1].start)
            ramp = rows.start + (rows.stop - rows.start) * (np.arange(size[0]) + 0.5) / size[0]
            yield number, consensus(np.repeat((ramp / height)[None, :, None], size[1], axis=2).astype(np.float32))

    settings = CallConfig(tiles=True, processing_resolution=SEEN)
    known: dict[str, Any] = {"modality": DEPTH, "invariance": "affine", "side": "shorter", "config": settings}
    tracemalloc.start()
    stack, _, facts = at_photos_size(consensus(slope[None]), photo, predict, **known)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert facts["tiles"]["number"] > 50
    np.testing.assert_allclose(stack[0, :, 0], (np.arange(height) + 0.5) / height, atol=0.01)
    assert peak < stack.nbytes + 8 * height * width + 12e6
