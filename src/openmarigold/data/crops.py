# SPDX-License-Identifier: Apache-2.0
"""KITTI's benchmark window, for evaluation and for training data of the same kind."""

from __future__ import annotations

from openmarigold.errors import DataError

KITTI_CROP = (352, 1216)


def kitti_crop(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the 352x1216 window of the KITTI benchmark: at the bottom, centered.

    >>> kitti_crop(375, 1242)
    (slice(23, 375, None), slice(13, 1229, None))

    Raises:
        DataError: the image is smaller.
    """
    crop_height, crop_width = KITTI_CROP
    if height < crop_height or width < crop_width:
        raise DataError(f"an image of {height}x{width} is smaller than KITTI's window of {crop_height}x{crop_width}")
    top, left = height - crop_height, (width - crop_width) // 2
    return slice(top, height), slice(left, left + crop_width)
