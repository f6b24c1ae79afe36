# SPDX-License-Identifier: Apache-2.0
"""Photos from files and arrays: every kind of pixel, profiles, transparency, damage, and bounds."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmarigold.errors import ImageError, InvalidValueError, OpenMarigoldError
from openmarigold.images import pixels as pixels_module
from openmarigold.images.photo import as_rgb, read_rgb

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(tmp_path, image: Image.Image, name: str = "photo.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def png_of_16_bits(pixels: np.ndarray, color_type: int) -> bytes:
    """PNG file of uint16 [h w c], which Pillow cannot write: color type 2 = RGB, 6 = RGB and alpha."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def icc_profile(gamma: float, *, space: bytes = b"RGB ") -> bytes:
    """ICC profile with the primaries of sRGB and another curve."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    curve = b"curv" + bytes(4) + struct.pack(">IHH", 1, round(gamma * 256), 0)
    white = b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249)
    if space == b"GRAY":
        tags = {b"wtpt": white, b"kTRC": curve}
    else:
        primaries = ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
        tags = {b"wtpt": white}
        for name, primary in zip((b"r", b"g", b"b"), primaries, strict=True):
            tags |= {name + b"XYZ": b"XYZ " + bytes(4) + fixed(*primary), name + b"TRC": curve}
    start, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    head = bytes(4) + struct.pack(">I", 0x02100000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head = (head + fixed(0.9642, 1.0, 0.8249)).ljust(124, b"\0")
    body = head + struct.pack(">I", len(tags)) + table + data
    return struct.pack(">I", len(body) + 4) + body


@pytest.mark.parametrize("name", ["photo.png", "photo.webp", "photo.tif", "PHOTO.PNG"])
def test_lossless_files_are_read_exactly(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(RGB), name, **({"lossless": True} if "webp" in name else {}))
    rgb = read_rgb(path)
    np.testing.assert_array_equal(rgb, RGB)
    assert rgb.flags.writeable


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    # Rows and columns of the stored pixels that end up at the top and on the left, by the EXIF standard.
    stored_from_upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.swapaxes(0, 1),
        6: RGB.swapaxes(0, 1)[::-1],
        7: RGB.swapaxes(0, 1)[::-1, ::-1],
        8: RGB.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(stored_from_upright)), exif=exif)
    np.testing.assert_array_equal(read_rgb(path), RGB)


def test_damaged_exif_does_not_cost_the_photo(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_rgb(path), RGB)


@pytest.mark.parametrize("name", ["gray.png", "gray.tif"])
def test_16_bit_gray_is_rescaled_not_clipped(tmp_path, name):
    values = np.array([[0, 256, 257, 1000, 32768, 65535]], dtype=np.uint16)
    rgb = read_rgb(saved(tmp_path, Image.fromarray(values), name))
    assert rgb[0, :, 0].tolist() == np.rint(values[0] / 257).tolist() == [0, 1, 1, 4, 128, 255]
    assert (rgb == rgb[..., :1]).all()


def test_16_bit_color_is_rescaled(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(png_of_16_bits(pixels, 2))
    np.testing.assert_allclose(read_rgb(tmp_path / "deep.png"), pixels / 257, atol=1.0)


def test_16_bit_gray_is_turned_upright_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 257
    path = saved(tmp_path, Image.fromarray(values), exif=exif)
    np.testing.assert_array_equal(read_rgb(path)[..., 0], np.rot90(values // 257, -1))


def test_alpha_is_composited_on_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [100, 0, 255, 128]]], dtype=np.uint8)
    rgb = read_rgb(saved(tmp_path, Image.fromarray(pixels)))
    assert rgb[0, :2].tolist() == [[10, 20, 30], [255, 255, 255]]
    np.testing.assert_allclose(rgb[0, 2], [177, 127, 255], atol=1)
    np.testing.assert_allclose(as_rgb(pixels), rgb, atol=1)


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    plain = read_rgb(saved(tmp_path, image))
    assert plain.tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    transparent = read_rgb(saved(tmp_path, image, "transparent.png", transparency=1))
    assert transparent.tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_color_key_transparency(tmp_path):
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert read_rgb(saved(tmp_path, image, transparency=(1, 2, 3)))[0].tolist() == [[255, 255, 255], [4, 5, 6]]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, [255, 255, 255]),
        ("L", 77, [77, 77, 77]),
        ("LA", (77, 0), [255, 255, 255]),
        ("CMYK", (255, 0, 0, 0), [0, 255, 255]),
        ("CMYK", (0, 0, 0, 255), [0, 0, 0]),
        ("YCbCr", (128, 128, 128), [128, 128, 128]),
        ("I", 65535, [255, 255, 255]),
        ("I;16", 257 * 9, [9, 9, 9]),
        ("F", 0.2, [51, 51, 51]),
    ],
)
def test_every_mode_becomes_rgb(mode, value, expected):
    assert as_rgb(Image.new(mode, (2, 1), value)).tolist() == [[expected, expected]]


def test_cmyk_jpeg(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "print.jpg", quality=95)
    np.testing.assert_allclose(read_rgb(path)[8, 8], [255, 0, 0], atol=6)


def test_deep_images_of_unknown_range_are_refused():
    with pytest.raises(ImageError, match="outside 0 … 65535"):
        as_rgb(Image.new("I", (2, 2), 70000))
    with pytest.raises(ImageError, match=r"outside 0\.0 … 1\.0"):
        as_rgb(Image.new("F", (2, 2), 1.5))


def bytes_of(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_image_errors_of_one_line(tmp_path, kind, share):
    content = bytes_of(NOISE, kind)
    path = tmp_path / "photo"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageError, match="photo") as caught:
        read_rgb(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.filterwarnings("ignore")  # Pillow's own remarks on damaged files
def test_damaged_files_never_raise_anything_else(tmp_path, kind):
    content = np.frombuffer(bytes_of(NOISE.resize((16, 16)), kind), dtype=np.uint8)
    rng = np.random.default_rng(3)
    path = tmp_path / "photo"
    for _ in range(60):
        damaged = content.copy()
        damaged[rng.integers(0, min(len(damaged), 200), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        try:
            rgb = read_rgb(path)
        except ImageError as error:
            assert "\n" not in str(error)
        else:
            assert rgb.dtype == np.uint8


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA"])
def test_icc_profiles_lead_to_srgb(tmp_path, mode):
    gray = Image.new("L", (3, 2), 55)
    gray = gray.convert("RGB").quantize() if mode == "P" else gray.convert(mode)
    space = b"GRAY" if mode in ("L", "LA") else b"RGB "
    path = saved(tmp_path, gray, icc_profile=icc_profile(1.0, space=space))
    linear = 55 / 255
    expected = round(255 * (1.055 * linear ** (1 / 2.4) - 0.055))
    np.testing.assert_allclose(read_rgb(path), expected, atol=1)


def test_profiles_of_srgb_damaged_ones_and_those_of_another_space_change_nothing(tmp_path):
    for profile in (b"sRGB IEC61966-2.1", b"damaged", icc_profile(1.0)[:200], icc_profile(1.0, space=b"GRAY")):
        np.testing.assert_array_equal(read_rgb(saved(tmp_path, Image.fromarray(RGB), icc_profile=profile)), RGB)


def test_the_background_can_be_chosen(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(pixels))
    for image in (path, Image.fromarray(pixels), pixels):
        assert as_rgb(image, background="#102030").tolist() == [[[10, 20, 30], [16, 32, 48]]]
        assert as_rgb(image, background="black")[0, 1].tolist() == [0, 0, 0]
    with pytest.raises(InvalidValueError, match="background='blak' is not a color; use a name as in CSS"):
        read_rgb(path, background="blak")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "CMYK", "I;16", "1"])
def test_strips_change_nothing(monkeypatch, orientation, mode):
    colors = np.random.default_rng(5).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    image = Image.fromarray(colors)
    image = Image.fromarray(colors[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
    image.getexif()[0x0112] = orientation
    at_once = as_rgb(image)
    assert at_once.shape[:2] == ((7, 11) if orientation < 5 else (11, 7))
    monkeypatch.setattr(pixels_module, "_STRIP_PIXELS", 22)
    np.testing.assert_array_equal(as_rgb(image), at_once)


def tiff_of_three_channels(pixels: np.ndarray) -> bytes:
    """Little-endian, uncompressed TIFF file of [h w 3], uint16 or float32, which Pillow cannot write."""
    height, width, _ = pixels.shape
    bits = 8 * pixels.itemsize
    start = 8 + 12  # after the head: three counts of bits, three kinds of numbers, then the pixels
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, start), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, pixels.nbytes), (339, 3, 3, 14)]
    kind = 3 if pixels.dtype.kind == "f" else 1
    body = struct.pack("<6H", bits, bits, bits, kind, kind, kind) + pixels.tobytes()
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + directory


def test_16_bit_color_in_tiff(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    (tmp_path / "deep.tif").write_bytes(tiff_of_three_channels(pixels))
    np.testing.assert_allclose(read_rgb(tmp_path / "deep.tif"), pixels / 257, atol=1.0)


def test_float_tiff(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32)), "float.tif")
    assert read_rgb(path)[0, :, 1].tolist() == [0, 51, 255]


def test_heic_and_avif(tmp_path, monkeypatch):
    import pillow_heif

    smooth = np.repeat(np.linspace(20, 230, 64, dtype=np.uint8)[None, :, None], 48, axis=0).repeat(3, axis=2)
    pillow_heif.from_pillow(Image.fromarray(smooth)).save(tmp_path / "phone.heic", quality=95)
    Image.fromarray(smooth).save(tmp_path / "photo.avif", quality=95)
    for name in ("phone.heic", "photo.avif"):
        np.testing.assert_allclose(read_rgb(tmp_path / name), smooth, atol=6)
    content = (tmp_path / "phone.heic").read_bytes()
    (tmp_path / "half.heic").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"half\.heic"):
        read_rgb(tmp_path / "half.heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r'phone\.heic: pillow-heif is not installed.*openmarigold\[heif\]"$'):
        read_rgb(tmp_path / "phone.heic")
    np.testing.assert_allclose(read_rgb(tmp_path / "photo.avif"), smooth, atol=6)


def test_the_first_of_several_frames(tmp_path):
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "lime", "blue")]
    for name in ("film.gif", "film.webp", "pages.tif"):
        said: list[str] = []
        options = {"lossless": True} if name.endswith("webp") else {}
        path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
        assert (read_rgb(path, note=said.append) == [255, 0, 0]).all()
        assert said == [f"{path} has 3 frames or pages; the first is used"]
    said = []
    read_rgb(saved(tmp_path, frames[0], "one.gif"), note=said.append)
    read_rgb(saved(tmp_path, frames[0], "phone.mpo", save_all=True, append_images=frames[1:]), note=said.append)
    assert said == []


def test_formats_that_would_start_other_programs_are_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), "drawing.eps")
    with pytest.raises(ImageError, match=r"drawing\.eps is of format EPS; accepted are"):
        read_rgb(path)


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a photo")
    (tmp_path / "folder.jpg").mkdir()
    for name, message in (
        ("empty.jpg", "is empty"),
        ("text.jpg", "is not an image that can be read; accepted are JPEG, PNG, WebP"),
        ("folder.jpg", "is a folder"),
        ("missing.jpg", "does not exist"),
        ("x" * 300, "cannot be read"),
    ):
        with pytest.raises(ImageError, match=message):
            read_rgb(tmp_path / name)
    with pytest.raises(InvalidValueError, match="cannot hold a NUL character"):
        read_rgb(tmp_path / "nul\0.jpg")


def test_decompression_bombs_are_refused_before_decoding(tmp_path):
    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    ihdr = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + ihdr + struct.pack(">I", 0) + b"IDAT" + b"\0" * 4)
    with pytest.raises(ImageError, match="more pixels than can be read safely"):
        read_rgb(tmp_path / "bomb.png")


def test_large_photos_do_not_warn(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # 54 pixels: Pillow warns, and refuses above 80
    assert read_rgb(path).shape == RGB.shape


def test_as_rgb_takes_paths_images_and_arrays(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB))
    for image in (path, str(path), Image.open(path), RGB, RGB.astype(np.uint16) * 257, RGB / 255.0):
        np.testing.assert_array_equal(as_rgb(image), RGB)


def test_as_rgb_of_gray_arrays_and_of_float32():
    gray = RGB[..., 0]
    for image in (gray, gray[..., None], np.float32(gray / 255.0)):
        np.testing.assert_array_equal(as_rgb(image), np.stack([gray] * 3, axis=-1))


def test_as_rgb_returns_a_copy():
    rgb = as_rgb(RGB)
    assert not np.shares_memory(rgb, RGB)


def test_as_rgb_of_a_truncated_pillow_image_is_an_image_error():
    content = bytes_of(NOISE, "PNG")
    with pytest.raises(ImageError, match="cannot be read"):
        as_rgb(Image.open(io.BytesIO(content[: len(content) // 2])))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 40, 50), np.uint8), r"\[c h w\] with c = 1, 3 or 4"),
        (np.zeros((1, 40, 50, 3), np.uint8), "give the pictures of a batch one by one"),
        (np.zeros((2, 2), np.complex64), "complex64 is not accepted"),
        (np.zeros((2, 2), bool), "bool is not accepted"),
        (object(), "a path, the bytes of a picture's file, a Pillow image, an array or a tensor is accepted; object"),
        ([["a"]], "list is given"),
        (io.StringIO("text"), "open it with 'rb'"),
        (np.zeros((5, 5, 2), np.uint8), "c = 1, 3 or 4"),
        (np.zeros((0, 5, 3), np.uint8), "c = 1, 3 or 4"),
        (np.zeros(5, np.uint8), "is not"),
        (np.zeros((2, 2), np.int64), "int64 is not accepted"),
        (np.full((2, 2), 200.0), "divide by 255"),
        (np.full((2, 2), -0.1), r"\[0, 1\] is accepted"),
        (np.full((2, 2), np.nan), r"\[0, 1\] is accepted"),
    ],
)
def test_as_rgb_refuses_other_arrays(array, message):
    with pytest.raises(InvalidValueError, match=message):
        as_rgb(array)


def test_every_image_error_is_one_of_ours():
    assert issubclass(ImageError, OpenMarigoldError)
    assert issubclass(ImageError, ValueError)


def test_damaged_tiff_is_refused_without_remarks_of_the_library(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.tif"
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    content[60:200] = bytes(140)
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"damaged\.tif is damaged"), ThreadPoolExecutor(4) as pool:
        list(pool.map(read_rgb, [path] * 8))
    print("still there", file=sys.stderr)
    assert capfd.readouterr().err == "still there\n"


def test_an_empty_path_is_called_empty() -> None:
    with pytest.raises(InvalidValueError, match="the photo is empty"):
        as_rgb("")
