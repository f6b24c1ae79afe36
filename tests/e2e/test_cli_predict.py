# SPDX-License-Identifier: Apache-2.0
"""`openmarigold predict` as a user runs it: most in this process, and what a process adds in one of its own."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import (
    ENVIRONMENT,
    assert_one_error_line,
    columns,  # noqa: F401 - a fixture that all tests use
    names_in,
    openmarigold,
    openmarigold_process,
)
from tiny import make_photo


def _hear_interrupts() -> None:
    """In a child: what a shell starts in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_predict_writes_results_and_a_summary(photo: Path, tmp_path: Path, onnx_checkpoint: Path) -> None:
    command = ("predict", photo, "--output-dir", tmp_path / "out", "--checkpoint", onnx_checkpoint)
    result = openmarigold_process(*command)
    assert result.returncode == 0, result.stderr
    assert names_in(tmp_path / "out") == ["photo_depth.npy", "photo_depth.png", "photo_depth_colored.png"]
    assert result.stdout.startswith("1 predicted, 0 skipped, 0 failed in ")
    assert result.stderr == ""


def test_results_in_an_input_folder_are_left_out_and_said_once(
    photo_dir: Path, tmp_path: Path, onnx_checkpoint: Path
) -> None:
    options = ("--checkpoint", onnx_checkpoint, "--num-inference-steps", 1)
    assert openmarigold("predict", photo_dir, "-o", photo_dir / "out", *options).returncode == 0
    result = openmarigold("predict", photo_dir, "-o", tmp_path / "other", *options, "--json")
    assert (result.returncode, len(json.loads(result.stdout)["left_out"])) == (0, 10)
    assert result.stderr == (
        f"note: 10 pictures, such as {photo_dir / 'out' / 'a_depth.png'}, are results of earlier predictions and are "
        "left out; name a file to predict it\n"
    )


def test_identical_bytes_alone_among_five_and_again(photo_dir: Path, tmp_path: Path, onnx_checkpoint: Path) -> None:
    settings = ("--checkpoint", onnx_checkpoint, "--ensemble-size", 2)
    runs = {"alone": [photo_dir / "c.png"], "five": [photo_dir], "again": [photo_dir / "c.png"]}
    for name, inputs in runs.items():
        predict = openmarigold_process if name == "again" else openmarigold
        assert predict("predict", *inputs, "--output-dir", tmp_path / name, *settings).returncode == 0
    assert len(names_in(tmp_path / "five")) == 20
    assert len(names_in(tmp_path / "alone")) == 4
    for path in names_in(tmp_path / "alone"):
        assert len({(tmp_path / name / path).read_bytes() for name in runs}) == 1, path


def test_json_uncertainty_and_skipping(photo: Path, tmp_path: Path, onnx_checkpoint: Path) -> None:
    out = tmp_path / "out"
    command = ("predict", photo, "--output-dir", out, "--checkpoint", onnx_checkpoint, "--ensemble-size", 2, "--json")
    first = json.loads(openmarigold(*command).stdout)
    assert [Path(path).name for path in first["written"]] == [
        "photo_depth.npy",
        "photo_depth.png",
        "photo_depth_colored.png",
        "photo_uncertainty.npy",
    ]
    assert (first["num_predicted"], first["skipped"], first["failed"]) == (1, [], [])
    assert first["load_s"] > 0
    assert len(first["predict_s"]) == 1
    uncertainty = np.load(out / "photo_uncertainty.npy")
    assert (uncertainty.shape, uncertainty.dtype) == ((48, 64), np.float32)
    stamps = [(out / name).stat().st_mtime_ns for name in names_in(out)]
    second = json.loads(openmarigold(*command).stdout)
    assert (second["num_predicted"], second["skipped"]) == (0, [str(photo)])
    assert [(out / name).stat().st_mtime_ns for name in names_in(out)] == stamps
    assert json.loads(openmarigold(*command, "--overwrite").stdout)["num_predicted"] == 1


