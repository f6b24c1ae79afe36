# SPDX-License-Identifier: Apache-2.0
"""The Khronos validator finds nothing in our GLB files. It is fetched from the npm registry."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from openmarigold.camera import Camera
from openmarigold.reconstruction.grid import PixelChoice
from openmarigold.reconstruction.mesh import mesh_from_depth
from openmarigold.reconstruction.points import points_from_depth

VERSION = "2.0.0-dev.3.10"
SCRIPT = """
const validator = require("gltf-validator"), fs = require("fs");
const bytes = new Uint8Array(fs.readFileSync(process.argv[2]));
validator.validateBytes(bytes).then((report) => console.log(JSON.stringify(report)));
"""


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("validator")
    (folder / "package.json").write_text("{}")
    subprocess.run(["npm", "install", "--silent", f"gltf-validator@{VERSION}"], cwd=folder, check=True)
    (folder / "check.js").write_text(SCRIPT)
    return folder


@pytest.mark.network
def test_the_validator_finds_nothing(validator: Path, tmp_path: Path) -> None:
    depth = np.full((64, 128), 5.0)
    depth[20:40, 30:60] = 2.0
    camera, rgb = Camera.assumed((64, 128)), np.full((64, 128, 3), 99, dtype=np.uint8)
    sparse = PixelChoice(max_points=777)
    spaces = {
        "mesh": mesh_from_depth(depth, camera, rgb=rgb, choice=sparse),
        "gray-mesh": mesh_from_depth(depth, camera),
        "points": points_from_depth(depth, camera, rgb=rgb),
        "gray-points": points_from_depth(depth, camera, choice=sparse),
    }
    for name, space in spaces.items():
        path = space.save(tmp_path / f"{name}.glb")
        done = subprocess.run(
            ["node", "check.js", str(path)], cwd=validator, capture_output=True, text=True, check=True
        )
        report = json.loads(done.stdout)
        assert report["issues"]["messages"] == [], name
        assert report["info"]["totalVertexCount"] == len(getattr(space, "points", getattr(space, "vertices", ())))
