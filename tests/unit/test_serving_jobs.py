# SPDX-License-Identifier: Apache-2.0
"""The queue of a server, and jobs of many photos and of clips."""

from __future__ import annotations

import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from clips import write_clip
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError
from openmarigold.serving.app import create_app
from openmarigold.serving.bodies import unpacked
from openmarigold.serving.clips import make_clip_request, predict_clip
from openmarigold.serving.jobs import Jobs, photos_of_zip
from openmarigold.serving.requests import PredictRequest
from openmarigold.serving.service import NoModelError, QueueFullError, Service, StoppingError
from openmarigold.serving.settings import ServeConfig
from openmarigold.video.run import video_file
from openmarigold.video.settings import VideoConfig
from servers import SIDE, picture, post, running, until, with_model


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with running() as one:
        yield one


# -------------------------------------------------------------------------------------------------------------- queue


class Blocked(Service):
    """A service whose predictions wait for `go`."""

    def __init__(self, limits: ServeConfig) -> None:
        super().__init__(PredictConfig(), limits)
        with_model(self)
        self.go = threading.Event()

    def _answer(self, items: Any) -> None:
        self.go.wait(20)
        super()._answer(items)


REQUEST = PredictRequest(photo=picture(), modality=None, call={}, output=OutputConfig(format=("npy",)))


@contextmanager
def blocked(**limits: Any) -> Iterator[Blocked]:
    service = Blocked(ServeConfig(threads=1, **limits))
    service.start()
    yield service
    service.go.set()
    service.stop(20.0)


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    with blocked(max_queue=2) as service:
        futures = [service.submit(REQUEST)]
        until(lambda: service.num_running == 1)
        futures += [service.submit(REQUEST) for _ in range(2)]
        with pytest.raises(QueueFullError) as caught:
            service.submit(REQUEST)
        assert caught.value.retry_after >= 1
        futures[2].cancel()  # makes room
        futures[2] = service.submit(REQUEST)
        service.go.set()
        assert [list(future.result(20).files) for future in futures] == [["photo_depth.npy"]] * 3


def test_stopping_finishes_what_has_come_in() -> None:
    with blocked() as service:
        futures: list[Future[Any]] = [service.submit(REQUEST) for _ in range(3)]
        stopper = threading.Thread(target=service.stop, args=(20.0,))
        stopper.start()
        until(lambda: service._stopping)
        with pytest.raises(StoppingError):
            service.submit(REQUEST)
        service.go.set()
        stopper.join(20)
        assert all(future.result(0).files for future in futures)
        assert service._folder is not None and not service._folder.exists()


def test_stopping_cancels_what_does_not_finish_in_time() -> None:
    with blocked() as service:
        futures: list[Future[Any]] = [service.submit(REQUEST) for _ in range(2)]
        until(lambda: service.num_running == 1)
        assert service.stop(0.1) is False
        assert futures[1].cancelled()
        with pytest.raises(StoppingError, match="has stopped"):
            futures[0].result(1)


def test_an_end_that_is_asked_for_before_the_start_leaves_nothing() -> None:
    service = Blocked(ServeConfig())
    assert service.stop(0.1)
    service.start()
    assert service._folder is None and not service.is_alive


def test_a_full_queue_is_429_and_a_long_prediction_504() -> None:
    config = ServeConfig(threads=1, max_queue=1, time_limit=1.0)
    service = Blocked(config)
    with TestClient(create_app(service, config), base_url="http://localhost") as client:
        until(lambda: client.get("/readyz").status_code == 200)
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(post(client).status_code)) for _ in range(2)]
        threads[0].start()
        until(lambda: service.num_running == 1)
        threads[1].start()
        until(lambda: service.num_waiting == 1)
        full = post(client)
        assert full.status_code == 429
        assert int(full.headers["retry-after"]) >= 1
        for thread in threads:
            thread.join(20)
        assert statuses == [504, 504]
        service.go.set()
        until(lambda: service.num_running == 0)
        assert post(client).status_code == 200


def test_what_is_not_done_when_the_server_ends_is_503() -> None:
    config = ServeConfig(threads=1)
    service = Blocked(config)
    with TestClient(create_app(service, config), base_url="http://localhost") as client:
        until(lambda: client.get("/readyz").status_code == 200)
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(post(client).status_code)) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: service.num_running == 1 and service.num_waiting == 1)
        service.stop(0.1)
        for thread in threads:
            thread.join(20)
        assert statuses == [503, 503]
        service.go.set()


def test_a_checkpoint_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    service = Service(PredictConfig(), ServeConfig())
    service._bases[0].load = lambda others=(): (_ for _ in ()).throw(InvalidValueError("no such device"))
    service.start()
    until(lambda: service.load_error is not None)
    with pytest.raises(NoModelError, match="cannot be loaded: no such device"):
        service.submit(REQUEST)
    service.stop(1.0)


# --------------------------------------------------------------------------------------------------------------- jobs


