# SPDX-License-Identifier: Apache-2.0
"""`predict --server` and `Client`: what they write and raise is what `predict` does. A server listens on loopback."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openmarigold import Client, cli
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import ImageError, InvalidValueError, ServerError
from openmarigold.predictor.run import predict_files
from openmarigold.serving import connection
from openmarigold.serving.connection import Connection, client_token
from openmarigold.serving.remote import predict_on_server
from openmarigold.serving.service import Service
from openmarigold.serving.settings import ServeConfig
from servers import SIDE, listening, picture, with_model

TOKEN = "0123456789abcdef"
HERE = PredictConfig(processing_resolution=SIDE)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(max_megabytes=1.0) as one:
        yield one


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "within").mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.png").write_bytes(picture(40 + 8 * number, 48))
    (folder / "within" / "a b.jpg").write_bytes(picture(48, 40, kind="JPEG"))
    (folder / "broken.jpg").write_bytes(picture(48, 40, kind="JPEG")[:300])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"no picture")
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    frames[0].save(folder / "two.gif", save_all=True, append_images=frames[1:])  # of two frames, which is noted
    Image.new("L", (16, 16), 3).save(folder / "black.png")  # so is this
    return folder


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def _files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.jsonl")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_files_manifest_and_errors_are_those_of_predict(url: str, photos: Path, tmp_path: Path) -> None:
    config = PredictConfig(processing_resolution=SIDE, ensemble_size=2, seed=3, fov=70.0)
    output = OutputConfig(format=("npy", "png", "npz", "ply"), max_points=100, inverted=True)
    events: dict[str, list[Any]] = {"here": [], "there": []}
    shared: dict[str, Any] = {"config": config, "output": output}
    here = predict_files([photos], output_dir=tmp_path / "here", report=events["here"].append, **shared)
    there = predict_on_server(
        [photos], server=url, output_dir=tmp_path / "there", report=events["there"].append, **shared
    )
    assert len(here.written) == 8 * 7
    assert _files(tmp_path / "there") == _files(tmp_path / "here")
    assert _lines(tmp_path / "there") == _lines(tmp_path / "here")
    assert events["there"] == events["here"]
    told = [{**result.to_dict(), "load_s": 0, "predict_s": 0} for result in (here, there)]
    assert json.dumps(told[0]).replace("/here/", "/there/") == json.dumps(told[1])
    # Each continues where the other was.
    again = predict_on_server([photos], server=url, output_dir=tmp_path / "here", **shared)
    assert (again.num_predicted, len(again.skipped), len(again.failed)) == (0, 8, 3)
    again = predict_files([photos], output_dir=tmp_path / "there", **shared)
    assert (again.num_predicted, len(again.skipped), len(again.failed)) == (0, 8, 3)


def test_the_command_line(url: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(photos / "0.png"), "-o", str(tmp_path / "out"), "--server", url]
    assert cli.run(words) == 0
    assert "1 predicted, 0 skipped, 0 failed in" in capsys.readouterr().out
    predict_files([photos / "0.png"], output_dir=tmp_path / "here", config=HERE)
    assert _files(tmp_path / "out") == _files(tmp_path / "here")
    assert cli.run([*words[:-1], f"{url}/nothing"]) == 2
    assert f"error: {url}/nothing: Not Found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda"], "--device chooses the model"),
        (["--checkpoint", "/weights"], "--checkpoint chooses the model"),
        (["--engine", "onnx"], "--engine chooses the model"),
        (["--camera-file", "k.txt"], "give fov or focal_px"),
        (["--modality", "normals"], "modality='normals' is not offered; this server has depth"),
        (["--ensemble-size", "101"], "this server takes 100 at most"),
        (["--color-map", "no such map"], "no such map"),
        (["--modality", "../etc"], "is not known"),
    ],
)
def test_settings_that_a_server_does_not_take(
    url: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert cli.run(["predict", str(photos), "-o", str(tmp_path / "out"), "--server", url, *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert sum(line.startswith("error: ") for line in error.splitlines()) == 1
    assert not list((tmp_path / "out").glob("*.npy"))


def test_a_token_file_without_a_server_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["predict", "a.png", "-o", str(tmp_path), "--token-file", "token"]) == 2
    assert "no effect without --server" in capsys.readouterr().err


def test_a_photo_that_is_too_large_fails_alone(url: str, tmp_path: Path) -> None:
    (tmp_path / "large.bmp").write_bytes(picture(800, 600, kind="BMP"))
    (tmp_path / "small.png").write_bytes(picture())
    result = predict_on_server([tmp_path], server=url, output_dir=tmp_path / "out")
    assert result.num_predicted == 1
    assert [(path.name, "larger than 1 MB" in error) for path, error in result.failed] == [("large.bmp", True)]


# -------------------------------------------------------------------------------------------------------------- Client


def test_a_prediction_is_that_of_a_predictor(url: str, tmp_path: Path) -> None:
    predictor = with_model(Service(HERE, ServeConfig()))._bases[0].load()
    wanted = predictor(picture(), ensemble_size=2, processing_resolution=SIDE, fov=40.0)
    (tmp_path / "a.png").write_bytes(picture())
    pixels = np.asarray(Image.open(io.BytesIO(picture())))
    client = Client(url)
    for photo in (tmp_path / "a.png", str(tmp_path / "a.png"), picture(), io.BytesIO(picture()), pixels):
        got = client.predict(photo, ensemble_size=2, fov=40.0)
        assert np.array_equal(got.depth, wanted.depth)
        assert got.uncertainty is not None and wanted.uncertainty is not None
        assert np.array_equal(got.uncertainty, wanted.uncertainty)
        assert (got.settings, got.camera, got.space) == (wanted.settings, wanted.camera, wanted.space)
    assert (list(got.maps), list(got.uncertainties), got.bounds) == (["depth"], ["uncertainty"], {})
    first = wanted.save(tmp_path / "wanted", "a", output=OutputConfig(format=("npy", "png", "ply")))
    second = got.save(tmp_path / "got", "a", output=OutputConfig(format=("npy", "png", "ply")))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_bounds_of_an_interval_are_no_maps(url: str) -> None:
    got = Client(url).predict(picture(), interval=0.9, processing_resolution=256)
    assert (list(got.maps), sorted(got.bounds), got.interval) == (["depth"], ["depth_hi", "depth_lo"], 0.9)
    assert got.lo is not None and got.hi is not None
    assert (got.lo <= got.depth).all() and (got.depth <= got.hi).all()


def test_files_and_models(url: str) -> None:
    client = Client(url)
    files = client.files(picture(), format=("npy", "glb"), max_points=50)
    assert list(files) == ["_depth.npy", "_depth.glb"]
    assert client.models()["modalities"]["depth"]["invariance"] == "scale"
    assert client.facts(output=OutputConfig(format=("exr",)))["files"] == ["_depth.exr"]
    with pytest.raises(InvalidValueError, match="ensemble_siz is not a setting"):
        client.predict(picture(), ensemble_siz=2)
    with pytest.raises(ImageError, match="the photo is not an image"):
        client.predict(b"no picture")
    with pytest.raises(ImageError, match="does not exist"):
        client.predict("nothing.png")


def test_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENMARIGOLD_TOKEN", raising=False)
    with listening(TOKEN) as url:
        with pytest.raises(ServerError, match="token is missing or wrong"):
            Client(url).models()
        assert Client(url, TOKEN).models()["modalities"]
        monkeypatch.setenv("OPENMARIGOLD_TOKEN", TOKEN)
        assert Client(url).models()["modalities"]
    (tmp_path / "token").write_text(f"{TOKEN}2\n")
    assert client_token(None, tmp_path / "token") == f"{TOKEN}2"
    with pytest.raises(InvalidValueError, match="cannot be read"):
        client_token(None, tmp_path / "nothing")


def test_no_engine_is_imported() -> None:
    code = "import openmarigold.serving.remote, sys; from openmarigold import Client"
    absent = ["torch", "onnxruntime", "fastapi", "pydantic", "uvicorn"]
    check = f"{code}; print([name for name in {absent!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------- servers that fail or wait


@contextmanager
def scripted(*answers: tuple[int, dict[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these statuses one after another, then 200; 0 closes the connection without an answer."""
    left, seen = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append(self.path)
            status, headers = (200, {}) if self.path == "/healthz" or not left else left.pop(0)
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            body = b'{"error": "no luck", "status": 0}'
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_FIRST_PAUSE_S", 0.001)


