# SPDX-License-Identifier: Apache-2.0
"""`openmarigold serve` under load, compared with `openmarigold predict` on the same photos in the same run.

    python benchmarks/serve.py --clients 10 --minutes 10

Turns of serving and turns of the folder command alternate, so that both meet the same machine. Photos are of mixed
sizes, 5 % of them broken. Clients ask for the files that the command writes (a zip of npy and png). At the end: a
server with a short queue, which must answer 429, and SIGTERM under load, after which nothing half-written may be left.
It prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = ((320, 240), (480, 640), (640, 480), (800, 600), (1280, 960), (2048, 1536))
PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
BROKEN_EVERY = 20


def make_photos(folder: Path, number: int) -> list[Path]:
    """Photos of mixed sizes, each twentieth broken."""
    sources = sorted(PHOTOS.glob("*.jpg"))
    paths = []
    for index in range(number):
        buffer = io.BytesIO()
        with Image.open(sources[index % len(sources)]) as image:
            image.convert("RGB").resize(SIZES[(index // 2) % len(SIZES)]).save(buffer, "JPEG", quality=88 + index % 8)
        content = buffer.getvalue()
        paths.append(folder / f"{index:03}.jpg")
        paths[-1].write_bytes(content[: len(content) // 3] if index % BROKEN_EVERY == BROKEN_EVERY - 1 else content)
    return paths


class Load:
    """Clients that ask one after another, each on one connection."""

    def __init__(self, port: int, bodies: list[bytes], boundary: str) -> None:
        self.port, self.bodies, self.boundary = port, bodies, boundary
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.retry_after: list[int] = []
        self.torn = 0
        """Answers with status 200 that are no whole archive."""
        self._lock = threading.Lock()
        self._next = 0

    def run(self, clients: int, seconds: float) -> float:
        """Asks for some time; the time until the last answer [s]."""
        started = time.perf_counter()
        ends = started + seconds
        threads = [threading.Thread(target=self._client, args=(ends,)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    def _client(self, ends: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)
        headers = {
            "content-type": f"multipart/form-data; boundary={self.boundary}",
            "accept": "application/zip",
        }
        while time.perf_counter() < ends:
            with self._lock:
                body = self.bodies[self._next % len(self.bodies)]
                self._next += 1
            started = time.perf_counter()
            try:
                connection.request("POST", "/v1/predict", body, headers)
                answer = connection.getresponse()
                content = answer.read()
                status, wait = str(answer.status), answer.getheader("retry-after")
            except (OSError, http.client.HTTPException) as error:
                status, content, wait = type(error).__name__, b"", None
                connection.close()
            with self._lock:
                self.statuses[status] += 1
                if status == "200":
                    self.seconds.append(time.perf_counter() - started)
                    self.torn += not zipfile.is_zipfile(io.BytesIO(content))
                if wait is not None and status == "429":
                    self.retry_after.append(int(wait))
            if status not in ("200", "422"):
                time.sleep(0.05)
        connection.close()


@contextlib.contextmanager
def server(folder: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A server with a temporary folder of its own; its port and process."""
    command = [sys.executable, "-m", "openmarigold", "serve", "--port", "0", *options]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (folder.parent / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                break
            time.sleep(0.2)
        yield port, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def folder_rate(photos: list[Path], work: Path) -> tuple[int, float]:
    """Photos that the command predicts, and its seconds without loading."""
    with tempfile.TemporaryDirectory(dir=work) as out:
        command = [sys.executable, "-m", "openmarigold", "predict", *map(str, photos), "-o", out, "--json"]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    return found["num_predicted"] + len(found["failed"]), found["total_s"] - found["load_s"]


def measure(photos: list[Path], bodies: list[bytes], boundary: str, given: argparse.Namespace, work: Path) -> Any:
    """Turns of both; what became of the requests, rates and memory."""
    temporary = work / "tmp"
    temporary.mkdir()
    with server(temporary) as (port, process):
        warm = Load(port, bodies, boundary)
        warm.run(given.clients, 20.0)
        load, served_s, here, here_s, memory = Load(port, bodies, boundary), 0.0, 0, 0.0, [rss_mib(process.pid)]
        rounds: list[float] = []
        while served_s < given.minutes * 60:
            before, seconds = len(load.seconds) + load.statuses["422"], load.run(given.clients, given.turn)
            answered = len(load.seconds) + load.statuses["422"] - before
            served_s += seconds
            memory.append(rss_mib(process.pid))
            done, took = folder_rate(photos, work)
            here, here_s = here + done, here_s + took
            rounds.append(round(answered / seconds / (done / took), 3))
            print(f"{served_s:.0f} s: ratio {rounds[-1]}, RSS {memory[-1]:.0f} MiB", file=sys.stderr, flush=True)
    rate, here_rate = (len(load.seconds) + load.statuses["422"]) / served_s, here / here_s
    quantiles = np.percentile(load.seconds, [50, 95, 99])
    return {
        "clients": given.clients,
        "minutes_of_serving": round(served_s / 60, 2),
        "statuses": dict(load.statuses),
        "torn": load.torn,
        "p50_p95_p99_s": [round(float(value), 3) for value in quantiles],
        "photos_a_second": round(rate, 3),
        "photos_a_second_of_the_folder_command": round(here_rate, 3),
        "ratio": round(rate / here_rate, 3),
        "ratio_by_turn": rounds,
        "rss_mib_by_turn": [round(value) for value in memory],
        "temporary_files_left": sorted(path.name for path in temporary.iterdir()),
    }


def full_queue(bodies: list[bytes], boundary: str, clients: int, work: Path) -> Any:
    """A queue of two places for all clients."""
    temporary = work / "tmp-queue"
    temporary.mkdir()
    with server(temporary, "--max-queue", "2") as (port, _):
        load = Load(port, bodies, boundary)
        load.run(clients, 20.0)
    return {"statuses": dict(load.statuses), "retry_after_s": [min(load.retry_after), max(load.retry_after)]}


def terminated(bodies: list[bytes], boundary: str, clients: int, work: Path) -> Any:
    """SIGTERM while all clients wait for answers."""
    temporary = work / "tmp-term"
    temporary.mkdir()
    with server(temporary) as (port, process):
        load = Load(port, bodies, boundary)
        thread = threading.Thread(target=load.run, args=(clients, 8.0))
        thread.start()
        time.sleep(6.0)
        before = sum(load.statuses.values())
        process.send_signal(signal.SIGTERM)
        started = time.perf_counter()
        status = process.wait(90)
        seconds = time.perf_counter() - started
        thread.join()
    return {
        "answered_before": before,
        "statuses": dict(load.statuses),
        "torn": load.torn,
        "exit_status": status,
        "seconds_to_end": round(seconds, 2),
        "temporary_files_left": sorted(path.name for path in temporary.iterdir()),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=10.0, help="of serving; the folder command takes as long")
    parser.add_argument("--turn", type=float, default=30.0, help="seconds of serving between two folder commands")
    parser.add_argument("--photos", type=int, default=60)
    given = parser.parse_args()
    boundary = secrets.token_hex(8)
    head = f'--{boundary}\r\ncontent-disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'.encode()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "photos").mkdir()
        photos = make_photos(work / "photos", given.photos)
        random.Random(0).shuffle(photos)
        bodies = [head + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode() for path in photos]
        found = measure(photos, bodies, boundary, given, work)
        found["full_queue"] = full_queue(bodies, boundary, given.clients, work)
        found["sigterm"] = terminated(bodies, boundary, given.clients, work)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
