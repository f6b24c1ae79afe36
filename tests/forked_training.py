# SPDX-License-Identifier: Apache-2.0
"""Runs of `openmarigold train` on several processes (gloo, CPU), forked from one that has imported everything.

    python tests/forked_training.py JOBS.json

Each job: `num_processes`, `arguments` of the command, `environment` (more variables), and `kill`: [rank, file], which
kills that rank as soon as the file exists. Prints the exit statuses and what each rank wrote, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def run_forked(job: dict[str, Any]) -> dict[str, Any]:
    """Exit status (negative: the signal) and output of each rank."""
    count, port = int(job["num_processes"]), _free_port()
    outputs = [Path(tempfile.mkstemp()[1]) for _ in range(count)]
    pids = []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), **job.get("environment", {})}
            file = os.open(outputs[rank], os.O_WRONLY)
            os.dup2(file, 1)
            os.dup2(file, 2)
            status = 1
            try:
                from openmarigold.cli import run

                status = run(job["arguments"])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
    if "kill" in job:
        rank, file = job["kill"]
        deadline = time.monotonic() + 60
        while not Path(file).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(pids[rank], signal.SIGKILL)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return {"statuses": statuses, "outputs": [path.read_text() for path in outputs]}


if __name__ == "__main__":
    import accelerate  # noqa: F401 - before the forks
    import diffusers  # noqa: F401
    import torch

    import openmarigold.training.loop
    import openmarigold.training.marigold  # noqa: F401

    torch.set_num_threads(1)
    print(json.dumps([run_forked(job) for job in json.loads(Path(sys.argv[1]).read_text())]), flush=True)
    os._exit(0)  # libraries that were forked may wait for each other at the end
