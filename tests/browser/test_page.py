# SPDX-License-Identifier: Apache-2.0
"""The page of `openmarigold serve` in a real browser: what it shows equals what the command line writes."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser.conftest import ROOT, Visit, map_pixels
from openmarigold.cli import run
from openmarigold.geometry import normals_from_depth

PHOTO = ROOT / "examples" / "photos" / "courtyard.jpg"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command line writes for the photo."""
    folder = tmp_path_factory.mktemp("written")
    status = run(["predict", str(PHOTO), "--output-dir", str(folder), "--modality", "depth", "--format", "npy", "png",
                  "npz", "glb", "ply", "--max-points", "200000"])  # fmt: skip
    assert status == 0
    return folder


def seen(locator: Any) -> np.ndarray:
    """A screenshot of an element, uint8 [h w 3]."""
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB"))


def fetched(visit: Visit, name: str) -> bytes:
    with visit.page.expect_download() as download:
        visit.page.click(f"[data-file={json.dumps(name)}]")
    assert download.value.suggested_filename == name
    return Path(download.value.path()).read_bytes()


# ------------------------------------------------------------------------------------------------------- maps and files


def test_a_photo_is_compared_with_its_map(visit: Visit, written: Path) -> None:
    visit.open()
    visit.shot("welcome")
    visit.predict(PHOTO)
    visit.shot("depth")
    colored = np.asarray(Image.open(written / "courtyard_depth_colored.png").convert("RGB")).astype(int)
    painted = map_pixels(visit.page).astype(int)
    assert painted.shape == colored.shape
    assert np.abs(painted - colored).max() <= 2  # computed again from the numbers, with other roundings

    photo = np.asarray(Image.open(PHOTO).convert("RGB").resize((64, 48))).astype(float)
    frame, split = visit.page.locator("#frame"), visit.page.locator("#split")
    for value, expected in ((100, photo), (0, np.asarray(Image.fromarray(colored.astype(np.uint8)).resize((64, 48))))):
        split.evaluate("(range, value) => { range.value = value; range.dispatchEvent(new Event('input')); }", value)
        shown = np.asarray(Image.fromarray(seen(frame)).resize((64, 48))).astype(float)
        assert np.abs(shown - expected)[8:].mean() < 12, value
    split.focus()
    for _ in range(40):
        visit.page.keyboard.press("ArrowRight")
    assert float(split.input_value()) == 20.0
    assert "20 percent" in split.get_attribute("aria-valuetext")


def test_downloads_are_the_bytes_of_the_command_line(visit: Visit, written: Path) -> None:
    visit.open()
    visit.predict(PHOTO)
    for name in ("depth.npy", "depth.png", "depth_colored.png", "depth.npz", "depth.glb", "depth.ply"):
        assert fetched(visit, f"courtyard_{name}") == (written / f"courtyard_{name}").read_bytes(), name
    told = json.loads(fetched(visit, "courtyard_depth.json"))
    assert told["maps"]["depth"]["shape"] == [480, 640]
    # Other colors make another picture, with the bytes that the changed command line writes.
    visit.page.select_option("#colors", "magma")
    visit.page.wait_for_function("() => document.querySelector('#cli').textContent.includes('--color-map magma')")
    other = fetched(visit, "courtyard_depth_colored.png")
    assert other != (written / "courtyard_depth_colored.png").read_bytes()
    colored = np.asarray(Image.open(io.BytesIO(other)).convert("RGB")).astype(int)
    assert np.abs(map_pixels(visit.page).astype(int) - colored).max() <= 6  # 256 colors


def test_the_copied_lines_make_the_same_files(visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = tmp_path / "it's a photo.jpg"
    shutil.copy(PHOTO, photo)
    visit.open("#ensemble_size=2&seed=7&fov=70&max_points=5000&ensemble_mirror=true")
    visit.predict(photo)
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    lines = {}
    for name in ("cli", "python"):
        visit.page.click(f"[data-copy={name}]")
        lines[name] = visit.page.evaluate("navigator.clipboard.readText()")
    names = [f"it's a photo_{end}" for end in ("depth.npy", "uncertainty.npy", "depth.png", "depth.glb")]
    expected = {name: fetched(visit, name) for name in names}

    monkeypatch.chdir(tmp_path)
    words = shlex.split(lines["cli"])
    assert words[0] == "openmarigold"
    assert {"--ensemble-size", "--ensemble-mirror", "--seed", "--fov", "--max-points"} <= set(words)
    assert run(words[1:]) == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names} == expected
    shutil.rmtree(tmp_path / "out")
    exec(compile(lines["python"], "copied", "exec"), {})
    for name in names[:2]:
        assert (tmp_path / "out" / name).read_bytes() == expected[name]