def _ended(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    def told() -> dict[str, Any]:
        return client.get(f"/v1/jobs/{job['id']}").json()

    until(lambda: told()["state"] not in ("waiting", "running"))
    return told()


def test_a_job_of_photos_and_a_zip(client: TestClient) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("rooms/one.png", picture(40, 40))
        archive.writestr("../../two.png", picture(48, 40))
        archive.writestr("bad.jpg", b"no picture")
    files = [("photo", ("cat.png", picture())), ("photo", ("all.zip", packed.getvalue()))]
    answer = client.post("/v1/jobs", files=files, data={"format": "npy"})
    assert answer.status_code == 202
    told = _ended(client, answer.json())
    assert (told["state"], told["total"], told["done"]) == ("done", 4, 3)
    assert [entry["name"] for entry in told["failed"]] == ["bad"]
    result = client.get(f"/v1/jobs/{told['id']}/result")
    with zipfile.ZipFile(io.BytesIO(result.content)) as archive:
        assert sorted(archive.namelist()) == ["cat_depth.npy", "rooms/one_depth.npy", "two_depth.npy"]
        alone = post(client, picture(40, 40), "application/x-npy").content
        assert archive.read("rooms/one_depth.npy") == alone
    events = client.get(f"/v1/jobs/{told['id']}/events").text
    assert json.loads(events.strip().rpartition("data: ")[2])["done"] == 3
    assert client.delete(f"/v1/jobs/{told['id']}").status_code == 204
    assert client.get(f"/v1/jobs/{told['id']}").status_code == 404


def test_a_job_takes_no_choice_of_a_file(client: TestClient) -> None:
    answer = client.post("/v1/jobs", files={"photo": ("a.png", picture())}, data={"file": "nonsense"})
    assert answer.status_code == 400 and "a job's zip holds all files" in answer.json()["error"]
    body = client.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert all("file" not in content["schema"]["properties"] for content in body.values())


def test_many_jobs_are_bounded() -> None:
    config = ServeConfig(threads=1, max_jobs=2)
    service = Blocked(config)
    with TestClient(create_app(service, config), base_url="http://localhost") as client:
        until(lambda: client.get("/readyz").status_code == 200)
        statuses = [client.post("/v1/jobs", files={"photo": ("a.png", picture())}).status_code for _ in range(3)]
        assert statuses == [202, 202, 429]
        service.go.set()


def test_photos_of_jobs_are_bounded_in_memory() -> None:
    config = ServeConfig(threads=1, max_megabytes=1.02 * len(REQUEST.photo) / 1e6)
    service = Blocked(config)
    service.start()
    jobs = Jobs(service)
    jobs.start()
    kept = [jobs.add({str(number): REQUEST for number in range(4)}) for _ in range(2)]  # eight, of which one is begun
    with pytest.raises(QueueFullError):
        jobs.add({"one": REQUEST, "other": REQUEST})
    service.go.set()
    until(lambda: all(job.ended is not None for job in kept))
    assert jobs._held == 0
    jobs.add({str(number): REQUEST for number in range(8)})  # there is room again
    jobs.stop()
    service.stop(5.0)


def test_archives_are_unpacked_one_at_a_time_and_only_if_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", picture())
    at_once, most = [0], []

    def slowly(*given: Any) -> list[tuple[str, bytes]]:
        at_once[0] += 1
        most.append(at_once[0])
        time.sleep(0.05)
        at_once[0] -= 1
        return unpacked(*given)

    monkeypatch.setattr("openmarigold.serving.app.unpacked", slowly)
    config = ServeConfig(threads=1, max_jobs=3)
    service = Blocked(config)
    with TestClient(create_app(service, config), base_url="http://localhost") as client:
        until(lambda: client.get("/readyz").status_code == 200)
        files = {"photo": ("a.zip", packed.getvalue())}
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: client.post("/v1/jobs", files=files).status_code, range(6)))
        service.go.set()
    assert sorted(answers) == [202, 202, 202, 429, 429, 429]
    assert most == [1, 1, 1]


def test_a_job_without_photos_and_unknown_jobs(client: TestClient) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w"):
        pass
    answer = client.post("/v1/jobs", files={"photo": ("empty.zip", packed.getvalue())})
    assert answer.status_code == 422
    assert client.get("/v1/jobs/..%2f..%2fetc").status_code == 404
    assert client.get("/v1/jobs/nothing/result").status_code == 404


def test_an_archive_that_unpacks_to_too_much_is_refused() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(5_000_000))
    with pytest.raises(InvalidValueError, match="larger than 1000000 bytes"):
        list(photos_of_zip(packed.getvalue(), 1_000_000))
    with pytest.raises(InvalidValueError, match="cannot be read"):
        list(photos_of_zip(packed.getvalue()[:-30], 10_000_000))


