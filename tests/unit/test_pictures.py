# SPDX-License-Identifier: Apache-2.0
"""Pictures of less usual kinds and forms: transparency, files without their end, URLs, bytes, tensors, names."""

from __future__ import annotations

import io
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from openmarigold.cli.terminal import progress_bar, say
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import ImageError, InvalidValueError
from openmarigold.images.exr import write_exr
from openmarigold.images.hdr import tone_map
from openmarigold.images.kinds import image_suffixes, url_in
from openmarigold.images.photo import as_rgb, read_rgb
from openmarigold.predictor.run import predict_files
from openmarigold.printing import printable, quoted_logger
from picture_files import png_file

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_gray_in_png(tmp_path, bits):
    samples = RNG.integers(0, 2**bits, (5, 7, 1))
    samples[1, 2] = key = 2**bits - 1
    samples[samples == key - 1] = 0
    if bits == 16:
        samples[3, 3] = key - 1  # the same in 8 bits, and not transparent
    content = png_file(samples, bits=bits, color_type=0, chunks=[(b"tRNS", struct.pack(">H", key))])
    (tmp_path / "key.png").write_bytes(content)
    gray = np.rint(samples * (255 / (2**bits - 1))).astype(int).repeat(3, axis=2)
    expected = np.where(samples == key, [0, 0, 200], gray)
    np.testing.assert_array_equal(read_rgb(tmp_path / "key.png", background="#0000c8"), expected)
    np.testing.assert_array_equal(as_rgb(Image.open(io.BytesIO(content)), background="#0000c8"), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_transparent_color_in_png(tmp_path, bits):
    samples = RNG.integers(0, 2**bits, (5, 7, 3))
    key = samples[1, 2].copy()
    samples[2, 2] = key ^ 1  # in 16 bits another color of the same upper 8
    content = png_file(samples, bits=bits, color_type=2, chunks=[(b"tRNS", struct.pack(">HHH", *key))])
    (tmp_path / "key.png").write_bytes(content)
    expected = np.where((samples == key).all(axis=2, keepdims=True), [0, 0, 200], samples >> (bits - 8))
    for picture in (tmp_path / "key.png", Image.open(io.BytesIO(content))):
        np.testing.assert_array_equal(as_rgb(picture, background="#0000c8"), expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_that_lacks_only_its_end_marker(tmp_path, options):
    # Of its own generator: one file in ten happens to end such that the decoder needs no more, and nothing is said.
    colors = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    smooth = Image.fromarray(colors)
    path, said = tmp_path / "photo.jpg", []
    smooth.save(path, quality=95, **options)
    whole, content = read_rgb(path), path.read_bytes()
    for missing in (1, 2):
        path.write_bytes(content[:-missing])
        np.testing.assert_array_equal(read_rgb(path, note=said.append), whole)
    assert said == [f"{path} lacks the marker at its end; all its pixels are there and are used"] * 2
    path.write_bytes(content[:-40])
    with pytest.raises(ImageError, match="damaged"):
        read_rgb(path)


def test_exr_of_luminance_and_chroma_and_deep_exr(tmp_path):
    openexr = pytest.importorskip("OpenEXR")
    luminance = RNG.uniform(0.1, 1, (8, 8)).astype(np.float32)
    red, blue = (RNG.uniform(-0.3, 0.3, (8, 8)).astype(np.float32) for _ in range(2))
    write_exr(tmp_path / "chroma.exr", {"Y": luminance, "RY": red, "BY": blue}, {})
    colors = [luminance * (red + 1), luminance * 0, luminance * (blue + 1)]
    colors[1] = (luminance - np.float32(0.2126) * colors[0] - np.float32(0.0722) * colors[2]) / np.float32(0.7152)
    np.testing.assert_allclose(read_rgb(tmp_path / "chroma.exr"), tone_map(np.stack(colors, axis=-1)), atol=1)

    # Two samples a pixel, the far one first: half-transparent 0.2 before opaque 0.8.
    deep = {name: np.empty((4, 4), dtype=object) for name in "YAZ"}
    for index in np.ndindex(4, 4):
        deep["Y"][index] = np.array([0.8 + index[0], 0.2], "f4")
        deep["A"][index] = np.array([1.0, 0.5], "f4")
        deep["Z"][index] = np.array([9.0, 3.0], "f4")
    header = {"type": openexr.deepscanline, "compression": openexr.ZIPS_COMPRESSION}
    with openexr.File(header, deep) as file:
        file.write(str(tmp_path / "deep.exr"))
    said: list[str] = []
    merged = (0.2 + 0.5 * (0.8 + np.arange(4))).astype(np.float32)
    expected = tone_map(np.broadcast_to(merged[:, None, None], (4, 4, 3)).copy())
    np.testing.assert_allclose(read_rgb(tmp_path / "deep.exr", note=said.append), expected, atol=1)
    assert "is a deep OpenEXR file" in said[0]


def test_padded_radiance_headers(tmp_path, monkeypatch):
    path = tmp_path / "light.hdr"
    body = bytes([100, 120, 140, 129]) * 12
    path.write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %8d +X %8d\n" % (3, 4) + body)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "OpenImageIO", None)
        with pytest.raises(ImageError, match=r"light\.hdr: OpenImageIO, .*openmarigold\[formats\]"):
            read_rgb(path)
    pytest.importorskip("OpenImageIO")
    assert read_rgb(path).shape == (3, 4, 3)


def test_16_bits_that_hold_fewer_are_pointed_out(tmp_path):
    said: list[str] = []
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(tmp_path / "ten.png")
    read_rgb(tmp_path / "ten.png", note=said.append)
    assert len(said) == 1
    assert "is nearly black (up to 4 of 255); 10 or 12 bits stored in 16" in said[0]


def test_urls_are_refused_as_such(tmp_path):
    for given in ("https://example.com/a.jpg", Path("https://example.com/a.jpg")):
        with pytest.raises(ImageError, match=r"^https://example\.com/a\.jpg is a URL; download the picture first"):
            as_rgb(given)
    assert [url_in(text) for text in ("s3://bucket/a.png", "C:/photos/a.png", "a:b/c")] == [
        "s3://bucket/a.png",
        None,
        None,
    ]


class Tensor:
    """As torch's, by what is used of it."""

    def __init__(self, values: np.ndarray) -> None:
        self.detach = self.cpu = lambda: self
        self.numpy = lambda: values


def test_forms_of_a_picture(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    content = buffer.getvalue()
    path = tmp_path / "photo.png"
    path.write_bytes(content)

    class PathLike:
        def __fspath__(self) -> str:
            return str(path)

    with path.open("rb") as file:
        forms = [content, bytearray(content), memoryview(content), io.BytesIO(content), file, PathLike()]
        forms += [Tensor(RGB.transpose(2, 0, 1)), Tensor(RGB), RGB.transpose(2, 0, 1), RGB.tolist() and RGB / 255]
        for form in forms:
            np.testing.assert_array_equal(as_rgb(form), RGB)
    with pytest.raises(InvalidValueError, match=r"shape \(3, 9, 4\) may be \[h w c\] or \[c h w\]"):
        as_rgb(Tensor(np.zeros((3, 9, 4), np.float32)))
    with pytest.raises(ImageError, match=r"^the given bytes is empty"):
        as_rgb(b"")
    with pytest.raises(ImageError, match=r"^the given bytes begins like a picture but is damaged|^the given bytes is"):
        as_rgb(content[:20])


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(RGB.transpose(2, 0, 1) / 255).requires_grad_()
    np.testing.assert_array_equal(as_rgb(tensor), RGB)
    assert as_rgb(tensor.bfloat16()).shape == RGB.shape


def test_rounding_beyond_the_range_of_floats():
    np.testing.assert_array_equal(as_rgb(RGB / 255 * (1 + 1e-4)), RGB)
    np.testing.assert_array_equal(as_rgb(RGB / 255 - 5e-4), RGB)
    for excess, advice in ((0.01, "clip it, or scale it"), (199.0, r"divide by 255\?")):
        with pytest.raises(
            InvalidValueError, match=rf"\[0, 1\] is accepted, and 0.001 beyond it for rounding: {advice}"
        ):
            as_rgb(np.full((4, 4), 1 + excess))


def test_mode_i_that_was_8_bits_is_refused():
    with pytest.raises(ImageError, match="mode I and values up to 200, which may be 8 or 16 bits; convert it"):
        as_rgb(Image.new("L", (4, 4), 200).convert("I"))


def test_settings_of_numpy_types_become_plain():
    # In a process of its own: here annotations are checked, which know nothing of NumPy's types.
    code = """
import numpy as np
from openmarigold.config import PredictConfig
config = PredictConfig(num_inference_steps=np.int64(4), processing_resolution=np.array(96), background=np.str_("red"),
                       ensemble_tolerance=np.float64(0.5), local_files_only=np.bool_(True))
print(*(type(value).__name__ for value in (config.num_inference_steps, config.processing_resolution,
        config.background, config.ensemble_tolerance, config.local_files_only)))
for value in (np.float32(1.5), np.array([1, 2])):
    try:
        PredictConfig(seed=value)
    except ValueError as error:
        print(error)
"""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "int int str float bool"
    assert [line.endswith("is not accepted; give a whole number, 0 or above") for line in lines[1:]] == [True, True]


NAME = "zero\x1b[31mred\nerror: made up\u202e\udce9 é"
QUOTED = "zero\\x1b[31mred\\nerror: made up\\u202e\\udce9 é"


def test_what_is_printed_and_logged_is_quoted(capsys, caplog):
    assert printable(NAME) == QUOTED
    say(NAME)
    with progress_bar("photos") as (_, note):
        note(NAME)
    assert capsys.readouterr() == (QUOTED + "\n", QUOTED + "\n")
    logger = quoted_logger("openmarigold.test")
    assert quoted_logger("openmarigold.test").filters == logger.filters
    with caplog.at_level(logging.INFO):
        logger.info("%s is said", NAME)
    assert caplog.messages[-1] == f"{QUOTED} is said"


def test_every_module_that_logs_quotes():
    import openmarigold.engines
    import openmarigold.predictor

    for module in (openmarigold.engines, openmarigold.predictor):
        record = logging.LogRecord(module.__name__, logging.INFO, "", 1, "%s", (NAME,), None)
        assert module._log.filter(record)
        assert record.getMessage() == QUOTED


def test_suffixes_follow_from_the_decoders():
    suffixes = {
        ".mpo",
        ".jpe",
        ".jfif",
        ".jp2",
        ".j2k",
        ".pnm",
        ".pfm",
        ".apng",
        ".dng",
        ".nef",
        ".hif",
        ".exr",
        ".hdr",
    }
    assert suffixes <= image_suffixes()
    assert not {".psd", ".eps", ".pdf", ".h5", ".svg", ".txt"} & image_suffixes()


def test_pictures_in_folders_that_are_not_taken_are_named(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    photo = Image.fromarray(RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8))
    photo.save(folder / "one.jpe", "JPEG")
    photo.save(folder / "two.mpo", "MPO", save_all=True, append_images=[photo])
    photo.save(folder / "without-suffix", "PNG")
    for name in ("drawing.psd", "one.nef", "notes.txt", ".hidden.psd"):
        (folder / name).write_bytes(b"anything")
    said: list[str] = []
    result = predict_files(
        [folder],
        output_dir=tmp_path / "out",
        config=PredictConfig(processing_resolution=32),
        output=OutputConfig(format=("npy",)),
        report=lambda event: said.append(event.note) if event.note else None,
    )
    assert (result.num_predicted, result.failed) == (2, [])
    assert [path.name for path in result.passed_over] == ["drawing.psd", "one.nef", "without-suffix"]
    assert result.to_dict()["passed_over"] == [str(path) for path in result.passed_over]
    assert len(said) == 1
    assert said[0].startswith(f"3 files look like pictures and are passed over: {folder / 'drawing.psd'}, ")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file systems that take any bytes as a name")
@pytest.mark.parametrize("suffix", [".png", ".exr", ".heic", ".hdr", ".tif"])
def test_names_that_are_no_utf_8(tmp_path, suffix):
    path = tmp_path / "plain"
    if suffix == ".exr":
        write_exr(path, {"Y": np.ones((40, 56), np.float32)}, {})
    elif suffix == ".hdr":
        path.write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 40 +X 56\n" + bytes([100, 120, 140, 129]) * 40 * 56)
    elif suffix == ".tif":
        from picture_files import tiff_file

        path.write_bytes(tiff_file(np.full((40, 56, 1), 999), bits=12, photometric=1))
    elif suffix == ".heic":
        pytest.importorskip("pillow_heif").from_pillow(Image.new("RGB", (56, 40), "gray")).save(path)
    else:
        Image.new("RGB", (56, 40), "gray").save(path, "PNG")
    if suffix in (".hdr", ".tif"):
        pytest.importorskip("OpenImageIO")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n" + suffix.encode()))
    path.rename(odd)
    assert read_rgb(odd).shape == (40, 56, 3)


def test_arrays_of_other_libraries_that_cannot_be_converted():
    def refuse(*_: object, **__: object) -> np.ndarray:
        raise TypeError("lies on a GPU;\ncopy it first")

    other = type("Other", (), {"__array__": refuse})()
    with pytest.raises(InvalidValueError, match="Other cannot be made one: TypeError: lies on a GPU; copy it first"):
        as_rgb(other)
    with pytest.raises(InvalidValueError, match="SimpleNamespace is given"):
        as_rgb(SimpleNamespace())
