# SPDX-License-Identifier: Apache-2.0
"""Requests that mean no good: each gets the status that docs/serve.md states and one line, and the server continues."""

from __future__ import annotations

import io
import random
import socket
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from openmarigold.errors import ImageError, InvalidValueError, OutputError
from openmarigold.serving.jobs import photos_of_zip, result_names
from openmarigold.serving.server import _listen
from openmarigold.serving.settings import ServeConfig
from servers import listening, picture


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(max_megabytes=1.0, body_time_limit=1.0, max_jobs=5) as one:
        yield one


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as one:
        yield one


@pytest.fixture(autouse=True)
def still_alive(client: httpx.Client) -> Iterator[None]:
    yield
    assert client.get("/healthz").text == "ok\n"


def _told(answer: httpx.Response) -> str:
    told = answer.json()
    assert told["status"] == answer.status_code
    assert "\n" not in told["error"] and "/tmp" not in told["error"] and "Traceback" not in told["error"]
    return told["error"]


def _raw(url: str, *pieces: bytes, pause: float = 0.0) -> bytes:
    """What comes back until the server closes the connection, or is silent for a second."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=3.0) as connection:
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        except OSError:
            pass
        connection.settimeout(3.0)
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except OSError:
            pass
        return answer


def _post(headers: str) -> bytes:
    return f"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n\r\n".encode()


FORM = "content-type: multipart/form-data; boundary=x"
PART = b'--x\r\ncontent-disposition: form-data; name="photo"; filename="a"\r\n\r\n'


def test_a_gigabyte_is_refused_before_it_comes(url: str) -> None:
    started = time.monotonic()
    answer = _raw(url, _post(f"{FORM}\r\ncontent-length: 1000000000"), b"x" * 1000)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"larger than 1 MB" in answer
    assert time.monotonic() - started < 30


def test_a_gigabyte_in_pieces_is_refused_at_the_bound(url: str) -> None:
    piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    begin = b"%x\r\n%b\r\n" % (len(PART), PART)
    answer = _raw(url, _post(f"{FORM}\r\ntransfer-encoding: chunked") + begin, *[piece] * 40)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_slow_body_is_ended(url: str) -> None:
    answer = _raw(url, _post(f"{FORM}\r\ncontent-length: 1000") + PART, *[b"x"] * 8, pause=0.2)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive" in answer


@pytest.mark.parametrize(
    "garbage",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcde",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
    ],
)
def test_garbage_behind_a_good_request(url: str, garbage: bytes) -> None:
    good = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    answer = _raw(url, good + garbage)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 200 ") == 1  # a 400 follows, unless the connection is reset before


def test_many_fields_and_large_fields(client: httpx.Client) -> None:
    files = {"photo": ("a.png", picture())}
    many = {f"f{number}": "1" for number in range(10_000)}
    for data in (many, {"seed": "9" * 500_000}, {"color_map": "x" * 500_000}, {"x" * 10_000: "1"}):
        answer = client.post("/v1/predict", files=files, data=data)
        assert answer.status_code == 400
        assert len(_told(answer)) < 3000


def test_names_that_look_like_paths(client: httpx.Client) -> None:
    for name in ("../../etc/passwd", "/etc/passwd", "C:\\x", 'a"; filename="b', "\x00", "x" * 1000, "...", "~root"):
        assert client.post("/v1/predict", files={"photo": (name, picture())}).status_code == 200
    names = result_names(["../../etc/passwd", "/etc/passwd.png", "C:\\x", "a\nb", "\x00", "x" * 5000, "...", "a/../b"])
    for name in names:
        assert not name.startswith("/") and ".." not in name.split("/") and name.isprintable() and len(name) < 300


def test_ten_thousand_names_that_are_alike() -> None:
    started = time.process_time()
    names = result_names(["a.png"] * 10_000)
    assert (len(set(names)), names[-1]) == (10_000, "a-10000")
    assert time.process_time() - started < 5


def test_many_ids_of_jobs(client: httpx.Client) -> None:
    for number in range(50):
        assert client.get(f"/v1/jobs/{number:016}/events").status_code == 404
    for job_id in ("..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "x" * 8000, "%00", "a b"):
        assert client.get(f"/v1/jobs/{job_id}").status_code in (404, 405)


def test_jobs_of_jobs_end_and_are_bounded(client: httpx.Client) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.png", picture())
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())
    answers = [client.post("/v1/jobs", files={"photo": ("o.zip", outer.getvalue())}) for _ in range(12)]
    assert {answer.status_code for answer in answers} <= {202, 429}
    told = client.get(answers[-1].headers.get("location", "")).json() if answers[-1].status_code == 202 else None
    while told is not None and told["state"] in ("waiting", "running"):
        time.sleep(0.05)
        told = client.get(f"/v1/jobs/{told['id']}").json()
    assert told is None or "is not an image" in told["failed"][0]["error"]


def test_archives_that_state_much() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", b"x" * 100)
    with pytest.raises(InvalidValueError, match="another method than deflate"):
        list(photos_of_zip(packed.getvalue(), 10_000))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(10_001):
            archive.writestr(f"{number}.png", b"")
    with pytest.raises(ImageError, match="more than 10000 photos"):
        list(photos_of_zip(packed.getvalue(), 10_000))


def test_bombs(client: httpx.Client) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0))
    pixels = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1_000_000))) + chunk(b"IEND", b"")
    text = picture()[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 1)) + picture()[33:]
    for bomb, status in ((pixels, 413), (text[:990_000], 422)):
        answer = client.post("/v1/predict", files={"photo": ("a.png", bomb)})
        assert answer.status_code == status
        _told(answer)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(5_000_000))
    assert "larger than" in _told(client.post("/v1/jobs", files={"photo": ("a.zip", packed.getvalue())}))


def test_a_client_that_leaves(url: str, client: httpx.Client) -> None:
    body = PART + picture(300, 300) + b"\r\n--x--\r\n"
    parts = urlsplit(url)
    for _ in range(6):
        connection = socket.create_connection((parts.hostname or "", parts.port or 0))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
        connection.sendall(_post(f"{FORM}\r\ncontent-length: {len(body)}") + body)
        time.sleep(0.02)
        connection.close()
    assert client.post("/v1/predict", files={"photo": ("a.png", picture())}).status_code == 200


def test_a_port_that_is_taken(url: str) -> None:
    port = urlsplit(url).port or 0
    with pytest.raises(OutputError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another"):
        _listen(ServeConfig(port=port))


# ---------------------------------------------------------------------------------------------------------------- fuzz


@pytest.fixture(scope="module")
def schema(client: httpx.Client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


WORDS = ["true", "null", "[]", "{}", "depth", "normals", "npy,png", "glb", "0", "8", "64", "-1", "2", "1e999", "nan"]
WORDS += ["inf", "-0.0", "9" * 20, "\x00", "\u202e", "☃"]


def _names(schema: dict[str, Any], path: str) -> list[str]:
    form = schema["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    return sorted(set(form["properties"]) - {"photo", "clip"})


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/jobs"])
def test_any_form_gets_a_documented_status(client: httpx.Client, schema: dict[str, Any], path: str) -> None:
    chance, names = random.Random(7), _names(schema, path)
    documented = schema["paths"][path]["post"]["responses"]
    for _ in range(50):
        fields = {chance.choice([*names, "x", "é"]): chance.choice(WORDS) for _ in range(chance.randrange(4))}
        photo = chance.choice([picture(16, 16), picture(16, 16)[:60], b"", chance.randbytes(40)])
        accept = chance.choice(["*/*", "application/zip", "image/x-exr", "application/json", ",;q=,", "a/b;q=nan"])
        field = chance.choice(["photo", "photo", "photo", "clip", "other"])
        answer = client.post(path, files={field: ("a", photo)}, data=fields, headers={"accept": accept})
        assert str(answer.status_code) in documented, (fields, answer.text)
        if answer.status_code >= 400:
            _told(answer)
        elif path == "/v1/jobs":
            client.delete(f"/v1/jobs/{answer.json()['id']}")


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "text/plain", "a" * 300])
def test_any_bytes_get_a_documented_status(client: httpx.Client, kind: str) -> None:
    chance = random.Random(8)
    bodies = [b"", b"{}", b"[" * 10_000, b'{"photo": 3}', b'{"photo": "aGk=", "seed": 1e999}', b"--x\r\n\r\n--x--"]
    for body in [*bodies, *(chance.randbytes(chance.randrange(100)) for _ in range(10))]:
        answer = client.post("/v1/predict", content=body, headers={"content-type": kind})
        assert answer.status_code in (400, 415)
        _told(answer)


def test_accept_headers(client: httpx.Client) -> None:
    for accept in (
        "",
        ",",
        "*",
        "*/*;q=2",
        "image/png;q=abc",
        "a/b/c",
        "image/*;q=0",
        "," * 30_000,
        "\xff".encode("latin-1"),
    ):
        answer = client.post("/v1/predict", files={"photo": ("a", picture(16, 16))}, headers={"accept": accept})
        assert answer.status_code in (200, 406)
