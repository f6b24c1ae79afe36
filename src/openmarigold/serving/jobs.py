# SPDX-License-Identifier: Apache-2.0
"""Long work: many photos in one request, one after another, or a clip; with a zip of the results at the end."""

from __future__ import annotations

import io
import secrets
import shutil
import tempfile
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from openmarigold.errors import ImageError, InvalidValueError, OpenMarigoldError, one_line
from openmarigold.serving.clips import ClipRequest, predict_clip
from openmarigold.serving.formats import STEM
from openmarigold.serving.requests import PredictRequest
from openmarigold.serving.service import QueueFullError, Service, StoppingError

State = Literal["waiting", "running", "done", "failed", "cancelled"]
_MAX_PHOTOS = 10_000
_LONGEST_NAME = 100
_MOST_HELD = 8  # bodies of the largest size whose photos wait in memory, at most
_FRAMES_BETWEEN_CHECKS = 16  # of the size of results


class _CancelledError(Exception):
    """Ends a clip."""


@dataclass(kw_only=True)
class Job:
    """One request for many photos, or for a clip."""

    id: str
    names: list[str]
    """What the results of each photo, or of the clip, begin with in the zip."""
    total: int | None = None
    """Photos, or frames of a clip; None where it is not known yet."""
    state: State = "waiting"
    done: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    problem: str | None = None
    """Of a clip: why it ended before its end."""
    notes: list[str] = field(default_factory=list)
    """Of a clip: warnings about it."""
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    result: Path | None = None
    cancelled: bool = False
    version: int = 0
    """One more with every change."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        spent = (self.ended or time.monotonic()) - self.started
        finished = self.done + len(self.failed)
        is_known = finished and self.total is not None and self.ended is None
        left = max(0, (self.total or 0) - finished) * spent / finished if is_known else None
        return {
            "id": self.id,
            "state": self.state,
            "total": self.total,
            "done": self.done,
            "failed": self.failed,
            "problem": self.problem,
            "notes": self.notes,
            "seconds": round(spent, 3),
            "seconds_left": None if left is None else round(left, 1),
        }


class Jobs:
    """The jobs of a server. The service's queue holds one photo at a time, of the oldest job."""

    def __init__(self, service: Service) -> None:
        self._service, self._limits = service, service.limits
        self._folder = Path()
        self._jobs: dict[str, Job] = {}
        self._requests: dict[str, deque[PredictRequest] | ClipRequest] = {}
        self._waiting: deque[str] = deque()
        self._held = 0  # bytes of photos that wait
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)

    def start(self) -> None:
        """Starts the thread that works on them."""
        self._folder = Path(tempfile.mkdtemp(prefix="openmarigold-jobs-"))
        self._thread.start()

    def add(self, photos: Mapping[str, PredictRequest]) -> Job:
        """A job for these photos, by name.

        Raises:
            QueueFullError, StoppingError: see `add_clip`.
        """
        job = Job(id=secrets.token_urlsafe(12), names=list(photos), total=len(photos))
        return self._add(job, deque(photos.values()))

    def add_clip(self, name: str, request: ClipRequest) -> Job:
        """A job for a clip, whose results begin with `name`.

        Raises:
            QueueFullError: as many jobs as are kept are unfinished, or their photos take too much memory.
            StoppingError: the server ends.
        """
        return self._add(Job(id=secrets.token_urlsafe(12), names=[name]), request)

    def check_room(self, size: int) -> None:
        """Checks that one more job whose uploads have `size` bytes would be taken now.

        Raises:
            QueueFullError, StoppingError: see `add_clip`.
        """
        with self._changed:
            if self._stopping:
                raise StoppingError("the server is stopping; try another one, or later")
            unfinished = sum(job.ended is None for job in self._jobs.values())
            is_too_much = self._held > 0 and self._held + size > _MOST_HELD * self._limits.max_bytes
            if unfinished >= self._limits.max_jobs or is_too_much:
                raise QueueFullError(60)

    def _add(self, job: Job, work: deque[PredictRequest] | ClipRequest) -> Job:
        with self._changed:
            size = _size(work)
            self.check_room(size)
            self._forget()
            self._held += size
            self._jobs[job.id] = job
            self._requests[job.id] = work
            self._waiting.append(job.id)
            self._changed.notify_all()
        return job

    def _forget(self) -> None:
        """Drops old jobs, then finished ones, oldest first, until one more job fits."""
        now = time.monotonic()
        finished = [job for job in self._jobs.values() if job.ended is not None]
        for job in finished:
            old = now - (job.ended or now) > self._limits.keep_jobs
            if old or len(self._jobs) >= self._limits.max_jobs:
                self._drop(job)

    def _drop(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        self._requests.pop(job.id, None)
        shutil.rmtree(self._folder / job.id, ignore_errors=True)

    def find(self, job_id: str) -> Job | None:
        """The job of an id; None if it does not exist, or no longer exists."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job and job.ended is not None and time.monotonic() - job.ended > self._limits.keep_jobs:
                self._drop(job)
                return None
            return job

    def cancel(self, job: Job) -> None:
        """Ends a job after its current photo; a finished job is dropped with its results."""
        with self._changed:
            job.cancelled = True
            if job.ended is not None:
                self._drop(job)
            self._changed.notify_all()

    def stop(self) -> None:
        """Ends all jobs after their current photo, and removes their results."""
        with self._changed:
            self._stopping = True
            for job in self._jobs.values():
                job.cancelled = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=self._limits.drain_time)
        if self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                job = self._jobs[self._waiting.popleft()]
                requests = self._requests.pop(job.id)
            try:
                self._set(job, "running")
                (self._folder / job.id).mkdir()
                if isinstance(requests, ClipRequest):
                    self._run_clip(job, requests)
                else:
                    self._run(job, requests)
            except OpenMarigoldError as error:
                self._fail(job, str(error))
            except Exception as error:  # noqa: BLE001 - a full disk must not end the others' work
                self._fail(job, one_line(error))
            finally:  # of photos that were not reached
                self._release(requests)

    def _ends(self, job: Job) -> bool:
        """Whether it goes no further; the end of the server may be known before `stop`, which waits for listeners."""
        return job.cancelled or self._service.is_stopping

    def _fail(self, job: Job, message: str) -> None:
        shutil.rmtree(self._folder / job.id, ignore_errors=True)
        job.failed.append({"name": "", "error": message})
        self._set(job, "failed")

    def _run(self, job: Job, requests: deque[PredictRequest]) -> None:
        with self._archive(job) as add:
            for name in job.names:
                if self._ends(job):
                    break
                request = requests.popleft()
                self._release([request])
                try:
                    answer = self._service.submit(request, bounded=False).result()
                except OpenMarigoldError as error:
                    job.failed.append({"name": name, "error": str(error)})
                else:
                    for file, content in answer.files.items():
                        add(name + file.removeprefix(STEM), content)
                    job.done += 1
                self._set(job, "running")
        self._set(job, "cancelled" if self._ends(job) else "done" if job.done else "failed")

    def _run_clip(self, job: Job, request: ClipRequest) -> None:
        folder = self._folder / job.id / "work"
        folder.mkdir()

        def check() -> None:
            if self._ends(job):
                raise _CancelledError

        def advance(done: int, total: int | None) -> None:
            check()
            if done % _FRAMES_BETWEEN_CHECKS == 0:
                self._check_size(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
            job.done, job.total = done, total if total is None else max(done, total)
            self._set(job, "running")

        try:
            with self._archive(job) as add:
                name = job.names[0]
                answer = predict_clip(request, self._service, folder, name, report=advance, check=check)
                for end, path in answer.files:
                    add(name + end, path)
                    path.unlink()
            job.problem, job.notes = answer.problem, answer.notes
            job.total = job.done
            self._set(job, "done")
        except _CancelledError:
            self._set(job, "cancelled")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _archive(self, job: Job) -> Iterator[Callable[[str, bytes | Path], None]]:
        """Yields a function that adds files to the job's zip. The zip appears only when it is complete."""
        unfinished, result = self._folder / job.id / "result.zip.part", self._folder / job.id / "result.zip"
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:

            def add(name: str, content: bytes | Path) -> None:
                size = content.stat().st_size if isinstance(content, Path) else len(content)
                self._check_size(unfinished.stat().st_size + size)
                with archive.open(zipfile.ZipInfo(name), "w", force_zip64=size > 2**31) as target:
                    if isinstance(content, Path):
                        with content.open("rb") as source:
                            shutil.copyfileobj(source, target, 2**20)
                    else:
                        target.write(content)

            yield add
        unfinished.replace(result)
        job.result = result

    def _check_size(self, size: int) -> None:
        limit = self._limits.max_result_megabytes
        if size > limit * 1e6:
            raise InvalidValueError(f"the results are larger than {limit:g} MB; ask for fewer formats, or send less")

    def _release(self, requests: Iterable[PredictRequest] | ClipRequest) -> None:
        with self._changed:
            self._held -= _size(requests)

    def _set(self, job: Job, state: State) -> None:
        with self._changed:
            job.state = state
            job.version += 1
            if state in ("done", "failed", "cancelled"):
                job.ended = time.monotonic()
            self._changed.notify_all()


def _size(work: Iterable[PredictRequest] | ClipRequest) -> int:
    """Bytes of uploads."""
    return len(work.content) if isinstance(work, ClipRequest) else sum(len(request.photo) for request in work)


def photos_of_zip(content: bytes, max_bytes: int) -> Iterable[tuple[str, bytes]]:
    """Yields the pictures of an archive with their names, folders included.

    Raises:
        ImageError: it holds too many.
        InvalidValueError: it is damaged or encrypted, or its files are larger than `max_bytes` together.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            left, number = max_bytes, 0
            for info in archive.infolist():
                name = PurePosixPath(info.filename)
                if info.is_dir() or "__MACOSX" in name.parts or name.name.startswith("."):
                    continue
                number += 1
                check_number(number)
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others state their memory
                    raise InvalidValueError("the archive is compressed by another method than deflate; pack it again")
                with archive.open(info) as file:
                    data = file.read(left + 1)  # what the archive states of a size may be wrong
                left -= len(data)
                if left < 0:
                    raise InvalidValueError(f"the files in the archive are larger than {max_bytes} bytes together")
                yield info.filename, data
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError, ValueError) as error:
        if isinstance(error, OpenMarigoldError):
            raise
        raise InvalidValueError(f"the archive cannot be read: {one_line(error)}") from None


def result_names(names: Iterable[str]) -> list[str]:
    """What results begin with, from the names of uploads: no folder above, no two alike.

    >>> result_names(["a/cat.jpg", "../../etc/cat.png", "cat.jpg", "", "x:dog.jpg"])
    ['a/cat', 'etc/cat', 'cat', 'photo', 'x_dog']
    """
    found: dict[str, None] = {}
    numbers: dict[str, int] = {}  # the last one of a stem: many names may be alike
    for name in names:
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        cleaned = [
            "".join(one if one.isprintable() and one not in '<>:"|?*' else "_" for one in part) for part in parts
        ]
        path = PurePosixPath(*[part[:_LONGEST_NAME] for part in cleaned] or [STEM])
        stem = path.with_suffix("").as_posix()
        unique, number = stem, numbers.get(stem, 1)
        while unique in found:
            number += 1
            unique = f"{stem}-{number}"
        numbers[stem] = number
        found[unique] = None
    return list(found)


def check_number(photos: int) -> None:
    """Raises ImageError for a job of no photo, or of too many."""
    if not photos:
        raise ImageError("the request holds no photo; send one or more in the field `photo`, or a zip of them")
    if photos > _MAX_PHOTOS:
        raise ImageError(f"the request holds more than {_MAX_PHOTOS} photos, which is the most that is taken")
