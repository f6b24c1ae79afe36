# SPDX-License-Identifier: Apache-2.0
"""The program among signals, closed or full streams, and without a home folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tiny import make_photo

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
PROGRAM = f"{sys.executable} -m openmarigold"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(make_photo(48, 64)).save(path)
    return path


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, whose status is that of the first command of a pipe."""
    return subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("redirection", "status", "error"),
    [
        ("2>&-", 0, ""),
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("2> /dev/full", 0, ""),
        ("> /dev/full", 2, "error: "),
        ("--json > /dev/full", 2, "error: "),
        ("| true", 2, ""),
    ],
)
def test_streams_that_cannot_be_written(
    redirection: str, status: int, error: str, photo: Path, onnx_checkpoint: Path
) -> None:
    line = f"{PROGRAM} predict photo.jpg -o out --checkpoint {onnx_checkpoint} {redirection}"
    for unbuffered in ("", "1"):  # the second one finds the work done, which is sooner said
        result = shell(line, photo.parent, PYTHONUNBUFFERED=unbuffered)
        assert result.returncode == status, result.stderr
        assert result.stderr.startswith(error) and len(result.stderr.splitlines()) == bool(error)
        assert len(list((photo.parent / "out").iterdir())) == 4, "the work is done in any case"


def test_other_commands_into_full_and_closed_streams(tmp_path: Path) -> None:
    assert shell(f"{PROGRAM} --version > /dev/full", tmp_path).returncode == 2
    assert shell(f"{PROGRAM} --help | true", tmp_path).stderr == ""
    wrong = shell(f"{PROGRAM} predict nothing.jpg -o '' --json 2>&-", tmp_path)
    assert (wrong.returncode, json.loads(wrong.stdout)["status"]) == (2, 2)


@pytest.mark.parametrize("words", ["predict '' -o out", "predict photo.jpg -o ''", "predict photo.jpg --output-dir="])
def test_empty_words_are_refused(words: str, photo: Path) -> None:
    result = shell(f"{PROGRAM} {words}", photo.parent)
    assert result.returncode == 2
    assert result.stderr.startswith("error: an empty text was given")
    assert [path.name for path in photo.parent.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("delay_s", [0.08, 0.15, 0.3, 0.6])
def test_an_interrupt_during_imports(delay_s: float, photo: Path, onnx_checkpoint: Path) -> None:
    # The interpreter's own start, some 30 ms before the first line of ours, is not ours to catch: wait for it.
    command = f"import time; start = time.time(); {_LATER}; from openmarigold.__main__ import main; main()"
    arguments = [sys.executable, "-c", command, "predict", photo, "-o", photo.parent / "out"]
    arguments += ["--checkpoint", onnx_checkpoint]
    process = subprocess.Popen(
        list(map(str, arguments)), env={**ENVIRONMENT, "DELAY": str(delay_s)}, stderr=subprocess.PIPE, text=True
    )
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) in [(130, "interrupted\n"), (0, "")], stderr


_LATER = (
    "import os, signal, threading; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from openmarigold import workers; workers.claim(); "
    "timer = threading.Timer(float(os.environ['DELAY']), os.kill, (os.getpid(), signal.SIGINT)); "
    "timer.daemon = True; timer.start()"
)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_that_end_a_run_leave_whole_files(
    number: signal.Signals, status: int, photo: Path, onnx_checkpoint: Path
) -> None:
    folder, out = photo.parent / "photos", photo.parent / "out"
    folder.mkdir()
    for index in range(100):
        (folder / f"{index:03}.jpg").write_bytes(photo.read_bytes() + bytes(index))
    arguments = [*PROGRAM.split(), "predict", folder, "-o", out, "--checkpoint", onnx_checkpoint]
    process = subprocess.Popen(
        list(map(str, [*arguments, "--num-inference-steps", 50])),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # nohup ignores SIGHUP, for its children too
    )
    deadline = time.monotonic() + 60
    while not (out.is_dir() and len(list(out.iterdir())) > 4) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (status, "interrupted\n")
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert lines[-1]["status"] == "done"
    named = {name for line in lines if line["status"] == "done" for name in line["outputs"]}
    assert {path.name for path in out.iterdir()} == {*named, "manifest.jsonl"}


WITHOUT_HOME = """
import os, pwd
os.environ.pop("HOME", None); os.environ.pop("XDG_CACHE_HOME", None); os.environ.pop("OPENMARIGOLD_CACHE_DIR", None)
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown  # of the system, for a user id that it does not know
from openmarigold.__main__ import main
main()
"""


def test_an_unknown_user_without_a_home_folder(photo: Path, onnx_checkpoint: Path) -> None:
    pytest.importorskip("openvino")
    arguments = ["predict", photo, "-o", photo.parent / "out", "--checkpoint", onnx_checkpoint, "--engine", "openvino"]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_HOME, *map(str, arguments)],
        cwd=photo.parent,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    ours = [line for line in result.stderr.splitlines() if "OPENMARIGOLD_CACHE_DIR" in line]
    assert len(ours) == 1 and "the home folder is not known: caches are temporary" in ours[0]
    assert sorted(path.name for path in photo.parent.iterdir()) == ["out", "photo.jpg"], "no folder named ~"
