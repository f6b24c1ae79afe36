# SPDX-License-Identifier: Apache-2.0
"""The HTTP interface: /v1/predict, /v1/jobs, /healthz, /readyz, /metrics and /openapi.json."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from openmarigold import __version__
from openmarigold.config import FileFormat
from openmarigold.errors import ImageError, InvalidValueError, MissingExtraError, OpenMarigoldError
from openmarigold.images.decoders import TooManyPixelsError
from openmarigold.serving import documentation
from openmarigold.serving.bodies import body_of, formats_of, is_true, is_zip, unpacked
from openmarigold.serving.clips import make_clip_request
from openmarigold.serving.documentation import add_docs
from openmarigold.serving.formats import (
    ACCEPTED,
    JSON,
    MEDIA_TYPES,
    RECORD_FILE,
    ZIP,
    chosen_file,
    media_type_of,
    negotiated,
    zipped,
)
from openmarigold.serving.guard import Guard, Metrics
from openmarigold.serving.jobs import Job, Jobs, check_number, result_names
from openmarigold.serving.page import add_page
from openmarigold.serving.requests import PredictRequest, make_request
from openmarigold.serving.service import (
    Answer,
    LoadingError,
    NoModelError,
    QueueFullError,
    Service,
    StoppingError,
    about_model,
)
from openmarigold.serving.settings import ServeConfig

_LONGEST_MESSAGE = 1500
_POLL_S, _KEEP_ALIVE_S = 0.2, 15.0


def create_app(service: Service, limits: ServeConfig, token: str | None = None) -> Any:
    """The ASGI application. It starts and stops the service.

    Args:
        service: its models, not yet started.
        limits: bounds of requests.
        token: the token that requests must send; None: requests need none.
    """
    jobs, metrics = Jobs(service), Metrics(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        jobs.start()
        yield
        await run_in_threadpool(jobs.stop)
        await run_in_threadpool(service.stop, limits.drain_time)

    app = FastAPI(title="OpenMarigold", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_state(app, metrics, service, limits)
    _add_predict(app, service, limits)
    _add_jobs(app, service, jobs, limits)
    _add_job_results(app, jobs)
    add_page(app, service, limits)
    _add_errors(app)
    add_docs(app, with_token=token is not None)
    return Guard(app, limits, token, metrics)


def _add_state(app: FastAPI, metrics: Metrics, service: Service, limits: ServeConfig) -> None:
    @app.get("/healthz", summary="Whether the process answers", response_class=PlainTextResponse)
    async def healthz() -> str:
        return "ok\n"

    @app.get("/readyz", summary="Whether the models are loaded", responses=documentation.NOT_READY)
    async def readyz() -> JSONResponse:
        if service.load_error is not None:
            return JSONResponse({"ready": False, "error": str(service.load_error)}, 503)
        if not service.is_ready:
            return JSONResponse({"ready": False}, 503, {"retry-after": "1"})
        return JSONResponse({"ready": True})

    @app.get("/metrics", summary="Counts and times for Prometheus", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", summary="What is offered")
    async def models() -> dict[str, Any]:
        offered = {name: about_model(run) for name, run in service.models.items()}
        return {"version": __version__, "modalities": offered, "media_types": list(ACCEPTED)}

    @app.get(
        "/v1/models/{modality}",
        summary="What a request with these settings would be answered with, whatever the photo",
        openapi_extra=documentation.settings_query(),
        responses=documentation.FACTS,
    )
    async def model_facts(modality: str, request: Request) -> dict[str, Any]:
        given: dict[str, Any] = dict(request.query_params)
        formats = formats_of(given, ZIP)
        asked = make_request(b"", {**given, "modality": modality}, formats, limits)
        return {"version": __version__, **service.facts(asked)}


def _add_predict(app: FastAPI, service: Service, limits: ServeConfig) -> None:
    @app.post(
        "/v1/predict",
        summary="The maps of a photo",
        openapi_extra=documentation.predict_body(),
        responses=documentation.predict_responses(),
        response_class=Response,
    )
    async def predict(request: Request) -> Response:
        media = negotiated(request.headers.get("accept"))
        if media is None:
            raise HTTPException(406, f"none of what Accept names is offered; known are {', '.join(ACCEPTED)}")
        body = await body_of(request)
        given, formats = body.given, formats_of(body.given, media)
        with_record = is_true(given.pop("record", ""))
        if body.clips or len(body.photos) != 1:
            raise InvalidValueError(
                f"the request holds {len(body.photos)} photos and {len(body.clips)} clips; give one photo, or make a "
                "job (/v1/jobs)"
            )
        name, content = body.photos[0]
        asked = make_request(content, given, formats, limits, name, is_json=body.is_json)
        answer = await _answered(service, asked, request, limits)
        return await run_in_threadpool(_response, service, answer, asked, media, with_record)


async def _answered(service: Service, asked: PredictRequest, request: Request, limits: ServeConfig) -> Answer:
    """The answer, unless the time runs out or the client disconnects."""
    future = service.submit(asked)
    waiting = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        done, _ = await asyncio.wait({waiting, gone}, timeout=limits.time_limit, return_when=asyncio.FIRST_COMPLETED)
        if waiting in done and waiting.cancelled():
            raise StoppingError("the server has stopped before this was begun; try another one, or later")
        if waiting in done:
            return waiting.result()
        future.cancel()
        if gone in done:
            raise HTTPException(499, "the client has gone")
        raise HTTPException(504, f"the prediction took more than {limits.time_limit:g} s; ask for less")
    finally:
        gone.cancel()
        waiting.cancel()
        with suppress(BaseException):
            await waiting


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(service: Service, answer: Answer, asked: PredictRequest, media: str, with_record: bool) -> Response:
    if media == JSON:
        return JSONResponse(service.describe(answer))
    if media == ZIP:
        record = {RECORD_FILE: json.dumps(service.describe(answer)).encode()} if with_record else {}
        return Response(zipped({**answer.files, **record}), media_type=ZIP, headers=_named("photo.zip"))
    suffix = MEDIA_TYPES[media]
    names = [name for name in answer.files if name.endswith(f".{suffix}")]
    name = chosen_file(names, asked.file)
    if name is None:
        raise InvalidValueError(f"file={asked.file!r} is not there; of this format there are {', '.join(names)}")
    return Response(answer.files[name], media_type=media_type_of(name), headers=_named(name))


def _named(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"'}


def _add_jobs(app: FastAPI, service: Service, jobs: Jobs, limits: ServeConfig) -> None:
    unpacking = asyncio.Semaphore(1)  # small archives may hold much: one is unpacked at a time, if there is room for it

    @app.post(
        "/v1/jobs",
        summary="Start the prediction of many photos, or of a clip",
        status_code=202,
        openapi_extra=documentation.job_body(),
        responses=documentation.job_responses(),
    )
    async def add_job(request: Request) -> JSONResponse:
        body = await body_of(request)
        given = body.given
        if body.clips:
            if body.photos or len(body.clips) > 1:
                raise InvalidValueError("a job takes photos, or one clip; make a job for each")
            name, content = body.clips[0]
            clip = await run_in_threadpool(make_clip_request, content, name, given, limits)
            service.model(clip.modality)
            job = jobs.add_clip(result_names([name or "clip"])[0], clip)
        else:
            formats = formats_of(given, ZIP)
            size = sum(len(content) for _, content in body.photos)
            jobs.check_room(size)  # nothing waits for the archives of others in vain
            async with unpacking if any(is_zip(content) for _, content in body.photos) else nullcontext():
                jobs.check_room(size)
                photos = await run_in_threadpool(unpacked, body.photos, limits.max_bytes)
                job = jobs.add(_photos_of_job(photos, given, formats, limits, is_json=body.is_json))
        return JSONResponse(job.to_dict(), 202, {"location": f"/v1/jobs/{job.id}"})

    @app.get("/v1/jobs/{job_id}", operation_id="show_job", summary="How far a job is", responses=documentation.NO_JOB)
    async def show_job(job_id: str) -> dict[str, Any]:
        return _found(jobs, job_id).to_dict()

    @app.delete(
        "/v1/jobs/{job_id}",
        operation_id="delete_job",
        summary="End a job and drop its results",
        status_code=204,
        responses=documentation.NO_JOB,
    )
    async def delete_job(job_id: str) -> Response:
        jobs.cancel(_found(jobs, job_id))
        return Response(status_code=204)


def _photos_of_job(
    photos: Sequence[tuple[str, bytes]],
    given: Mapping[str, Any],
    formats: tuple[FileFormat, ...],
    limits: ServeConfig,
    *,
    is_json: bool,
) -> dict[str, PredictRequest]:
    """The request of each photo, by what its results begin with."""
    check_number(len(photos))
    if given.get("file"):
        raise InvalidValueError(f"file={given['file']!r:.80} was given, but a job's zip holds all files; leave it out")
    names = result_names(name for name, _ in photos)
    requests = [make_request(content, given, formats, limits, name, is_json=is_json) for name, content in photos]
    return dict(zip(names, requests, strict=True))


def _found(jobs: Jobs, job_id: str) -> Job:
    job = jobs.find(job_id)
    if job is None:
        raise HTTPException(404, "there is no such job, or no longer")
    return job


def _add_job_results(app: FastAPI, jobs: Jobs) -> None:
    @app.get(
        "/v1/jobs/{job_id}/events",
        summary="Its progress, as server-sent events",
        responses=documentation.NO_JOB,
        response_class=StreamingResponse,
    )
    async def job_events(job_id: str) -> StreamingResponse:
        return StreamingResponse(
            _events(_found(jobs, job_id)), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    @app.get(
        "/v1/jobs/{job_id}/result",
        operation_id="job_result",
        summary="The zip of its results",
        responses=documentation.RESULT,
        response_class=FileResponse,
    )
    async def job_result(job_id: str) -> FileResponse:
        job = _found(jobs, job_id)
        if job.result is None:
            raise HTTPException(409, f"the job is {job.state}; its results are there when it is done")
        return FileResponse(job.result, media_type=ZIP, filename=f"{job.id}.zip")


async def _events(job: Job) -> AsyncIterator[str]:
    told, idle = -1, 0.0
    while True:
        if job.version != told:
            told, idle = job.version, 0.0
            yield f"event: progress\ndata: {json.dumps(job.to_dict())}\n\n"
        if job.ended is not None and told == job.version:
            return
        await asyncio.sleep(_POLL_S)
        idle += _POLL_S
        if idle >= _KEEP_ALIVE_S:
            idle = 0.0
            yield ": still here\n\n"


_STATUS: Mapping[type[Exception], int] = {
    QueueFullError: 429,
    StoppingError: 503,
    LoadingError: 503,
    NoModelError: 503,
    TooManyPixelsError: 413,
    ImageError: 422,
    MissingExtraError: 501,
    InvalidValueError: 400,
}


def _add_errors(app: FastAPI) -> None:
    def reply(request: Request, status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
        request_id = getattr(request.state, "request_id", "")
        message = " ".join(message.split())[:_LONGEST_MESSAGE]  # which may repeat what was sent
        return JSONResponse({"error": message, "status": status, "request_id": request_id}, status, headers)

    @app.exception_handler(OpenMarigoldError)
    async def known(request: Request, error: OpenMarigoldError) -> JSONResponse:
        status = next((status for error_type, status in _STATUS.items() if isinstance(error, error_type)), 500)
        wait = {StoppingError: 10, LoadingError: 1}.get(type(error))
        if isinstance(error, QueueFullError):
            wait = error.retry_after
        return reply(request, status, str(error), None if wait is None else {"retry-after": str(wait)})

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return reply(request, error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> JSONResponse:
        del error
        return reply(request, 499, "the client disconnected before its body was complete")

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        del error  # starlette raises it again for the log
        return reply(request, 500, "a fault of openmarigold itself; the server's log has more at this request_id")
