# SPDX-License-Identifier: Apache-2.0
"""Focal lengths and panoramas in the metadata of photos, of every kind of file and with every kind of nonsense."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from openmarigold.camera import Camera
from openmarigold.images.exif import NOTHING, Photo, PhotoMetadata, read_metadata
from openmarigold.images.photo import read_photo
from picture_files import png_file

SIZE = (300, 400)  # of the files' rows and columns
DIAGONAL_35MM = 43.26661531  # of 36x24
SHORT, LONG, RATIONAL, ASCII = 3, 4, 5, 2
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" {}</rdf:RDF></x:xmpmeta>'
)


def exif_bytes(tags: dict[int, tuple[int, bytes]], main: dict[int, tuple[int, bytes]] | None = None) -> bytes:
    """A TIFF header with these tags of EXIF: type and content of one value each, as little-endian bytes."""

    def directory(entries: dict[int, tuple[int, bytes]], place: int) -> bytes:
        sizes = {ASCII: 1, SHORT: 2, LONG: 4, RATIONAL: 8}
        rows, behind = b"", b""
        after = place + 2 + 12 * len(entries) + 4
        for tag, (kind, content) in sorted(entries.items()):
            count = len(content) // sizes[kind]
            inline = content.ljust(4, b"\0") if len(content) <= 4 else struct.pack("<I", after + len(behind))
            behind += b"" if len(content) <= 4 else content
            rows += struct.pack("<HHI", tag, kind, count) + inline
        return struct.pack("<H", len(entries)) + rows + struct.pack("<I", 0) + behind

    first = {**(main or {}), 0x8769: (LONG, struct.pack("<I", 0))}
    inner = 8 + len(directory(first, 8))
    first[0x8769] = (LONG, struct.pack("<I", inner))
    return b"II*\0" + struct.pack("<I", 8) + directory(first, 8) + directory(tags, inner)


def short(value: int) -> tuple[int, bytes]:
    return SHORT, struct.pack("<H", value)


def fraction(above: int, below: int) -> tuple[int, bytes]:
    return RATIONAL, struct.pack("<II", above, below)


def tiff_tags(tags: dict[int, Any]) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Tags for a TIFF file, with 26 mm in its EXIF."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[tag] = value
    directory[0x8769] = {0xA405: 26}
    return directory


def write_photo(path: Path, exif: bytes | None = None, size: tuple[int, int] = SIZE, **options: Any) -> Path:
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    pixels[: size[0] // 2] = 200
    Image.fromarray(pixels).save(path, **({} if exif is None else {"exif": b"Exif\0\0" + exif}), **options)
    return path


def camera_of(path: Any) -> Camera | None:
    photo = read_photo(path)
    return photo.metadata.camera((photo.rgb.shape[0], photo.rgb.shape[1]))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "heic", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_kind_of_file(tmp_path: Path, suffix: str, orientation: int) -> None:
    """A photo that is turned has the same focal length, and its camera the size of the upright photo."""
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    path = tmp_path / f"photo.{suffix}"
    if suffix == "tif":
        write_photo(path, tiffinfo=tiff_tags({0x0112: orientation}))
    else:
        write_photo(path, exif_bytes({0xA405: short(26)}, main={0x0112: short(orientation)}))
    camera = camera_of(path)
    assert camera is not None
    upright = (300, 400) if orientation < 5 else (400, 300)
    assert camera.size == upright
    assert camera.source == "exif" and camera.note == "26 mm in terms of 35 mm film, by the diagonal"
    assert camera.fx == camera.fy == pytest.approx(26 * 500 / DIAGONAL_35MM)
    assert (camera.cx, camera.cy) == ((upright[1] - 1) / 2, (upright[0] - 1) / 2)


def test_all_forms_of_a_photo_state_the_same(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "photo.jpg", exif_bytes({0xA405: short(50)}))
    stated = read_metadata(path)
    assert stated.focal_by_diagonal == pytest.approx(50 / DIAGONAL_35MM)
    assert read_metadata(str(path)) == read_metadata(path.read_bytes()) == stated
    with path.open("rb") as file:
        assert read_metadata(file) == stated and file.tell() == 0
        assert read_photo(file).metadata == stated
    with Image.open(path) as image:
        assert read_photo(image).metadata == stated
        assert read_photo(image.resize((40, 30))).metadata == stated  # which keeps its metadata
    assert read_metadata(np.zeros((4, 4, 3), np.uint8)) is NOTHING
    photo = Photo(rgb=np.zeros((4, 4, 3), np.uint8), metadata=stated)
    assert read_photo(photo) is photo


def test_a_phone_by_its_sensor() -> None:
    """A sensor of 4032x3024 pixels of 1.4 µm behind 4.25 mm: 3035.7 pixels, which "26 mm" gives to half a percent."""
    by_film = PhotoMetadata(focal_by_diagonal=26 / DIAGONAL_35MM).camera((3024, 4032))
    assert by_film is not None and by_film.fx == pytest.approx(4.25 / 0.0014, rel=0.005)
    pixels_per_cm = fraction(100_000_000, 14_000)  # 10 mm / 1.4 µm
    tags = {
        0x920A: fraction(425, 100),
        0xA20E: pixels_per_cm,
        0xA20F: pixels_per_cm,
        0xA210: short(3),
        0xA002: short(4032),
        0xA003: short(3024),
    }
    stated = read_metadata(io.BytesIO(_jpeg(exif_bytes(tags))))
    camera = stated.camera((3024, 4032))
    assert camera is not None and camera.fx == pytest.approx(4.25 / 0.0014, rel=1e-4)
    assert camera.note == "4.25 mm, sensor 5.64 mm wide"
    small = stated.camera((400, 300))  # a smaller copy, upright
    assert small is not None and small.fy == pytest.approx(4.25 / 0.0014 * 400 / 4032, rel=1e-3)
    for wrong in (
        {0xA20E: fraction(7, 1)},  # a sensor of 5.8 m
        {0xA20F: fraction(1, 1)},  # not square
        {0xA210: short(1)},  # no unit
        {0xA002: short(0)},
        {0x920A: fraction(0, 1)},
        {0x920A: fraction(1, 0)},
    ):
        assert read_metadata(_jpeg(exif_bytes({**tags, **wrong}))).camera((3024, 4032)) is None
    zoomed = read_metadata(_jpeg(exif_bytes({**tags, 0xA404: fraction(2, 1)}))).camera((3024, 4032))
    assert zoomed is not None and zoomed.fx == pytest.approx(2 * 4.25 / 0.0014, rel=1e-4)
    film_first = read_metadata(_jpeg(exif_bytes({**tags, 0xA405: short(52)}))).camera((3024, 4032))
    assert film_first is not None and film_first.note.startswith("52 mm")


def test_a_cut_photo_keeps_its_focal_length() -> None:
    """The square of full height that apps make of 4:3 has the focal length of the whole, and says so."""
    tags = {0xA405: short(26), 0xA002: short(4032), 0xA003: short(3024)}
    stated = read_metadata(_jpeg(exif_bytes(tags)))
    whole = 26 * 5040 / DIAGONAL_35MM
    for size, factor in (((3024, 3024), 1), ((1080, 1080), 1080 / 3024), ((2268, 4032), 1), ((4032, 2268), 1)):
        camera = stated.camera(size)
        assert camera is not None and camera.fx == pytest.approx(whole * factor)
        assert camera.note.endswith("; cut from 4032x3024, taken to be from its middle")
    for size in ((3024, 4032), (4032, 3024), (1512, 2016), (768, 1024), (30, 40), (100, 133)):
        camera = stated.camera(size)
        assert camera is not None and "cut" not in camera.note
        assert camera.fov == pytest.approx(2 * math.degrees(math.atan(2016 / whole)), abs=0.4)


@pytest.mark.parametrize(
    ("tag", "shown"),
    [
        (short(0), None),  # "unknown", by the standard
        ((LONG, struct.pack("<I", 10**9)), "1e+09 mm"),
        ((LONG, struct.pack("<I", 6000)), "6000 mm"),  # a field of view of 0.4 degrees
        (short(1), "1 mm"),  # of 175 degrees
        (fraction(26, 0), "no number"),
        (fraction(0, 0), "no number"),
        ((ASCII, b"twenty-six\0"), "no number"),
        ((SHORT, struct.pack("<HHH", 26, 26, 26)), "no number"),
    ],
)
def test_focal_lengths_that_no_camera_has(tmp_path: Path, tag: tuple[int, bytes], shown: str | None) -> None:
    path = write_photo(tmp_path / "photo.jpg", exif_bytes({0xA405: tag}))
    assert camera_of(path) is None
    notes = read_metadata(path).notes
    if shown is None:
        assert notes == ()
    else:
        assert notes == (
            f"states a focal length of {shown} in terms of 35 mm film, which no camera has; it is ignored",
        )


@pytest.mark.parametrize("cut", [4, 9, 20, 30, 40])
def test_damaged_exif_costs_nothing_but_itself(tmp_path: Path, cut: int) -> None:
    content = exif_bytes({0xA405: short(26), 0x920A: fraction(4, 1)})
    for exif in (content[:cut], content[:cut] + b"\xff" * 40, b"\xff" * 60):
        path = write_photo(tmp_path / "photo.jpg", exif)
        assert read_photo(path).rgb.shape == (*SIZE, 3)
        read_metadata(path)


def test_no_metadata_and_no_picture(tmp_path: Path) -> None:
    assert read_metadata(write_photo(tmp_path / "photo.jpg")) == NOTHING
    (tmp_path / "text").write_text("no picture")
    assert read_metadata(tmp_path / "text") == NOTHING
    assert read_metadata(b"") == NOTHING
    assert read_metadata(tmp_path / "missing.jpg").camera(SIZE) is None
    assert read_metadata(3) == NOTHING


def test_exif_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    """Where the standard allows it too, and where Pillow would decode the picture to find it."""
    path = write_photo(tmp_path / "photo.png")
    content = path.read_bytes()
    end = content.index(b"IEND") - 4
    chunk = b"eXIf" + exif_bytes({0xA405: short(50)})
    (tmp_path / "behind.png").write_bytes(
        content[:end] + struct.pack(">I", len(chunk) - 4) + chunk + b"\0\0\0\0" + content[end:]
    )
    assert read_metadata(tmp_path / "behind.png").focal_by_diagonal == pytest.approx(50 / DIAGONAL_35MM)
    # Metadata of an image that is not decoded yet leave its transparent color to `keep_transparency`.
    samples = np.full((4, 4, 1), 65535)
    keyed = png_file(samples, bits=16, color_type=0, chunks=[(b"tRNS", struct.pack(">H", 65535))])
    rgb = read_photo(Image.open(io.BytesIO(keyed)), background="#0000c8").rgb
    assert (rgb == [0, 0, 200]).all()


@pytest.mark.parametrize(
    ("description", "projection"),
    [
        ('GPano:ProjectionType="equirectangular"/>', "equirectangular"),
        ("><GPano:ProjectionType>equirectangular</GPano:ProjectionType></rdf:Description>", "equirectangular"),
        ("GPano:ProjectionType = 'cylindrical'/>", "cylindrical"),
        ('GPano:ProjectionType="rectilinear"/>', None),
        ('GPano:UsePanoramaViewer="True"/>', None),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "webp", "png", "tif"])
def test_panoramas(tmp_path: Path, description: str, projection: str | None, suffix: str) -> None:
    xmp = XMP.format(description).encode()
    exif = exif_bytes({0xA405: short(26)})
    path = tmp_path / f"panorama.{suffix}"
    if suffix in ("jpg", "webp"):
        write_photo(path, exif, size=(100, 200), xmp=xmp)
    elif suffix == "png":
        chunks = [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp), (b"eXIf", exif)]
        path.write_bytes(png_file(np.zeros((100, 200, 3), int), bits=8, color_type=2, chunks=chunks))
    else:
        write_photo(path, size=(100, 200), tiffinfo=tiff_tags({700: xmp}))
    photo = read_photo(path)
    assert photo.metadata.panorama == projection
    camera = photo.metadata.camera((100, 200))
    if projection is None:
        assert camera is not None and photo.metadata.notes == ()
    else:
        assert camera is None
        assert photo.metadata.notes == (f"is a panorama ({projection}); its focal length in EXIF is ignored",)


def test_a_stitched_panorama_of_a_phone(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "photo.jpg", exif_bytes({0xA405: short(26), 0xA401: short(6)}))
    assert read_metadata(path).panorama == "stitched" and camera_of(path) is None
    path = write_photo(tmp_path / "photo.jpg", exif_bytes({0xA405: short(26), 0xA401: short(3)}))  # HDR
    assert read_metadata(path).panorama is None and camera_of(path) is not None


def test_tags_of_a_raw_photo(tmp_path: Path) -> None:
    """A DNG file begins as TIFF does; its tags are read without its pixels."""
    path = tmp_path / "photo.dng"
    path.write_bytes(
        exif_bytes({0xA405: short(35)}, main={256: short(400), 257: short(300), 50706: (LONG, b"\1\4\0\0")})
    )
    camera = read_metadata(path).camera(SIZE)
    assert camera is not None and camera.fx == pytest.approx(35 * 500 / DIAGONAL_35MM)


def _jpeg(exif: bytes) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "jpeg", exif=b"Exif\0\0" + exif)
    return file.getvalue()
