# SPDX-License-Identifier: Apache-2.0
"""Packed rows of a cache: every bit comes back, smooth maps take a fraction, damage is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analytic_rooms import make_room
from openmarigold.training.packed import PackedRows, write_packed

ROW = np.dtype([("latent", np.float16, (2, 3, 4)), ("target", np.float16, (1, 1, 96, 128)), ("bounds", np.float32, 2)])


def make_row(target: np.ndarray) -> np.ndarray:
    row = np.zeros(1, dtype=ROW)
    row["latent"] = np.random.default_rng(1).normal(size=(2, 3, 4))
    row["target"], row["bounds"] = target, (0.5, 7.25)
    return row


def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    room = make_room(1).depth
    smooth = (room - room.min()) / np.ptp(room) * 2 - 1
    any_bits = rng.integers(0, 2**16, (96, 128), dtype=np.uint16).view(np.float16)  # also NaN and infinity
    holes = np.where(rng.random((96, 128)) < 0.1, np.nan, smooth)
    return np.concatenate([make_row(values) for values in (smooth, any_bits, holes, np.full((96, 128), -0.0))])


def test_every_bit_comes_back_in_any_order(tmp_path: Path) -> None:
    written = rows()
    write_packed(tmp_path / "a.packed", written, ("target",))
    packed = PackedRows(tmp_path / "a.packed", ROW, ("target",), 4)
    for number in (2, 0, 3, 1, 2):
        assert packed[number].tobytes() == written[number].tobytes()


def test_smooth_maps_take_a_fraction(tmp_path: Path) -> None:
    smooth = rows()[:1]
    write_packed(tmp_path / "a.packed", smooth, ("target",))
    write_packed(tmp_path / "b.packed", smooth, ())
    size, deflated = ((tmp_path / name).stat().st_size for name in ("a.packed", "b.packed"))
    assert size < 0.3 * ROW.itemsize and size < 0.6 * deflated


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.packed"
    write_packed(path, rows(), ("target",))
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b"", b"[]\n", b"\xff\n"):
        path.write_bytes(damaged)
        with pytest.raises((ValueError, KeyError, TypeError)):
            PackedRows(path, ROW, ("target",), 4)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="4 rows, not 5"):
        PackedRows(path, ROW, ("target",), 5)