# -------------------------------------------------------------------------------------------------------------- clips


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "walk.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frames = [np.roll(np.asarray(Image.open(io.BytesIO(picture(64, 48)))), number, axis=1) for number in range(4)]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_clip_gives_the_files_of_video(client: TestClient, clip_file: Path, tmp_path: Path) -> None:
    config = PredictConfig(processing_resolution=SIDE, seed=5)
    video_file(clip_file, tmp_path / "out", config=config, video=VideoConfig(format=("colored", "npy"), every=2))
    files = {"clip": ("../walk.mp4", clip_file.read_bytes())}
    answer = client.post("/v1/jobs", files=files, data={"format": "colored,npy", "every": "2", "seed": "5"})
    assert answer.status_code == 202, answer.text
    told = _ended(client, answer.json())
    assert (told["state"], told["total"], told["done"], told["failed"]) == ("done", 2, 2, [])
    result = client.get(f"/v1/jobs/{told['id']}/result")
    with zipfile.ZipFile(io.BytesIO(result.content)) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    wanted = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert set(found) == set(wanted)
    record = json.loads(found.pop("walk_depth.json"))
    assert record["num_frames"] == 2
    assert "/" not in record["input"] and "input_path" not in record
    assert {name.partition("/")[0] for name in found} == set(record["outputs"])
    assert (told["problem"], told["notes"]) == (None, [])
    wanted.pop("walk_depth.json")
    assert found == wanted


def test_a_clip_that_is_cut_off_is_told(client: TestClient, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), dtype=np.uint8)
    whole = write_clip(tmp_path / "a.mkv", list(noise)).read_bytes()
    files = {"clip": ("a.mkv", whole[: len(whole) // 3])}
    told = _ended(client, client.post("/v1/jobs", files=files, data={"format": "png"}).json())
    assert told["state"] == "done" and told["problem"].startswith("the clip is cut off"), told


def test_frames_that_are_only_decoded_are_bounded_and_can_be_cancelled(tmp_path: Path) -> None:
    gray = np.full((48, 64, 3), 90, np.uint8)
    clip = write_clip(tmp_path / "a.mkv", [gray] * 100, codec="libx264", pixel_format="yuv420p").read_bytes()
    request = make_clip_request(clip, "a.mkv", {"every": "100000", "format": "png"}, ServeConfig())
    with running(max_frames=4) as client:
        files = {"clip": ("a.mkv", clip)}
        told = _ended(client, client.post("/v1/jobs", files=files, data={"every": "100000"}).json())
        assert told["state"] == "failed"
        assert told["failed"][0]["error"].startswith("more than 80 frames of the clip must be decoded; give end")
    with blocked() as service:
        until(lambda: service.is_ready)
        decoded = []

        def check() -> None:
            decoded.append(1)
            if len(decoded) == 50:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            predict_clip(request, service, tmp_path, "a", report=lambda done, total: None, check=check)
    assert len(decoded) == 50


@pytest.mark.parametrize(
    ("content", "data", "status", "word"),
    [
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", {}, 422, "not a video file"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", {}, 422, "not a video file"),
        (None, {"format": "mp5"}, 400, "mp5"),
        (None, {"raw_size": "9x9"}, 400, "raw_size"),
        (None, {"look_ahead": "64"}, 400, "look_ahead=64"),
        (None, {"ensemble_size": "1000"}, 400, "at most"),
        (None, {"modality": "normals"}, 400, "not offered"),
    ],
)
def test_clips_that_are_refused(
    client: TestClient, clip_file: Path, content: bytes | None, data: dict[str, str], status: int, word: str
) -> None:
    answer = client.post("/v1/jobs", files={"clip": ("a.mp4", content or clip_file.read_bytes())}, data=data)
    assert answer.status_code == status
    assert word in answer.json()["error"]


def test_jobs_end_when_the_service_does(clip_file: Path) -> None:
    with blocked() as service:
        until(lambda: service.is_ready)
        assert service.is_alive
        jobs = Jobs(service)
        jobs.start()
        first = jobs.add({"one": REQUEST, "other": REQUEST})
        until(lambda: service.num_running)
        later = jobs.add_clip("clip", make_clip_request(clip_file.read_bytes(), "a.mp4", {}, service.limits))
        stopper = threading.Thread(target=service.stop, args=(20.0,))
        stopper.start()
        until(lambda: service.is_stopping)
        service.go.set()
        until(lambda: first.ended and later.ended)  # before `Jobs.stop`, which waits for who listens to events
        stopper.join(20)
        assert (first.state, first.done, later.state, later.done) == ("cancelled", 1, "cancelled", 0)
        assert not service.is_alive
        jobs.stop()


def test_clips_are_bounded(clip_file: Path) -> None:
    with running(max_frames=2, max_result_megabytes=0.05) as client:

        def failure(data: dict[str, str], content: bytes | None = None) -> str:
            files = {"clip": ("a.mp4", content or clip_file.read_bytes())}
            told = _ended(client, client.post("/v1/jobs", files=files, data=data).json())
            assert (told["state"], client.get(f"/v1/jobs/{told['id']}/result").status_code) == ("failed", 409)
            return told["failed"][0]["error"]

        assert "more than 2 frames" in failure({})
        assert "results are larger than 0.05 MB" in failure({"every": "2", "format": "npy,exr,ffv1,colored"})
        damaged = failure({}, clip_file.read_bytes()[:200])
        assert damaged.startswith("the clip") and "/tmp" not in damaged
