# SPDX-License-Identifier: Apache-2.0
"""Nothing leaves the machine unasked, and nothing is written but results and our own cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from openmarigold.errors import MissingExtraError, needs_extra
from openmarigold.privacy import hidden, switch_off_reports
from tiny import make_photo

# Python's own sockets are seen by an audit hook, those of compiled libraries among the open files, a thousand times a
# second and at the end.
WATCHER = """
import atexit, os, sys, threading, time
log = os.open(os.environ["WATCHED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def note(text):
    os.write(log, (text + "\\n").encode())
def hook(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        note(f"{event} {arguments[1:] if event == 'socket.connect' else arguments}")
sys.addaudithook(hook)
def sockets():
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:"):
            note(f"open {target}")
def watch():
    while True:
        sockets()
        time.sleep(0.001)
if os.path.isdir("/proc/self/fd"):
    atexit.register(sockets)
    threading.Thread(target=watch, daemon=True).start()
note("watching")
"""


def run_watched(tmp_path: Path, *arguments: str) -> tuple[list[str], list[Path]]:
    """(what a Python process did on the network, the files below its fresh home folder); it must succeed."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCHER)
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "SYSTEMROOT", "OMP_NUM_THREADS")}
    places = [str(tmp_path / "site"), *(path for path in sys.path if path)]
    environment = {**kept, "HOME": str(home), "USERPROFILE": str(home), "PYTHONPATH": os.pathsep.join(places)}
    environment |= {"WATCHED": str(tmp_path / "watched"), "TMPDIR": str(scratch)}
    finished = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    first, *events = (tmp_path / "watched").read_text().splitlines()
    assert first == "watching"
    assert not [path for path in scratch.rglob("*") if path.is_file()], "temporary files are left"
    return events, list(home.rglob("*"))


def predict_watched(tmp_path: Path, *options: str) -> None:
    photo, output = tmp_path / "photo.png", tmp_path / "out"
    Image.fromarray(make_photo(40, 56)).save(photo)
    events, files = run_watched(tmp_path, "-m", "openmarigold", "predict", str(photo), "-o", str(output), *options)
    assert not events
    cache = tmp_path / "home" / ".cache" / "openmarigold"
    strangers = [path for path in files if path not in cache.parents and not path.is_relative_to(cache)]
    assert not strangers
    assert sorted(path.name for path in output.iterdir()) == [
        "manifest.jsonl",
        "photo_depth.npy",
        "photo_depth.png",
        "photo_depth_colored.png",
    ]


def test_switches_of_the_libraries_are_set_and_a_users_own_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")  # so that it is as before afterwards
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
    switch_off_reports()
    assert [os.environ[f"{name}_DISABLE_TELEMETRY"] for name in ("ORT", "HF_HUB")] == ["0", "1"]


def test_the_watcher_sees_sockets_and_files(tmp_path: Path) -> None:
    code = "import socket, pathlib, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    code += "s.connect(('127.0.0.1', 9)); (pathlib.Path.home() / 'left').touch(); time.sleep(0.05)"
    events, files = run_watched(tmp_path, "-c", code)
    assert any(event.startswith("socket.connect") for event in events)
    if Path("/proc/self/fd").is_dir():
        assert any(event.startswith("open socket:") for event in events)
    assert [path.name for path in files] == ["left"]


def test_a_prediction_keeps_to_itself(tmp_path: Path) -> None:
    predict_watched(tmp_path)


def test_a_prediction_with_a_color_map_of_matplotlib_keeps_to_itself(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    predict_watched(tmp_path, "--color-map", "viridis")


def test_importing_the_libraries_through_us_reports_nothing(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = "import openmarigold.engines.openvino, openmarigold.engines.onnx, onnxruntime, openvino; "
    code += "import openvino_telemetry"  # what others import of it later is there
    assert run_watched(tmp_path, "-c", code) == ([], [])


@pytest.mark.slow
def test_a_prediction_with_openvino_keeps_to_itself(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    predict_watched(tmp_path, "--engine", "openvino")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "onnx", "openvino"])
def test_a_prediction_with_safetensors_weights_keeps_to_itself(
    tmp_path: Path, tiny_checkpoint: Path, engine: str
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    predict_watched(tmp_path, "--checkpoint", str(tiny_checkpoint), "--engine", engine)


def test_a_missing_package_names_its_extra_and_a_missing_module_of_our_own_is_a_fault() -> None:
    import h5py

    message = r"h5py is not installed; .*openmarigold\[data\]"
    with hidden("h5py"), pytest.raises(MissingExtraError, match=message), needs_extra("data"):
        import h5py as missing  # noqa: F401
    assert sys.modules["h5py"] is h5py
    with pytest.raises(ModuleNotFoundError, match=r"openmarigold\.missing"), needs_extra("data"):
        import openmarigold.missing  # noqa: F401  # pyright: ignore[reportMissingImports]


def test_a_package_is_hidden_in_our_own_process_only() -> None:
    with hidden("colorsys", only_ours=True):
        import colorsys  # noqa: F401
