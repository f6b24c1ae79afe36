# SPDX-License-Identifier: Apache-2.0
"""The page at `/`: the files that web/ builds, and what they must know of this server (`GET /v1/page`)."""

from __future__ import annotations

import gzip
import hashlib
import json
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.responses import Response

from openmarigold import __version__
from openmarigold.config import CallConfig, FileFormat, ModelConfig, OutputConfig, PredictConfig
from openmarigold.errors import MissingExtraError
from openmarigold.images.exr import require_exr
from openmarigold.modalities.colors import color_table
from openmarigold.predictor.model_run import ModelRun
from openmarigold.results.surfaces import SPACE_FORMATS
from openmarigold.serving.service import Service
from openmarigold.serving.settings import ServeConfig
from openmarigold.text_files import parse_json

PAGE_DIR = Path(__file__).parent / "page"
# What the page offers; all but the first need the extra `plots`.
_COLOR_MAPS = ("Spectral", "viridis", "magma", "cividis", "turbo", "gray")
_NOT_SHOWN = frozenset({"checkpoint", "modality", "device", "local_files_only", "compile"})
"""Settings of the model that do not shape results, or are stated by themselves."""
_MAP_FACTS = ("name", "file_name", "channels", "range", "unit", "space")
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), geolocation=(), microphone=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}
_NOT_BUILT = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>OpenMarigold</title>
<h1>OpenMarigold</h1>
<p>The API answers, but the page is not built in this clone of the repository.
Run <code>make page</code> (or <code>python web/build.py</code>) and start the server again.</p>
<p><a href="openapi.json">The API</a></p>
</html>
"""


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str

    @cached_property
    def zipped(self) -> bytes | None:
        """The compressed bytes; None if compression saves little."""
        small = gzip.compress(self.content, 9, mtime=0)
        return small if len(small) < 0.9 * len(self.content) else None

    @cached_property
    def etag(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:20]


def add_page(app: FastAPI, service: Service, limits: ServeConfig) -> None:
    """Adds the page to the application. Its files need no token; its requests to `/v1` do."""
    found = _files(PAGE_DIR)
    index = found.get("index.html", _File(_NOT_BUILT.encode(), "text/html; charset=utf-8"))

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return _answer(request, index)

    @app.api_route("/page/{name:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        if name not in found:
            return Response("there is no such file\n", 404, media_type="text/plain")
        return _answer(request, found[name])

    @app.get("/v1/page", include_in_schema=False)
    async def facts() -> Response:
        told = json.dumps(_facts(service, limits, found))
        return Response(told, media_type="application/json", headers={"cache-control": "no-store"})

    # Not a coroutine: the first one imports matplotlib.
    @app.get("/v1/page/colors/{name}", include_in_schema=False)
    def colors(name: str) -> Response:
        if name not in _COLOR_MAPS:
            return Response("there is no such color map\n", 404, media_type="text/plain")
        return Response(color_table(name)[:-1].tobytes(), media_type="application/octet-stream")


def _files(folder: Path) -> dict[str, _File]:
    """All files of the built page by their path in it."""
    if not (folder / "index.html").is_file():
        return {}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _File(path.read_bytes(), _type_of(path)) for path in paths}


def _type_of(path: Path) -> str:
    # Of what browsers refuse under another type, the tables of the machine are not asked.
    fixed = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
    found = fixed.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"{found}; charset=utf-8" if found.startswith("text/") else found


def _answer(request: Request, file: _File) -> Response:
    codings = [word.partition(";")[0].strip() for word in request.headers.get("accept-encoding", "").split(",")]
    small = file.zipped if "gzip" in codings else None
    tag = f'"{file.etag}{"-gzip" if small is not None else ""}"'
    headers = {**_HEADERS, "etag": tag}
    if tag in (word.strip().removeprefix("W/") for word in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    if small is not None:
        headers["content-encoding"] = "gzip"
    content = file.content if small is None else small
    headers["content-length"] = str(len(content))
    return Response(b"" if request.method == "HEAD" else content, media_type=file.media_type, headers=headers)


def _facts(service: Service, limits: ServeConfig, found: Mapping[str, _File]) -> dict[str, Any]:
    names = parse_json(found["examples.json"].content) if "examples.json" in found else []
    return {
        "version": __version__,
        "modalities": [_modality_facts(run) for run in service.models.values()],
        "defaults": {
            name: value
            for name, value in {**vars(CallConfig()), **vars(OutputConfig())}.items()
            if isinstance(value, (bool, int, float, str, type(None)))
        },
        "formats": _formats(),
        "color_maps": list(_COLOR_MAPS if find_spec("matplotlib") else _COLOR_MAPS[:1]),
        "limits": {name: getattr(limits, name) for name in ("max_bytes", "max_pixels", "max_resolution", "max_passes")},
        "examples": names,
    }


def _modality_facts(run: ModelRun) -> dict[str, Any]:
    """One model, without a path of this machine."""
    modality, config = run.writes, run.config
    model = _changed(config, ModelConfig)
    if config.checkpoint is not None:
        model = {"checkpoint": _without_folder(config.checkpoint), **model}
    return {
        "name": modality.name,
        "title": modality.title,
        "checkpoint": run.checkpoint.name,
        "stated": list(config.modality),
        "model": model,
        "call": _changed(config, CallConfig),
        "invariance": run.checkpoint.invariance,
        "space": modality.space,
        "has_surface": modality.surface is not None,
        "uncertainties": list(modality.uncertainties),
        "maps": [{name: getattr(kind, name) for name in _MAP_FACTS} for kind in modality.maps],
    }


def _changed(config: PredictConfig, part: type[ModelConfig | CallConfig]) -> dict[str, Any]:
    """The settings of a part that differ from their defaults."""
    return {
        setting.name: _without_folder(getattr(config, setting.name))
        for setting in fields(part)
        if setting.name not in _NOT_SHOWN and getattr(config, setting.name) != setting.default
    }


def _without_folder(value: Any) -> Any:
    """A setting as JSON; of a path of this machine only the name."""
    if isinstance(value, Path):
        return value.name if value.exists() or value.is_absolute() else value.as_posix()
    return value


def _formats() -> list[str]:
    """The formats that this server can write; points and meshes last."""
    try:
        require_exr()
        missing = []
    except MissingExtraError:
        missing = ["exr"]
    known = [name for name in get_args(FileFormat) if name not in missing]
    return sorted(known, key=lambda name: name in SPACE_FORMATS)
