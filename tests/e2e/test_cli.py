# SPDX-License-Identifier: Apache-2.0
"""Commands other than predict as a user runs them: most in this process, and some in one of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmark_data import make_depth, make_diode, make_folder_benchmark
from command_line import (
    ENVIRONMENT,
    assert_one_error_line,
    columns,  # noqa: F401 - a fixture that all tests use
    names_in,
    openmarigold,
    openmarigold_process,
)
from tiny import make_photo


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