def test_normals_follow_from_the_depth_on_the_page(
    visit: Visit, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit.open("#view=depth/surface-normals")
    visit.predict(PHOTO)
    visit.shot("normals-from-depth")
    depth = np.load(written / "courtyard_depth.npy")
    with np.load(written / "courtyard_depth.npz") as entries:
        camera = json.loads(str(entries["openmarigold"]))["camera"]
    normals, _ = normals_from_depth(depth, focal=(camera["fx"], camera["fy"]), center=(camera["cx"], camera["cy"]))
    expected = (normals + 1) / 2 * 255
    difference = np.abs(map_pixels(visit.page) - expected).max(axis=-1)
    assert np.quantile(difference, 0.99) <= 1.0
    visit.tab("Normals")
    assert map_pixels(visit.page).std() > 20
    predicted = fetched(visit, "courtyard_normals.png")
    monkeypatch.chdir(PHOTO.parent)
    words = shlex.split(visit.page.inner_text("#cli"))
    words[words.index("out")] = str(tmp_path)
    assert words[-2:] == ["--modality", "normals"]
    assert run(words[1:]) == 0
    assert predicted == (tmp_path / "courtyard_normals.png").read_bytes()


def test_an_ensemble_has_an_uncertainty_and_the_address_keeps_settings(visit: Visit) -> None:
    visit.open()
    visit.predict(PHOTO)
    assert visit.page.get_by_role("tab", name="Uncertainty").count() == 0
    visit.page.fill("[name=ensemble_size]", "2")
    visit.page.keyboard.press("Enter")
    # A click is needed where predicting is slow.
    visit.page.wait_for_function("() => location.hash.includes('ensemble_size=2')")
    if visit.page.is_visible("#predict"):
        visit.page.click("#predict")
    visit.page.get_by_role("tab", name="Uncertainty", exact=True).first.click()
    visit.settled()
    visit.shot("uncertainty")
    assert map_pixels(visit.page).max() == 255
    address = visit.page.url
    visit.page.goto("about:blank")
    visit.page.goto(address)
    visit.page.wait_for_selector("html[data-ready]")
    assert visit.page.input_value("[name=ensemble_size]") == "2"
    assert visit.page.locator("[role=tab][aria-selected=true]").inner_text() == "Uncertainty"


def test_values_of_an_address_that_do_not_fit_are_left_out(visit: Visit) -> None:
    visit.open("#ensemble_size=1e9&seed=1e30&num_inference_steps=2.5&processing_resolution=12&max_points=1500&fov=500"
               "&drop_far=9&tiles=maybe&color_map=<b>&view=<b>&colors=%E0%A4%A")  # fmt: skip
    for name, value in (("ensemble_size", "1"), ("seed", "2024"), ("num_inference_steps", ""), ("tiles", ""),
                        ("processing_resolution", ""), ("max_points", "200000"), ("drop_far", "0")):  # fmt: skip
        assert visit.page.input_value(f"[name={name}]") == value, name
    visit.open("#ensemble_size=3&processing_resolution=264&max_points=2000")
    visit.page.reload()
    visit.page.wait_for_selector("html[data-ready]")
    for name, value in (("ensemble_size", "3"), ("processing_resolution", "264"), ("max_points", "2000")):
        assert visit.page.input_value(f"[name={name}]") == value, name


def test_a_server_of_one_modality_keeps_the_files_of_pictures_with_other_colors(visit: Visit) -> None:
    def one(route: Any) -> None:
        told = route.fetch().json()
        route.fulfill(json={**told, "modalities": told["modalities"][:1]})

    visit.page.route("**/v1/page", one)
    visit.open()
    visit.predict(PHOTO)
    visit.page.select_option("#colors", "magma")
    visit.page.wait_for_function("() => document.querySelector('#cli').textContent.includes('--color-map magma')")
    assert visit.page.locator("[data-file='courtyard_depth_colored.png']").count() == 1
    assert len(fetched(visit, "courtyard_depth_colored.png")) > 1000


# ------------------------------------------------------------------------------------------------------------------ 3-D


def test_the_space_is_drawn_turned_and_cut(visit: Visit) -> None:
    visit.open("#view=depth/3d")
    visit.predict(PHOTO)
    visit.wait_for_space()
    visit.shot("space")
    canvas = visit.page.locator("#space canvas")
    first = seen(canvas).astype(int)
    background = first[2, first.shape[1] // 2]

    def drawn(picture: np.ndarray) -> float:
        return float((np.abs(picture.astype(int) - background).max(axis=-1) > 6).mean())

    assert drawn(first) > 0.4
    assert first.reshape(-1, 3).std(axis=0).min() > 20
    canvas.focus()
    for _ in range(4):
        visit.page.keyboard.press("ArrowLeft")
    visit.wait_for_space()
    turned = seen(canvas).astype(int)
    assert np.abs(turned - first).mean() > 8
    visit.page.check("input[name=look][value=points]", force=True)
    visit.page.locator("#size").fill("4")
    visit.wait_for_space()
    visit.shot("points")
    assert drawn(seen(canvas)) > 0.3
    visit.page.click("details.more summary")
    visit.page.locator("#far").fill("50")
    visit.shot("space-cut")
    visit.page.keyboard.press("Escape")
    visit.wait_for_space()
    assert drawn(seen(canvas)) < 0.8 * drawn(turned)


def test_lengths_are_those_of_the_files(visit: Visit, written: Path) -> None:
    visit.open("#view=depth/3d")
    visit.predict(PHOTO)
    visit.wait_for_space()
    canvas = visit.page.locator("#space canvas")
    canvas.focus()
    visit.page.keyboard.press("0")  # from the photo's camera, with a margin of 4 %
    visit.wait_for_space()
    depth = np.load(written / "courtyard_depth.npy")
    with np.load(written / "courtyard_depth.npz") as entries:
        camera = json.loads(str(entries["openmarigold"]))["camera"]
    box = canvas.bounding_box()
    assert box is not None
    down, across = 240 / camera["fy"], 320 / camera["fx"]
    half = 1.04 * max(down, across * box["height"] / box["width"])  # tangent of half the view, from top to bottom
    visit.page.click("#measure")
    points = []
    for column, row in ((150, 150), (420, 420)):
        x, y = (column - camera["cx"]) / camera["fx"], (row - camera["cy"]) / camera["fy"]
        at = (box["width"] / 2 + x / half * box["height"] / 2, box["height"] / 2 + y / half * box["height"] / 2)
        canvas.click(position={"x": at[0], "y": at[1]})
        points.append(np.array([x, y, 1.0]) * depth[row, column])
    expected = float(np.linalg.norm(points[0] - points[1]))
    visit.page.wait_for_selector("#known-form", state="visible")
    text = visit.page.inner_text("#length")
    assert text.endswith(" units")
    assert float(text.split()[0]) == pytest.approx(expected, rel=0.03)
    visit.page.fill("#known", "2.5")
    visit.page.keyboard.press("Enter")
    assert visit.page.inner_text("#length") == "2.50 m"
    from playwright.sync_api import expect

    expect(visit.page.locator("#overlay text")).to_have_text("2.50 m")  # drawn with the browser's next frame
    visit.shot("measured")
    visit.page.click("#clear")
    assert visit.page.locator("#measured").is_hidden()


def test_the_field_of_view_may_be_set_where_it_is_assumed(visit: Visit) -> None:
    visit.open("#view=depth/3d")
    visit.predict(PHOTO)
    visit.wait_for_space()
    visit.page.click("details.more summary")
    assert visit.page.inner_text("#fov-value") == "55°"
    before = seen(visit.page.locator("#space canvas")).astype(int)
    visit.page.locator("#fov").fill("90")
    visit.page.wait_for_function("() => location.hash.includes('fov=90')")
    if visit.page.is_visible("#predict"):
        visit.page.click("#predict")
    visit.settled()
    visit.wait_for_space()
    visit.page.wait_for_function("() => !document.querySelector('#fov-reset').hidden")
    assert np.abs(seen(visit.page.locator("#space canvas")).astype(int) - before).mean() > 2
    assert "--fov 90" in visit.page.inner_text("#cli")
    glb = fetched(visit, "courtyard_depth.glb")
    length = int.from_bytes(glb[12:16], "little")
    assert json.loads(glb[20 : 20 + length])["asset"]["extras"]["openmarigold"]["camera"]["fov"] == 90.0
