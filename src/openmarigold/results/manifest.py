# SPDX-License-Identifier: Apache-2.0
"""The manifest of an output folder: one JSON object a line, appended as each photo begins, is done or fails.

A photo is done if its last line has the status "done", for the same photo and settings, and every file in that line
exists with the stated size. Lines about failures do not count here: files are
replaced only after a line "started", so an earlier failure changes no file. A line is one write to an append-only file:
a killed process leaves whole lines and at most one cut line, which is skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from openmarigold.errors import OutputError
from openmarigold.files import wait_for_lock, writing
from openmarigold.modalities import DEPTH
from openmarigold.text_files import parse_json_lines, with_current_keys

MANIFEST_NAME = "manifest.jsonl"

Status = Literal["started", "done", "failed"]


class Manifest:
    """The manifest of `output_dir` for the results of one modality, read at the first use."""

    def __init__(self, output_dir: Path, modality: str = DEPTH.name) -> None:
        self.output_dir = output_dir
        self.modality = modality
        self.path = output_dir / MANIFEST_NAME
        self._standing: dict[str, dict[str, Any]] | None = None
        self._read_to = 0  # bytes of the file whose lines are known

    def lines(self) -> list[dict[str, Any]]:
        """Every whole line, oldest first.

        Raises:
            OutputError: the file cannot be read.
        """
        return self._lines_from(0)[0]

    def _lines_from(self, start: int) -> tuple[list[dict[str, Any]], int]:
        """Whole lines from a place in the file on, and where they end."""
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                content = file.read()
        except (FileNotFoundError, NotADirectoryError):  # the folder may vanish during a run; writing reports it
            return [], 0
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror}; check its permissions") from error
        # Lines are cut by a kill or a full disk.
        entries = [entry for entry in map(with_current_keys, parse_json_lines(content)) if _is_entry(entry)]
        return entries, start + content.rfind(b"\n") + 1

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """A block in which no other run checks or replaces results of the folder, and all earlier lines are known.

        Runs take turns by a lock on the file, which ends with its process. Without such locks (Windows, some network
        disks) they are not coordinated.

        Raises:
            OutputError: the file cannot be opened.
        """
        with writing(self.path):
            descriptor = self._opened()
        try:
            wait_for_lock(descriptor)
            self._learn()
            yield
        finally:
            os.close(descriptor)

    def _opened(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)

    def _learn(self) -> None:
        """Reads the lines that were added since the last read."""
        entries, self._read_to = self._lines_from(self._read_to)
        if self._standing is None:
            self._standing = {}
        for entry in entries:
            if entry.get("modality", DEPTH.name) == self.modality and entry["status"] != "failed":
                self._standing[entry["result"]] = entry

    def standing(self, result: str) -> dict[str, Any] | None:
        """The valid line for the files of a result (its path in the output folder, without suffixes), if any.

        That is the last line that is not a failure.
        """
        if self._standing is None:
            self._learn()
        assert self._standing is not None
        return self._standing.get(result)

    def append(self, result: str, status: Status, **fields: Any) -> None:
        """Adds a line.

        Raises:
            OutputError: the file cannot be written.
        """
        entry = {"result": result, "status": status, "modality": self.modality, **fields}
        self.standing(result)  # read before it is written
        assert self._standing is not None
        content = (json.dumps(entry, ensure_ascii=True) + "\n").encode()
        with writing(self.path):
            descriptor = self._opened()
            try:
                end = os.lseek(descriptor, 0, os.SEEK_END)
                if end and _byte_before(descriptor, end) != b"\n":
                    content = b"\n" + content  # after a cut line
                if os.write(descriptor, content) < len(content):
                    raise OSError(28, "No space left on device")
            finally:
                os.close(descriptor)
        if status != "failed":
            self._standing[result] = entry

    def is_done(
        self, result: str, *, request: Mapping[str, Any], input_sha256: str | None, outputs: Sequence[str]
    ) -> bool:
        """Whether all `outputs` (file names) of a result are there, made from this photo with these settings."""
        entry = self.standing(result)
        if entry is None or entry["status"] != "done":
            return False
        if entry.get("request") != request or entry.get("input_sha256") != input_sha256:
            return False
        sizes = entry.get("outputs")
        if not isinstance(sizes, dict) or not set(outputs) <= set(sizes):
            return False
        folder = (self.output_dir / result).parent
        return all(file_size(folder / name) == sizes[name] for name in outputs)

    def other_photo(self, result: str, *, input: str, location: str, input_sha256: str | None) -> str | None:
        """The photo from which the files of a result were made, if it is not the given one; None otherwise.

        A photo is the same if it holds the same bytes, wherever it lies, or if it lies where it did, changed or not.
        """
        entry = self.standing(result)
        if entry is None or (input_sha256 is not None and entry.get("input_sha256") == input_sha256):
            return None
        recorded, typed = entry.get("input_path"), entry.get("input")
        if isinstance(recorded, str):
            return None if recorded == location else recorded
        # Lines of earlier versions hold the path as it was typed.
        same = not isinstance(typed, str) or typed == input or os.path.abspath(typed) == os.path.abspath(input)
        return None if same else typed

    def provenance_of(self, path: Path) -> dict[str, Any] | None:
        """The record of a result file from its last finished run, if the file still has the same size."""
        found: dict[str, Any] | None = None
        for entry in self.lines():
            if (self.output_dir / entry["result"]).parent.resolve() != path.parent:
                continue
            outputs = entry.get("outputs")
            if isinstance(outputs, dict) and path.name in outputs:
                found = entry if outputs[path.name] == file_size(path) else None
            elif entry["status"] == "started" and found is not None and _is_of_same(found, entry):
                found = None  # replaced by a run that did not finish
        record = None if found is None else found.get("provenance")
        return record if isinstance(record, dict) else None


def _is_of_same(line: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two lines are about the same files; those of version 0.1 do not state the modality, which was depth."""
    first, second = ((entry["result"], entry.get("modality", DEPTH.name)) for entry in (line, other))
    return first == second


def _is_entry(entry: object) -> bool:
    """Whether a line is one of ours. Files that it names may be removed, so none may lie elsewhere than its results."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("result", "status")):
        return False
    outputs, replaces = entry.get("outputs", {}), entry.get("replaces", [])
    if not isinstance(outputs, dict) or not isinstance(replaces, list):
        return False
    beginning = f"{PurePosixPath(entry['result']).name}_"
    separators = {"/", "\0", os.sep, os.altsep or "/"}  # a backslash is a letter where it separates nothing
    return all(
        isinstance(name, str) and name.startswith(beginning) and not set(name) & separators
        for name in (*outputs, *replaces)
    )


def file_size(path: Path) -> int | None:
    """Size in bytes; None if the file does not exist."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _byte_before(descriptor: int, end: int) -> bytes:
    os.lseek(descriptor, end - 1, os.SEEK_SET)
    return os.read(descriptor, 1)
