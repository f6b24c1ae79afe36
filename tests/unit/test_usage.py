# SPDX-License-Identifier: Apache-2.0
"""Wrong usage is one line on stderr with status 2, as other errors are, and an object on stdout where JSON is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from PIL import Image

from openmarigold import cli
from openmarigold.cli import run
from openmarigold.cli.predict import Predict
from openmarigold.config import CallConfig, OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError
from tiny import make_photo

PREDICT = ("predict", "a.jpg", "-o", "out")
CASES = [
    ((*PREDICT, "--batch-size", "many"), "--batch-size: 'many' is not accepted; give --batch-size {None}|INT Ens"),
    (("inspect", "a", "b", "c"), "Unrecognized options: b, c. See `openmarigold inspect --help`"),
    (
        (*PREDICT, "--ensemble", "3"),
        "--ensemble; did you mean --ensemble-mirror or --ensemble-reduction or --ensemble-size",
    ),
    (
        (*PREDICT, "--processing-res", "768"),
        "--processing-res; did you mean --processing-resolution? See `openmar",
    ),
    (
        (*PREDICT, "--sed", "1", "--devise", "cpu"),
        "did you mean --seed, --device? See `openmarigold predict --help`",
    ),
    (
        (*PREDICT, "--benchmark", "x"),
        "Unrecognized options: --benchmark; did you mean --benchmark of `openmarigold evaluate`",
    ),
    (
        ("checkpoint", "verify", "x", "--dtype", "y"),
        "--dtype; did you mean --dtype of `openmarigold checkpoint save`",
    ),
    ((*PREDICT, "--ensemble-size", "x"), "--ensemble-size: 'x' is not a whole number; give --ensem"),
    ((*PREDICT, "--ensemble-size", "0"), "ensemble_size=0 is not accepted; give a whole number, 1 or above"),
    (
        (*PREDICT, "--format", "bmp"),
        "invalid choice 'bmp' for argument '--format'. Expected one of ('npy', 'png', 'npz'",
    ),
    ((*PREDICT, "--seed"), "Missing value for argument '--seed'"),
    (
        ("predict", "a.jpg"),
        "Missing from openmarigold predict: -o PATH, --output-dir PATH Folder of the results",
    ),
    (
        (),
        "Expected one of {predict, metric, video, batch, measure, serve, inspect, evaluate",
    ),
    (
        ("data", "render", "mix", "--count", "3"),
        "`openmarigold data render` is now `openmarigold-render pictures`, a command of another package: pip install o",
    ),
    (
        ("data", "where", "assets", "--data", "x"),
        "`openmarigold data where assets` is now `openmarigold-render assets`, a command of another package: pip insta",
    ),
    (("predct", "a.jpg"), "Unrecognized command: predct; did you mean predict? See `openmarigold --help`"),
    (("checkpoint", "inof"), "Unrecognized command: inof; did you mean info? See `openmarigold checkpoint --help`"),
    (
        ("zebra",),
        "Unrecognized command: zebra; there are predict, metric, video, batch, measure, serve",
    ),
    (("inspect", "a", f"{'long/' * 40}b"), f"Unrecognized options: {'long/' * 40}b. See `openmarigold inspect --help`"),
]


@pytest.mark.parametrize(("argv", "message"), CASES)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_wrong_usage_is_one_line(
    argv: tuple[str, ...],
    message: str,
    columns: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not set(line) & set("│─╭╯\x1b")


def test_help_is_still_laid_out_for_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    for columns in ("60", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        with pytest.raises(SystemExit) as caught:
            run(["predict", "--help"])
        assert not caught.value.code
        printed = capsys.readouterr()
        assert printed.err == ""
        assert "--ensemble-size" in printed.out
        texts.append(printed.out.splitlines())
    assert len(texts[0]) > len(texts[1])
    assert os.environ["COLUMNS"] == "200"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_frames_of_either_kind_are_understood(encoding: str) -> None:
    """tyro draws none where the encoding of stdout has no lines; pytest's capture looks like that."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONIOENCODING": encoding,
    }
    command = [sys.executable, "-m", "openmarigold", "checkpoint", "info", "--jsn"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    expected = "error: Unrecognized options: --jsn; did you mean --json? See `openmarigold checkpoint --help`\n"
    assert (result.returncode, result.stderr) == (2, expected)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ((*PREDICT, "--ensemble", "3"), "or --ensemble-size"),
        (("predict", "-o", "out"), "no input given"),
        (("inspect", "missing.png"), "missing.png does not exist"),
        (("evaluate", "--benchmark", "missing"), "manifest.json cannot be read"),
        (("checkpoint", "info", "./missing"), "is not a folder"),
        (("compare", "a", "b"), "a cannot be read (No such file or directory)"),
    ],
)
def test_json_is_one_object_when_there_is_an_error(
    argv: tuple[str, ...],
    part: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*argv, "--json"]) == 2
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    assert content["status"] == 2
    assert part in content["error"]
    assert printed.err == f"error: {content['error']}\n"


