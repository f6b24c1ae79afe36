# SPDX-License-Identifier: Apache-2.0
"""Which photos are meant, whose results lie in an output folder, and what ends a run."""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.engines.converted import ConvertedEngine
from openmarigold.errors import InvalidValueError, OutputError
from openmarigold.predictor.maker import divide_cores
from openmarigold.predictor.model_run import ModelRun
from openmarigold.predictor.run import Event, predict_files
from openmarigold.results.inputs import make_output_dir
from openmarigold.results.manifest import MANIFEST_NAME, Manifest
from tiny import make_photo

NPY = OutputConfig(format=("npy",))


@pytest.fixture
def config(onnx_checkpoint: Path) -> PredictConfig:
    return PredictConfig(checkpoint=onnx_checkpoint, num_inference_steps=1)


@pytest.fixture
def cameras(tmp_path: Path) -> tuple[Path, Path]:
    """Two photos of one name in two folders."""
    photos = tmp_path / "x" / "photo.jpg", tmp_path / "y" / "photo.jpg"
    for index, photo in enumerate(photos):
        photo.parent.mkdir()
        Image.fromarray(make_photo(24 + 8 * index, 40, seed=index)).save(photo)
    return photos


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST_NAME}


def test_links_to_one_file_are_photos_of_their_own(tmp_path: Path, config: PredictConfig) -> None:
    links, out = tmp_path / "links", tmp_path / "out"
    links.mkdir()
    Image.fromarray(make_photo(24, 32)).save(links / "view0.jpg")
    (links / "view1.jpg").symlink_to("view0.jpg")
    os.link(links / "view0.jpg", links / "view2.jpg")
    (links / "view0.jpeg").symlink_to("view0.jpg")  # its results are those of view0.jpg
    result = predict_files([links, links / "view0.jpg"], output_dir=out, config=config, output=NPY)
    assert (result.num_predicted, result.failed) == (3, [])
    assert sorted(bytes_in(out)) == ["view0_depth.npy", "view1_depth.npy", "view2_depth.npy"]
    assert len(set(bytes_in(out).values())) == 1
    assert len(predict_files([links], output_dir=out, config=config, output=NPY).skipped) == 3


def test_results_of_another_photo_are_not_replaced(
    cameras: tuple[Path, Path], tmp_path: Path, config: PredictConfig
) -> None:
    first, second = cameras
    out = tmp_path / "out"
    predict_files([first], output_dir=out, config=config)
    before = bytes_in(out)
    for settings in (config, replace(config, seed=7)):
        refused = predict_files([second], output_dir=out, config=settings)
        assert refused.failed == [
            (
                second,
                f"{second}: {out / 'photo_depth.npy'} is the result of another photo, {first}; choose another output "
                "folder, or allow overwriting (--overwrite)",
            )
        ]
        assert (refused.num_predicted, refused.engine) == (0, None), "nothing is predicted for nothing"
        assert bytes_in(out) == before
    assert predict_files([first], output_dir=out, config=config).skipped == [first]

    taken = predict_files([second], output_dir=out, config=config, overwrite=True)
    assert (taken.renewed, taken.num_predicted) == ([second], 1)
    assert np.load(out / "photo_depth.npy").shape == (32, 40)
    assert predict_files([second], output_dir=out, config=config).skipped == [second]
    assert len(predict_files([first], output_dir=out, config=config).failed) == 1


