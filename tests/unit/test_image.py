# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from openmarigold.errors import ImageError, InvalidValueError, OpenMarigoldError
from openmarigold.image import as_rgb, pad_to_multiple, processing_size, read_rgb, resize, unpad

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(tmp_path, image: Image.Image, name: str = "photo.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def png_of_16_bits(pixels: np.ndarray, colour_type: int) -> bytes:
    """PNG file of uint16 [h w c], which Pillow cannot write: colour type 2 = RGB, 6 = RGB and alpha."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


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


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_16_bit_grey_is_rescaled_not_clipped(tmp_path, name):
    values = np.array([[0, 256, 257, 1000, 32768, 65535]], dtype=np.uint16)
    rgb = read_rgb(saved(tmp_path, Image.fromarray(values), name))
    assert rgb[0, :, 0].tolist() == np.rint(values[0] / 257).tolist() == [0, 1, 1, 4, 128, 255]
    assert (rgb == rgb[..., :1]).all()


def test_16_bit_colour_is_rescaled(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(png_of_16_bits(pixels, 2))
    np.testing.assert_allclose(read_rgb(tmp_path / "deep.png"), pixels / 257, atol=1.0)


def test_16_bit_grey_is_turned_upright_too(tmp_path):
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


def test_colour_key_transparency(tmp_path):
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


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a photo")
    (tmp_path / "folder.jpg").mkdir()
    for name, message in (
        ("empty.jpg", "is empty"),
        ("text.jpg", r"is not an image that can be read; accepted are \.avif, .*\.jpeg, \.jpg, .*\.png, "),
        ("folder.jpg", "is a folder"),
        ("missing.jpg", "does not exist"),
        ("x" * 300, "cannot be read"),
        ("nul\0.jpg", "does not exist|cannot be read"),
    ):
        with pytest.raises(ImageError, match=message):
            read_rgb(tmp_path / name)


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


def test_as_rgb_of_grey_arrays_and_of_float32():
    grey = RGB[..., 0]
    for image in (grey, grey[..., None], np.float32(grey / 255.0)):
        np.testing.assert_array_equal(as_rgb(image), np.stack([grey] * 3, axis=-1))


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
        (np.zeros((3, 40, 50), np.uint8), "move the channels to the last axis"),
        (np.zeros((4, 5, 2), np.uint8), "c = 1, 3 or 4"),
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


@pytest.mark.parametrize(
    ("size", "processing_resolution", "expected"),
    [
        ((480, 640), 768, (576, 768)),
        ((640, 480), 768, (768, 576)),
        ((480, 640), 0, (480, 640)),
        ((3, 5), 0, (3, 5)),
        ((300, 400), 128, (96, 128)),
        ((121, 160), 128, (96, 128)),  # 96.8 is rounded down
        ((356, 500), 768, (546, 768)),
        ((47, 47), 768, (768, 768)),  # float arithmetic of the published code gives 767
        ((10, 10000), 768, (8, 768)),
    ],
)
def test_processing_size(size, processing_resolution, expected):
    assert processing_size(*size, processing_resolution=processing_resolution) == expected


def test_longer_side_is_always_the_resolution():
    assert all(max(processing_size(side, 5, processing_resolution=768)) == 768 for side in range(5, 4000))


def test_padding_repeats_the_last_row_and_column():
    array = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    padded = pad_to_multiple(array, multiple=4)
    assert padded.tolist() == [[[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]]
    np.testing.assert_array_equal(unpad(padded, (2, 3)), array)


def test_resize_to_the_same_size_is_a_copy():
    array = np.random.default_rng(0).random((2, 3), dtype=np.float32)
    same = resize(array, (2, 3), antialias=True)
    np.testing.assert_array_equal(same, array)
    assert not np.shares_memory(same, array)


@pytest.mark.parametrize("antialias", [False, True])
def test_doubling_by_hand(antialias):
    doubled = resize(np.array([[0.0, 4.0]], dtype=np.float32), (2, 4), antialias=antialias)
    np.testing.assert_allclose(doubled, [[0, 1, 3, 4]] * 2, atol=1e-6)


def test_antialias_averages_what_plain_sampling_skips():
    stripes = np.tile(np.array([0.0, 0.0, 0.0, 1.0], dtype=np.float32), (4, 16))
    assert resize(stripes, (4, 8), antialias=True).mean() == pytest.approx(0.25, abs=0.02)
    assert resize(stripes, (4, 8), antialias=False).max() == 0.5


def test_resize_to_nothing_is_refused():
    with pytest.raises(InvalidValueError, match="not at least 1x1"):
        resize(np.zeros((4, 4), np.float32), (0, 4), antialias=True)


def test_every_image_error_is_one_of_ours():
    assert issubclass(ImageError, OpenMarigoldError)
    assert issubclass(ImageError, ValueError)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, (96, 128)), (640, 480, (128, 96)), (375, 1242, (96, 317)), (50, 5000, (8, 768)), (96, 96, (96, 96))],
)
def test_size_by_the_shorter_side(height, width, expected):
    assert processing_size(height, width, processing_resolution=96, side="shorter") == expected
