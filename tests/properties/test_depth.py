# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from openmarigold.modalities.depth import normalize_depth, to_affine
from openmarigold.modalities.modality import latent_valid_mask

SEEDS = st.integers(0, 2**32 - 1)


def map_and_mask(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    valid_mask = rng.random((8, 9)) < 0.7
    valid_mask[0] = True
    return rng.uniform(0.5, 20.0, (8, 9)), valid_mask


@given(seed=SEEDS, invalid=st.sampled_from(["far", "raw"]))
def test_normalized_depth_fills_its_range(seed, invalid):
    depth, valid_mask = map_and_mask(seed)
    norm_depth = normalize_depth(depth, valid_mask, invalid=invalid)
    assert norm_depth[valid_mask].min() == -1.0
    assert norm_depth[valid_mask].max() == 1.0
    assert norm_depth.min() >= -1.0
    assert norm_depth.max() <= 1.0
    affine = to_affine(norm_depth)
    assert (affine.min(), affine.max()) == (0.0, 1.0)


@given(seed=SEEDS, scale=st.floats(0.1, 10.0), shift=st.floats(-10.0, 10.0))
def test_normalized_depth_is_affine_invariant(seed, scale, shift):
    depth, valid_mask = map_and_mask(seed)
    mapped = normalize_depth(scale * depth + shift, valid_mask)
    np.testing.assert_allclose(mapped, normalize_depth(depth, valid_mask), atol=1e-5)


@given(seed=SEEDS)
def test_values_of_invalid_pixels_never_matter(seed):
    depth, valid_mask = map_and_mask(seed)
    expected = normalize_depth(depth, valid_mask)
    depth[~valid_mask] = np.nan
    np.testing.assert_array_equal(normalize_depth(depth, valid_mask), expected)


@given(seed=SEEDS, share=st.floats(0.0, 0.2), factor=st.sampled_from([2, 4, 8]))
def test_latent_cells_are_valid_only_where_all_their_pixels_are(seed, share, factor):
    valid_mask = np.random.default_rng(seed).random((2, 16, 24)) >= share
    cells = latent_valid_mask(valid_mask, factor=factor)
    assert cells.shape == (2, 16 // factor, 24 // factor)
    for image, row, column in np.ndindex(cells.shape):
        rows, columns = (slice(i * factor, (i + 1) * factor) for i in (row, column))
        assert cells[image, row, column] == valid_mask[image, rows, columns].all()
