# SPDX-License-Identifier: Apache-2.0
"""Every kind of TIFF is read rightly, or refused in words; and which page of it is the picture."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmarigold.errors import ImageError
from openmarigold.images.photo import as_rgb, read_rgb
from picture_files import ASCII, BYTE, LONG, SHORT, pack, tiff_file, tiff_pages

HEIGHT, WIDTH = 16, 24
_y, _x = np.mgrid[:HEIGHT, :WIDTH]
GRAY = ((_x + _y) / (HEIGHT + WIDTH - 2))[..., None]
COLOR = np.concatenate([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=2)
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
KINDS = [(bits, UNSIGNED) for bits in (1, 2, 4, 6, 8, 10, 12, 14, 16, 32)] + [
    *((bits, SIGNED) for bits in (8, 16, 32)),
    *((bits, FLOAT) for bits in (16, 32, 64)),
]


def stored(picture: np.ndarray, bits: int, kind: int) -> np.ndarray:
    if kind == FLOAT:
        return picture
    return np.round(picture * (2**bits - 1 if kind == UNSIGNED else 2 ** (bits - 1) - 1))


def seen(picture: np.ndarray, bits: int, kind: int) -> np.ndarray:
    """The levels, 0 … 255, that the samples stand for."""
    levels = picture if kind == FLOAT or bits >= 8 else stored(picture, bits, kind) / (2**bits - 1)
    return np.repeat(levels, 3 // levels.shape[2], axis=2) * 255


def check(path: Path, content: bytes, expected: np.ndarray) -> None:
    """Without OpenImageIO a file is read rightly or refused with the name of the extra; with it, read."""
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "OpenImageIO", None)
        try:
            rgb = read_rgb(path)
        except ImageError as error:
            assert 'pip install "openmarigold[formats]"' in str(error)
        else:
            np.testing.assert_allclose(rgb, expected, atol=1.6)  # Pillow keeps the upper 8 of 16 bits
    try:
        import OpenImageIO  # noqa: F401
    except ModuleNotFoundError:
        return
    np.testing.assert_allclose(read_rgb(path), expected, atol=2.1 if "int8" in path.name else 1.6)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize(("bits", "kind"), KINDS)
def test_gray(tmp_path, bits, kind, white_is_zero, order):
    levels = seen(GRAY, bits, kind)
    picture = levels[..., :1] / 255
    samples = stored(1 - picture if white_is_zero else picture, bits, kind)
    content = tiff_file(samples, bits=bits, photometric=int(not white_is_zero), sample_format=kind, order=order)
    check(tmp_path / ("int8.tif" if (bits, kind) == (8, SIGNED) else "gray.tif"), content, levels)


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize(("bits", "kind"), KINDS[1:])
def test_color(tmp_path, bits, kind, planar):
    content = tiff_file(stored(COLOR, bits, kind), bits=bits, photometric=2, sample_format=kind, planar=planar)
    check(tmp_path / ("int8.tif" if (bits, kind) == (8, SIGNED) else "color.tif"), content, seen(COLOR, bits, kind))


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk(tmp_path, bits, planar):
    inks = np.concatenate([1 - COLOR, np.zeros_like(GRAY)], axis=2)
    content = tiff_file(stored(inks, bits, UNSIGNED), bits=bits, photometric=5, planar=planar)
    check(tmp_path / "inks.tif", content, COLOR * 255)


@pytest.mark.parametrize("picture", [GRAY, COLOR], ids=["gray", "color"])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("extra", [1, 2])
def test_alpha_multiplied_and_separate(tmp_path, extra, bits, planar, picture):
    alpha = np.ones_like(GRAY)
    alpha[:, :6] = 0.5
    colors = picture * alpha if extra == 1 else picture
    samples = stored(np.concatenate([colors, alpha], axis=2), bits, UNSIGNED)
    photometric = 2 if picture is COLOR else 1
    tags = [(338, SHORT, [extra])]
    content = tiff_file(samples, bits=bits, photometric=photometric, planar=planar, tags=tags)
    expected = np.repeat(picture * alpha + 1 - alpha, 3 // picture.shape[2], axis=2) * 255
    check(tmp_path / "int8.tif", content, expected)  # rounded twice


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes(tmp_path, bits):
    count = 2**bits
    ramp = np.linspace(0, 65535, count).astype(int)
    index = np.round(GRAY * (count - 1)).astype(int)
    tags = [(320, SHORT, [*ramp, *ramp[::-1], *[0] * count])]
    expected = np.concatenate([ramp[index], ramp[::-1][index], 0 * index], axis=2) / 257
    check(tmp_path / "palette.tif", tiff_file(index, bits=bits, photometric=3, tags=tags), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"photometric": 4}, "holds a transparency mask"),
        ({"photometric": 1, "tags": [(258, SHORT, [24])]}, "1 channels of 24 bits, unsigned"),
        ({"photometric": 1, "tags": [(258, SHORT, [64])]}, "1 channels of 64 bits, unsigned"),
        ({"photometric": 9}, "holds ICC Lab"),
        ({"photometric": 32845}, "holds LogLuv"),
        ({"photometric": 1, "tags": [(339, SHORT, [6])]}, "samples of unusual kinds"),
        ({"photometric": 1, "tags": [(277, SHORT, [65535])]}, "it has 65535 channels"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, capfd, options, message):
    (tmp_path / "odd.tif").write_bytes(tiff_file(stored(GRAY, 8, UNSIGNED), bits=8, **options))
    with pytest.raises(ImageError, match=rf"odd\.tif .*{message}"):
        read_rgb(tmp_path / "odd.tif")
    assert capfd.readouterr() == ("", "")


def test_negative_and_unbounded_samples_are_refused(tmp_path):
    pytest.importorskip("OpenImageIO")
    for samples, options in ((-GRAY * 9, {"sample_format": SIGNED}), (GRAY * 9, {"sample_format": FLOAT})):
        (tmp_path / "odd.tif").write_bytes(tiff_file(samples, bits=16, photometric=1, **options))
        with pytest.raises(ImageError, match=r"odd\.tif has (negative samples|float samples 0 … 9; 0 … 1 is accepted)"):
            read_rgb(tmp_path / "odd.tif")


def test_orientation_and_profile_are_applied_to_what_openimageio_reads(tmp_path):
    pytest.importorskip("OpenImageIO")
    content = tiff_file(stored(GRAY, 12, UNSIGNED), bits=12, photometric=1, tags=[(274, SHORT, [6])])
    (tmp_path / "turned.tif").write_bytes(content)
    np.testing.assert_allclose(read_rgb(tmp_path / "turned.tif")[..., 0], np.rot90(GRAY[..., 0], -1) * 255, atol=1)


def page(picture: np.ndarray, kind: int = 0) -> tuple[list, list[bytes]]:
    height, width, count = picture.shape
    tags = [(254, LONG, [kind]), (256, LONG, [width]), (257, LONG, [height]), (258, SHORT, [8] * count)]
    tags += [(259, SHORT, [1]), (262, SHORT, [2]), (277, SHORT, [count]), (278, LONG, [height])]
    return tags, [pack(stored(picture, 8, UNSIGNED), bits=8)]


def test_previews_before_the_picture_are_passed_over(tmp_path):
    path, said = tmp_path / "scan.tif", []
    path.write_bytes(tiff_pages([page(COLOR[::4, ::4], 1), page(COLOR[:, :, :3], 0)]))
    np.testing.assert_allclose(read_rgb(path, note=said.append), COLOR * 255, atol=1)
    assert said == [f"{path} page 2 is used, since those before are previews or masks"]


def test_later_pages_that_are_cut_off_do_not_cost_the_first(tmp_path):
    path, said = tmp_path / "pages.tif", []
    whole = tiff_pages([page(COLOR), page(COLOR[::-1]), page(COLOR)])
    path.write_bytes(whole[: len(tiff_pages([page(COLOR), page(COLOR[::-1])])) + 20])
    np.testing.assert_allclose(read_rgb(path, note=said.append), COLOR * 255, atol=1)
    assert len(said) == 1
    assert "that can be read; the later ones are damaged; the first is used" in said[0]


BAYER = [(33421, SHORT, [2, 2]), (33422, BYTE, [0, 1, 1, 2]), (50708, ASCII, list(b"Cam One\0"))]
DNG = [(50706, BYTE, [1, 4, 0, 0]), (271, ASCII, list(b"Cam\0")), (272, ASCII, list(b"One\0"))]


def raw_photo(**options) -> bytes:
    big = np.kron(GRAY, np.ones((4, 4, 1)))
    return tiff_file(stored(big, 16, UNSIGNED), bits=16, photometric=32803, tags=[*DNG, *BAYER], **options)


@pytest.mark.parametrize("name", ["photo.dng", "photo.tif"])
def test_raw_photos_are_developed(tmp_path, name):
    pytest.importorskip("rawpy")
    (tmp_path / name).write_bytes(raw_photo())
    rgb = read_rgb(tmp_path / name)
    assert rgb.shape == (4 * HEIGHT, 4 * WIDTH, 3)
    assert rgb[-8:, -8:].mean() > rgb[:8, :8].mean() + 100


@pytest.mark.parametrize(
    ("name", "tags"),
    [("photo.dng", DNG), ("photo.tif", DNG), ("photo.nef", []), ("photo.tif", [(259, SHORT, [34713])])],
)
def test_the_preview_of_a_raw_photo_is_never_taken_for_it(tmp_path, monkeypatch, name, tags):
    content = tiff_file(stored(COLOR, 8, UNSIGNED), bits=8, photometric=2, tags=[(254, LONG, [1]), *tags])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=r"LibRaw cannot read|openmarigold\[raw\]"):
        read_rgb(tmp_path / name)
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(ImageError, match=rf'{name}: rawpy, .* is not installed.*pip install "openmarigold\[raw\]"$'):
        read_rgb(tmp_path / name)


@pytest.mark.parametrize(
    "head", [b"FUJIFILMCCD-RAW ", b"IIU\0\x08\0\0\0", b"\0\0\0\x18ftypcrx \0\0\0\0", b"IIRO\x08\0\0\0"]
)
def test_raw_photos_in_other_containers(tmp_path, monkeypatch, head):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    (tmp_path / "photo").write_bytes(head + bytes(200))
    with pytest.raises(ImageError, match=r"openmarigold\[raw\]"):
        read_rgb(tmp_path / "photo")


def test_opened_images_that_pillow_decodes_wrongly_are_refused(tmp_path):
    for content, message in (
        (tiff_file(stored(GRAY, 12, UNSIGNED), bits=12, photometric=1), "that Pillow reads wrongly"),
        (tiff_file(stored(COLOR, 8, UNSIGNED), bits=8, photometric=2, tags=DNG), "the preview of a raw photo"),
    ):
        with pytest.raises(ImageError, match=rf"the image is .*{message}.*give the path of its file"):
            as_rgb(Image.open(io.BytesIO(content)))
