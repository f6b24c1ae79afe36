# SPDX-License-Identifier: Apache-2.0
"""Clips with measured depth, in the layouts of several data sets. A new layout is a file and a row of `LAYOUTS`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation.clips.clip import Clip, ClipFrame, Layout
from openmarigold.evaluation.clips.rendered import RENDERED
from openmarigold.evaluation.clips.scannet import SCANNET
from openmarigold.evaluation.clips.sintel import SINTEL, SINTEL_CLEAN
from openmarigold.evaluation.clips.tum import TUM
from openmarigold.files import as_path

__all__ = ["LAYOUTS", "Clip", "ClipFrame", "Layout", "open_clips"]

LAYOUTS = MappingProxyType({layout.name: layout for layout in (RENDERED, SCANNET, SINTEL, SINTEL_CLEAN, TUM)})


def open_clips(root: Path | str, *, layout: str | None = None, names: Sequence[str] = ()) -> list[Clip]:
    """The clips of a folder.

    Args:
        root: of one clip or of several.
        layout: one of `LAYOUTS`; None: the only one that fits.
        names: of the clips that are wanted; none: all.

    Raises:
        DataError: no layout fits, or several do, or a clip is damaged.
        InvalidValueError: a layout or clip that is not there.
    """
    root = as_path(root, "the folder of clips")
    if layout is not None and layout not in LAYOUTS:
        raise InvalidValueError(f"layout={layout!r} is not known; use {', '.join(LAYOUTS)}")
    wanted = LAYOUTS.values() if layout is None else [LAYOUTS[layout]]
    found = {row.name: clips for row in wanted if (clips := row.find(root))}
    if not found:
        accepted = "; ".join(f"{row.name}: {row.summary}" for row in wanted)
        raise DataError(f"{root} holds no clip; give a folder of one clip or of several ({accepted})")
    if len(found) > 1:
        raise DataError(f"{root} may be {' or '.join(found)}; say which with --layout")
    clips = next(iter(found.values()))
    if unknown := [name for name in names if name not in clips]:
        raise InvalidValueError(f"clip {unknown[0]!r} is not in {root}; it holds {', '.join(clips)}")
    return [make() for name, make in clips.items() if not names or name in names]
