# SPDX-License-Identifier: Apache-2.0
"""/docs: the interface as a page to read and try, by Swagger UI from the package fastapi-offline, without a CDN."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

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
