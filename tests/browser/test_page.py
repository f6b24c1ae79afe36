# SPDX-License-Identifier: Apache-2.0
"""The page of `openmarigold serve` in a real browser: what it shows equals what the command line writes."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser.conftest import AXE, ROOT, Visit, missing
from openmarigold.cli import run
from openmarigold.geometry import normals_from_depth

PHOTO = ROOT / "examples" / "photos" / "courtyard.jpg"
OTHER = ROOT / "examples" / "photos" / "hotel-room.jpg"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
DARK = {"color_scheme": "dark"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command line writes for the photo."""
    folder = tmp_path_factory.mktemp("written")
    status = run(["predict", str(PHOTO), "--output-dir", str(folder), "--modality", "depth", "--format", "npy", "png",
                  "npz", "glb", "ply", "--max-points", "200000"])  # fmt: skip
    assert status == 0
    return folder


def map_pixels(page: Any) -> np.ndarray:
    """What is painted over the photo, uint8 [h w 3]."""
    data = page.evaluate("document.querySelector('#map').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB"))


def seen(locator: Any) -> np.ndarray:
    """A screenshot of an element, uint8 [h w 3]."""
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB"))


def fetched(visit: Visit, name: str) -> bytes:
    with visit.page.expect_download() as download:
        visit.page.click(f"[data-file={json.dumps(name)}]")
    assert download.value.suggested_filename == name
    return Path(download.value.path()).read_bytes()


def assert_no_sideways_scroll(page: Any) -> None:
    width, shown = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= shown


