# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from openmarigold.depth import colourise
from openmarigold.errors import InvalidValueError, OutputError
from openmarigold.export import result_paths, to_uint16, write_prediction

DEPTH = np.linspace(0.0, 1.0, 12, dtype=np.float32).reshape(3, 4)


def test_all_files_hold_what_was_given(tmp_path):
    folder = tmp_path / "new" / "folder"
    paths = write_prediction(DEPTH, DEPTH / 10, output_dir=folder, stem="cat.v2")
    assert paths == result_paths(folder, "cat.v2", uncertainty=True)
    assert sorted(folder.iterdir()) == sorted(paths), "no temporary file is left"
    np.testing.assert_array_equal(np.load(paths[0]), DEPTH)
    with Image.open(paths[1]) as grey:
        assert grey.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(grey), to_uint16(DEPTH))
    with Image.open(paths[2]) as coloured:
        np.testing.assert_array_equal(np.asarray(coloured), colourise(DEPTH))
    np.testing.assert_array_equal(np.load(paths[3]), DEPTH / 10)


def test_without_uncertainty_there_are_three_files(tmp_path):
    assert len(write_prediction(DEPTH, output_dir=tmp_path, stem="cat")) == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_float64_is_stored_as_float32(tmp_path):
    path, *_ = write_prediction(DEPTH.astype(np.float64), output_dir=tmp_path, stem="cat")
    assert np.load(path).dtype == np.float32


def test_sixteen_bits_are_rounded_not_truncated():
    values = np.array([[0.0, 0.4 / 65535, 0.6 / 65535, 32767.6 / 65535, 1.0, 1.5, -0.5]])
    assert to_uint16(values).tolist() == [[0, 0, 1, 32768, 65535, 65535, 0]]


def test_existing_files_stay_unless_overwriting_is_allowed(tmp_path):
    write_prediction(DEPTH, output_dir=tmp_path, stem="cat")
    before = (tmp_path / "cat_depth.npy").read_bytes()
    with pytest.raises(OutputError, match=r"cat_depth\.npy exists; allow overwriting"):
        write_prediction(DEPTH * 0.5, output_dir=tmp_path, stem="cat")
    assert (tmp_path / "cat_depth.npy").read_bytes() == before
    write_prediction(DEPTH * 0.5, output_dir=tmp_path, stem="cat", overwrite=True)
    np.testing.assert_array_equal(np.load(tmp_path / "cat_depth.npy"), DEPTH * 0.5)


def test_one_existing_file_of_several_stops_before_anything_is_written(tmp_path):
    (tmp_path / "cat_uncertainty.npy").touch()
    with pytest.raises(OutputError, match=r"cat_uncertainty\.npy exists"):
        write_prediction(DEPTH, DEPTH, output_dir=tmp_path, stem="cat")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_in_place_of_the_folder_is_an_output_error(tmp_path):
    (tmp_path / "results").touch()
    with pytest.raises(OutputError, match="results"):
        write_prediction(DEPTH, output_dir=tmp_path / "results", stem="cat")


@pytest.mark.parametrize("stem", ["", "../cat", "folder/cat"])
def test_stems_that_leave_the_folder_are_refused(tmp_path, stem):
    with pytest.raises(InvalidValueError, match="not a plain file name"):
        write_prediction(DEPTH, output_dir=tmp_path, stem=stem)
    assert not list(tmp_path.iterdir())
