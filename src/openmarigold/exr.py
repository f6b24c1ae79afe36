# SPDX-License-Identifier: Apache-2.0
"""OpenEXR files: channels of numbers by name. Needs the extra `exr`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from openmarigold.errors import DataError, MissingExtraError, one_line


def read_exr(path: Path) -> dict[str, Shaped[np.ndarray, "h w"]]:
    """Channels of the first part of an EXR file, by name, in the file's own number type.

    Raises:
        MissingExtraError: OpenEXR is not installed.
        DataError: the file is missing or not an EXR file.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise MissingExtraError("OpenEXR", "exr") from error
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the name")
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            return {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    except (RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not a whole EXR file ({one_line(error)}); write it again") from error
