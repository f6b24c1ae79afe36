# SPDX-License-Identifier: Apache-2.0
"""The commands as a user runs them: most in this process, and what a process adds in one of their own."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
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

from benchmark_data import make_depth, make_diode, make_folder_benchmark
from openmarigold.cli import run
from tiny import make_photo

# The environment finds the package installed or, in a checkout, on the path of this process.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "COLUMNS": "100"}


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", ENVIRONMENT["COLUMNS"])


def openmarigold(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in this process, with its status and what it prints; warnings are printed as Python does by itself."""
    words = list(map(str, arguments))
    stdout, stderr = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(stderr)
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            status = run(words)
    finally:
        logging.getLogger().removeHandler(handler)
    return subprocess.CompletedProcess(words, status, stdout.getvalue(), stderr.getvalue())


def openmarigold_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "openmarigold", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


def assert_one_error_line(result: subprocess.CompletedProcess[str], *parts: str, status: int = 2) -> None:
    assert result.returncode == status, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def _hear_interrupts() -> None:
    """In a child: what a shell starts in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def names_in(directory: Path) -> list[str]:
    """Names of result files; the manifest is none."""
    names = (path.name for path in directory.iterdir()) if directory.exists() else ()
    return sorted(name for name in names if name != "manifest.jsonl")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(make_photo(48, 64)).save(path)
    return path


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


def test_unknown_recipe_key(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('kind = "depth"\nlearning_rat = 1.0\n')
    command = ("train", "--recipe", recipe, "--data-dir", tmp_path, "--output-dir", tmp_path / "run")
    assert_one_error_line(openmarigold(*command), "learning_rat", "recipe.toml")
    assert not (tmp_path / "run").exists()


def test_usage_errors(tmp_path: Path) -> None:
    result = openmarigold("predict", "a.jpg", "--output-dir", tmp_path, "--ensemble", 3)
    assert_one_error_line(
        result,
        "Unrecognized options: --ensemble; did you mean --ensemble-mirror or --ensemble-reduction or --ensemble-size",
    )
    assert_one_error_line(openmarigold(), "Expected one of {predict, metric, video, batch, measure, serve, inspect")


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


def test_export_then_predict(photo: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    exported = tmp_path / "exported"
    result = openmarigold("checkpoint", "export", tiny_checkpoint, "--format", "onnx", "--output-dir", exported)
    assert result.returncode == 0, result.stderr
    result = openmarigold("predict", photo, "--output-dir", tmp_path / "out", "--checkpoint", exported)
    assert result.returncode == 0, result.stderr


def test_evaluate(tmp_path: Path, onnx_checkpoint: Path) -> None:
    benchmark = tmp_path / "benchmark"
    rows = np.mgrid[:24, :32][0]
    for name in ("room-a", "room-b"):
        (benchmark / name).mkdir(parents=True)
        Image.fromarray(make_photo(24, 32)).save(benchmark / name / "rgb.jpg")
        Image.fromarray((1000 * (1 + rows / 24)).astype(np.uint16)).save(benchmark / name / "depth.png")
        (benchmark / name / "meta.json").write_text(json.dumps({"depth_scale": 1000}))
    entries = [{"name": name, "kind": "room", "place": name} for name in ("room-a", "room-b")]
    (benchmark / "manifest.json").write_text(json.dumps(entries))
    command = ("evaluate", "--benchmark", benchmark, "--checkpoint", onnx_checkpoint, "--baselines")
    result = openmarigold(*command, "--invariance", "metric")
    assert (result.returncode, result.stderr) == (0, "warning: not used without --predictions: --invariance\n")

    table = openmarigold(*command)
    assert table.returncode == 0, table.stderr
    assert table.stderr == ""
    for text in ("tiny-8-onnx", "constant", "image row", "room", "2 places", "all", "95 % interval over places"):
        assert text in table.stdout
    # The image row is disparity: another protocol, another table.
    first, second = table.stdout.split("protocol")[1:]
    assert "marigold" in first and "constant" in first and "image row" not in first
    assert "disparity" in second and "image row" in second
    reports = json.loads(openmarigold(*command, "--json").stdout)
    assert list(reports) == ["tiny-8-onnx", "constant", "image row"]
    assert reports["image row"]["kinds"]["all"]["abs_rel"] < reports["constant"]["kinds"]["all"]["abs_rel"]
    assert [image["name"] for image in reports["constant"]["images"]] == ["room-a", "room-b"]

    assert_one_error_line(openmarigold("evaluate", "--benchmark", tmp_path / "none"), "manifest.json cannot be read")


def test_evaluate_saved_maps_resumed_and_compared(tmp_path: Path, onnx_checkpoint: Path) -> None:
    benchmark = make_folder_benchmark(tmp_path / "benchmark")
    photos = [benchmark / name / "rgb.jpg" for name in names_in(benchmark) if (benchmark / name).is_dir()]
    maps = tmp_path / "maps"
    for photo in photos:
        command = ("predict", photo, "-o", maps / photo.parent.name, "--checkpoint", onnx_checkpoint)
        if photo is photos[0]:
            assert openmarigold(*command).returncode == 0
        else:
            (maps / photo.parent.name).mkdir()
            np.save(maps / photo.parent.name / "rgb_depth.npy", np.asarray(Image.open(photo).convert("F")))
    command = ("evaluate", "--benchmark", benchmark, "--predictions", maps)
    for name, workers in {"a": 1, "b": 2}.items():
        result = openmarigold(*command, "--output-dir", tmp_path / name, "--num-workers", workers)
        assert result.returncode == 0, result.stderr
        assert f"summary.json, images.csv, page.html -> {tmp_path / name}" in result.stdout
    first, second = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("a", "b"))
    assert first.pop("times")["images_from_earlier_runs"] == second.pop("times")["images_from_earlier_runs"] == 0
    assert first == second
    disparity = openmarigold(*command, "--invariance", "disparity", "-o", tmp_path / "c", "--json")
    assert json.loads(disparity.stdout)["maps"]["protocol"] == "disparity"

    ignored = openmarigold(*command, "--seed", 7, "--checkpoint", "x", "--ensemble-size", 2)
    assert ignored.returncode == 0
    assert ignored.stderr == "warning: not used with --predictions: --ensemble-size, --seed, --checkpoint\n"

    for words in (("evaluate", "compare"), ("compare",)):
        result = openmarigold(*words, tmp_path / "a", tmp_path / "b")
        assert result.returncode == 0, result.stderr
        assert "6 images of folder, protocol marigold" in result.stdout
        assert "undecided" in result.stdout
    assert_one_error_line(openmarigold("compare", tmp_path / "a", tmp_path / "c"), "only runs of one protocol")
    assert_one_error_line(openmarigold(*command, "--protocol", "metric"), "does not score affine_depth estimates")

    photos[1].write_bytes(b"damaged")
    result = openmarigold(*command, "-o", tmp_path / "a")
    assert result.returncode == 2
    assert "1 of 6 images could not be scored" in result.stderr
    result = openmarigold(*command, "-o", tmp_path / "a", "--allow-partial")
    assert result.returncode == 1
    assert "1 images failed and are not counted" in result.stdout


def test_known_benchmarks_and_the_papers_table(tmp_path: Path, onnx_checkpoint: Path) -> None:
    listed = openmarigold("data", "list").stdout
    assert all(name in listed for name in ("nyuv2", "kitti", "eth3d", "scannet", "diode", "654", "[mm]"))
    where = openmarigold("data", "where", "diode", "--data", "/somewhere").stdout
    assert "/somewhere/diode/val.tar" in where and "https://diode-dataset.org" in where
    assert_one_error_line(openmarigold("data", "where", "diod"), "unknown data set 'diod'; use one of nyuv2")

    make_diode(tmp_path / "data" / "diode", {"indoors/scene_1/scan_1/a": make_depth(24, 32)})
    known = ("evaluate", "--benchmark", "diode", "--data", tmp_path / "data", "--checkpoint", onnx_checkpoint)
    assert_one_error_line(openmarigold(*known), "holds 1 images of DIODE", "771 are needed", "--allow-partial")
    result = openmarigold(*known, "--allow-partial", "--json")
    assert json.loads(result.stdout)["tiny-8-onnx"]["kinds"]["all"]["num_images"] == 1

    command = ("reproduce", "ensemble", "--data", tmp_path / "data", "--checkpoint", onnx_checkpoint, "-o", tmp_path)
    result = openmarigold(*command)
    assert result.returncode == 1, result.stderr
    assert result.stdout.count("not run") >= 10
    assert "nyuv2 does not exist; `openmarigold data where nyuv2-train`" in result.stdout.replace("\n", " ")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    seconds = []
    while len(seconds) < 5 or (min(seconds) >= 0.4 and len(seconds) < 20):
        before = os.times()
        result = openmarigold_process("--help")
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert result.returncode == 0
        names = ("predict", "inspect", "evaluate", "compare", "reproduce", "data", "train", "checkpoint")
        assert all(name in result.stdout for name in names)
    # Processor time of the quickest: about 0.2 s; next to other jobs it takes more, so that there are more attempts.
    assert min(seconds) < 0.4

    code = (
        "import sys; from openmarigold.cli import main\nfor command in sys.argv[1:]:\n"
        " try: main([*command.split(), '--help'])\n except SystemExit as end: print('status', end.code)\n"
        "print([name for name in ('torch', 'onnxruntime', 'numpy', 'PIL') if name in sys.modules])"
    )
    commands = ("", *names, "checkpoint export", "data where")
    result = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, env=ENVIRONMENT)
    assert result.stdout.strip().endswith("[]"), result.stderr
    assert result.stdout.count("status 0\n") == len(commands)


def test_version() -> None:
    from openmarigold import __version__

    assert openmarigold_process("--version").stdout == f"openmarigold {__version__}\n"


def test_checkpoint_info_verify_and_save(photo: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    saved = tmp_path / "saved"
    result = openmarigold("checkpoint", "save", tiny_checkpoint, "-o", saved, "--dtype", "float16")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"checkpoint -> {saved}\n"
    result = openmarigold("checkpoint", "verify", saved)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok"] * 4
    report = json.loads(openmarigold("checkpoint", "info", saved, "--json").stdout)
    text = openmarigold("checkpoint", "info", saved).stdout
    for part in (report["sha256"], "DDIMScheduler", "affine-invariant depth", "unet ", "license     not stated"):
        assert part in text

    weights = saved / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 64
    weights.write_bytes(content)
    result = openmarigold("checkpoint", "verify", saved, "--sha256", report["sha256"])
    assert result.returncode == 2
    assert result.stdout.count("WRONG") == 2
    assert str(weights) in result.stdout
    assert_one_error_line(openmarigold("checkpoint", "save", saved, "-o", saved), "is not empty; choose a new folder")


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
