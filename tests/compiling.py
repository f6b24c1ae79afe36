# SPDX-License-Identifier: Apache-2.0
"""Compiled networks, in a process without the tests' shape checks, which torch.compile cannot read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

_CODE = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from openmarigold import Predictor

folder, options, settings = json.loads(sys.argv[1])
rgb = np.load(folder + "/rgb.npy")
compiled = Predictor.load(engine="torch", compile="full", **options)
depths = [Predictor.load(engine="torch", **options)(rgb, **settings).depth]
depths += [compiled(rgb, **settings).depth for _ in range(2)]
with ThreadPoolExecutor(2) as threads:
    depths += threads.map(lambda _: compiled(rgb, **settings).depth, range(4))
np.save(folder + "/depths.npy", np.stack(depths))
"""


def eager_and_compiled(folder: Path, rgb: np.ndarray, options: dict[str, Any], settings: dict[str, Any]) -> np.ndarray:
    """Depth [7 h w]: not compiled, compiled in two calls, and compiled in four calls of two other threads."""
    np.save(folder / "rgb.npy", rgb)
    arguments = json.dumps([str(folder), options, settings])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", _CODE, arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "depths.npy")
