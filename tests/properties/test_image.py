# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from openmarigold.images.photo import pad_to_multiple, processing_size, resize, unpad

SIDES = st.integers(1, 40)


@given(height=SIDES, width=SIDES, multiple=st.sampled_from([1, 2, 8, 16]), dtype=st.sampled_from(["f4", "u1", "?"]))
def test_unpad_undoes_pad(height, width, multiple, dtype):
    array = np.random.default_rng(height * 100 + width).integers(0, 2, (2, 3, height, width)).astype(dtype)
    padded = pad_to_multiple(array, multiple=multiple)
    assert padded.shape[-2] % multiple == padded.shape[-1] % multiple == 0
    assert padded.shape[-2] - height < multiple
    assert padded.dtype == array.dtype
    np.testing.assert_array_equal(unpad(padded, (height, width)), array)
    assert set(np.unique(padded)) == set(np.unique(array))


@given(
    height=SIDES, width=SIDES, size=st.tuples(SIDES, SIDES), antialias=st.booleans(), value=st.floats(-5, 5, width=32)
)
def test_resizing_keeps_constants_and_never_leaves_the_range(height, width, size, antialias, value):
    constant = resize(np.full((height, width), value, np.float32), size, antialias=antialias)
    np.testing.assert_allclose(constant, np.full(size, value), rtol=1e-5, atol=1e-6)
    array = np.random.default_rng(height + 50 * width).random((2, height, width), dtype=np.float32)
    resized = resize(array, size, antialias=antialias)
    assert resized.shape == (2, *size)
    assert resized.dtype == np.float32
    assert array.min() - 1e-6 <= resized.min() <= resized.max() <= array.max() + 1e-6


@given(height=SIDES, width=SIDES, size=st.tuples(SIDES, SIDES), antialias=st.booleans())
def test_resizing_commutes_with_flips(height, width, size, antialias):
    array = np.random.default_rng(height + 50 * width).random((height, width), dtype=np.float32)
    flipped = resize(np.ascontiguousarray(array[:, ::-1]), size, antialias=antialias)
    np.testing.assert_allclose(flipped[:, ::-1], resize(array, size, antialias=antialias), atol=2e-5)


@given(height=st.integers(1, 10000), width=st.integers(1, 10000), processing_resolution=st.sampled_from([8, 256, 768]))
def test_processing_size_keeps_the_aspect_ratio(height, width, processing_resolution):
    size = processing_size(height, width, processing_resolution=processing_resolution)
    assert max(size) == processing_resolution
    assert min(size) >= 8
    exact = min(height, width) * processing_resolution / max(height, width)
    assert min(size) == max(8, int(exact + 1e-9))
