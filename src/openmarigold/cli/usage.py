# SPDX-License-Identifier: Apache-2.0
"""What tyro says about wrong usage in a frame of several lines, as one line like every other error."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Sequence

_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_ROW = re.compile(r"│ ?(.*?)\s*│")
_RULE = re.compile(r"[─-]{3,}")
_MAX_SUGGESTIONS = 3
_WIDE = "10000"


@contextlib.contextmanager
def unwrapped(argv: Sequence[str]) -> Iterator[None]:
    """Keeps tyro's messages from being wrapped at the terminal's width, which help texts still are."""
    before = os.environ.get("COLUMNS")
    if {"-h", "--help", "--help-all"} & set(argv):
        yield
        return
    os.environ["COLUMNS"] = _WIDE
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def one_line(printed: str, argv: Sequence[str], commands: Sequence[str]) -> str:
    r"""The message in a frame of tyro's, with what may have been meant and where help is.

    Args:
        printed: all that tyro printed.
        argv: the command line.
        commands: names of the commands.

    >>> frame = ["╭─ Missing argument ─────────────╮", "│ Missing value for argument '--seed'. │", "╰──╯"]
    >>> one_line("\n".join(frame), ["predict", "--seed"], ["predict", "data"])
    "Missing value for argument '--seed'. See `openmarigold predict --help`"
    """
    command = argv[0] if argv and argv[0] in commands else None
    help_command = " ".join(("openmarigold", *([command] if command else []), "--help"))
    message, *details = _sections(printed)
    parts = [_message(message)]
    meant: list[str] = []
    for section in sorted(details, key=lambda section: _position(section[0], argv)):
        heading = section[0].strip()
        if heading.startswith(("Perhaps you meant", "Arguments similar to")):
            meant.append(_suggestions(section[1:], argv))
        elif heading.startswith("Argument helptext") and len(section) > 1:
            parts.append(f"give {section[1].strip()}")
        elif heading.startswith("Available subcommands:"):
            parts.append(_subcommands(heading, argv))
    if any(meant):
        parts.append(f"did you mean {', '.join(text for text in meant if text)}?")
    text = "; ".join(part.rstrip(".") for part in parts if part)
    return f"{text}{'' if text.endswith('?') else '.'} See `{help_command}`"


def _sections(printed: str) -> list[list[str]]:
    """Rows between the rules, without the frame, which is blanks and a title of its own where stdout is not UTF-8."""
    sections: list[list[str]] = [[]]
    framed = "│" in printed
    for line in _STYLE.sub("", printed).splitlines():
        match = _ROW.fullmatch(line.strip()) if framed else None
        if framed and match is None:
            continue
        row = match.group(1) if match else line.rstrip().removeprefix("  ")
        if _RULE.fullmatch(row.strip()):
            sections.append([])
        elif row.strip():
            sections[-1].append(row)
    found = [section for section in sections[0 if framed or len(sections) == 1 else 1 :] if section]
    return found or [["wrong usage"]]


def _message(rows: Sequence[str]) -> str:
    """The first section on one line, of each missing argument only its name."""
    if not rows[0].startswith("Missing from"):
        # Where tyro knows an option of another command, it says of each option where it stands.
        applied = [words[0] for row in rows if "(applied to " in row and (words := row.split())]
        return f"Unrecognized options: {', '.join(applied)}" if applied else " ".join(" ".join(rows).split())
    return " ".join(row.strip() for row in rows if _indent(row) <= 4 and not row.startswith("For full"))


def _suggestions(rows: Sequence[str], argv: Sequence[str]) -> str:
    """Options that resemble an unknown one: those of the command, else those of others with the command's name."""

    def is_given(place: str) -> bool:
        words = place.split()[1:]
        return words == list(argv[: len(words)])

    options: dict[str, list[str]] = {}
    name = ""
    for row in rows:
        words = row.split()
        if _indent(row) == 4 and words[0].startswith("-"):
            name = words[-2] if words[-1].isupper() and len(words) > 2 else words[0]
            name = name.rstrip(",")
            options.setdefault(name, [])
        elif words[:1] == ["in"] and words[-1:] == ["--help"] and name:
            options[name].append(" ".join(words[1:-1]))
    own = [name for name, places in options.items() if any(map(is_given, places))]
    others = [f"{name} of `{places[0]}`" for name, places in options.items() if places]
    return " or ".join((own or others)[:_MAX_SUGGESTIONS])


def _position(heading: str, argv: Sequence[str]) -> int:
    """Where the option that a heading is about stands in the command line; tyro's own order is by chance."""
    words = heading.rstrip().rstrip(":").split()
    return argv.index(words[-1]) if words and words[-1] in argv else 0


def _subcommands(heading: str, argv: Sequence[str]) -> str:
    names = heading.partition(":")[2].replace(",", " ").split()
    close = next((text for word in argv if (text := _close(word, names))), "")
    return close or f"there are {', '.join(names)}"


def _close(word: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]}?" if close and close[0] != word else ""


def _indent(row: str) -> int:
    return len(row) - len(row.lstrip())
