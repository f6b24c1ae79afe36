# SPDX-License-Identifier: Apache-2.0
"""A decoded frame as upright RGB in sRGB: color matrix and range, 10 bits, HDR, alpha, rotation.

Sources: ITU-R BT.601, BT.709 and BT.2020 (matrices), SMPTE ST 2084 and ITU-R BT.2100 (PQ, HLG), ITU-R BT.2408
(reference white 203 cd/m²).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped, UInt8, UInt16

from openmarigold.images.pixels import Color, encode_srgb

# Numbers of ITU-T H.273, which FFmpeg uses for color matrices, ranges and transfers.
_MATRIX_709, _MATRIX_UNKNOWN, _MATRIX_601, _MATRIX_2020 = 1, 2, 5, 9
_RANGE_FULL = 2
PQ, HLG = 16, 18
_HIGH_DEFINITION = 720  # rows, from which on a clip without a stated matrix counts as BT.709, as in players

# Flags of FFmpeg's scaler: bilinear, exact rounding, chroma at every pixel, the same bytes on every processor.
SCALER = 0x2 | 0x40000 | 0x2000 | 0x80000

_REFERENCE_WHITE = 203.0  # cd/m²
_PEAK = 1000.0  # cd/m² that becomes white
_KNEE = 0.5  # shares of reference white below this stay as they are
_TO_709 = np.array(  # linear light, from the primaries of BT.2020
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
_LUMINANCE_709 = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
_LUMINANCE_2020 = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
_LEVELS = 4096
_FIXED = 2**16  # the value of 1 in a display matrix


class UprightRgb:
    """Turns decoded frames into upright RGB; `note` is called once with each remark for the user."""

    def __init__(self, *, background: Color, note: Callable[[str], object]) -> None:
        self._background = np.array(background, dtype=np.uint16)
        self._note = note
        self._noted: set[str] = set()
        self._tables: dict[int, np.ndarray] = {}

    def __call__(self, frame: Any, *, transfer: int, matrix: bytes | None) -> UInt8[np.ndarray, "h w 3"]:
        """The picture of one frame of PyAV.

        Args:
            frame: as decoded.
            transfer: number of its transfer characteristics, H.273.
            matrix: its display matrix, nine 32-bit numbers; None: it is upright.
        """
        if frame.interlaced_frame:
            self._tell("is interlaced; its frames are taken as they are, so that moving things show combs")
        if transfer in (PQ, HLG):
            name = "PQ" if transfer == PQ else "HLG"
            self._tell(f"is HDR ({name}); it is tone-mapped to sRGB, {_PEAK:.0f} cd/m² becomes white")
            rgb = tone_mapped(self._converted(frame, "rgb48le"), self._table(transfer), transfer)
        elif frame.format.has_palette or any(part.is_alpha for part in frame.format.components):
            rgb = _composed(self._converted(frame, "rgba"), self._background)
        else:
            rgb = self._converted(frame, "rgb24")
        if matrix is None:
            return np.ascontiguousarray(rgb)
        if not is_right_angled(matrix):
            self._tell(
                "states a rotation by another angle than multiples of 90 degrees; its frames are taken as stored"
            )
            return np.ascontiguousarray(rgb)
        return upright(rgb, matrix)

    def _converted(self, frame: Any, name: str) -> Shaped[np.ndarray, "h w c"]:
        source: dict[str, int] = {}
        if not frame.format.is_rgb and frame.colorspace in (0, _MATRIX_UNKNOWN):
            high = max(frame.height, frame.width * 9 // 16) >= _HIGH_DEFINITION
            source["src_colorspace"] = _MATRIX_709 if high else _MATRIX_601
        return frame.reformat(
            format=name, interpolation=SCALER, dst_color_range=_RANGE_FULL, threads=1, **source
        ).to_ndarray()

    def _table(self, transfer: int) -> Float32[np.ndarray, " n"]:
        if transfer not in self._tables:
            self._tables[transfer] = pq_light(_ramp()) if transfer == PQ else hlg_light(_ramp())
        return self._tables[transfer]

    def _tell(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._note(text)


def upright(rgb: Shaped[np.ndarray, "h w c"], matrix: bytes) -> Shaped[np.ndarray, "H W c"]:
    """The picture as a display matrix of right angles shows it: turned, mirrored, or both.

    A pixel (x, y) goes to (a x + c y, b x + d y); ISO/IEC 14496-12, track header.
    """
    a, b, c, d = _linear_part(matrix)
    if a == 0 and d == 0:  # the rows become columns
        rgb, a, d = rgb.transpose(1, 0, 2), c, b
    rgb = rgb[:, ::-1] if a < 0 else rgb
    rgb = rgb[::-1] if d < 0 else rgb
    return np.ascontiguousarray(rgb)


def is_right_angled(matrix: bytes) -> bool:
    """Whether a display matrix turns by a multiple of 90 degrees, with or without a mirror."""
    a, b, c, d = _linear_part(matrix)
    return (b == 0 and c == 0 and a != 0 and d != 0) or (a == 0 and d == 0 and b != 0 and c != 0)


def swaps_sides(matrix: bytes | None) -> bool:
    """Whether the upright picture has the sides of the stored one, swapped."""
    return matrix is not None and is_right_angled(matrix) and _linear_part(matrix)[0] == 0


def _linear_part(matrix: bytes) -> tuple[int, int, int, int]:
    """a, b, c, d in units of 1 / 65536; values below a thousandth of the largest one become 0."""
    numbers = np.frombuffer(matrix[:36], dtype="=i4")
    a, b, c, d = (int(numbers[place]) for place in (0, 1, 3, 4))
    largest = max(abs(a), abs(b), abs(c), abs(d), 1)
    a, b, c, d = (0 if abs(value) * 1000 < largest else value for value in (a, b, c, d))
    return a, b, c, d


def tone_mapped(
    levels: UInt16[np.ndarray, "h w 3"], table: Float32[np.ndarray, " n"], transfer: int
) -> UInt8[np.ndarray, "h w 3"]:
    """An sRGB picture of HDR levels with the primaries of BT.2020.

    All pixels of all frames have one curve, so that the exposure does not flicker: light up to half of reference white
    is unchanged; brighter light is compressed so that 1000 cd/m² becomes white.
    """
    light = table[levels >> 4]
    if transfer == HLG:  # light of the scene becomes light of a display of 1000 cd/m², BT.2100 table 5
        scene = light @ _LUMINANCE_2020
        light *= (_PEAK / _REFERENCE_WHITE * np.maximum(scene, 1e-9) ** np.float32(0.2))[..., None]
    light = np.maximum(light @ _TO_709.T, 0)
    luminance = light @ _LUMINANCE_709
    over = np.maximum(luminance - _KNEE, 0) / (1 - _KNEE)
    white = (_PEAK / _REFERENCE_WHITE - _KNEE) / (1 - _KNEE)
    shown = np.minimum(luminance, _KNEE) + (1 - _KNEE) * over * (1 + over / white**2) / (1 + over)
    light *= (shown / np.maximum(luminance, 1e-9))[..., None]
    return np.rint(255 * encode_srgb(np.clip(light, 0, 1))).astype(np.uint8)


def pq_light(signal: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """Light of PQ signals in [0, 1], in units of reference white; SMPTE ST 2084."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = signal.astype(np.float64) ** (1 / m2)
    light = 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    return (light / _REFERENCE_WHITE).astype(np.float32)


def hlg_light(signal: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """Scene light, [0, 1], of HLG signals in [0, 1]; BT.2100 table 5."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    values = signal.astype(np.float64)
    return np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12).astype(np.float32)


def _ramp() -> Float32[np.ndarray, " n"]:
    return np.linspace(0, 1, _LEVELS, dtype=np.float32)


def _composed(rgba: UInt8[np.ndarray, "h w 4"], background: UInt16[np.ndarray, " 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Colors over a background, rounded."""
    alpha = rgba[..., 3:].astype(np.uint16)
    if alpha.min(initial=255) == 255:
        return rgba[..., :3]
    mixed = rgba[..., :3] * alpha.astype(np.uint32) + background * (255 - alpha.astype(np.uint32))
    return ((mixed + 127) // 255).astype(np.uint8)
