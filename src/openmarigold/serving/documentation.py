# SPDX-License-Identifier: Apache-2.0
"""The parts of /openapi.json that FastAPI cannot derive (bodies, answers); and /docs, the interface as a page to read
and try, by Swagger UI from the package fastapi-offline, without a CDN.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, TypeAlias

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from openmarigold.serving.clips import ClipSettings
from openmarigold.serving.formats import JSON, MEDIA_TYPES, ZIP
from openmarigold.serving.requests import Settings

Responses: TypeAlias = dict[int | str, dict[str, Any]]

_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "status": {"type": "integer"}, "request_id": {"type": "string"}},
    "required": ["error", "status", "request_id"],
}
_BINARY = {"type": "string", "format": "binary"}
_TINY_PNG = (  # 4x4, gray
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAAAAACMmsGiAAAAEElEQVR4nGOMYmBgYGJAIQAHEgBiAf1cvgAAAABJRU5ErkJggg=="
)
_FORMAT = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}],
    "description": "Of an archive: npy, png, npz, exr, ply, glb, with commas between.",
}
_RECORD = {
    "type": "boolean",
    "description": "Of an archive: adds photo.json with what the maps are, the record and notes.",
}
_MEANINGS = {
    400: "A setting that is not accepted, or a body that does not hold what it should.",
    401: "The token is missing or wrong.",
    403: "The request comes from another site's page.",
    404: "There is no such job, or no longer.",
    406: "None of what Accept names is offered.",
    408: "The body did not arrive in time.",
    409: "The job is not done.",
    413: "The body or the photo is too large.",
    415: "The content type is not accepted.",
    421: "The host is not this server.",
    422: "The photo cannot be read.",
    429: "Too many requests wait; Retry-After says when to come again [s].",
    501: "The server lacks an optional part.",
    503: "The server is loading or stopping.",
    504: "The prediction took too long.",
}


def errors(*statuses: int) -> Responses:
    """What an operation may answer instead."""
    return {status: {"description": _MEANINGS[status], "content": {JSON: {"schema": _ERROR}}} for status in statuses}


_ALWAYS = (401, 403, 421)
NOT_READY: Responses = {
    503: {"description": "Not yet, or no longer.", "content": {JSON: {"schema": {"type": "object"}}}}
}
NO_JOB: Responses = errors(404, *_ALWAYS)
FACTS: Responses = errors(400, 501, 503, *_ALWAYS)
RESULT: Responses = {200: {"content": {ZIP: {"schema": _BINARY}}}, **errors(404, 409, *_ALWAYS)}


def predict_responses() -> Responses:
    """Responses of /v1/predict."""
    files = {media: {"schema": _BINARY} for media in (*MEDIA_TYPES, ZIP)}
    found = {"description": "A file, or a description.", "content": {**files, JSON: {"schema": {"type": "object"}}}}
    return {200: found, **errors(400, 406, 408, 413, 415, 422, 429, 501, 503, 504, *_ALWAYS)}


def job_responses() -> Responses:
    """Responses of POST /v1/jobs, with links to the operations that take the job's id."""
    links = {
        name: {"operationId": name, "parameters": {"job_id": "$response.body#/id"}}
        for name in ("show_job", "delete_job", "job_result")
    }
    accepted: Responses = {202: {"links": links}}
    return {**accepted, **errors(400, 408, 413, 415, 422, 429, 501, 503, *_ALWAYS)}


def _settings() -> dict[str, Any]:
    return {**Settings.model_json_schema()["properties"], "format": _FORMAT}


def settings_query() -> dict[str, Any]:
    """The settings as parameters of a query."""
    names = {name: schema for name, schema in _settings().items() if name not in ("modality", "file")}
    return {"parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in names.items()]}


def predict_body() -> dict[str, Any]:
    """Body of a request to /v1/predict: a form with a file, or JSON with base64."""
    return _body(_BINARY, {"record": _RECORD})


def job_body() -> dict[str, Any]:
    """Body of a request to /v1/jobs: photos, or zips of them; or a clip."""
    body = _body({"type": "array", "items": _BINARY}, {})
    form = body["requestBody"]["content"]["multipart/form-data"]["schema"]
    formats = {
        "type": "string",
        "description": "With commas between. Of photos: npy, png, npz, exr, ply, glb. Of a clip: colored, sidebyside, "
        "ffv1, npy, exr, png.",
    }
    of_clips = ClipSettings.model_json_schema()["properties"]
    form["properties"] = {**of_clips, **form["properties"], "clip": _BINARY, "format": formats}
    for content in body["requestBody"]["content"].values():
        del content["schema"]["properties"]["file"]
    form["anyOf"] = [{"required": form.pop("required")}, {"required": ["clip"]}]
    return body


def _body(photo: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    form = {"type": "object", "required": ["photo"], "properties": {"photo": photo, **_settings(), **more}}
    encoded = {"type": "string", "contentEncoding": "base64", "examples": [_TINY_PNG]}
    body = {"type": "object", "required": ["photo"], "properties": {"photo": encoded, **_settings(), **more}}
    return {
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form}, JSON: {"schema": body}},
        }
    }


_PLACE = "/docs/static"


def add_docs(app: FastAPI, *, with_token: bool) -> None:
    """Adds the page, and to /openapi.json that a token is needed."""
    folder = files("fastapi_offline") / "static"
    app.mount(_PLACE, StaticFiles(directory=str(folder)), name="docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url=f"{_PLACE[1:]}/swagger-ui-bundle.js",
            swagger_css_url=f"{_PLACE[1:]}/swagger-ui.css",
            swagger_favicon_url=f"{_PLACE[1:]}/favicon.png",
        )

    if with_token:
        _ask_for_token(app)


def _ask_for_token(app: FastAPI) -> None:
    describe = app.openapi

    def openapi() -> dict[str, object]:
        schema = describe()
        schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        return schema

    app.openapi = openapi
