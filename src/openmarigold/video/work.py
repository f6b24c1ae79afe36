# SPDX-License-Identifier: Apache-2.0
"""The hidden folder of a run that is not finished: segments of frames, each with the state to resume after it.

A segment is a folder, which gets its final name when all its files are complete. A killed run continues after the last
segment. `request.json` states the settings and the clip's hash; work of another request is never continued.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.errors import OutputError
from openmarigold.files import make_directory, try_lock, write_atomically, writing
from openmarigold.results.provenance import to_json
from openmarigold.text_files import DamagedTextError, parse_json

_REQUEST, _PROGRESS, _STATE, _FRAMES = "request.json", "progress.json", "state.npz", "frames.jsonl"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run."""

    pushed: int = 0
    """Frames that the stream has seen."""
    emitted: int = 0
    """Frames that are written."""
    is_complete: bool = False
    """Whether these are all frames of the clip."""
    problem: str | None = None
    """Why the clip ended before its end."""


class Work:
    """The folder of one run."""

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        """Creates the folder; work of another request in it is deleted.

        Raises:
            OutputError: it cannot be created, or another run uses it.
        """
        self.folder = folder
        self.is_renewed = False
        """Whether work of another request was dropped."""
        self.segments: list[Path] = []
        """Folders of finished segments."""
        make_directory(folder)
        self._lock: int | None = self._locked()
        text = to_json(request)
        if not self._is_of(text):
            self.is_renewed = any(folder.glob("[0-9]*"))
            self._clear()
            write_atomically(folder / _REQUEST, lambda path: path.write_text(text, encoding="ascii"))
        self._remove_partial()
        while (segment := folder / f"{len(self.segments):06d}").is_dir():
            self.segments.append(segment)

    def progress(self) -> Progress:
        """The progress to resume from."""
        if not self.segments:
            return Progress()
        return Progress(**_read_json(self.segments[-1] / _PROGRESS))

    def state(self) -> dict[str, np.ndarray] | None:
        """The stream's state at this progress; None at the beginning."""
        path = self.segments[-1] / _STATE if self.segments else None
        if path is None or not path.exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def frames(self) -> Iterator[list[dict[str, Any]]]:
        """Yields the records of the frames of each finished segment."""
        for segment in self.segments:
            text = (segment / _FRAMES).read_text(encoding="ascii")
            yield [parse_json(line) for line in text.splitlines()]

    def drop(self) -> None:
        """Deletes the finished segments."""
        for segment in self.segments:
            shutil.rmtree(segment, ignore_errors=True)
        self.segments = []

    def begin(self) -> Path:
        """The folder of the next segment, under a temporary name."""
        path = self.folder / f"{len(self.segments):06d}.partial"
        shutil.rmtree(path, ignore_errors=True)
        make_directory(path)
        return path

    def commit(
        self,
        partial: Path,
        *,
        frames: Sequence[Mapping[str, Any]],
        progress: Progress,
        state: Mapping[str, np.ndarray] | None,
    ) -> None:
        """Finishes a segment.

        Raises:
            OutputError: it cannot be written.
        """
        final = partial.with_suffix("")
        with writing(partial):
            text = "".join(f"{to_json(frame)}\n" for frame in frames)
            (partial / _FRAMES).write_text(text, encoding="ascii")
            (partial / _PROGRESS).write_text(to_json(asdict(progress)), encoding="ascii")
            if state is not None:
                np.savez(partial / _STATE, **state)  # pyright: ignore[reportArgumentType]
            os.replace(partial, final)
        self.segments.append(final)

    def remove(self) -> None:
        """Removes the folder, when the results are complete."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Lets other runs use the folder. An unfinished segment is deleted: no run could continue it."""
        if self._lock is not None:
            self._remove_partial()
            os.close(self._lock)
            self._lock = None

    def _remove_partial(self) -> None:
        for leftover in self.folder.glob("*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _is_of(self, request: str) -> bool:
        try:
            return (self.folder / _REQUEST).read_text(encoding="ascii") == request
        except (OSError, ValueError):
            return False

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != "lock":
                with suppress(OSError):
                    path.unlink()

    def _locked(self) -> int:
        """An open, locked file; the lock ends with the process."""
        with writing(self.folder):
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        if not try_lock(descriptor):
            os.close(descriptor)
            raise OutputError(
                f"another run is making these results in {self.folder.parent}; wait for it, or choose another folder"
            )
        return descriptor


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: Any = parse_json(path.read_bytes())
    except (OSError, DamagedTextError) as error:
        raise OutputError(f"{path} cannot be read; remove {path.parent.parent} and start again") from error
    return found
