# SPDX-License-Identifier: Apache-2.0
"""Refuses large files in the repository: only weights, once each, may be above 1 MiB."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = "src/openmarigold/weights/"
LIMIT = 2**20


def problems(root: Path, names: list[str]) -> list[str]:
    """One line for each file that is too large, or holds the same weights as another."""
    found, known = [], {}
    for name in names:
        path = root / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size <= LIMIT:
            continue
        if not (name.startswith(WEIGHTS) and path.suffix == ".safetensors"):
            found.append(f"{name} has {path.stat().st_size:,} bytes; above 1 MiB only {WEIGHTS}**/*.safetensors may be")
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in known:
            found.append(f"{name} holds the same bytes as {known[digest]}; weights are kept once")
        known.setdefault(digest, name)
    return found


def main() -> int:
    """Checks all files that git knows and returns the exit status."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        print("no git repository: sizes of files are not checked")
        return 0
    found = problems(ROOT, [name for name in listed.stdout.split("\0") if name])
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
