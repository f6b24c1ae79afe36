# SPDX-License-Identifier: Apache-2.0
"""Tiny picture files written by hand, of kinds that Pillow does not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

BYTE, ASCII, SHORT, LONG, IFD = 1, 2, 3, 4, 13
_CODES = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", IFD: "I"}
_KINDS = {1: "u", 2: "i", 3: "f"}


def tiff_file(
    samples: np.ndarray,
    *,
    bits: int,
    photometric: int,
    sample_format: int = 1,
    planar: int = 1,
    tags: Sequence[tuple[int, int, Sequence[int]]] = (),
    order: str = "<",
) -> bytes:
    """TIFF file of one uncompressed page: `samples` [h w c] are stored as they are, in `bits` bits each."""
    height, width, count = samples.shape
    page = [
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [bits] * count),
        (259, SHORT, [1]),
        (262, SHORT, [photometric]),
        (277, SHORT, [count]),
        (278, LONG, [height]),
        (284, SHORT, [planar]),
        (339, SHORT, [sample_format] * count),
    ]
    planes = [samples] if planar == 1 else [samples[..., [k]] for k in range(count)]
    strips = [pack(plane, bits=bits, sample_format=sample_format, order=order) for plane in planes]
    given = {tag for tag, _, _ in tags}
    return tiff_pages([([row for row in page if row[0] not in given] + list(tags), strips)], order=order)


def pack(samples: np.ndarray, *, bits: int, sample_format: int = 1, order: str = "<") -> bytes:
    """Samples [h w c] as the bytes of a strip; each row begins at a byte."""
    if bits in (8, 16, 32, 64):
        return samples.astype(f"{order}{_KINDS[sample_format]}{bits // 8}").tobytes()
    rows = samples.reshape(len(samples), -1).astype(np.uint64)
    if bits > 8 and bits % 8 == 0:  # whole bytes follow the byte order
        parts = [(rows >> np.uint64(8 * k)) & np.uint64(255) for k in range(bits // 8)]
        return np.stack(parts if order == "<" else parts[::-1], -1).astype("u1").tobytes()
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint64)
    return np.packbits(
        ((rows[..., None] >> shifts) & np.uint64(1)).astype("u1").reshape(len(rows), -1), axis=1
    ).tobytes()


def tiff_pages(
    pages: Sequence[tuple[list[tuple[int, int, Sequence[int]]], Sequence[bytes]]], *, order: str = "<"
) -> bytes:
    """TIFF file of pages, each with its tags and strips."""
    content = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    for index, (tags, strips) in enumerate(pages):
        lengths = [len(strip) for strip in strips]
        rows = sorted([*tags, (273, LONG, [0] * len(strips)), (279, LONG, lengths)], key=lambda row: row[0])
        after = len(content) + 2 + 12 * len(rows) + 4
        sizes = [struct.calcsize(f"{len(values)}{_CODES[kind]}") for _, kind, values in rows]
        data_at = after + sum(size + size % 2 for size in sizes if size > 4)
        starts = [data_at + sum(lengths[:k]) for k in range(len(strips))]
        table, extra = b"", b""
        for tag, kind, values in rows:
            raw = struct.pack(f"{order}{len(values)}{_CODES[kind]}", *(starts if tag == 273 else values))
            if len(raw) > 4:
                place = struct.pack(order + "I", after + len(extra))
                extra += raw + b"\0" * (len(raw) % 2)
            else:
                place = raw.ljust(4, b"\0")
            table += struct.pack(order + "HHI", tag, kind, len(values)) + place
        end = data_at + sum(lengths)
        following = end + end % 2 if index + 1 < len(pages) else 0
        content += struct.pack(order + "H", len(rows)) + table + struct.pack(order + "I", following) + extra
        content += b"".join(strips) + b"\0" * (end % 2)
    return content


def png_file(samples: np.ndarray, *, bits: int, color_type: int, chunks: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """PNG file of samples [h w c] in `bits` bits each, with `chunks` before the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = samples.shape
    packed = pack(samples, bits=bits, order=">")
    stride = len(packed) // height
    rows = b"".join(b"\0" + packed[k * stride : (k + 1) * stride] for k in range(height))
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *(chunk(kind, data) for kind, data in chunks),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )
