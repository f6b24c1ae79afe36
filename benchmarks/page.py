# SPDX-License-Identifier: Apache-2.0
"""The page of `openmarigold serve`: first paint, frames a second of the 3-D view in software, and size of the code.

python benchmarks/page.py [PHOTO]

Needs the built page (`make page`), Chromium and the package playwright. Prints the load of the machine too: the 3-D
view is drawn by the processor. Processor time counts all of Chromium's processes.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from openmarigold.serving.page import PAGE_DIR

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "examples" / "photos" / "courtyard.jpg"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"]
PAINTS, TURNS_S = 5, 8.0
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
FRAMES = "() => Number(document.querySelector('#space').dataset.frames ?? 0)"
RENDERER = """() => { const gl = document.createElement('canvas').getContext('webgl2');
  return gl.getParameter(gl.getExtension('WEBGL_debug_renderer_info').UNMASKED_RENDERER_WEBGL); }"""


def main(photo: Path) -> None:
    """Measures and prints."""
    from playwright.sync_api import sync_playwright

    code = [path for path in PAGE_DIR.rglob("*") if path.suffix in (".js", ".css", ".html")]
    zipped = sum(len(gzip.compress(path.read_bytes(), 9)) for path in code)
    print(f"code: {sum(path.stat().st_size for path in code):,} bytes, compressed {zipped:,}")
    print(f"load: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    command = [sys.executable, "-m", "openmarigold", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        assert server.stderr is not None
        address = json.loads(server.stderr.readline())["address"]
        with sync_playwright() as playwright:
            program = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
            measure(browser, address, photo)
            browser.close()
        server.terminate()
        server.communicate()


def measure(browser: Any, address: str, photo: Path) -> None:
    """First paint in new windows, then the 3-D view."""
    paints = []
    for _ in range(PAINTS):
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        paints.append(page.evaluate(PAINT))
        context.close()
    print(f"first contentful paint: {statistics.median(paints):.0f} ms (median of {PAINTS})")
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(f"{address}/#view=depth/3d")
    page.wait_for_selector("html[data-ready]")
    started = time.perf_counter()
    page.set_input_files("#file", str(photo))
    page.wait_for_selector("#space[data-ready]")
    print(f"from the photo to 3-D: {time.perf_counter() - started:.2f} s, {page.evaluate(RENDERER)}")
    page.click("#turn")
    page.wait_for_timeout(2000)  # until it has found how much to save
    frames, began, used = page.evaluate(FRAMES), time.perf_counter(), processor_time()
    page.wait_for_timeout(1000 * TURNS_S)
    count, passed = page.evaluate(FRAMES) - frames, time.perf_counter() - began
    box = page.locator("#space canvas").bounding_box()
    triangles = page.get_attribute("#space", "data-triangles")
    cost = (processor_time() - used) / max(count, 1)
    print(f"turning {box['width']:.0f}x{box['height']:.0f} px, {triangles} triangles: {count / passed:.1f} frames a "
          f"second, {1000 * cost:.0f} ms of processor time a frame")  # fmt: skip


def processor_time() -> float:
    """Of all processes that this one has started and their children [s]; 0 where there is no /proc."""
    parents, seconds = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        number = int(folder.name)
        parents[number] = int(fields[1])
        seconds[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_ours(number: int) -> bool:
        parent = parents.get(number, 0)
        return parent == os.getpid() or (parent > 1 and is_ours(parent))

    return sum(time for number, time in seconds.items() if is_ours(number))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PHOTO)
