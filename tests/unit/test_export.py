# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from openmarigold.config import OutputConfig
from openmarigold.errors import InvalidValueError, MissingExtraError, OutputError
from openmarigold.images.exr import read_exr
from openmarigold.modalities.colors import colorize, uncertainty_picture
from openmarigold.modalities.depth import to_uint16
from openmarigold.results.writers import result_paths, write_prediction

DEPTH = np.linspace(0.0, 1.0, 12, dtype=np.float32).reshape(3, 4)
MAPS, SPREAD = {"depth": DEPTH}, {"uncertainty": DEPTH / 10}


def test_all_files_hold_what_was_given(tmp_path):
    folder = tmp_path / "new" / "folder"
    paths = write_prediction(MAPS, SPREAD, output_dir=folder, stem="cat.v2")
    assert paths == result_paths(folder, "cat.v2", uncertainty=True)
    assert sorted(folder.iterdir()) == sorted(paths), "no temporary file is left"
    np.testing.assert_array_equal(np.load(paths[0]), DEPTH)
    with Image.open(paths[1]) as gray:
        assert gray.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(gray), to_uint16(DEPTH))
    with Image.open(paths[2]) as colored:
        np.testing.assert_array_equal(np.asarray(colored), colorize(DEPTH))
    np.testing.assert_array_equal(np.load(paths[3]), DEPTH / 10)


def test_without_uncertainty_there_are_three_files(tmp_path):
    assert len(write_prediction(MAPS, output_dir=tmp_path, stem="cat")) == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_float64_is_stored_as_float32(tmp_path):
    path, *_ = write_prediction({"depth": DEPTH.astype(np.float64)}, output_dir=tmp_path, stem="cat")
    assert np.load(path).dtype == np.float32


def test_sixteen_bits_are_rounded_not_truncated():
    values = np.array([[0.0, 0.4 / 65535, 0.6 / 65535, 32767.6 / 65535, 1.0, 1.5, -0.5]])
    assert to_uint16(values).tolist() == [[0, 0, 1, 32768, 65535, 65535, 0]]


def test_existing_files_stay_unless_overwriting_is_allowed(tmp_path):
    write_prediction(MAPS, output_dir=tmp_path, stem="cat")
    before = (tmp_path / "cat_depth.npy").read_bytes()
    with pytest.raises(OutputError, match=r"cat_depth\.npy exists; allow overwriting"):
        write_prediction({"depth": DEPTH * 0.5}, output_dir=tmp_path, stem="cat")
    assert (tmp_path / "cat_depth.npy").read_bytes() == before
    write_prediction({"depth": DEPTH * 0.5}, output_dir=tmp_path, stem="cat", overwrite=True)
    np.testing.assert_array_equal(np.load(tmp_path / "cat_depth.npy"), DEPTH * 0.5)


def test_one_existing_file_of_several_stops_before_anything_is_written(tmp_path):
    (tmp_path / "cat_uncertainty.npy").touch()
    with pytest.raises(OutputError, match=r"cat_uncertainty\.npy exists"):
        write_prediction(MAPS, {"uncertainty": DEPTH}, output_dir=tmp_path, stem="cat")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_in_place_of_the_folder_is_an_output_error(tmp_path):
    (tmp_path / "results").touch()
    with pytest.raises(OutputError, match="results"):
        write_prediction(MAPS, output_dir=tmp_path / "results", stem="cat")


@pytest.mark.parametrize("stem", ["", "../cat", "folder/cat"])
def test_stems_that_leave_the_folder_are_refused(tmp_path, stem):
    with pytest.raises(InvalidValueError, match="not a plain file name"):
        write_prediction(MAPS, output_dir=tmp_path, stem=stem)
    assert not list(tmp_path.iterdir())


