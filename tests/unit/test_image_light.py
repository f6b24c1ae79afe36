# SPDX-License-Identifier: Apache-2.0
"""Pictures of linear light, EXR and Radiance: tone mapping, damage, and bounds."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image

from openmarigold.errors import ImageError
from openmarigold.images.exr import write_exr
from openmarigold.images.hdr import tone_map
from openmarigold.images.photo import read_rgb

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def radiance(rgbe: np.ndarray, *, runs: bool, order: str = "-Y {h} +X {w}") -> bytes:
    """Radiance file of mantissas and exponents [h w 4], with run lengths or without."""
    height, width, _ = rgbe.shape
    content = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n{order.format(h=height, w=width)}\n".encode()
    for line in rgbe:
        if not runs:
            content += line.tobytes()
            continue
        content += bytes([2, 2, width >> 8, width & 255])
        for component in line.T:
            content += bytes([128 + 5, component[0]])  # the first five are equal; then literally
            for start in range(5, width, 100):
                part = component[start : start + 100]
                content += bytes([len(part)]) + part.tobytes()
    return content


LIGHT = np.random.default_rng(6).uniform(0.0, 1.0, (9, 12, 3)).astype(np.float32) ** 4


@pytest.mark.parametrize("factor", [1e-6, 0.3, 1.0, 1e5])
def test_tone_mapping_does_not_depend_on_the_unit_of_light(factor):
    picture = tone_map(LIGHT)
    assert picture.min() < 60
    assert picture.max() == 255
    np.testing.assert_allclose(tone_map(LIGHT * np.float32(factor)), picture, atol=1)


def test_tone_mapping_keeps_the_order_of_grays_and_survives_anything():
    ramp = np.repeat(np.geomspace(1e-3, 1e3, 64, dtype=np.float32)[None, :, None], 3, axis=2)
    levels = tone_map(ramp)[0].astype(int)
    assert (levels == levels[:, :1]).all()
    assert (np.diff(levels[:, 0]) >= 0).all()
    assert len(set(levels[:, 0])) > 40
    assert not tone_map(np.zeros((2, 2, 3), np.float32)).any()
    odd = LIGHT.copy()
    odd[0, :4] = np.array([np.nan, np.inf, -np.inf, -1.0], np.float32)[:, None]
    assert tone_map(odd)[0, :4, 0].tolist() == [0, 255, 0, 0]


def test_exr_pictures(tmp_path):
    colors = dict(zip("RGB", np.moveaxis(LIGHT, -1, 0), strict=True))
    write_exr(tmp_path / "plain.exr", colors, {})
    np.testing.assert_array_equal(read_rgb(tmp_path / "plain.exr"), tone_map(LIGHT))
    layered = {f"beauty.{name}": values for name, values in colors.items()} | {"Z": LIGHT[..., 0]}
    write_exr(tmp_path / "layered.exr", layered, {})
    np.testing.assert_array_equal(read_rgb(tmp_path / "layered.exr"), tone_map(LIGHT))
    write_exr(tmp_path / "gray.exr", {"Y": LIGHT[..., 0]}, {})
    np.testing.assert_array_equal(read_rgb(tmp_path / "gray.exr"), tone_map(np.repeat(LIGHT[..., :1], 3, axis=2)))
    alpha = np.ones(LIGHT.shape[:2], np.float32)
    alpha[:4] = 0
    premultiplied = {name: values * alpha for name, values in colors.items()}
    write_exr(tmp_path / "alpha.exr", {**premultiplied, "A": alpha}, {})
    assert (read_rgb(tmp_path / "alpha.exr", background="#102030")[:4] == [16, 32, 48]).all()
    write_exr(tmp_path / "depth.exr", {"Z": LIGHT[..., 0]}, {})
    with pytest.raises(ImageError, match=r"depth\.exr has the channels Z; a picture has R, G and B, or Y"):
        read_rgb(tmp_path / "depth.exr")


def test_damaged_exr_files_are_image_errors_and_print_nothing_to_stdout(tmp_path, capfd):
    path = tmp_path / "light.exr"
    write_exr(path, dict(zip("RGB", np.moveaxis(LIGHT, -1, 0), strict=True)), {})
    content = path.read_bytes()
    for length in (5, 100, 400, len(content) - 9):
        path.write_bytes(content[:length])
        with pytest.raises(ImageError, match=r"light\.exr is damaged or no OpenEXR file") as caught:
            read_rgb(path)
        assert "\n" not in str(caught.value)
    captured = capfd.readouterr()
    assert captured.out == ""
    # OpenEXR's own lines are left: to drop them, stderr would have to be taken from all threads.
    assert all(line.startswith(f"{path}: (EXR_ERR") for line in captured.err.splitlines())


@pytest.mark.parametrize("runs", [False, True])
def test_radiance_pictures(tmp_path, runs):
    pytest.importorskip("OpenImageIO")
    rgbe = np.random.default_rng(7).integers(0, 256, (6, 300, 4), dtype=np.uint8)
    rgbe[:, :5] = rgbe[:, :1]
    rgbe[..., 3] = 128 + rgbe[..., 3] % 4
    rgbe[2, 7, 3] = 0  # darkness
    linear = rgbe[..., :3] * np.exp2(rgbe[..., 3:].astype(np.float32) - 136)
    linear[2, 7] = 0
    path = tmp_path / "light.hdr"
    path.write_bytes(radiance(rgbe, runs=runs))
    np.testing.assert_array_equal(read_rgb(path), tone_map(linear.astype(np.float32)))
    path.write_bytes(radiance(rgbe, runs=runs, order="+Y {h} -X {w}"))
    np.testing.assert_array_equal(read_rgb(path), tone_map(linear.astype(np.float32))[::-1, ::-1])
    path.write_bytes(radiance(rgbe, runs=runs, order="+X {h} -Y {w}"))
    np.testing.assert_array_equal(read_rgb(path), tone_map(linear.astype(np.float32)).swapaxes(0, 1))
    content = radiance(rgbe, runs=runs)
    for damaged in (content[:200], content[:-1], content[:30], content.replace(b"-Y 6", b"-Q 6"), b"#?RADIANCE"):
        path.write_bytes(damaged)
        with pytest.raises(ImageError, match=r"light\.hdr is damaged"):
            read_rgb(path)


def test_bombs_of_linear_light_are_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # refused above 80
    write_exr(tmp_path / "bomb.exr", {"Y": LIGHT[..., 0]}, {})
    names = ["bomb.exr"]
    if importlib.util.find_spec("OpenImageIO") is not None:
        names.append("bomb.hdr")
        (tmp_path / "bomb.hdr").write_bytes(radiance(np.full((9, 12, 4), 128, dtype=np.uint8), runs=False))
    for name in names:
        with pytest.raises(ImageError, match=f"{name} has more pixels than can be read safely"):
            read_rgb(tmp_path / name)


def test_exr_without_its_extra(tmp_path, monkeypatch):
    write_exr(tmp_path / "light.exr", {"Y": LIGHT[..., 0]}, {})
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ImageError, match=r'light\.exr: OpenEXR is not installed.*openmarigold\[exr\]"$'):
        read_rgb(tmp_path / "light.exr")