def test_formats_and_inspect(photo: Path, tmp_path: Path, onnx_checkpoint: Path) -> None:
    out = tmp_path / "out"
    command = ("predict", photo, "-o", out, "--checkpoint", onnx_checkpoint, "--ensemble-size", 2, "--seed", 5)
    options = ("--format", "npy", "npz", "exr", "--inverted", "--uncertainty-picture")
    assert openmarigold(*command, *options).returncode == 0
    names = ["photo_depth.exr", "photo_depth.npy", "photo_depth.npz", "photo_depth_inverted.png"]
    assert names_in(out) == [*names, "photo_uncertainty.npy", "photo_uncertainty.png"]
    for name in names_in(out):
        record = json.loads(openmarigold("inspect", out / name, "--json").stdout)
        assert (record["seed"], record["ensemble_size"], record["checkpoint"]) == (5, 2, "tiny-8-onnx"), name
        assert len(record["checkpoint_sha256"]) == len(record["input_sha256"]) == 64
    table = openmarigold("inspect", out / "photo_depth.exr").stdout
    assert re.search(r"^seed +5$", table, re.MULTILINE)
    assert_one_error_line(openmarigold("inspect", photo), "photo.jpg carries no provenance")

    again = openmarigold(*command[:-1], 6, *options)
    assert again.stdout.startswith("1 predicted (1 again: settings or photo changed), 0 skipped, 0 failed in ")
    assert openmarigold(*command[:-1], 6, *options).stdout.startswith("0 predicted, 1 skipped, 0 failed in ")
    bad = openmarigold(*command, "--color-map", "viridus")
    assert_one_error_line(bad, "color_map='viridus' is not known; try viridis")


def test_torch_checkpoint_gives_the_same_picture(
    photo: Path, tmp_path: Path, tiny_checkpoint: Path, onnx_checkpoint: Path
) -> None:
    for name, checkpoint in {"torch": tiny_checkpoint, "onnx": onnx_checkpoint}.items():
        command = ("predict", photo, "--output-dir", tmp_path / name, "--checkpoint", checkpoint, "--device", "cpu")
        assert openmarigold(*command).returncode == 0
    ours, other = (np.load(tmp_path / name / "photo_depth.npy") for name in ("torch", "onnx"))
    np.testing.assert_allclose(ours, other, rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", ["missing", "empty", "truncated", "not an image", "empty folder"])
def test_bad_photos(case: str, tmp_path: Path, onnx_checkpoint: Path) -> None:
    path, out = tmp_path / "bad.png", tmp_path / "out"
    Image.fromarray(make_photo(48, 64)).save(path)
    if case == "missing":
        path.unlink()
    elif case == "empty":
        path.write_bytes(b"")
    elif case == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif case == "not an image":
        path.write_text("hello")
    else:
        path.unlink()
        path.mkdir()
    result = openmarigold("predict", path, "--output-dir", out, "--checkpoint", onnx_checkpoint)
    assert_one_error_line(result, str(path), status=1)
    assert "0 predicted, 0 skipped, 1 failed" in result.stdout
    assert names_in(out) == []


def test_one_bad_photo_among_good_ones(photo_dir: Path, tmp_path: Path, onnx_checkpoint: Path) -> None:
    (photo_dir / "b.png").write_bytes((photo_dir / "b.png").read_bytes()[:500])
    result = openmarigold("predict", photo_dir, "-o", tmp_path / "out", "--checkpoint", onnx_checkpoint, "--json")
    assert_one_error_line(result, "b.png", status=1)
    report = json.loads(result.stdout)
    assert report["num_predicted"] == 4
    assert [Path(entry["path"]).name for entry in report["failed"]] == ["b.png"]
    assert len(names_in(tmp_path / "out")) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ensemble-size", 0), "ensemble_size=0 is not accepted; give a whole number, 1 or above"),
        (("--processing-resolution", 770), "processing_resolution=770 is not a multiple of 8; try 768"),
        (("--num-inference-steps", 0), "num_inference_steps=0 is not accepted; give a whole number, 1 to 1000"),
        (("--device", "tpu"), "device='tpu' is not known; use auto, cpu"),
        (("--device", "cuda"), "device='cuda' does not run ONNX networks, cpu does"),
    ],
)
def test_bad_settings(
    arguments: tuple[object, ...], message: str, photo: Path, tmp_path: Path, onnx_checkpoint: Path
) -> None:
    out = tmp_path / "out"
    result = openmarigold("predict", photo, "--output-dir", out, "--checkpoint", onnx_checkpoint, *arguments)
    assert_one_error_line(result, message)
    assert names_in(out) == []