def test_json_is_one_object_after_an_interrupt_and_after_a_fault_of_our_own(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = ["inspect", str(tmp_path / "a.png"), "--json"]
    for error, status, said in ((KeyboardInterrupt, 130, "interrupted"), (RuntimeError, 2, "a fault of openmarigold")):

        def fail(path: Path, error: type[BaseException] = error) -> None:
            raise error

        monkeypatch.setattr("openmarigold.results.provenance.read_provenance", fail)
        assert run(argv) == status
        content = json.loads(capsys.readouterr().out)
        assert content["status"] == status
        assert content["error"].startswith(said)


def test_names_and_signs_that_stdout_cannot_encode_end_nothing(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONIOENCODING": "ascii:strict",
    }
    command = [sys.executable, "-m", "openmarigold", "data"]
    listed = subprocess.run([*command, "list"], capture_output=True, env=environment)
    assert (listed.returncode, listed.stderr) == (0, b"")
    where = subprocess.run([*command, "where", "diode", "--data", b"\xff"], capture_output=True, env=environment)
    assert (where.returncode, where.stderr) == (0, b"")
    assert b"\\udcff" in where.stdout


def test_names_in_errors_are_as_they_were_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["checkpoint", "verify", "two  spaces\n"]) == 2
    assert "two  spaces\\n" in capsys.readouterr().err


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as request:
        cli.parse(argv)
    assert not request.value.code
    return capsys.readouterr().out


def test_help_of_predict_fits_a_screen_and_help_all_has_every_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    brief, whole = shown(capsys, "predict", "--help"), shown(capsys, "predict", "--help-all")
    assert len(brief.splitlines()) <= 48
    flags = [
        f"--{setting.name.replace('_', '-')}" for kind in (PredictConfig, OutputConfig) for setting in fields(kind)
    ]
    assert [flag for flag in flags if not re.search(rf"{flag}\b", whole)] == []
    assert 6 <= sum(bool(re.search(rf"{flag}\b", brief)) for flag in flags) <= 10
    assert "--help-all" in brief and "--config" in brief


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--modality normals a.jpg -o out", ("normals",)),
        ("--modality depth normals a.jpg -o out", ("depth", "normals")),
        ("a.jpg -o out --modality depth --modality normals", ("depth", "normals")),
        ("-o out --modality=depth normals a.jpg", ("depth", "normals")),
        ("a.jpg -o out", ()),
    ],
)
def test_names_of_modalities_end_where_photos_begin(words: str, wanted: tuple[str, ...]) -> None:
    command = cli.parse(["predict", *words.split()])
    assert isinstance(command, Predict)
    assert command.config.modality == wanted and command.inputs == (Path("a.jpg"),)


def test_settings_that_may_be_none_are_flags_too() -> None:
    names = [name for name, kind in get_type_hints(CallConfig).items() if kind == bool | None]
    assert {"tiles", "ensemble_mirror"} <= set(names)
    for name in names:
        flag = name.replace("_", "-")
        for words, wanted in (([f"--{flag}"], True), ([f"--no-{flag}"], False), ([f"--{flag}", "None"], None)):
            command = cli.parse(["predict", *words, "a.jpg", "-o", "out"])
            assert isinstance(command, Predict)
            assert getattr(command.config, name) is wanted and command.inputs == (Path("a.jpg"),)


def test_modalities_of_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('modality = ["depth"]\n')
    words = ["predict", "a.jpg", "-o", "out", "--config", str(path)]
    assert cli.parse(words).config.modality == ("depth",)  # pyright: ignore
    assert cli.parse([*words, "--modality", "normals"]).config.modality == ("normals",)  # pyright: ignore


def test_settings_come_from_a_file_and_flags_go_before_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('ensemble_size = 3\nformat = ["npy", "npz"]\nseed = 5\n')
    command = cli.parse(["predict", "a.jpg", "-o", "out", "--config", str(path), "--seed", "7"])
    assert isinstance(command, Predict)
    assert (command.config.ensemble_size, command.config.seed, command.config.engine) == (3, 7, "auto")
    assert command.output.format == ("npy", "npz") and command.inputs == (Path("a.jpg"),)
    assert cli.parse(["predict", "a.jpg", "-o", "out", f"--config={path}"]).config.seed == 5  # pyright: ignore


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ensemble_siz = 3", "ensemble_siz is not a setting of predict; did you mean ensemble_size"),
        ("ensemble_size = 0", "ensemble_size=0 is not accepted"),
        ("ensemble_size = ", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_settings_file_is_one_line(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidValueError, match=message) as error:
        cli.parse(["predict", "a.jpg", "-o", "out", "--config", str(path)])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_settings_file_predicts(tmp_path: Path, onnx_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(make_photo(24, 32)).save(tmp_path / "a.png")
    path, out = tmp_path / "mine.toml", tmp_path / "out"
    path.write_text(f'checkpoint = "{onnx_checkpoint}"\nensemble_size = 2\nformat = ["npy"]\n')
    words = ["predict", str(tmp_path / "a.png"), "-o", str(out), "--config", str(path)]
    assert run(words) == 0
    assert sorted(file.name for file in out.glob("a_*")) == ["a_depth.npy", "a_uncertainty.npy"]
    assert run([*words, "--config", str(path)]) == 2
    assert "--config is given 2 times" in capsys.readouterr().err
    assert run(["predict", "--config", str(path), "a.png"]) == 2
    assert "--output-dir" in capsys.readouterr().err.splitlines()[-1]


def test_wrong_usage_is_one_line_whatever_the_parser_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(argument: object) -> str:
        raise AttributeError("lowered")

    monkeypatch.setattr("openmarigold.cli.usage._explained", changed)
    assert run([*PREDICT, "--ensemble-size", "many"]) == 2
    assert capsys.readouterr().err == "error: wrong usage. See `openmarigold predict --help`\n"
