# SPDX-License-Identifier: Apache-2.0
"""Resizing, padding and colors against torch and diffusers."""

from __future__ import annotations

import numpy as np
import pytest

from openmarigold.errors import InvalidValueError
from openmarigold.images.photo import as_rgb, pad_to_multiple, processing_size, resize
from openmarigold.modalities.colors import colorize

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SIZES = [
    ((48, 64), (96, 128)),
    ((48, 64), (24, 32)),
    ((97, 131), (33, 57)),
    ((33, 57), (97, 131)),
    ((50, 40), (20, 90)),  # down in one direction, up in the other
    ((61, 7), (8, 8)),
    ((1, 1), (5, 3)),
    ((1, 9), (3, 1)),
    ((240, 320), (17, 23)),
]


def smooth(*shape: int) -> np.ndarray:
    """A picture with detail at every scale, in [0, 1]."""
    rng = np.random.default_rng(shape[-1])
    return rng.random(shape, dtype=np.float32)


@pytest.mark.parametrize(("source", "size"), SIZES)
@pytest.mark.parametrize("antialias", [False, True])
def test_resize(source, size, antialias):
    array = smooth(2, 3, *source)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(array), size, mode="bilinear", align_corners=False, antialias=antialias
    )
    np.testing.assert_allclose(resize(array, size, antialias=antialias), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("antialias", [False, True])
def test_resize_of_a_large_map(antialias):
    rows, columns = np.mgrid[:1500, :2000].astype(np.float32)
    array = (np.sin(rows / 50) * np.cos(columns / 70)).astype(np.float32)
    for size in ((576, 768), (1501, 2003)):
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(array)[None, None], size, mode="bilinear", align_corners=False, antialias=antialias
        )[0, 0]
        np.testing.assert_allclose(resize(array, size, antialias=antialias), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [(480, 640), (121, 160), (300, 400), (640, 427), (777, 333)])
@pytest.mark.parametrize("processing_resolution", [64, 128])
def test_processing_size_and_padding(size, processing_resolution):
    processor = diffusers.pipelines.marigold.MarigoldImageProcessor(vae_scale_factor=8)
    photo = smooth(3, *size)
    expected, padding, original = processor.preprocess(torch.from_numpy(photo)[None], processing_resolution)
    shape = processing_size(*size, processing_resolution=processing_resolution)
    ours = pad_to_multiple(resize(photo, shape, antialias=True)) * 2.0 - 1.0
    assert (ours.shape[1] - shape[0], ours.shape[2] - shape[1]) == padding
    assert original == size
    np.testing.assert_allclose(ours, expected[0].numpy(), atol=2e-5)


def test_colors():
    depth = np.linspace(0.0, 1.0, 1001, dtype=np.float32).reshape(7, 143)
    processor = diffusers.pipelines.marigold.MarigoldImageProcessor()
    expected = np.asarray(processor.visualize_depth(torch.from_numpy(depth))[0]).astype(int)
    # Ours is rounded, theirs truncated.
    assert np.abs(colorize(depth) - expected).max() <= 1


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, 16, 16).to_sparse(),
        torch.nested.nested_tensor([torch.ones(3, 4, 4)], layout=torch.jagged),
        torch.ones(3, 16, 16, dtype=torch.complex64).conj(),
    ],
    ids=["sparse", "nested", "conjugated"],
)
def test_tensors_that_are_not_dense_are_refused_in_plain_words(tensor) -> None:
    with pytest.raises(InvalidValueError, match="tensor"):
        as_rgb(tensor)
