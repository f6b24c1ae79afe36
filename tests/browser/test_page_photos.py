# SPDX-License-Identifier: Apache-2.0
"""The page of `openmarigold serve` in a real browser: photos from anywhere, and a page for everybody."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser.conftest import AXE, ROOT, Visit, map_pixels, missing

PHOTO = ROOT / "examples" / "photos" / "courtyard.jpg"
OTHER = ROOT / "examples" / "photos" / "hotel-room.jpg"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
DARK = {"color_scheme": "dark"}


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