BUSY = (429, {"retry-after": "0"})


@pytest.mark.parametrize(
    ("answers", "asked"),
    [([BUSY] * 6, 7), ([(503, {"retry-after": "0"})], 2), ([(500, {}), (0, {}), (502, {})], 4), ([(0, {})] * 3, 4)],
)
@pytest.mark.usefixtures("quick")
def test_what_passes_is_waited_for(answers: list[tuple[int, dict[str, str]]], asked: int) -> None:
    with scripted(*answers) as (url, seen):
        assert Connection(url).get("/x").status == 200
        assert len(seen) == asked


@pytest.mark.parametrize(
    ("answers", "kind", "said"),
    [
        ([(500, {})] * 4, ImageError, "the server fails on it, in 4 tries: no luck"),
        ([(0, {})] * 4, ImageError, "the server fails on it, in 4 tries: "),
        ([(503, {})] * 4, ServerError, "fails, after 4 tries: no luck"),
        ([(413, {})], ImageError, "no luck"),
        ([(401, {})], ServerError, "no luck"),
        ([BUSY] * 9, ServerError, "was busy for 0.5 s: no luck"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_what_does_not_pass(answers: list[tuple[int, dict[str, str]]], kind: type[Exception], said: str) -> None:
    with scripted(*answers) as (url, _), pytest.raises(kind, match=said):
        Connection(url, patience=0.5).get("/x")


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_not_there() -> None:
    with scripted() as (url, _):
        pass
    with pytest.raises(ServerError, match="does not answer, after 4 tries: Connection refused; check that"):
        Client(url).models()


@pytest.mark.usefixtures("quick")
def test_a_server_that_goes_ends_the_run_and_keeps_what_is_finished(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(self: Client, content: bytes, *given: Any, **settings: Any) -> Any:
        if content == (photos / "2.png").read_bytes():
            return Connection("http://127.0.0.1:1").get("/x")
        return kept(self, content, *given, **settings)

    kept = Client.ask
    monkeypatch.setattr(Client, "ask", ask)
    with listening() as url:
        with pytest.raises(ServerError, match="does not answer"):
            predict_on_server([photos], server=url, output_dir=tmp_path / "out")
        assert {line["result"] for line in _lines(tmp_path / "out") if line["status"] == "done"} == {"0", "1"}
        monkeypatch.undo()
        result = predict_on_server([photos], server=url, output_dir=tmp_path / "out")
        assert (len(result.skipped), result.num_predicted, len(result.failed)) == (2, 6, 3)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://x", "http://", "http://a:b@c", "http://[", "http://x:99999", "http://x?y=1"),
        *("http://a..b", f"http://{'a' * 64}", "http://a b", "http://x/\n"),
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(InvalidValueError, match="give a URL such as"):
        Client(url)


def test_a_path_before_the_interface_is_encoded() -> None:
    with scripted() as (url, asked):
        Client(f"{url}/tiefe/ü%20ö/").models()
    assert asked == ["/tiefe/%C3%BC%20%C3%B6/v1/models"]


@pytest.mark.usefixtures("quick")
def test_https_to_a_server_without_it_is_told() -> None:
    with listening() as url, pytest.raises(ServerError, match=r"4 tries: https fails \(wrong version number\); check"):
        Client(url.replace("http:", "https:")).models()


def test_wrong_urls_are_told() -> None:
    with listening() as url, pytest.raises(ServerError, match="Not Found; check the URL"):
        Client(f"{url}/docs").models()
    moved = (308, {"location": "https://there/v1/models"})
    with scripted(moved) as (url, _), pytest.raises(ServerError, match="sends on to https://there/v1/models; give"):
        Client(url).models()


def test_another_service_is_not_taken_for_ours() -> None:
    with scripted() as (url, _):
        with pytest.raises(ServerError, match="check the URL"):
            Client(url).facts()
        with pytest.raises(ServerError, match="check the URL"):
            Client(url).facts("depth")