def test_every_format_holds_the_same_depth(tmp_path):
    output = OutputConfig(format=("npz", "exr"), inverted=True, uncertainty_picture=True)
    paths = write_prediction(MAPS, SPREAD, output_dir=tmp_path, stem="cat", output=output)
    names = ["cat_depth_inverted.png", "cat_uncertainty.png", "cat_depth.npz", "cat_depth.exr"]
    assert [path.name for path in paths] == names
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    with np.load(paths[2], allow_pickle=False) as entries:
        np.testing.assert_array_equal(entries["depth"], DEPTH)
        np.testing.assert_array_equal(entries["uncertainty"], DEPTH / 10)
    channels = read_exr(paths[3])
    assert set(channels) == {"Y", "uncertainty"}
    np.testing.assert_array_equal(channels["Y"], DEPTH)
    np.testing.assert_array_equal(channels["uncertainty"], DEPTH / 10)
    with Image.open(paths[0]) as inverted:
        assert inverted.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(inverted), 65535 - to_uint16(DEPTH))
    with Image.open(paths[1]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), uncertainty_picture(DEPTH / 10))


def test_without_uncertainty_there_is_none_in_any_format(tmp_path):
    output = OutputConfig(format=("npy", "npz", "exr"), uncertainty_picture=True)
    paths = write_prediction(MAPS, output_dir=tmp_path, stem="cat", output=output)
    assert [path.name for path in paths] == ["cat_depth.npy", "cat_depth.npz", "cat_depth.exr"]
    assert set(read_exr(paths[2])) == {"Y"}
    with np.load(paths[1]) as entries:
        assert set(entries) == {"depth"}


def test_color_maps_of_matplotlib_by_name(tmp_path):
    import matplotlib

    viridis = colorize(DEPTH, color_map="viridis")
    ends = np.rint(255 * np.array(matplotlib.colormaps["viridis"]([0.0, 1.0]))[:, :3])
    np.testing.assert_array_equal(viridis[[0, -1], [0, -1]], ends)
    path = write_prediction(MAPS, output_dir=tmp_path, stem="cat", output=OutputConfig(color_map="viridis"))[2]
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture), viridis)
    # Our own Spectral interpolates between the same 11 colors, matplotlib's in 256 steps.
    difference = colorize(DEPTH).astype(int) - colorize(DEPTH, color_map="Spectral_r")[::-1, ::-1]
    assert np.abs(difference).max() <= 2
    with pytest.raises(InvalidValueError, match=r"color_map='viridus' is not known; try viridis"):
        write_prediction(MAPS, output_dir=tmp_path / "none", stem="cat", output=OutputConfig(color_map="viridus"))
    assert not (tmp_path / "none").exists()


def test_missing_extras_are_named_before_anything_is_written(tmp_path, monkeypatch):
    for module in ("OpenEXR", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
    for output, extra in (
        (OutputConfig(format=("npy", "exr")), r"OpenEXR is not installed.*\[exr\]"),
        (OutputConfig(color_map="viridis"), r"matplotlib is not installed.*\[plots\]"),
    ):
        with pytest.raises(MissingExtraError, match=extra):
            write_prediction(MAPS, output_dir=tmp_path / "out", stem="cat", output=output)
    assert not (tmp_path / "out").exists()
    write_prediction(MAPS, output_dir=tmp_path / "out", stem="cat")


def test_pictures_of_uncertainty():
    uncertainty = np.full((100, 100), 0.1)
    uncertainty[0, 0] = 5.0
    uncertainty[50:] = 0.05
    picture = uncertainty_picture(uncertainty)
    assert picture[0, 0] == picture[10, 10] == 255, "an outlier does not darken the rest"
    assert picture[60, 0] == 128
    assert not uncertainty_picture(np.zeros((4, 5))).any()
    sparse = np.zeros((100, 100))
    sparse[3, 4] = 1.0
    assert uncertainty_picture(sparse).max() == 255


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    for name in (".cat_depth.npy.4194305.partial", ".cat_depth.png.7.partial", ".dog_depth.npy.7.partial"):
        (tmp_path / name).touch()
    write_prediction(MAPS, output_dir=tmp_path, stem="cat")
    assert [path.name for path in tmp_path.glob(".*")] == [".dog_depth.npy.7.partial"]
