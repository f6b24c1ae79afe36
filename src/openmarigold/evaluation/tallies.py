# SPDX-License-Identifier: Apache-2.0
"""What images add to pooled scores, as a short text for JSON: float64, compressed, in base 64."""

from __future__ import annotations

import base64
import zlib

import numpy as np
from jaxtyping import Float64


def encode_tally(tally: Float64[np.ndarray, " k"]) -> str:
    """The text of a tally; the same tally gives the same text.

    >>> decode_tally(encode_tally(np.array([3.0, 0.5])), 2)
    array([3. , 0.5])
    """
    return base64.b64encode(zlib.compress(tally.astype("<f8").tobytes())).decode()


def decode_tally(text: str, size: int) -> Float64[np.ndarray, " k"]:
    """The tally of a text.

    Raises:
        ValueError: it is damaged, or holds another count of numbers than `size`, or some that are not finite.
    """
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(base64.b64decode(text, validate=True), 8 * size + 1)
    except (zlib.error, ValueError) as error:
        raise ValueError(f"a damaged tally ({error})") from error
    if len(content) != 8 * size:
        raise ValueError(f"a tally of {size} numbers is needed")
    tally = np.frombuffer(content, dtype="<f8").astype(np.float64)
    if not np.isfinite(tally).all():
        raise ValueError("a tally of numbers that are not finite")
    return tally
