# SPDX-License-Identifier: Apache-2.0
"""Clips in each layout, and `openmarigold evaluate-video` from a folder to its report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_files import AHEAD, ASIDE, CAMERA, pose_at, wall_depth, write_rendered, write_scannet, write_sintel, write_tum
from openmarigold.cli import parse, run
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation.clips import open_clips
from openmarigold.evaluation.clips.clip import within
from openmarigold.evaluation.video import VideoEvaluation

WRITERS = {"rendered": write_rendered, "scannet": write_scannet, "sintel": write_sintel, "tum": write_tum}


@pytest.mark.parametrize("layout", WRITERS)
def test_each_layout_gives_photos_depth_camera_and_poses(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path / "data", AHEAD)
    [clip] = open_clips(tmp_path / "data")
    assert clip.layout == layout and len(clip) == len(AHEAD)
    for number, position in enumerate(AHEAD):
        frame = clip.read(number)
        np.testing.assert_allclose(frame.depth, wall_depth(position), atol=1e-3)
        assert frame.pose is not None and frame.valid_mask.all() and frame.rgb.shape == (24, 32, 3)
        np.testing.assert_allclose(frame.pose, pose_at(position), atol=1e-6)
        assert all(path.is_file() for path in clip.files(number))
        if layout != "tum":  # whose camera is ROS's
            assert (frame.camera.fx, frame.camera.cx, frame.camera.cy) == (CAMERA.fx, CAMERA.cx, CAMERA.cy)


def test_depth_of_16_bits_and_flow_of_sintel(tmp_path: Path) -> None:
    [clip] = open_clips(write_rendered(tmp_path / "png", png=True))
    np.testing.assert_allclose(clip.read(1).depth, 3.5, atol=1e-3)
    [clip] = open_clips(write_sintel(tmp_path / "sintel", ASIDE))
    assert clip.flow is not None
    np.testing.assert_array_equal(clip.flow(0)[5, 5], [-2, 0])


def test_what_fits_no_layout_or_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no clip"):
        open_clips(tmp_path)
    with pytest.raises(InvalidValueError, match="layout='kitti' is not known"):
        open_clips(tmp_path, layout="kitti")
    write_rendered(write_tum(tmp_path / "both"))
    with pytest.raises(DataError, match="--layout"):
        open_clips(tmp_path / "both")
    assert open_clips(tmp_path / "both", layout="tum")[0].layout == "tum"
    with pytest.raises(InvalidValueError, match="clip 'attic' is not in"):
        open_clips(tmp_path / "both", layout="tum", names=["attic"])


@pytest.mark.parametrize(
    ("layout", "damage"),
    [
        ("rendered", lambda folder: (folder / "depth" / "00001.npy").write_bytes(b"cut")),
        ("rendered", lambda folder: (folder / "rgb" / "00001.png").unlink()),
        ("scannet", lambda folder: (folder / "pose" / "1.txt").write_text("1 2 3")),
        ("scannet", lambda folder: (folder / "depth" / "1.png").write_bytes(b"")),
        ("sintel", lambda folder: (folder / "depth" / "wall_1" / "frame_0002.dpt").write_bytes(b"PIEH")),
        ("sintel", lambda folder: (folder / "camdata_left" / "wall_1" / "frame_0002.cam").unlink()),
        ("tum", lambda folder: (folder / "depth" / "1000.105000.png").unlink()),
    ],
)
def test_a_damaged_frame_is_named(layout: str, damage: Callable[[Path], object], tmp_path: Path) -> None:
    folder = WRITERS[layout](tmp_path / "data", AHEAD)
    damage(folder)
    [clip] = open_clips(folder)
    with pytest.raises(DataError, match=r"(?s)1\.|0002|1000\.105"):
        clip.read(1)


def test_the_command_writes_a_report_and_goes_on(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_rendered(tmp_path / "data" / name)
    words = ["evaluate-video", str(tmp_path / "data"), "--checkpoint", str(tiny_checkpoint), "--processing-resolution"]
    words += ["0", "--correspondence", "pixels", "--compare", "per-frame", "--output-dir", str(tmp_path / "out")]
    assert run([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(printed["estimators"]) == ["stream", "per-frame"]
    assert printed["estimators"]["stream"]["all"]["clip/tae"]["num_clips"] == 2
    assert "| score | stream | per-frame | ratio |" in (tmp_path / "out" / "report.md").read_text()

    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr("openmarigold.predictor.Predictor.from_config", refused)
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["estimators"] == printed["estimators"]


def test_saved_depth_is_scored_and_a_damaged_clip_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_rendered(tmp_path / "data" / name, AHEAD)
        (tmp_path / "maps" / name).mkdir(parents=True)
        for number, position in enumerate(AHEAD):
            np.save(tmp_path / "maps" / name / f"{number:06d}_depth.npy", 0.5 * wall_depth(position))
    words = ["evaluate-video", str(tmp_path / "data"), "--predictions", str(tmp_path / "maps"), "--invariance", "scale"]
    words += ["--protocol", "scale", "--json"]
    assert run(words) == 0
    means = json.loads(capsys.readouterr().out)["estimators"]["saved"]["all"]
    assert means["clip/abs_rel"]["mean"] == pytest.approx(0, abs=1e-6)
    assert means["clip/tae"]["mean"] == pytest.approx(0, abs=1e-6)
    (tmp_path / "data" / "b" / "depth" / "00001.npy").write_bytes(b"")
    assert run(words) == 1
    assert list(json.loads(capsys.readouterr().out)["failed"]) == ["b"]
    assert run([*words, "--per-frame"]) == 2


def test_settings_of_a_file_and_the_error_of_the_only_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "few.toml").write_text("seed = 7\nlook_ahead = 3\n")
    command: Any = parse(["evaluate-video", "clips", "--config", str(tmp_path / "few.toml"), "--look-ahead", "2"])
    assert (command.config.seed, command.stream.look_ahead) == (7, 2)
    write_rendered(tmp_path / "data", AHEAD)
    (tmp_path / "maps").mkdir()
    words = ["evaluate-video", str(tmp_path / "data"), "--predictions", str(tmp_path / "maps"), "--invariance", "scale"]
    assert run(words) == 2
    assert capsys.readouterr().err.count("holds no prediction 00000") == 1


def test_a_range_leaves_out_what_is_beyond(tmp_path: Path) -> None:
    [clip] = open_clips(write_rendered(tmp_path / "data", AHEAD))
    near, far = (float(wall_depth(position).min()) for position in (AHEAD[-1], AHEAD[0]))
    assert near < far
    narrow = within(clip, (0.1, (near + far) / 2))
    assert not narrow.read(0).valid_mask.any()
    assert narrow.read(len(AHEAD) - 1).valid_mask.all()
    assert (narrow.min_depth, narrow.max_depth) == (0.1, (near + far) / 2)
    with pytest.raises(InvalidValueError, match="depth_range 3 1"):
        VideoEvaluation(depth_range=(3.0, 1.0))
