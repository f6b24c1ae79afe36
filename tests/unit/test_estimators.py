# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from benchmark_data import image_bytes, write
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation.estimators import SavedPredictions, read_map
from openmarigold.evaluation.scoring import choose_protocol
from openmarigold.images.exr import read_exr
from openmarigold.modalities import DEPTH

RAMP = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)


def write_channels(path: Path, channels: dict[str, np.ndarray]) -> None:
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, dict(channels)) as file:  # it changes the dictionary
        file.write(str(path))


@pytest.mark.parametrize(
    "name",
    [
        "scene/rgb_0001.npy",
        "scene/rgb_0001_depth.npy",
        "scene/pred_0001.npy",
        "scene/rgb_0001/depth.npy",
        "scene/rgb_0001/rgb_depth.npy",
        "scene_rgb_0001.npy",
        "scene_rgb_0001_depth.npy",
    ],
)
def test_names_of_saved_predictions(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, RAMP)
    saved = SavedPredictions(tmp_path)
    assert saved.find("scene/rgb_0001") == {"depth": path}
    np.testing.assert_array_equal(saved.read("scene/rgb_0001")["depth"], RAMP)
    with pytest.raises(DataError, match=r"holds no prediction scene/rgb_0002 \(\.npy, \.exr, \.png\); predict it"):
        saved.read("scene/rgb_0002")


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4), (3, 4, 1)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint16])
def test_maps_from_npy(shape: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    values = (100 * RAMP).astype(dtype)
    np.save(tmp_path / "a.npy", values.reshape(shape))
    np.testing.assert_array_equal(read_map(tmp_path / "a.npy", DEPTH.maps[0]), values)


def test_maps_from_16_bit_png(tmp_path: Path) -> None:
    grays = np.rint(RAMP * 65535).astype(np.uint16)
    Image.fromarray(grays).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_map(tmp_path / "a.png", DEPTH.maps[0]), RAMP, atol=1e-5)
    with pytest.raises(DataError, match="a PNG has no unit and no zero; give metric predictions as npy or exr"):
        SavedPredictions(tmp_path, "metric").read("a")


@pytest.mark.parametrize(
    ("channels", "chosen"), [(("Z",), "Z"), (("Y",), "Y"), (("B", "G", "R", "Z"), "Z"), (("disparity",), "disparity")]
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_maps_from_exr(channels: tuple[str, ...], chosen: str, dtype: type, tmp_path: Path) -> None:
    values = {name: (RAMP + number).astype(dtype) for number, name in enumerate(channels)}
    write_channels(tmp_path / "a.exr", values)
    assert set(read_exr(tmp_path / "a.exr")) == set(channels)
    np.testing.assert_array_equal(read_map(tmp_path / "a.exr", DEPTH.maps[0]), values[chosen])


def test_broken_maps(tmp_path: Path) -> None:
    write(tmp_path / "a.npy", b"no npy")
    np.save(tmp_path / "color.npy", np.zeros((3, 4, 3)))
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    write(tmp_path / "gray8.png", image_bytes(np.zeros((3, 4), np.uint8)))
    write(tmp_path / "a.exr", b"no exr")
    write_channels(tmp_path / "two.exr", {"u": RAMP, "v": RAMP})
    for name, message in {
        "a.npy": "is missing or damaged",
        "color.npy": r"holds float64 of shape \[3, 4, 3\]; a map \[h, w\] of numbers is needed",
        "words.npy": "a map .* of numbers is needed",
        "gray8.png": r"uint8 of shape \[3, 4\], not 16-bit grays",
        "a.exr": "is damaged or no OpenEXR file",
        "two.exr": "has channels u, v; one of Z, depth",
        "none.exr": r"none\.exr",
    }.items():
        with pytest.raises(DataError, match=message):
            read_map(tmp_path / name, DEPTH.maps[0])
    with pytest.raises(DataError, match="is not a folder; give the folder that holds the predictions"):
        SavedPredictions(tmp_path / "none")


def test_protocols_by_invariance() -> None:
    assert choose_protocol(DEPTH, None, "disparity").name == "disparity"
    for invariance in ("affine_depth", "scale", "metric"):
        assert choose_protocol(DEPTH, None, invariance).name == "marigold"
    assert {name for name, protocol in DEPTH.protocols.items() if "metric" in protocol.accepts} == set(DEPTH.protocols)
    with pytest.raises(
        InvalidValueError, match="protocol marigold does not score disparity estimates; use one of disp"
    ):
        choose_protocol(DEPTH, "marigold", "disparity")
    with pytest.raises(InvalidValueError, match="protocol metric does not score affine_depth estimates"):
        choose_protocol(DEPTH, "metric", "affine_depth")
    with pytest.raises(InvalidValueError, match="protocol='lsq' is not known; use one of marigold, disparity"):
        choose_protocol(DEPTH, "lsq", "metric")


def test_measured_depth_is_not_taken_for_a_prediction(tmp_path: Path) -> None:
    """Predictions may lie next to the data, whose own depth.png is not meant."""
    (tmp_path / "room").mkdir()
    for name, value in (("depth", 1.0), ("rgb_depth", 2.0)):
        np.save(tmp_path / "room" / f"{name}.npy", np.full((2, 3), value))
    assert SavedPredictions(tmp_path, "affine_depth").read("room")["depth"].mean() == 2.0
