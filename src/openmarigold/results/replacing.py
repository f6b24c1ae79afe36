# SPDX-License-Identifier: Apache-2.0
"""Rules for replacing files of an output folder by new results."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openmarigold.errors import OutputError
from openmarigold.files import Leftovers
from openmarigold.results.inputs import photo_location
from openmarigold.results.manifest import Manifest
from openmarigold.results.provenance import stated_input


class ResultFiles:
    """The result files of one output folder, as its manifest describes them."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.leftovers = Leftovers()

    def check_owner(self, result: str, photo: Path, paths: Sequence[Path], input_sha256: str | None) -> None:
        """Check that files with the names of the results do not belong to another photo.

        Raises:
            OutputError: they do, or their photo is unknown.
        """
        if self.manifest.standing(result) is not None:
            owner = self.manifest.other_photo(
                result, input=str(photo), location=photo_location(photo), input_sha256=input_sha256
            )
            if owner is not None:
                raise OutputError(
                    f"{photo}: {paths[0]} is the result of another photo, {owner}; choose another output "
                    "folder, or allow overwriting (--overwrite)"
                )
        # Names may collide: the normals of x.png and the depth of x_normals.png both have an x_normals_uncertainty.npy.
        known = self._names_of_earlier_runs(result)
        found = [path for path in paths if path.name not in known and path.is_file()]
        if found and input_sha256 not in {stated_input(path) for path in found}:
            raise OutputError(
                f"{photo}: {found[0]} is there already, and there is no record that it is of this photo; choose "
                "another output folder, or allow overwriting (--overwrite)"
            )

    def check_names(self, photo: Path, paths: Sequence[Path]) -> None:
        """Check that the file system accepts the names of the results.

        Raises:
            OutputError: their names are too long, or their folder cannot be written.
        """
        folder = paths[0].parent
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{photo}: cannot write to {folder}; check its permissions")
        longest = max((path.name for path in paths), key=lambda name: len(os.fsencode(name)))
        try:
            (self.manifest.output_dir / longest).lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                return  # other problems appear when files are written, with a message of their own
            raise OutputError(
                f"{photo}: its result {longest} would have a name of {len(os.fsencode(longest))} bytes, which is too "
                "long for the file system; give the photo a shorter name"
            ) from error

    def make_room(
        self, result: str, photo: Path, paths: Sequence[Path], input_sha256: str | None, *, request: Mapping[str, Any]
    ) -> dict[str, int | None] | None:
        """Files of an earlier run that stay valid next to new ones, with their sizes; None if its files were removed.

        Files of another photo or of other settings are removed: a kill between two new files must not leave files of
        two kinds that look like one set. The plan is noted first, for the run after such a kill.

        Raises:
            OutputError: a file cannot be removed.
        """
        last = self.manifest.standing(result) or {}
        new = {path.name for path in paths}
        done = last.get("status") == "done"
        if done and last.get("request") == request and last.get("input_sha256") == input_sha256:
            return {name: size for name, size in last["outputs"].items() if name not in new}
        names = sorted({*self._names_of_earlier_runs(result), *new})
        started: dict[str, Any] = {"input": str(photo), "input_path": photo_location(photo)}
        self.manifest.append(result, "started", **started, input_sha256=input_sha256, replaces=names)
        try:
            for name in names:
                ((self.manifest.output_dir / result).parent / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot replace {error.filename}: {error.strerror}; check its permissions") from error
        return None if done else {}

    def _names_of_earlier_runs(self, result: str) -> list[str]:
        """Files that the valid line of a result lists as done or as to be replaced."""
        last = self.manifest.standing(result) or {}
        return sorted({*last.get("outputs", ()), *last.get("replaces", ())})