def test_a_photo_that_has_moved_or_changed_is_the_same(
    cameras: tuple[Path, Path], tmp_path: Path, config: PredictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = cameras
    out = tmp_path / "out"
    predict_files([first], output_dir=out, config=config, output=NPY)
    moved = tmp_path / "z" / "photo.jpg"
    moved.parent.mkdir()
    first.rename(moved)
    again = predict_files([moved], output_dir=out, config=replace(config, seed=7), output=NPY)
    assert again.renewed == [moved], "the same bytes"
    shutil.copy(second, moved)
    monkeypatch.chdir(tmp_path)
    changed = predict_files(["z/photo.jpg"], output_dir=out, config=config, output=NPY)
    assert changed.renewed == [Path("z/photo.jpg")], "the same place, by another path"


def test_equal_stems_in_two_runs(tmp_path: Path, config: PredictConfig) -> None:
    for name, seed in (("a.png", 1), ("a.bmp", 2)):
        Image.fromarray(make_photo(24, 32, seed=seed)).save(tmp_path / name)
    out = tmp_path / "out"
    predict_files(tmp_path / "a.png", output_dir=out, config=config, output=NPY)
    assert len(predict_files(tmp_path / "a.bmp", output_dir=out, config=config, output=NPY).failed) == 1


def test_a_killed_run_keeps_its_names(cameras: tuple[Path, Path], tmp_path: Path, config: PredictConfig) -> None:
    first, second = cameras
    out = tmp_path / "out"
    predict_files([first], output_dir=out, config=config, output=NPY)
    lines = (out / MANIFEST_NAME).read_text().splitlines()
    (out / MANIFEST_NAME).write_text(lines[0] + "\n")
    assert json.loads(lines[0])["status"] == "started"
    assert len(predict_files([second], output_dir=out, config=config, output=NPY).failed) == 1
    assert predict_files([first], output_dir=out, config=config, output=NPY).num_predicted == 1


@pytest.mark.parametrize("typed", ["absolute", "relative"])
def test_lines_of_earlier_versions_know_the_path_as_it_was_typed(
    typed: str, cameras: tuple[Path, Path], tmp_path: Path, config: PredictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = cameras
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    given = first if typed == "absolute" else first.relative_to(tmp_path)
    predict_files([given], output_dir=out, config=config, output=NPY)
    lines = [json.loads(line) for line in (out / MANIFEST_NAME).read_text().splitlines()]
    for line in lines:
        del line["input_path"]
    (out / MANIFEST_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(predict_files([second], output_dir=out, config=config, output=NPY).failed) == 1
    shutil.copy(second, first)
    assert predict_files([first], output_dir=out, config=config, output=NPY).renewed == [first]


def test_files_without_a_manifest_are_replaced_only_if_they_name_the_photo(
    cameras: tuple[Path, Path], tmp_path: Path, config: PredictConfig
) -> None:
    first, second = cameras
    out = tmp_path / "out"
    predict_files([first], output_dir=out, config=config)
    (out / MANIFEST_NAME).unlink()
    before = bytes_in(out)
    refused = predict_files([second], output_dir=out, config=config)
    assert "is there already, and there is no record that it is of this photo" in refused.failed[0][1]
    assert bytes_in(out) == before
    assert predict_files([first], output_dir=out, config=config).num_predicted == 1


def test_a_name_of_dots_alone_has_no_results(tmp_path: Path, config: PredictConfig) -> None:
    """The stem of `..jpg` is a dot, so that its results would lie next to the output folder."""
    photos, out = tmp_path / "photos", tmp_path / "parent" / "out"
    photos.mkdir()
    for name in ("..jpg", "a.jpg"):
        Image.fromarray(make_photo(24, 32)).save(photos / name, "JPEG")
    out.parent.mkdir()
    other = out.parent / "out_depth.npy"
    other.write_text("of someone else")
    result = predict_files(
        [photos / "..jpg", photos / "a.jpg"], output_dir=out, config=config, output=NPY, overwrite=True
    )
    assert [error.split(": ")[1] for _, error in result.failed] == [
        "its name has nothing before its suffix, so its results have no name; rename it"
    ]
    assert other.read_text() == "of someone else" and [path.name for path in result.written] == ["a_depth.npy"]


def test_an_output_folder_that_is_a_dangling_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(OutputError, match="out: it is a link to what does not exist; choose a folder"):
        make_output_dir(tmp_path / "out")


def test_text_is_a_path(cameras: tuple[Path, Path], tmp_path: Path, onnx_checkpoint: Path) -> None:
    config = PredictConfig(checkpoint=str(onnx_checkpoint), num_inference_steps=1)
    assert config.checkpoint == onnx_checkpoint
    for inputs in (str(cameras[0]), cameras[0], [str(cameras[0])]):
        result = predict_files(inputs, output_dir=str(tmp_path / "out"), config=config, output=NPY)
        assert (result.num_predicted + len(result.skipped), result.failed) == (1, [])


@pytest.mark.parametrize("inputs", ["", [""], ["a\0b"], [3], [b"one.jpg"]])
def test_what_is_no_path_is_refused(inputs: object, tmp_path: Path, config: PredictConfig) -> None:
    from openmarigold.files import as_path

    with pytest.raises(InvalidValueError, match=r"the photo is .*; (give a path|a path cannot)"):
        as_path(inputs[0] if isinstance(inputs, list) else inputs, "the photo")
    if inputs in ("", [""], ["a\0b"]):
        with pytest.raises(InvalidValueError, match="an input is"):
            predict_files(inputs, output_dir=tmp_path / "out", config=config)  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidValueError, match=r"output_dir is empty; give a path, or \. for the current folder"):
        predict_files(tmp_path, output_dir="", config=config)
    with pytest.raises(InvalidValueError, match="checkpoint is empty"):
        PredictConfig(checkpoint="")


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """As on a full disk: what is longer cannot be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("format", ["npy", "png", "npz", "exr"])
def test_a_disk_without_room_ends_the_run_at_once(
    format: str, tmp_path: Path, config: PredictConfig, onnx_checkpoint: Path
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for index in range(4):
        noise = np.random.default_rng(index).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photos / f"{index}.png")
    seen: list[Event] = []
    output = OutputConfig(format=(format,))  # type: ignore[arg-type]
    with files_of_at_most(4000), pytest.raises(OutputError, match=r"cannot write .*/0_depth.*: File too large; check"):
        predict_files([photos], output_dir=out, config=config, output=output, report=seen.append)
    assert seen == []
    assert [line["status"] for line in Manifest(out).lines()] == ["started"]
    assert not [path for path in out.iterdir() if path.name != MANIFEST_NAME], "nothing partial is left"
    assert predict_files([photos], output_dir=out, config=config, output=output).num_predicted == 4


def test_a_folder_in_the_place_of_one_result_stops_no_other(
    photo_dir: Path, tmp_path: Path, config: PredictConfig
) -> None:
    out = tmp_path / "out"
    (out / "b_depth.npy" / "full").mkdir(parents=True)
    result = predict_files([photo_dir], output_dir=out, config=config, output=NPY)
    assert result.num_predicted == 4
    assert [path.name for path, _ in result.failed] == ["b.png"]


@pytest.mark.parametrize(("cores", "most"), [(1, 2), (2, 4)])
def test_an_output_folder_that_goes_ends_the_run(
    cores: int, most: int, photo_dir: Path, tmp_path: Path, config: PredictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    out = tmp_path / "out"
    done: list[str] = []

    def replace_folder(event: Event) -> None:
        done.append(event.path.name)
        while len(done) == 1 and not out.is_file():
            out.rename(tmp_path / f"gone-{time.monotonic_ns()}")
            with suppress(IsADirectoryError):  # a thread that writes the next photo has made it again
                out.write_text("not a folder")

    with pytest.raises(OutputError, match="cannot write"):
        predict_files([photo_dir], output_dir=out, config=config, output=NPY, report=replace_folder)
    assert len(done) <= most, "only photos that were on their way may be done"


def test_photos_at_the_same_time_have_the_bytes_and_order_of_one_after_another(
    photo_dir: Path, tmp_path: Path, config: PredictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, predict = 0, 0, ModelRun.predict

    def slow(run: ModelRun, photo: Any, path: Path, result: str) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.2 if path.name == "a.png" else 0.02)  # the first is done last
        try:
            return predict(run, photo, path, result)
        finally:
            running -= 1

    monkeypatch.setattr(ModelRun, "predict", slow)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    (photo_dir / "c.png").write_bytes(b"no photo")
    events: list[Event] = []
    together = predict_files([photo_dir], output_dir=tmp_path / "together", config=config, report=events.append)
    assert most == 2
    assert [event.path.name for event in events] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    most = 0
    alone = predict_files([photo_dir], output_dir=tmp_path / "alone", config=config)
    assert most == 1
    assert bytes_in(tmp_path / "together") == bytes_in(tmp_path / "alone")
    assert (together.results, len(together.failed)) == (alone.results, 1) == (["a", "b", "d", "e"], 1)
    lines = [[line["result"] for line in Manifest(tmp_path / name).lines()] for name in ("together", "alone")]
    assert lines[0] == lines[1]


def test_large_photos_wait_for_each_other(
    photo_dir: Path, tmp_path: Path, config: PredictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_files([photo_dir], output_dir=tmp_path / "together", config=config)
    monkeypatch.setattr("openmarigold.predictor.run.MAX_PIXELS_ASIDE", 3000)  # of the five photos some are larger
    events: list[Event] = []
    predict_files([photo_dir], output_dir=tmp_path / "apart", config=config, report=events.append)
    assert [event.path.name for event in events] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert [event.done for event in events] == [1, 2, 3, 4, 5]
    assert bytes_in(tmp_path / "apart") == bytes_in(tmp_path / "together")


def test_an_interrupt_ends_the_predictions_of_other_threads(
    photo_dir: Path, tmp_path: Path, config: PredictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    denoise, calls = ConvertedEngine.denoise, 0

    def slow(engine: ConvertedEngine, *arrays: Any, timestep: int) -> Any:
        nonlocal calls
        calls += 1
        time.sleep(0.02)
        return denoise(engine, *arrays, timestep=timestep)

    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ConvertedEngine, "denoise", slow)
    config = replace(config, ensemble_size=20)
    with pytest.raises(KeyboardInterrupt):
        predict_files([photo_dir], output_dir=tmp_path / "out", config=config, output=NPY, report=interrupt)
    gc.collect()  # closes what ran the photos
    assert calls < 3 * 20 - 5, "of three photos on their way, the last is not done"
    lines = list(Manifest(tmp_path / "out").lines())
    assert "failed" not in [line["status"] for line in lines]
    done = predict_files([photo_dir], output_dir=tmp_path / "out", config=config, output=NPY)
    assert (done.num_predicted + len(done.skipped), done.failed) == (5, [])


@pytest.mark.parametrize(("resolution", "expected"), [(None, 2), (384, 2), (392, 1), (0, 1)])
def test_photos_that_take_much_memory_are_predicted_one_after_another(
    resolution: int | None, expected: int, tmp_path: Path, config: PredictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    run = ModelRun(replace(config, processing_resolution=resolution), NPY, tmp_path)
    assert divide_cores([run], 4) == run.at_once == expected
    other = ModelRun(replace(config, processing_resolution=0), NPY, tmp_path)
    assert divide_cores([run, other], 4) == run.at_once == 1, "one alone has all cores"
    assert divide_cores([run], 3) == 1, "too few photos"