def test_no_input(tmp_path: Path) -> None:
    assert_one_error_line(openmarigold("predict", "--output-dir", tmp_path / "out"), "no input given")


@pytest.mark.parametrize("name", ["file", "file/sub"])
def test_output_folder_that_cannot_be_written(name: str, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    # The checkpoint does not exist either: the folder is looked at first.
    result = openmarigold("predict", photo, "--output-dir", tmp_path / name, "--checkpoint", tmp_path / "none")
    assert_one_error_line(result, f"cannot write to output folder {tmp_path / name}", "choose a folder")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("kind", "file", "content"),
    [
        ("onnx", "unet/model.onnx", "half"),
        ("onnx", "vae_decoder/model.onnx", None),
        ("torch", "unet/diffusion_pytorch_model.safetensors", "half"),
        ("torch", "vae/diffusion_pytorch_model.safetensors", None),
        ("torch", "vae/config.json", "half"),
        ("torch", "model_index.json", "half"),
        ("torch", "scheduler/scheduler_config.json", None),
        ("torch", "empty_prompt_embedding.safetensors", None),
    ],
)
def test_damaged_checkpoints(
    kind: str,
    file: str,
    content: str | None,
    photo: Path,
    tmp_path: Path,
    tiny_checkpoint: Path,
    onnx_checkpoint: Path,
) -> None:
    checkpoint, out = tmp_path / "damaged", tmp_path / "out"
    shutil.copytree({"torch": tiny_checkpoint, "onnx": onnx_checkpoint}[kind], checkpoint)
    path = checkpoint / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = openmarigold("predict", photo, "--output-dir", out, "--checkpoint", checkpoint)
    assert_one_error_line(result, str(path))
    assert names_in(out) == []


def test_checkpoint_that_is_none(photo: Path, tmp_path: Path) -> None:
    result = openmarigold("predict", photo, "-o", tmp_path / "out", "--checkpoint", tmp_path / "marigold")
    assert_one_error_line(result, "marigold is not a folder; give a downloaded folder with model_index.json")


def test_interrupt_leaves_whole_files(photo_dir: Path, tmp_path: Path, onnx_checkpoint: Path) -> None:
    for index in range(200):
        shutil.copy(photo_dir / "a.png", photo_dir / f"more{index}.png")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "openmarigold", "predict", photo_dir, "-o", out, "--checkpoint", onnx_checkpoint]
    command += ["--num-inference-steps", "50", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(
        list(map(str, command)), **pipes, text=True, env=ENVIRONMENT, preexec_fn=_hear_interrupts
    )
    deadline = time.monotonic() + 60
    while len(names_in(out)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip() == "interrupted"
    assert json.loads(stdout) == {"error": "interrupted", "status": 130}
    assert not [name for name in names_in(out) if "partial" in name]
    for path in out.glob("*.npy"):
        assert np.load(path).shape


def test_predict_with_the_settings_of_a_checkpoint(photo: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    common = ("predict", photo, "--checkpoint", tiny_checkpoint, "--device", "cpu")
    settings = ("--dtype", "bfloat16", "--timestep-spacing", "leading", "--start-noise", "zeros")
    result = openmarigold(*common, "-o", tmp_path / "out", *settings)
    assert result.returncode == 0, result.stderr
    assert np.load(tmp_path / "out" / "photo_depth.npy").shape == (48, 64)
    result = openmarigold(*common, "-o", tmp_path / "half", "--dtype", "float16")
    assert_one_error_line(result, "dtype='float16' is not for CPUs")
    assert_one_error_line(
        openmarigold(*common, "-o", tmp_path / "half", "--variant", "fp16"), "fp16.safetensors is missing"
    )