def assert_accessible(page: Any) -> None:
    """axe-core finds nothing serious."""
    if not AXE.is_file():
        missing("axe-core is not here; run `make page`")
    page.evaluate(AXE.read_text(encoding="utf-8"))  # not a script of the page, which its policy would refuse
    found = page.evaluate("axe.run()")
    bad = [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
    assert len(found["passes"]) > 10
    assert bad == []


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


# ------------------------------------------------------------------------------------------------ photos from anywhere


def test_photos_are_pasted_dropped_and_kept_in_the_history(visit: Visit) -> None:
    visit.open()
    give = """async ([kind, name]) => {
      const bytes = await (await fetch('page/examples/coffee.jpg')).blob();
      const data = new DataTransfer();
      data.items.add(new File([bytes], name, {type: 'image/jpeg'}));
      const options = {bubbles: true, cancelable: true};
      document.dispatchEvent(kind === 'paste' ? new ClipboardEvent(kind, {...options, clipboardData: data})
                                              : new DragEvent(kind, {...options, dataTransfer: data}));
    }"""
    done = "name => document.querySelector('#status').textContent.includes(`${name} in `)"
    visit.page.evaluate(give, ["drop", "dropped.jpg"])
    visit.page.wait_for_function(done, arg="dropped.jpg")
    visit.page.evaluate(give, ["paste", "image.jpg"])
    visit.page.wait_for_function("() => /pasted-\\d+\\.jpg in /.test(document.querySelector('#status').textContent)")
    visit.page.wait_for_selector("#history-list li:nth-child(2)")
    visit.shot("history")
    visit.page.click("#history-list li:nth-child(2) button")
    visit.page.wait_for_function(done, arg="dropped.jpg")
    assert visit.page.locator("[data-file='dropped_depth.npy']").count() == 1


def test_the_camera_takes_a_photo(visit: Visit) -> None:
    visit.page.context.grant_permissions(["camera"])
    visit.open()
    visit.page.click("#welcome [data-do=camera]")
    visit.page.wait_for_function("() => document.querySelector('#video').readyState >= 2")
    visit.page.click("#shoot")
    visit.page.wait_for_function("() => /camera-\\d+\\.jpg in /.test(document.querySelector('#status').textContent)")
    assert map_pixels(visit.page).std() > 5


def test_a_broken_file_is_told_in_the_words_of_the_service(visit: Visit, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(PHOTO.read_bytes()[:2000])
    visit.open()
    with visit.page.expect_response("**/v1/predict") as answer:
        visit.page.set_input_files("#file", str(broken))
    assert answer.value.status == 422
    told = answer.value.json()["error"]
    visit.page.wait_for_selector(".toast")
    visit.shot("toast")
    assert visit.page.inner_text(".toast p") == told
    assert "\n" not in told
    assert visit.page.is_visible("#welcome")
    visit.errors.clear()  # Chromium reports answers of status 422 on its console
    visit.page.click(".toast-close")
    assert visit.page.locator(".toast").count() == 0
    visit.predict(PHOTO)


def test_a_busy_server_is_waited_for_and_one_that_is_gone_is_told(visit: Visit) -> None:
    left, bodies = ["busy", "go", "gone"], []

    def answer(route: Any) -> None:
        bodies.append(route.request.post_data_buffer)
        match left.pop(0):
            case "busy":
                route.fulfill(status=429, json={"error": "the server is busy"}, headers={"retry-after": "1"})
            case "gone":
                route.abort()
            case _:
                route.continue_()

    visit.page.route("**/v1/predict", answer)
    visit.page.route("**/page/space-*", lambda route: route.abort())
    visit.open()
    visit.predict(PHOTO)
    assert left == ["gone"] and visit.page.locator(".toast").count() == 0
    assert all(b'filename="photo.jpg"' in body for body in bodies)  # some kinds are told by the suffix
    visit.page.set_input_files("#file", str(OTHER))
    visit.page.wait_for_selector(".toast")
    assert "is it still running?" in visit.page.inner_text(".toast p")
    assert "courtyard.jpg" in visit.page.inner_text("#cli")  # what was there is shown again
    visit.tab("3-D")
    visit.page.wait_for_selector("#space-message:not([hidden])")
    assert "is the server still running?" in visit.page.inner_text("#space-message")
    visit.errors.clear()  # of what was refused, which Chromium reports on its console


def test_names_of_photos_are_text_and_files_that_change_are_kept(visit: Visit, tmp_path: Path) -> None:
    photo = tmp_path / "-<img src=x onerror=alert(1)> $(id) 'it' \"é\"\n.jpg"
    shutil.copy(PHOTO, photo)
    visit.open()
    visit.predict(photo)
    assert visit.page.locator("img[src=x]").count() == 0
    assert shlex.split(visit.page.locator("#cli").text_content())[2] == f"./{photo.name}"
    assert repr(f"./{photo.name}")[1:-1].replace("\\'", "'").replace('"', '\\"') in visit.page.inner_text("#python")
    photo.unlink()
    visit.page.evaluate("() => { location.hash = 'seed=9' }")
    visit.page.wait_for_function("() => document.querySelector('#cli').textContent.includes('--seed 9')")
    visit.settled()
    assert visit.page.locator(".toast").count() == 0


def test_a_photo_that_was_overtaken_and_fails_later_leaves_the_history(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    asked: list[Any] = []

    def hold_the_first(route: Any) -> None:
        asked.append(route)
        if len(asked) > 1:
            route.continue_()

    visit.page.route("**/v1/predict", hold_the_first)
    visit.open()
    visit.page.set_input_files("#file", str(tmp_path / "broken.jpg"))
    visit.page.wait_for_function("() => document.querySelector('#status').textContent.includes('broken.jpg')")
    visit.predict(PHOTO)
    visit.page.click("[aria-label='Show broken.jpg again']")
    visit.page.wait_for_selector(".toast")
    visit.page.wait_for_function("() => document.querySelectorAll('#history-list li').length === 1")
    assert "courtyard.jpg" in visit.page.inner_text("#cli")
    visit.errors.clear()  # Chromium reports the answer of status 422 on its console


def test_a_panorama_has_maps_and_a_reason_instead_of_a_space(visit: Visit, tmp_path: Path) -> None:
    mark = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
      <rdf:Description xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"
      GPano:ProjectionType="equirectangular"/></rdf:RDF></x:xmpmeta>"""
    Image.open(PHOTO).resize((128, 64)).save(tmp_path / "around.jpg", xmp=mark)
    visit.open()
    visit.predict(tmp_path / "around.jpg")
    assert map_pixels(visit.page).shape == (64, 128, 3)
    visit.tab("3-D")
    assert "panorama" in visit.page.inner_text("#space-message")
    visit.errors.clear()  # Chromium reports the answer of status 400 on its console


def test_a_token_is_asked_for_and_sent(visit: Visit) -> None:
    asked = []

    def guard(route: Any) -> None:
        asked.append(route.request.headers.get("authorization"))
        if asked[-1] == "Bearer 0123456789abcdef":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": "the token is missing or wrong", "status": 401})

    visit.page.route("**/v1/**", guard)
    visit.page.goto(visit.address)
    visit.page.wait_for_selector("#token-dialog[open]")
    for _ in range(2):
        visit.page.keyboard.press("Escape")
    for token in ("schlüssel", "0123456789abcdef"):  # the first one cannot stand in a header
        visit.page.wait_for_selector("#token-dialog[open]")
        visit.page.fill("#token", token)
        visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("html[data-ready]")
    visit.predict(PHOTO)
    assert set(asked) == {None, "Bearer 0123456789abcdef"}
    # Another token from now on: the photo is predicted once it is given.
    visit.page.evaluate("sessionStorage.setItem('openmarigold-token', 'an-older-token')")
    visit.page.set_input_files("#file", str(OTHER))
    visit.page.wait_for_selector("#token-dialog[open]")
    visit.page.fill("#token", "0123456789abcdef")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function("() => document.querySelector('#status').textContent.includes('hotel-room.jpg in ')")
    visit.errors.clear()  # Chromium reports answers of status 401 on its console


# ------------------------------------------------------------------------------------------------------------ everybody


def test_the_keyboard_is_enough(visit: Visit) -> None:
    visit.open()
    page = visit.page
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.example") == "hotel-room.jpg":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#status').textContent.includes('hotel-room.jpg in ')")
    focus = "document.activeElement.id"
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate(focus).startswith("tab-"):
            break
    assert page.evaluate("document.activeElement.getAttribute('role')") == "tab"
    page.keyboard.press("ArrowRight")
    visit.wait_for_space()
    assert page.locator("[role=tab][aria-selected=true]").inner_text() == "3-D"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "application"
    page.focus("#measure")
    page.keyboard.press("Enter")
    page.focus("#space canvas")
    page.keyboard.press("Enter")
    assert page.inner_text("#length") == "Now the second point"
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert re.fullmatch(r"[\d.]+ units", page.inner_text("#length"))


@pytest.mark.parametrize("visit", [PHONE], indirect=True, ids=["phone"])
def test_it_fits_a_phone(visit: Visit) -> None:
    visit.open()
    assert_no_sideways_scroll(visit.page)
    visit.shot("phone-welcome")
    visit.predict(PHOTO)
    assert_no_sideways_scroll(visit.page)
    visit.shot("phone-depth")
    visit.tab("3-D")
    visit.wait_for_space()
    visit.page.click("#measure")
    assert_no_sideways_scroll(visit.page)
    visit.shot("phone-space")
    small = visit.page.evaluate(
        """[...document.querySelectorAll('button, select, .tab')].filter(one => one.offsetParent)
           .filter(one => one.getBoundingClientRect().height < 24).map(one => one.outerHTML)"""
    )
    assert small == []
    visit.page.evaluate("document.querySelector('.side').scrollIntoView()")
    visit.shot("phone-side")


@pytest.mark.parametrize("visit", [{}, DARK], indirect=True, ids=["light", "dark"])
def test_axe_finds_nothing_serious(visit: Visit, request: pytest.FixtureRequest) -> None:
    is_dark = "dark" in request.node.name
    visit.open()
    assert_accessible(visit.page)
    visit.predict(PHOTO)
    assert_accessible(visit.page)
    visit.shot("dark-depth" if is_dark else "light-depth")
    visit.tab("3-D")
    visit.wait_for_space()
    visit.page.click("details.more summary")
    visit.shot("dark-space" if is_dark else "light-space")
    assert_accessible(visit.page)
    color = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = np.mean([int(part) for part in re.findall(r"\d+", color)[:3]])
    assert brightness < 50 if is_dark else brightness > 200
    visit.page.emulate_media(color_scheme="light")
    visit.page.click("#theme")
    visit.page.click("#theme")
    assert "dark" in visit.page.get_attribute("#theme", "aria-label")
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 19, 17)"
