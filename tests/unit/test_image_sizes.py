# SPDX-License-Identifier: Apache-2.0
"""Processing sizes, padding, and resizing, in strips too."""

from __future__ import annotations

import numpy as np
import pytest

from openmarigold.errors import InvalidValueError
from openmarigold.images import photo as image_module
from openmarigold.images.photo import pad_to_multiple, processing_size, resize, rgb_to_planes, unpad


@pytest.mark.parametrize(
    ("size", "processing_resolution", "expected"),
    [
        ((480, 640), 768, (576, 768)),
        ((640, 480), 768, (768, 576)),
        ((480, 640), 0, (480, 640)),
        ((3, 5), 0, (3, 5)),
        ((300, 400), 128, (96, 128)),
        ((121, 160), 128, (96, 128)),  # 96.8 is rounded down
        ((356, 500), 768, (546, 768)),
        ((47, 47), 768, (768, 768)),  # float arithmetic of the published code gives 767
        ((10, 10000), 768, (8, 768)),
    ],
)
def test_processing_size(size, processing_resolution, expected):
    assert processing_size(*size, processing_resolution=processing_resolution) == expected


def test_longer_side_is_always_the_resolution():
    assert all(max(processing_size(side, 5, processing_resolution=768)) == 768 for side in range(5, 4000))


def test_padding_repeats_the_last_row_and_column():
    array = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    padded = pad_to_multiple(array, multiple=4)
    assert padded.tolist() == [[[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]]
    np.testing.assert_array_equal(unpad(padded, (2, 3)), array)


def test_resize_to_the_same_size_is_a_copy():
    array = np.random.default_rng(0).random((2, 3), dtype=np.float32)
    same = resize(array, (2, 3), antialias=True)
    np.testing.assert_array_equal(same, array)
    assert not np.shares_memory(same, array)


@pytest.mark.parametrize("antialias", [False, True])
def test_doubling_by_hand(antialias):
    doubled = resize(np.array([[0.0, 4.0]], dtype=np.float32), (2, 4), antialias=antialias)
    np.testing.assert_allclose(doubled, [[0, 1, 3, 4]] * 2, atol=1e-6)


def test_antialias_averages_what_plain_sampling_skips():
    stripes = np.tile(np.array([0.0, 0.0, 0.0, 1.0], dtype=np.float32), (4, 16))
    assert resize(stripes, (4, 8), antialias=True).mean() == pytest.approx(0.25, abs=0.02)
    assert resize(stripes, (4, 8), antialias=False).max() == 0.5


def test_resize_to_nothing_is_refused():
    with pytest.raises(InvalidValueError, match="not at least 1x1"):
        resize(np.zeros((4, 4), np.float32), (0, 4), antialias=True)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, (96, 128)), (640, 480, (128, 96)), (375, 1242, (96, 317)), (50, 5000, (8, 768)), (96, 96, (96, 96))],
)
def test_size_by_the_shorter_side(height, width, expected):
    assert processing_size(height, width, processing_resolution=96, side="shorter") == expected


@pytest.mark.parametrize(
    "size", [((300, 400), (96, 128)), ((7, 5000), (8, 768)), ((600, 7), (768, 8)), ((30, 40), (96, 40))]
)
def test_large_photos_are_resized_in_strips_with_the_same_bytes(monkeypatch, size):
    (height, width), target = size
    rgb = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    whole = resize(rgb.transpose(2, 0, 1).astype(np.float32) / np.float32(255) * 2 - 1, target, antialias=True)
    np.testing.assert_array_equal(rgb_to_planes(rgb, target), whole)
    enlarged = resize(whole, (height, width), antialias=False)
    monkeypatch.setattr(image_module, "_STRIP_PIXELS", 1000)
    np.testing.assert_array_equal(rgb_to_planes(rgb, target), whole)
    np.testing.assert_array_equal(resize(whole, (height, width), antialias=False), enlarged)


def test_a_native_size_that_would_need_too_much_memory_is_refused():
    assert processing_size(4096, 4096, processing_resolution=0) == (4096, 4096)
    with pytest.raises(InvalidValueError, match=r"processing_resolution=0 with a photo of 12000x8000 would need more"):
        processing_size(8000, 12000, processing_resolution=0)


def test_a_processing_resolution_that_would_need_too_much_memory_is_refused():
    with pytest.raises(InvalidValueError, match=r"processing_resolution=65536 with a photo of 640x480 would need more"):
        processing_size(480, 640, processing_resolution=65536)
