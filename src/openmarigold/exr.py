# SPDX-License-Identifier: Apache-2.0
"""OpenEXR files: channels of numbers by name. Needs the extra `exr`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from openmarigold.errors import ImageError, MissingExtraError


def read_exr(path: Path) -> dict[str, Shaped[np.ndarray, "h w"]]:
    """Channels of the first part of an EXR file, by name, in the file's own number type.

    Raises:
        MissingExtraError: OpenEXR is not installed.
        ImageError: the file is missing, damaged or of another kind.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise MissingExtraError("OpenEXR", "exr") from error
    if not path.is_file():
        raise ImageError(f"{path} does not exist; check the name")
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            return {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    except (RuntimeError, ValueError, TypeError) as error:
        raise ImageError(f"{path} is damaged or no OpenEXR file; write it again") from error
