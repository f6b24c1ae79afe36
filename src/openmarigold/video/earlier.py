# SPDX-License-Identifier: Apache-2.0
"""Results of earlier runs in an output folder: which clip they are of, whether they are done, and which are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.errors import OutputError
from openmarigold.results.manifest import file_size
from openmarigold.results.provenance import RECORD_NAME, to_json
from openmarigold.text_files import DamagedTextError, parse_json
from openmarigold.video.decoding import require_av

_WHAT_TO_DO = "allow overwriting (--overwrite) or choose another folder"


class Earlier:
    """The results of one name in a folder, as their record STEM.json states them."""

    def __init__(self, folder: Path, stem: str, request: Mapping[str, Any]) -> None:
        """`request`: the settings and clip of the current run."""
        self.folder, self.stem, self.request = folder, stem, request
        self.record: dict[str, Any] | None = None
        """None if there is no readable record."""
        with suppress(OSError, DamagedTextError):
            found: Any = parse_json((folder / f"{stem}.json").read_bytes())
            self.record = found if isinstance(found, dict) else None

    @property
    def formats(self) -> list[str]:
        """Formats of the earlier results, if nothing but the formats differs from the request; else empty."""
        stated = (self.record or {}).get("request")
        if self.request["input_sha256"] is None or not isinstance(stated, dict):
            return []
        formats: Any = (stated.get("video") or {}).get("format")
        if not isinstance(formats, list) or _without_format(stated) != _without_format(self.request):
            return []
        return formats

    def are_done(self, asked: Sequence[str], names: Sequence[str]) -> bool:
        """Whether these formats, in files and folders of these names, are there and whole."""
        outputs = (self.record or {}).get("outputs")
        return bool(self.formats) and set(asked) <= set(self.formats) and all(self._is_whole(outputs, n) for n in names)

    def check_owner(self, source: Path, names: Sequence[str]) -> None:
        """Refuses to replace files that are not known to be results of this clip.

        Raises:
            OutputError: results of another clip, or files without a record that do not state this clip.
        """
        sha256 = self.request["input_sha256"]
        if self.record is not None:
            other = self.record.get("input_path")
            if self.record.get("input_sha256") != sha256 and other != str(source.resolve()):
                raise OutputError(f"{self.folder / self.stem}.json and its files are results of {other}; {_WHAT_TO_DO}")
            return
        for path in (self.folder / name for name in names):
            if path.is_file() and (sha256 is None or sha256 not in {_stated_clip(path), self._interrupted()}):
                raise OutputError(
                    f"{path} exists, and there is no record that it is a result of this clip; {_WHAT_TO_DO}"
                )

    def kept(self, new: Sequence[str]) -> dict[str, int | None]:
        """Earlier outputs of other formats with the same settings. Those of other settings are removed."""
        outputs = (self.record or {}).get("outputs")
        others = {name: size for name, size in outputs.items() if name not in new} if isinstance(outputs, dict) else {}
        if self.formats:
            return {name: size for name, size in others.items() if self._is_whole(outputs, name)}
        for name in others:
            path = self.folder / name
            is_ours = path.suffix in (".mp4", ".mkv") or path.is_dir()
            if is_ours and path.parent == self.folder and name.startswith(f"{self.stem.rpartition('_')[0]}_"):
                with suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()
        return {}

    def remove_frames(self) -> None:
        """Removes files of single frames of other settings: some might not be written again."""
        frames = self.folder / f"{self.stem}_frames"
        if self.formats or not frames.is_dir():
            return
        for path in frames.iterdir():
            if re.match(r"\.?\d{6,}_", path.name):
                path.unlink()

    def _is_whole(self, outputs: Any, name: str) -> bool:
        if not isinstance(outputs, dict) or name not in outputs:
            return False
        path, size = self.folder / name, outputs[name]
        return path.is_dir() if size is None else file_size(path) == size

    def _interrupted(self) -> str | None:
        """Hash of the clip of a run that was ended here before its record was written."""
        with suppress(OSError, DamagedTextError, AttributeError):
            found: Any = parse_json((self.folder / f".{self.stem}.work" / "request.json").read_bytes())
            return found.get("input_sha256")
        return None


def _without_format(request: Mapping[str, Any]) -> str:
    video = {name: value for name, value in (request.get("video") or {}).items() if name != "format"}
    return to_json({**request, "video": video})


def _stated_clip(path: Path) -> str | None:
    """Hash of the clip from which a result file was made, from its record; None if the record is missing."""
    av = require_av()
    with suppress(OSError, ValueError, KeyError, AttributeError, DamagedTextError, av.error.FFmpegError):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                text = str(arrays[RECORD_NAME])
        else:
            with av.open(f"file:{path}", "r") as video:
                text = next((value for name, value in video.metadata.items() if name.lower() == "comment"), "")
        found: Any = parse_json(text.encode())
        return found.get("input_sha256")
    return None
