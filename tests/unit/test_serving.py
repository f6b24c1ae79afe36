# SPDX-License-Identifier: Apache-2.0
"""The HTTP interface: bytes of `predict`, statuses, bounds of requests. The embedded model predicts tiny photos."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError
from openmarigold.predictor.run import predict_files
from openmarigold.serving.app import create_app
from openmarigold.serving.formats import negotiated
from openmarigold.serving.guard import Guard, Metrics
from openmarigold.serving.server import TOKEN_VARIABLE, read_token
from openmarigold.serving.service import Service
from openmarigold.serving.settings import ServeConfig
from servers import picture, post, running, until, with_model

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with running() as one:
        yield one


# ------------------------------------------------------------------------------------------------ the bytes of predict


def test_answers_are_the_files_of_predict(client: TestClient, tmp_path: Path) -> None:
    photo = picture()
    (tmp_path / "cat.png").write_bytes(photo)
    config = PredictConfig(processing_resolution=64, ensemble_size=2, seed=7)
    formats = ("npy", "png", "npz", "ply")
    predict_files(
        [tmp_path / "cat.png"], output_dir=tmp_path / "out", config=config, output=OutputConfig(format=formats)
    )
    settings = {"ensemble_size": "2", "seed": "7"}
    for media, file, name in (
        ("image/png", None, "cat_depth.png"),
        ("image/png", "depth_colored.png", "cat_depth_colored.png"),
        ("application/x-npy", "uncertainty.npy", "cat_uncertainty.npy"),
        ("application/x-npz", None, "cat_depth.npz"),
        ("model/ply", None, "cat_depth.ply"),
    ):
        answer = post(client, photo, media, **settings, **({} if file is None else {"file": file}))
        assert (answer.status_code, answer.headers["content-type"]) == (200, media)
        assert answer.content == (tmp_path / "out" / name).read_bytes(), name


def test_the_background_of_the_server_is_behind_transparent_pixels() -> None:
    pixels = np.zeros((56, 72, 4), dtype=np.uint8)
    pixels[20:40, 20:50] = [200, 150, 90, 255]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    service = with_model(Service(PredictConfig(), ServeConfig()))
    [base] = service._bases
    service._bases = [base.sibling(replace(base.config, background="black"), OutputConfig(format=("npy",)), Path())]
    with TestClient(create_app(service, service.limits), base_url="http://localhost") as client:
        until(lambda: service.is_ready)
        plain, black, white = (
            post(client, buffer.getvalue(), "application/x-npy", **more).content
            for more in ({}, {"background": "black"}, {"background": "white"})
        )
    assert plain == black != white


def test_json_in_and_out(client: TestClient) -> None:
    body = {"photo": base64.b64encode(picture()).decode(), "ensemble_size": 2}
    answer = client.post("/v1/predict", json=body, headers={"accept": "application/json"})
    assert answer.status_code == 200
    told = answer.json()
    assert told["maps"]["depth"]["shape"] == [56, 72]
    assert told["record"]["ensemble_size"] == 2
    same = post(client, accept="application/x-npy", ensemble_size="2")
    assert told["maps"]["depth"]["max"] == pytest.approx(float(np.load(io.BytesIO(same.content)).max()))


def test_base64_may_have_line_breaks(client: TestClient) -> None:
    photo = base64.encodebytes(picture()).decode()
    assert photo.count("\n") > 1
    for text in (photo, f"data:image/png;base64,{photo}"):
        assert client.post("/v1/predict", json={"photo": text}).status_code == 200


def test_a_format_that_accept_does_not_choose_is_refused(client: TestClient) -> None:
    answer = post(client, format="exr")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("format='exr' is not what Accept chooses, image/png; send Accept")
    assert post(client, accept="image/png", format="npy,png").status_code == 400
    assert post(client, accept="application/x-npy", format="npy").status_code == 200


def test_a_zip_holds_the_formats_that_are_asked_for(client: TestClient) -> None:
    answer = post(client, accept="application/zip", format="npy,glb")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["photo_depth.npy", "photo_depth.glb"]
    assert answer.content == post(client, accept="application/zip", format="npy,glb").content


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("drop_uncertain", True),
        ("ensemble_size", True),
        ("seed", 1.0),
        ("seed", "1"),
        ("estimate_camera", 0),
        ("fov", "x"),
    ],
)
def test_types_in_json_are_those_of_the_schema(client: TestClient, name: str, value: Any) -> None:
    body = {"photo": base64.b64encode(picture()).decode(), name: value}
    for path in ("/v1/predict", "/v1/jobs"):
        for more in ({}, {"interval": None, "num_inference_steps": 1}):  # alone, too: a text is a text in JSON
            answer = client.post(path, json={**body, **more})
            assert answer.status_code == 400
            assert answer.json()["error"].startswith(f"{name}: input should be a valid ")


def test_a_field_of_a_form_is_stated_once(client: TestClient) -> None:
    answer = client.post("/v1/predict", data={"seed": ["1", "2"]}, files={"photo": ("a.png", picture())})
    assert (answer.status_code, answer.json()["error"]) == (400, "seed is stated twice; give it once")


@pytest.mark.parametrize("formats", [{}, [], [{}], ["npy", None], 3, True, ["jpeg"], "npy,,png"])
@pytest.mark.parametrize("accept", ["image/png", "application/json", "application/zip"])
def test_formats_of_another_type_are_refused(client: TestClient, formats: Any, accept: str) -> None:
    body = {"photo": base64.b64encode(picture()).decode(), "format": formats}
    answer = client.post("/v1/predict", json=body, headers={"accept": accept})
    assert answer.status_code == 400
    assert answer.json()["error"].endswith("is not known; give one or more of npy, png, npz, exr, ply, glb")


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, "image/png"),
        ("*/*", "image/png"),
        ("application/x-npy", "application/x-npy"),
        ("application/x-npy;q=0.5, image/png;q=0.4", "application/x-npy"),
        ("image/*;q=0.3, application/json;q=0.2", "image/png"),
        ("*/*;q=0.1, application/zip", "application/zip"),
        ("image/png;q=0, image/*", "image/x-exr"),
        ("text/html", None),
        ("image/png;q=0", None),
    ],
)
def test_negotiation(accept: str | None, media: str | None) -> None:
    assert negotiated(accept) == media


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        ({"ensemble_siz": "2"}, 400, "ensemble_siz"),
        ({"ensemble_size": "x"}, 400, "ensemble_size"),
        ({"ensemble_size": "0"}, 400, "ensemble_size=0"),
        ({"ensemble_size": "101"}, 400, "at most"),
        ({"processing_resolution": "4096"}, 400, "at most"),
        ({"processing_resolution": "0"}, 400, "at most"),
        ({"modality": "normals"}, 400, "not offered"),
        ({"camera_file": "/etc/passwd"}, 400, "camera_file"),
        ({"normals_checkpoint": "/etc"}, 400, "normals_checkpoint"),
        ({"file": "nothing.png"}, 400, "depth.png"),
        ({"color_map": "no such map"}, 400, "no such map"),
    ],
)
def test_settings_that_are_refused(client: TestClient, data: dict[str, str], status: int, word: str) -> None:
    answer = post(client, None, "*/*", **data)
    told = answer.json()
    assert (answer.status_code, told["status"]) == (status, status)
    assert word in told["error"]
    assert "\n" not in told["error"]


def test_passes_count_with_what_the_server_adds() -> None:
    service = with_model(Service(PredictConfig(), ServeConfig(max_passes=4)))
    [base] = service._bases
    service._bases = [base.sibling(replace(base.config, ensemble_size=3), OutputConfig(format=("npy",)), Path())]
    with TestClient(create_app(service, service.limits), base_url="http://localhost") as client:
        until(lambda: service.is_ready)
        for settings, status in (({}, 200), ({"num_inference_steps": "1"}, 200), ({"num_inference_steps": "2"}, 400)):
            answer = post(client, **settings)
            assert answer.status_code == client.get("/v1/models/depth", params=settings).status_code == status
        assert "times ensemble_size is 6; this server takes 4" in answer.json()["error"]


@pytest.mark.parametrize("photo", [b"no picture", picture()[:200], b"\x89PNG\r\n\x1a\n"])
def test_a_broken_photo_is_422(client: TestClient, photo: bytes) -> None:
    answer = post(client, photo)
    assert answer.status_code == 422
    assert "/tmp" not in answer.text


def test_other_bodies(client: TestClient) -> None:
    def status(**request: Any) -> int:
        return client.post("/v1/predict", **request).status_code

    assert status(content=b"x", headers={"content-type": "image/png"}) == 415
    assert status(content=b"{", headers={"content-type": "application/json"}) == 400
    assert status(json=[1]) == 400
    assert status(json={"photo": "not base64!"}) == 400
    assert status(json={}) == 400
    assert status(content=b"--x", headers={"content-type": "multipart/form-data; boundary=y"}) == 400
    assert status(content=b"", headers={"content-type": "multipart/form-data"}) == 400
    assert status(files=[("photo", ("a", picture())), ("photo", ("b", picture()))]) == 400
    assert status(files={"other": ("a", picture())}) == 400
    assert post(client, accept="text/html").status_code == 406


def test_a_picture_of_too_many_pixels_is_413_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("1", (5000, 5000)).save(buffer, "PNG")  # 3 kB
    with running(max_pixels=1_000_000) as client:
        answer = post(client, buffer.getvalue())
        assert answer.status_code == 413
        told = "the photo has 5000x5000 pixels, 25.0 megapixels; 1.0 megapixels at most are accepted"
        assert told in answer.json()["error"]
        assert post(client, picture()).status_code == 200


@pytest.mark.parametrize("suffix", ["exr", "hdr", "heic"])
def test_pixels_of_every_kind_of_photo_are_bounded(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo.{suffix}"
    if suffix == "exr":
        openexr: Any = pytest.importorskip("OpenEXR")
        channels = {"RGB": np.zeros((120, 100, 3), np.float32)}
        openexr.File({"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}, channels).write(str(path))
    elif suffix == "hdr":
        pytest.importorskip("OpenImageIO")
        path.write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 120 +X 100\n" + bytes(4 * 100 * 120))
    else:
        heif: Any = pytest.importorskip("pillow_heif")
        heif.from_pillow(Image.new("RGB", (100, 120), "gray")).save(str(path))
    with running(max_pixels=10_000) as client:
        answer = client.post("/v1/predict", files={"photo": (path.name, path.read_bytes())})
        assert answer.status_code == 413, answer.text
        assert "the photo has 100x120 pixels" in answer.json()["error"]


def test_a_strip_is_predicted(client: TestClient) -> None:
    answer = post(client, picture(10_000, 3), "application/x-npy")
    assert answer.status_code == 200
    assert np.load(io.BytesIO(answer.content)).shape == (3, 10_000)


def test_other_sites_and_hosts_are_refused(client: TestClient) -> None:
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 421
    assert client.post("/v1/predict", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/v1/models", headers={"origin": "http://localhost"}).status_code == 200
    with running(host="127.0.0.2") as other:
        for host, status in (("127.0.0.2:8765", 200), ("localhost", 200), ("127.0.0.3", 421)):
            assert other.get("/healthz", headers={"host": host}).status_code == status


def test_a_token_is_asked_for() -> None:
    with running(TOKEN) as client:
        assert client.get("/healthz").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}):
            answer = client.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/models", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_another_host_needs_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(ServeConfig()) is None
    with pytest.raises(InvalidValueError, match="token is needed"):
        read_token(ServeConfig(host="0.0.0.0"))
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert read_token(ServeConfig(host="0.0.0.0", token_file=tmp_path / "token")) == TOKEN
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    with pytest.raises(InvalidValueError, match="16 ASCII"):
        read_token(ServeConfig())


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//", "nonsense"])
def test_origins_that_are_not_urls_are_refused(client: TestClient, origin: str) -> None:
    answer = client.get("/v1/models", headers={"origin": origin})
    assert answer.status_code == 403 and "other sites" in answer.json()["error"]


# ------------------------------------------------------------------------------------------------- bounds of the body


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/jobs"])
def test_a_client_that_leaves_during_its_body_is_one_line(
    path: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ServeConfig()
    app = create_app(Service(PredictConfig(), config), config)
    messages = [{"type": "http.request", "body": b"--x", "more_body": True}]
    headers = {"host": "localhost", "content-type": kind, "content-length": "100"}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": encoded, "query_string": b"", "root_path": ""}

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        del message

    asyncio.run(app(scope, receive, send))
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["status"]) == ("request", 499)


async def _ask(messages: list[tuple[float, bytes, bool]], headers: dict[str, str], **limits: Any) -> int:
    """The status of a request whose body arrives in pieces, each after a time [s]."""
    config = ServeConfig(**limits)
    service = Service(PredictConfig(), config)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.sleep(60)
        seconds, body, more = messages.pop(0)
        await asyncio.sleep(seconds)
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message: Any) -> None:
        sent.append(message)

    encoded = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": encoded}
    await Guard(app, config, None, Metrics(service))(scope, receive, send)
    return sent[0]["status"]


CHUNKED = {"transfer-encoding": "chunked"}


def test_a_large_body_is_413() -> None:
    assert asyncio.run(_ask([], {"content-length": "2000"}, max_megabytes=0.001)) == 413
    pieces = [(0.0, b"x" * 600, True)] * 3
    assert asyncio.run(_ask(pieces, CHUNKED, max_megabytes=0.001)) == 413
    assert asyncio.run(_ask([(0.0, b"x" * 600, False)], CHUNKED, max_megabytes=0.001)) == 200


def test_a_slow_body_is_408() -> None:
    pieces = [(0.05, b"x", True)] * 100
    assert asyncio.run(_ask(pieces, CHUNKED, body_time_limit=0.2)) == 408


# -------------------------------------------------------------------------------------------------------------- others


def test_the_interface_describes_itself(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) >= {"/v1/predict", "/v1/jobs", "/v1/jobs/{job_id}/events", "/healthz", "/metrics"}
    form = schema["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert "ensemble_size" in form["properties"]
    assert "camera_file" not in form["properties"]
    assert client.get("/v1/models").json()["modalities"]["depth"]["maps"] == ["depth"]


def test_the_page_of_the_interface_needs_no_other_server(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "http" not in re.sub(r"<title>.*</title>", "", page.text)
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        answer = client.get(f"/{name}")
        assert (answer.status_code, len(answer.content) > 1000) == (200, True), name
    assert client.get("/docs/static/../../__init__.py").status_code == 404


def test_metrics_and_request_ids(client: TestClient) -> None:
    answer = client.get("/healthz", headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert client.get("/healthz", headers={"x-request-id": "a b\n"}).headers["x-request-id"] != "a b\n"
    post(client)
    text = client.get("/metrics").text
    assert 'openmarigold_requests_total{route="/v1/predict",status="200"}' in text
    assert "openmarigold_queue_waiting 0.0" in text
