# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import CheckpointError, InvalidValueError, OutputError
from openmarigold.files import file_sha256
from openmarigold.predictor import Predictor
from openmarigold.predictor.run import Event, predict_files
from openmarigold.results.manifest import MANIFEST_NAME, Manifest
from openmarigold.results.provenance import read_provenance
from tiny import make_photo


def results_in(directory: Path) -> list[Path]:
    """Result files, in folders within too; the manifest is none."""
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)


@pytest.fixture
def config(onnx_checkpoint: Path) -> PredictConfig:
    return PredictConfig(checkpoint=onnx_checkpoint, num_inference_steps=1)


def test_folder_is_predicted_in_order(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    (photo_dir / "notes.txt").write_text("no photo")
    (photo_dir / "._a.png").write_bytes(b"left behind by a file manager")
    (photo_dir / ".hidden").mkdir()
    Image.fromarray(make_photo(16, 16)).save(photo_dir / ".hidden" / "f.png")
    events: list[Event] = []
    result = predict_files([photo_dir], output_dir=tmp_path / "out", config=config, report=events.append)
    assert [event.path.name for event in events] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert [(event.done, event.total, event.error) for event in events[-1:]] == [(5, 5, None)]
    assert result.num_predicted == len(result.predict_s) == 5
    assert not result.failed
    assert sorted(result.written) == results_in(tmp_path / "out")
    assert len(result.written) == 15
    assert np.load(tmp_path / "out" / "c_depth.npy").shape == (50, 70)


def test_bytes_do_not_depend_on_company(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    for name, inputs in {"alone": [photo_dir / "c.png"], "five": [photo_dir], "again": [photo_dir]}.items():
        predict_files(inputs, output_dir=tmp_path / name, config=config)
    for path in results_in(tmp_path / "alone"):
        contents = {(tmp_path / name / path.name).read_bytes() for name in ("alone", "five", "again")}
        assert len(contents) == 1, path.name


def test_bad_files_are_counted_and_stop_nothing(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    (photo_dir / "a.png").write_bytes(b"")
    (photo_dir / "b.png").write_bytes((photo_dir / "b.png").read_bytes()[:200])
    (photo_dir / "c.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    missing = tmp_path / "missing.jpg"
    events: list[Event] = []
    result = predict_files(
        [missing, tmp_path / "empty", photo_dir], output_dir=tmp_path / "out", config=config, report=events.append
    )
    assert result.num_predicted == 2
    messages = {path.name: message for path, message in result.failed}
    assert set(messages) == {"missing.jpg", "empty", "a.png", "b.png", "c.png"}
    assert "does not exist" in messages["missing.jpg"]
    assert "holds no photo; looked for are" in messages["empty"]
    assert all(name in message and "\n" not in message for name, message in messages.items())
    assert len(events) == events[-1].total == events[-1].done == 7
    assert sorted(path.name[:2] for path in results_in(tmp_path / "out")) == ["d_"] * 3 + ["e_"] * 3


def test_existing_results_are_skipped(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    out = tmp_path / "out"
    predict_files([photo_dir], output_dir=out, config=config)
    (out / "b_depth.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in results_in(out) if path.name[0] != "b"}
    result = predict_files([photo_dir], output_dir=out, config=config)
    assert (len(result.skipped), result.num_predicted) == (4, 1)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "b_depth.png").is_file()
    result = predict_files([photo_dir], output_dir=out, config=config, overwrite=True)
    assert (len(result.skipped), result.num_predicted) == (0, 5)


def test_uncertainty_file_comes_and_goes(photo_dir: Path, tmp_path: Path, onnx_checkpoint: Path) -> None:
    photo, out = photo_dir / "a.png", tmp_path / "out"
    many = PredictConfig(checkpoint=onnx_checkpoint, num_inference_steps=1, ensemble_size=3)
    one = PredictConfig(checkpoint=onnx_checkpoint, num_inference_steps=1)
    predict_files([photo], output_dir=out, config=many)
    assert np.load(out / "a_uncertainty.npy").shape == (48, 64)
    predict_files([photo], output_dir=out, config=one, overwrite=True)
    assert not (out / "a_uncertainty.npy").exists()


def test_same_photo_twice_and_same_stem(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    photo = photo_dir / "a.png"
    twin = photo_dir / "a.jpg"
    Image.fromarray(make_photo(32, 32)).save(twin)
    result = predict_files([photo, Path(os.path.relpath(photo)), twin], output_dir=tmp_path / "out", config=config)
    assert result.num_predicted == 1
    assert result.failed == [(twin, f"{twin} has the same result names as {photo}; rename one of them")]


def test_everything_is_checked_before_weights_are_loaded(
    photo_dir: Path, tmp_path: Path, config: PredictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **named: object) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr("openmarigold.predictor.open_engine", load)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write to output folder .*sub: Not a directory; choose a folder"):
        predict_files([photo_dir], output_dir=tmp_path / "file" / "sub", config=config)
    with pytest.raises(OutputError, match=r"cannot write to output folder .*file: File exists"):
        predict_files([photo_dir], output_dir=tmp_path / "file", config=config)
    with pytest.raises(InvalidValueError, match="is also an input"):
        predict_files([photo_dir], output_dir=photo_dir, config=config)
    with pytest.raises(InvalidValueError, match="no input given"):
        predict_files([], output_dir=tmp_path / "out", config=config)
    with pytest.raises(CheckpointError, match="is not a folder"):
        predict_files([photo_dir], output_dir=tmp_path / "out", config=PredictConfig(checkpoint=tmp_path / "no"))
    result = predict_files([tmp_path / "missing.png"], output_dir=tmp_path / "out", config=config)
    assert len(result.failed) == 1


def test_folders_within_keep_their_layout(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    for folder in ("b", "a/deep"):
        (photo_dir / folder).mkdir(parents=True)
        shutil.copy(photo_dir / "e.png", photo_dir / folder / "a.png")
    shutil.copy(photo_dir / "e.png", photo_dir / "b" / "z.v2.png")
    (photo_dir / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    out = photo_dir / "results"  # inside the input: results are not taken for photos
    events: list[Event] = []
    for _ in range(2):
        result = predict_files([photo_dir], output_dir=out, config=config, report=events.append)
        assert result.failed == []
    assert [event.path.relative_to(photo_dir).as_posix() for event in events[:8]] == [
        *("a/deep/a.png", "a.png", "b/a.png", "b/z.v2.png", "b.png", "c.png", "d.png", "e.png"),
    ]
    assert len(result.skipped) == 8
    assert len(results_in(out)) == 24
    np.testing.assert_array_equal(np.load(out / "a/deep/a_depth.npy"), np.load(out / "e_depth.npy"))
    assert np.load(out / "b/z.v2_depth.npy").shape == (64, 64)
    assert not np.array_equal(np.load(out / "a_depth.npy").shape, np.load(out / "b/a_depth.npy").shape)
    assert sorted(line["result"] for line in Manifest(out).lines() if line["status"] == "done") == sorted(
        ["a", "a/deep/a", "b", "b/a", "b/z.v2", "c", "d", "e"]
    )


def test_the_manifest_says_what_was_done(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    (photo_dir / "b.png").write_bytes(b"no photo")
    out = tmp_path / "out"
    predict_files([photo_dir / "a.png", photo_dir / "b.png"], output_dir=out, config=config)
    started, done, failed = (json.loads(line) for line in (out / MANIFEST_NAME).read_text().splitlines())
    assert (started["result"], started["status"]) == ("a", "started")
    assert (done["result"], done["status"], done["input"]) == ("a", "done", str(photo_dir / "a.png"))
    assert done["input_sha256"] == file_sha256(photo_dir / "a.png")
    assert done["request"] == {
        "checkpoint_sha256": checkpoint_sha256(read_checkpoint(config.checkpoint)),
        "invariance": "affine",
        "processing_side": "longer",
        "num_inference_steps": 1,
        "ensemble_size": 1,
        "processing_resolution": 64,
        "seed": 2024,
        "background": "white",
        "final_step": "reference",
        "start_noise": "gaussian",
        "timestep_spacing": "trailing",
        "ensemble_tolerance": None,
        "variant": None,
        "dtype": "float32",
        "color_map": "Spectral",
    }
    assert done["outputs"] == {path.name: path.stat().st_size for path in results_in(out)}
    assert 0 < done["seconds"] < 100
    assert (failed["result"], failed["status"]) == ("b", "failed")
    assert "is not an image" in failed["error"]
    record = read_provenance(out / "a_depth.png")
    assert {**record, "content": None} == {**done["provenance"], "content": None}
    assert read_provenance(out / "a_depth.npy") == done["provenance"]
    assert record["checkpoint"] == "tiny-8-onnx"
    assert done["request"].items() <= record.items()


@pytest.mark.parametrize("change", ["seed", "background", "checkpoint", "color_map", "photo"])
def test_other_settings_are_predicted_again(
    photo_dir: Path, tmp_path: Path, config: PredictConfig, kl_onnx_checkpoint: Path, change: str
) -> None:
    photo, out, output = photo_dir / "a.png", tmp_path / "out", OutputConfig()
    predict_files([photo], output_dir=out, config=config)
    if change == "photo":
        Image.fromarray(make_photo(40, 40)).save(photo)
    elif change == "color_map":
        output = OutputConfig(color_map="viridis")
    else:
        values = {"seed": 7, "background": "black", "checkpoint": kl_onnx_checkpoint}
        config = replace(config, **{change: values[change]})
    for expected in (1, 0):
        result = predict_files([photo], output_dir=out, config=config, output=output)
        assert (result.num_predicted, len(result.renewed), len(result.skipped)) == (expected, expected, 1 - expected)
    assert result.to_dict()["renewed"] == []


def test_settings_without_effect_and_defaults_that_are_spelt_out(
    photo_dir: Path, tmp_path: Path, config: PredictConfig, onnx_checkpoint: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(onnx_checkpoint, moved)
    predict_files([photo_dir / "a.png"], output_dir=tmp_path / "out", config=config)
    same = PredictConfig(
        checkpoint=moved, num_inference_steps=1, processing_resolution=64, final_step="reference", batch_size=1
    )
    result = predict_files([photo_dir / "a.png"], output_dir=tmp_path / "out", config=replace(same, device="cpu"))
    assert len(result.skipped) == 1


def test_a_format_is_added_and_old_files_of_other_settings_go(
    photo_dir: Path, tmp_path: Path, config: PredictConfig
) -> None:
    photo, out = photo_dir / "a.png", tmp_path / "out"
    predict_files([photo], output_dir=out, config=config)
    npz = OutputConfig(format=("npz",))
    result = predict_files([photo], output_dir=out, config=config, output=npz)
    assert (result.num_predicted, result.renewed) == (1, [])
    assert len(results_in(out)) == 4
    both = OutputConfig(format=("npy", "png", "npz"))
    assert len(predict_files([photo], output_dir=out, config=config, output=both).skipped) == 1
    result = predict_files([photo], output_dir=out, config=replace(config, seed=3), output=npz)
    assert result.renewed == [photo]
    assert [path.name for path in results_in(out)] == ["a_depth.npz"], "the others were made with another seed"


def test_files_of_a_run_that_was_killed_while_writing_are_not_trusted(
    photo_dir: Path, tmp_path: Path, config: PredictConfig
) -> None:
    photo, out = photo_dir / "a.png", tmp_path / "out"
    predict_files([photo], output_dir=out, config=config)
    expected = {path.name: path.read_bytes() for path in results_in(out)}
    # What a run with another seed and an ensemble has left of itself when it is killed before its last file.
    Manifest(out).append("a", "started", replaces=[*expected, "a_uncertainty.npy"])
    (out / "a_depth.npy").write_bytes(expected["a_depth.npy"][::-1])
    (out / "a_uncertainty.npy").write_bytes(b"of the other run")
    (out / ".a_depth.png.99999999.partial").write_bytes(b"half a picture")
    result = predict_files([photo], output_dir=out, config=config)
    assert result.num_predicted == 1
    assert {path.name: path.read_bytes() for path in results_in(out)} == expected


def test_a_failure_does_not_forget_earlier_files(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    photo, out = photo_dir / "a.png", tmp_path / "out"
    content = photo.read_bytes()
    predict_files([photo], output_dir=out, config=config)
    photo.write_bytes(content[:500])
    assert len(predict_files([photo], output_dir=out, config=config).failed) == 1
    assert len(results_in(out)) == 3, "what is there stays until there is something better"
    photo.write_bytes(content)
    npz = OutputConfig(format=("npz",))
    predict_files([photo], output_dir=out, config=replace(config, seed=3), output=npz)
    assert [path.name for path in results_in(out)] == ["a_depth.npz"]


def test_loading_is_not_counted_as_predicting(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    started = time.perf_counter()
    result = predict_files([photo_dir], output_dir=tmp_path / "out", config=config)
    assert result.load_s > 0
    assert result.load_s + max(result.predict_s) <= time.perf_counter() - started  # neighbors overlap


def test_several_frames_are_said_once(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    frames = [Image.fromarray(make_photo(20, 30, seed=seed)) for seed in range(3)]
    for name in ("f.gif", "g.gif", "h.tif"):
        frames[0].save(photo_dir / name, save_all=True, append_images=frames[1:])
    events: list[Event] = []
    out = tmp_path / "out"
    predict_files([photo_dir], output_dir=out, config=config, report=events.append)
    assert [event.note for event in events if event.note] == [
        f"{photo_dir / 'f.gif'} has 3 frames or pages; the first is used (of further files such notes stand in the "
        "manifest)"
    ]
    noted = [line["result"] for line in Manifest(out).lines() if line.get("notes")]
    assert noted == ["f", "g", "h"]


def test_wrong_output_settings_are_found_before_anything_is_read(
    photo_dir: Path, tmp_path: Path, config: PredictConfig
) -> None:
    with pytest.raises(InvalidValueError, match="background='whitish' is not a color"):
        predict_files([photo_dir], output_dir=tmp_path / "out", config=replace(config, background="whitish"))
    with pytest.raises(InvalidValueError, match="color_map='spectral' is not known; try Spectral"):
        predict_files(
            [photo_dir], output_dir=tmp_path / "out", config=config, output=OutputConfig(color_map="spectral")
        )
    assert not list((tmp_path / "out").iterdir())


def test_a_setting_without_use_is_said_before_any_photo(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    out = tmp_path / "out"
    predict_files([photo_dir / "a.png"], output_dir=out, config=config)
    before = (out / MANIFEST_NAME).read_bytes()
    useless = replace(config, start_noise="zeros", ensemble_size=3)
    with pytest.raises(InvalidValueError, match="ensemble_size=3 gains nothing"):
        predict_files([photo_dir / "a.png"], output_dir=out, config=useless)
    assert (out / MANIFEST_NAME).read_bytes() == before, "finished work stays finished"


def test_results_within_an_input_folder_are_no_photos(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    inner = photo_dir / "first"
    output = OutputConfig(format=("npy", "png", "exr"), inverted=True, uncertainty_picture=True)
    ensemble = replace(config, ensemble_size=2)
    first = predict_files([photo_dir], output_dir=inner, config=ensemble, output=output)
    pictures = sorted(path for path in first.written if path.suffix in (".png", ".exr"))
    assert len(pictures) == 25
    (inner / MANIFEST_NAME).unlink()  # the files say it themselves
    os.rename(inner / "a_depth.png", inner / "renamed.png")
    Image.fromarray(make_photo(20, 20)).save(inner / "b_depth_photo.png")  # and names say nothing

    events: list[Event] = []
    second = predict_files([photo_dir], output_dir=tmp_path / "second", config=config, report=events.append)
    assert (second.num_predicted, second.failed) == (6, [])
    assert len(second.left_out) == 25
    assert inner / "renamed.png" in second.left_out
    notes = [event.note for event in events if event.note]
    assert notes == [
        f"25 pictures, such as {second.left_out[0]}, are results of earlier predictions and are left out; name a file "
        "to predict it"
    ]
    assert (events[0].done, events[-1].done, events[-1].total) == (0, 6, 6)

    only = predict_files([inner / "renamed.png"], output_dir=tmp_path / "named", config=config)
    assert (only.num_predicted, only.left_out) == (1, [])
    (inner / "b_depth_photo.png").unlink()
    none = predict_files([inner], output_dir=tmp_path / "none", config=config)
    assert none.failed[0][1].startswith(f"{inner} holds no photo, only results of earlier predictions; looked for are")


@pytest.mark.parametrize("kind", ["unreadable photo", "failing networks"])
def test_a_failure_with_other_settings_leaves_what_is_done(
    kind: str, photo_dir: Path, tmp_path: Path, config: PredictConfig
) -> None:
    photo, out = photo_dir / "a.png", tmp_path / "out"
    predict_files([photo], output_dir=out, config=config)
    before = {path.name: path.read_bytes() for path in results_in(out)}
    other = replace(config, seed=7)
    if kind == "unreadable photo":
        content = photo.read_bytes()
        photo.write_bytes(content[:500])
        failed = predict_files([photo], output_dir=out, config=other)
        photo.write_bytes(content)
    else:
        failed = predict_files([photo], output_dir=out, config=replace(other, processing_resolution=8_000_000))
    assert len(failed.failed) == 1
    assert {path.name: path.read_bytes() for path in results_in(out)} == before
    again = predict_files([photo], output_dir=out, config=config)
    assert (again.skipped, again.num_predicted) == ([photo], 0)


def test_names_that_become_too_long_stop_nothing(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    fits = "f" * (255 - len("_depth_colored.png"))
    names = {"fits": f"{fits}.png", "too long": f"{fits}g.png", "in bytes": f"{'ü' * 125}.png"}
    for name in names.values():
        shutil.copy(photo_dir / "a.png", photo_dir / name)
    out = tmp_path / "out"
    result = predict_files([photo_dir, photo_dir / ("h" * 300)], output_dir=out, config=config)
    assert result.num_predicted == 6
    assert (out / f"{fits}_depth_colored.png").is_file()
    messages = [message for _, message in result.failed]
    assert messages == [
        f"{photo_dir / ('h' * 300)} cannot be read: File name too long; check its name",
        f"{photo_dir / names['too long']}: its result {fits}g_depth_colored.png would have a name of 256 bytes, which "
        "is too long for the file system; give the photo a shorter name",
        f"{photo_dir / names['in bytes']}: its result {'ü' * 125}_depth_colored.png would have a name of 268 bytes, "
        "which is too long for the file system; give the photo a shorter name",
    ]
    assert len(results_in(out)) == 18, "nothing is left of those that failed"
    again = predict_files([photo_dir], output_dir=out, config=config)
    assert (again.num_predicted, len(again.skipped)) == (0, 6)
    npy = predict_files([photo_dir], output_dir=tmp_path / "npy", config=config, output=OutputConfig(format=("npy",)))
    assert len(npy.failed) == 1, "of shorter names one fits"


def test_links_that_lead_nowhere_and_in_circles(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    (photo_dir / "circle.png").symlink_to(photo_dir / "circle.png")
    (photo_dir / "nowhere.png").symlink_to(tmp_path / "gone.png")
    (photo_dir / "folders").symlink_to(photo_dir / "folders", target_is_directory=True)
    os.mkfifo(photo_dir / "pipe.png")
    for inputs in ([photo_dir], [photo_dir / "circle.png", photo_dir / "nowhere.png", photo_dir / "pipe.png"]):
        result = predict_files(inputs, output_dir=tmp_path / "out", config=config)
        assert [message for _, message in result.failed] == [
            f"{photo_dir / 'circle.png'} is a link that leads back to itself; fix or remove the link",
            f"{photo_dir / 'nowhere.png'} is a link to {tmp_path / 'gone.png'}, which does not exist; fix or remove "
            "the link",
            f"{photo_dir / 'pipe.png'} is not a regular file",
        ]
    assert len(predict_files([photo_dir], output_dir=tmp_path / "out", config=config).skipped) == 5
    with pytest.raises(OutputError, match="cannot write to output folder"):
        predict_files([photo_dir], output_dir=photo_dir / "folders", config=config)
    with pytest.raises(CheckpointError, match="is not a folder"):
        predict_files([photo_dir], output_dir=tmp_path, config=PredictConfig(checkpoint=photo_dir / "folders"))
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        predict_files([photo_dir], output_dir=tmp_path, config=PredictConfig(checkpoint=Path("x" * 300)))


def test_the_variant_that_is_read_is_recorded(photo_dir: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    directory = tmp_path / "half"
    shutil.copytree(tiny_checkpoint, directory)
    for name in ("unet", "vae"):
        weights = directory / name / "diffusion_pytorch_model.safetensors"
        weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    asked = PredictConfig(checkpoint=directory, num_inference_steps=1, device="cpu")
    predict_files([photo_dir / "a.png"], output_dir=tmp_path / "out", config=asked)
    assert read_provenance(tmp_path / "out" / "a_depth.png")["variant"] == "fp16"
    same = predict_files([photo_dir / "a.png"], output_dir=tmp_path / "out", config=replace(asked, variant="fp16"))
    assert len(same.skipped) == 1


def photos_of_one_name(tmp_path: Path) -> list[Path]:
    """a/photo.png and b/photo.png, which differ."""
    paths = [tmp_path / name / "photo.png" for name in ("a", "b")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        Image.fromarray(make_photo(40, 48, seed=number)).save(path)
    return paths


@pytest.mark.skipif(os.name == "nt", reason="runs take turns by locks that Windows does not have")
def test_two_runs_at_once_never_lose_results_of_photos_of_one_name(
    tmp_path: Path, config: PredictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, both_predicted = photos_of_one_name(tmp_path), Barrier(2, timeout=60)
    call = Predictor.__call__

    def meet(self: Predictor, *args: Any, **settings: Any) -> Any:
        prediction = call(self, *args, **settings)
        both_predicted.wait()  # each has found the folder empty, and none has written
        return prediction

    monkeypatch.setattr(Predictor, "__call__", meet)
    out = tmp_path / "out"
    with ThreadPoolExecutor(2) as executor:
        results = list(executor.map(lambda path: predict_files([path], output_dir=out, config=config), paths))
    assert sorted(result.num_predicted for result in results) == [0, 1]
    loser = next(result for result in results if not result.num_predicted)
    winner = paths[0] if results[0].num_predicted else paths[1]
    assert f"is the result of another photo, {winner}" in loser.failed[0][1]
    for path in results_in(out):
        if (record := read_provenance(path)) is not None:
            assert record["input_sha256"] == file_sha256(winner), path.name
    assert [line["status"] for line in Manifest(out).lines()] == ["started", "done", "failed"]


def test_two_runs_at_once_share_a_folder_if_names_differ(
    photo_dir: Path, tmp_path: Path, config: PredictConfig
) -> None:
    photos, out = sorted(photo_dir.iterdir()), tmp_path / "out"
    with ThreadPoolExecutor(2) as executor:
        halves = [photos[::2], photos[1::2]]
        results = list(executor.map(lambda half: predict_files(half, output_dir=out, config=config), halves))
    assert sum(result.num_predicted for result in results) == len(photos)
    assert not any(result.failed for result in results)
    again = predict_files([photo_dir], output_dir=out, config=config)
    assert (again.num_predicted, len(again.skipped)) == (0, len(photos))


def test_a_run_learns_what_another_has_done_meanwhile(tmp_path: Path) -> None:
    first, second = Manifest(tmp_path), Manifest(tmp_path)
    assert first.standing("a") is None
    second.append("a", "done", input="x", input_sha256="1", outputs={}, request={})
    first.path.write_bytes(first.path.read_bytes() + b'{"result": "b", "sta')  # cut by a kill
    second.append("c", "done", input="y", input_sha256="2", outputs={}, request={})
    assert first.standing("a") is None
    with first.exclusive():
        assert [(first.standing(name) or {}).get("input") for name in "abc"] == ["x", None, "y"]
        first.append("a", "failed", input="z", error="no")
    with first.exclusive():
        assert (first.standing("a") or {})["input"] == "x"


@pytest.mark.parametrize(("given", "message"), [(b"one.jpg", "of type bytes"), (None, "of type NoneType"), (3, "int")])
def test_inputs_that_are_no_paths_are_refused_whole(
    tmp_path: Path, config: PredictConfig, given: Any, message: str
) -> None:
    unchecked = getattr(predict_files, "__wrapped__", predict_files)  # as it is outside of tests
    with pytest.raises(InvalidValueError, match=message):
        unchecked(given, output_dir=tmp_path / "out", config=config)
