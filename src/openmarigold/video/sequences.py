# SPDX-License-Identifier: Apache-2.0
"""Pictures in a folder as a clip, in natural order: frame2 comes before frame10."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from openmarigold.errors import ImageError
from openmarigold.images.kinds import image_suffixes
from openmarigold.images.photo import read_rgb
from openmarigold.video.clip import DEFAULT_RATE, Choice, ClipFacts, ClipFrame, Note, Watch, about_how_many, exact
from openmarigold.video.settings import VideoConfig

_PLACE = re.compile(r"%(0?)(\d*)d")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that compares numbers in names by their value.

    >>> sorted(["f10.png", "f9.png", "f1.png"], key=natural_key)
    ['f1.png', 'f9.png', 'f10.png']
    """
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts] + [(2, 0, name)]


def is_pattern(path: Path) -> bool:
    """Whether a path that does not exist names pictures: `frames/*.png` or `frames/%05d.png`."""
    return not path.exists() and ("*" in path.name or _PLACE.search(path.name) is not None)


def find_pictures(path: Path) -> list[Path]:
    """The pictures of a folder, or of a pattern, in natural order.

    Raises:
        ImageError: there is none.
    """
    if path.is_dir():
        found = [one for one in path.iterdir() if one.suffix.lower() in image_suffixes() and one.name[:1] != "."]
        wanted = f"{path} holds no picture; give a folder of pictures, such as .png or .jpg, or a video file"
    elif _PLACE.search(path.name):
        expression = "".join(r"(\d+)" if number else re.escape(text) for number, text in _parts_of_pattern(path.name))
        found = [one for one in path.parent.glob("*") if re.fullmatch(expression, one.name)]
        wanted = f"no file fits {path}; check the pattern"
    else:
        found = list(path.parent.glob(path.name))
        wanted = f"no file fits {path}; check the pattern"
    found = [one for one in found if one.is_file()]
    if not found:
        raise ImageError(wanted)
    return sorted(found, key=lambda one: natural_key(one.name))


def _parts_of_pattern(name: str) -> list[tuple[bool, str]]:
    """The parts of a pattern: texts (False), and places of a number (True)."""
    parts, end = [], 0
    for match in _PLACE.finditer(name):
        parts += [(False, name[end : match.start()]), (True, "")]
        end = match.end()
    return [*parts, (False, name[end:])]


class PictureClip:
    """Pictures of one size as a clip of a fixed rate."""

    def __init__(
        self,
        pictures: list[Path],
        *,
        name: str,
        config: VideoConfig,
        background: str,
        note: Note,
        watch: Watch = lambda number: None,
    ) -> None:
        """`watch` is called with the number of pictures so far; what it raises ends them."""
        self._pictures, self._config, self._background, self._note = pictures, config, background, note
        self._watch = watch
        if (told := about_gaps(pictures)) is not None:
            note(f"{name}: {told}; pictures follow each other at one rate")
        rate = exact(config.input_rate or DEFAULT_RATE)
        self.problem: str | None = None
        self.facts = ClipFacts(
            name=name,
            time_base=1 / rate,
            rate=rate,
            num_frames=about_how_many(config, duration=len(pictures) / float(rate), rate=rate),
            stated={"kind": "pictures", "first": pictures[0].name, "num_pictures": len(pictures), "rate": str(rate)},
        )

    def frames(self, first: int = 0) -> Iterator[ClipFrame]:
        """See `Clip`. Pictures that cannot be read, or are of another size, end the clip."""
        choice, number, size = Choice(self._config), 0, None
        for place, path in enumerate(self._pictures):
            self._watch(place + 1)
            time = Fraction(place) / self.facts.rate
            if choice.is_over(time):
                return
            if not choice.takes(time):
                continue
            if number >= first or size is None:  # the first picture gives the size, also to a resumed run
                try:
                    rgb = read_rgb(path, background=self._background, note=self._note)
                except ImageError as error:
                    if number == 0:
                        raise
                    self.problem = f"{error}; the {number} frames before it are kept"
                    return
                if size is not None and rgb.shape != size:
                    self.problem = about_size(f"{path}", (size[0], size[1]), (rgb.shape[0], rgb.shape[1]), number, time)
                    return
                size = rgb.shape
                if number >= first:
                    yield ClipFrame(number=number, pts=place, time=time, rgb=rgb)
            number += 1

    def close(self) -> None:
        """Nothing is open."""


def about_gaps(pictures: list[Path]) -> str | None:
    """A note on jumps of the numbers at the end of names, as if pictures were lost; None without jumps.

    >>> about_gaps([Path(f"f{number}.png") for number in (0, 2, 4, 10, 12)])
    'numbers jump once, from f4.png to f10.png'
    """
    found = [re.search(r"(\d+)\D*$", path.stem) for path in pictures]
    steps = [int(b[1]) - int(a[1]) for a, b in pairwise(found) if a is not None and b is not None]
    if len(steps) < 2 or len(steps) + 1 < len(pictures):
        return None
    usual = Counter(steps).most_common(1)[0]
    jumps = [place for place, step in enumerate(steps) if step > usual[0]]
    if not jumps or 2 * usual[1] <= len(steps):  # irregular numbers, such as times
        return None
    times = "once" if len(jumps) == 1 else f"{len(jumps)} times, first"
    return f"numbers jump {times}, from {pictures[jumps[0]].name} to {pictures[jumps[0] + 1].name}"


def about_size(name: str, before: tuple[int, int], now: tuple[int, int], number: int, time: Fraction) -> str:
    """The problem of a clip whose size (height, width) changes."""
    return (
        f"{name} changes its size from {before[1]}x{before[0]} to {now[1]}x{now[0]} at frame {number} "
        f"({float(time):.3f} s); the frames before it are kept. Scale the clip to one size, or cut it there"
    )
