# SPDX-License-Identifier: Apache-2.0
"""Builds both distributions, checks them, and predicts a photo with the installed wheel alone, outside the repository.

python .ci/check_wheel.py [ARGUMENTS OF PIP INSTALL]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RENDERER = ROOT / "packages" / "openmarigold-render"
WEIGHTS = [f"openmarigold/weights/{name}" for name in ("marigold-lite", "marigold-lite-normals")]
PAGE = [f"openmarigold/serving/page/{name}" for name in ("index.html", "app.js", "style.css", "LICENSE-three.txt")]
REQUIRED = {
    "openmarigold": {
        "openmarigold/py.typed",
        *(() if os.environ.get("OPENMARIGOLD_PAGE") == "none" else PAGE),
        *(f"{folder}/{name}" for folder in WEIGHTS for name in ("README.md", "LICENSE.md")),
    },
    "openmarigold_render": {"openmarigold_render/py.typed"},
}
PHOTO = ROOT / "examples" / "photos" / "courtyard.jpg"
RESULTS = ["courtyard_depth.npy", "courtyard_depth.png", "courtyard_depth_colored.png", "manifest.jsonl"]
# Run by the Python of the clean environment, in a folder that has only the results.
CHECK = """
import importlib.util, sys
import numpy as np
import openmarigold

assert openmarigold.__file__.startswith(sys.prefix), f"{openmarigold.__file__} is not in {sys.prefix}"
assert not importlib.util.find_spec("torch"), "the core installs torch"
depth = np.load("out/courtyard_depth.npy")
assert depth.shape == (480, 640) and depth.dtype == np.float32, (depth.shape, depth.dtype)
assert 0 <= depth.min() and depth.max() <= 1 and depth.std() > 0.05, (depth.min(), depth.max(), depth.std())
normals = np.load("normals/courtyard_normals.npy")
assert normals.shape == (480, 640, 3) and normals.dtype == np.float32, (normals.shape, normals.dtype)
assert normals[:160, :, 1].mean() < normals[-160:, :, 1].mean(), "the ground does not face up"
"""


def files_of(folder: Path) -> set[str]:
    """Files below a folder of sources as they must be named in a wheel, but for compiled ones."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder.parent).as_posix() for path in paths}


def problems(names: set[str], expected: set[str], description: str) -> list[str]:
    """One line for each file that a wheel lacks or should not have, and for each link that leads nowhere."""
    inside = {name for name in names if ".dist-info/" not in name}
    links = re.findall(r"\]\((?!https://|#)([^)]*)\)", description)
    return [
        *(f"{name} is missing" for name in sorted(expected - inside)),
        *(f"{name} should not be there" for name in sorted(inside - expected)),
        *(f"the description has the relative link {link}" for link in links),
    ]


def check_content(wheel: Path, sources: Path) -> None:
    """Ends the program with a message unless the wheel holds the sources, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        description = archive.read(metadata).decode("utf-8")
    found = problems(names, files_of(sources) | REQUIRED[sources.name], description)
    if found:
        sys.exit("\n".join(f"{wheel.name}: {line}" for line in found))


def run(*command: str | Path, cwd: Path) -> None:
    """Runs a command that sees nothing of this environment, and ends the program when it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stdout.decode(errors='replace')}\nfailed: {' '.join(map(str, command))}")


def main(pip_arguments: list[str]) -> None:
    """Builds, checks, installs, predicts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dist = folder / "dist"
        run(sys.executable, ROOT / "web" / "build.py", cwd=folder)
        for project in (ROOT, RENDERER):
            run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, project, cwd=folder)
        files = sorted(dist.iterdir())
        run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=folder)
        wheel, renderer = (path for path in files if path.suffix == ".whl")
        check_content(wheel, ROOT / "src" / "openmarigold")
        check_content(renderer, RENDERER / "src" / "openmarigold_render")
        run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
        programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        install = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-compile"]
        run(*install, *pip_arguments, "-c", ROOT / "constraints.txt", wheel, cwd=folder)
        run(programs / "openmarigold", "predict", PHOTO, "--output-dir", "out", cwd=folder)
        found = sorted(path.name for path in (folder / "out").iterdir())
        if found != RESULTS:
            sys.exit(f"predict wrote {', '.join(found)} instead of {', '.join(RESULTS)}")
        normals = ["--modality", "normals", "--output-dir", "normals"]
        run(programs / "openmarigold", "predict", PHOTO, *normals, cwd=folder)
        run(programs / "python", "-c", CHECK, cwd=folder)
        sizes = [f"{path.name} ({path.stat().st_size / 2**20:.1f} MiB)" for path in files]
    print(f"built and checked {', '.join(sizes)}; {wheel.name} predicts a photo in a clean environment")


if __name__ == "__main__":
    main(sys.argv[1:])
