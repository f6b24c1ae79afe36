# SPDX-License-Identifier: Apache-2.0
"""Requests that schemathesis makes from /openapi.json, sent to `openmarigold serve` on loopback.

    pip install schemathesis
    python benchmarks/fuzz_serve.py --examples 200 --seed 1

No answer may have status 500 to 599 but for 501, 503 and 504, which are documented; each status, content type and body
is one that /openapi.json states. Not checked is whether what fits the schema is accepted: no schema says that bytes are
a picture. Event streams are left out, because they last as long as their job; a running job that is deleted stays, as
cancelled, so that its end is seen.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method"
)


def main() -> int:
    """Runs the server and schemathesis; the exit status of the latter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="for each operation")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        command = [sys.executable, "-m", "openmarigold", "serve", "--port", "0", "--processing-resolution", "64"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            options = ["--max-examples", str(given.examples), "--seed", str(given.seed), "--checks", CHECKS]
            options += ["--exclude-path-regex", "events", "--continue-on-failure", "--request-timeout", "120"]
            tool = str(Path(sys.executable).with_name("st"))
            status = subprocess.run([tool, "run", f"{address}/openapi.json", *options], check=False).returncode
        finally:
            server.terminate()
            server.wait(60)
        log.seek(0)
        lines = log.readlines()
    number = sum('"event": "request"' in line for line in lines)
    print(f"{number} requests by the server's log")
    print("".join(line for line in lines if '"status": 500' in line or "Traceback" in line) or "no status 500")
    return status


if __name__ == "__main__":
    sys.exit(main())
