# SPDX-License-Identifier: Apache-2.0
"""Messages about wrong usage, on one line: unknown commands and options with similar ones, else tyro's own text."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tyro

_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_MAX_SUGGESTIONS = 3
_WIDE = "10000"

Commands = Mapping[tuple[str, ...], frozenset[str]]  # words of a command -> its options


@contextlib.contextmanager
def unwrapped(argv: Sequence[str]) -> Iterator[None]:
    """Keeps tyro from wrapping messages at the terminal's width; help texts are still wrapped."""
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


def commands_of(union: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], frozenset[str]]:
    """The options of each command in a union of dataclasses, and of the commands within these."""
    found: dict[tuple[str, ...], frozenset[str]] = {}
    for command in typing.get_args(union):
        command_type, *marks = typing.get_args(command)
        words = (*path, next(mark.name for mark in marks if hasattr(mark, "name")))
        options, inner = _fields(command_type)
        found[words] = frozenset(options)
        for choice in inner:
            found |= commands_of(choice, words)
    return found


def wrong_usage(printed: str, argv: Sequence[str], commands: Commands) -> str:
    r"""The message about an unknown command or option, else tyro's own message, on one line.

    >>> frame = ["╭─ Missing argument ─────────────╮", "│ Missing value for argument '--seed'. │", "╰──╯"]
    >>> wrong_usage("\n".join(frame), ["predict", "--seed"], {("predict",): frozenset({"--seed"})})
    "Missing value for argument '--seed'. See `openmarigold predict --help`"
    >>> wrong_usage("", ["predict", "--sed"], {("predict",): frozenset({"--seed"})})
    'Unrecognized options: --sed; did you mean --seed? See `openmarigold predict --help`'
    """
    path = _path(argv, commands)
    names = [words[-1] for words in commands if words[:-1] == path]
    if names and len(argv) > len(path) and not argv[len(path)].startswith("-"):
        word = argv[len(path)]
        close = difflib.get_close_matches(word, names, n=1)
        advice = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}."
        return f"Unrecognized command: {word}; {advice} {_see(path)}"
    known = commands.get(path, frozenset())
    unknown = [word for word in (word.partition("=")[0] for word in argv) if not _is_known(word, known)]
    if unknown:
        similar = [_similar(word, path, commands) for word in unknown]
        meant = ", ".join(" or ".join(options[:_MAX_SUGGESTIONS]) for options in similar if options)
        advice = f"; did you mean {meant}?" if meant else "."
        return f"Unrecognized options: {', '.join(unknown)}{advice} {_see(path)}"
    lines = _STYLE.sub("", printed).splitlines()
    rows = [line.strip(" │") for line in lines if line[:1] not in ("╭", "╰")]
    rows = [row for row in rows if row.strip("─-")]
    if "│" not in printed:
        rows = rows[1:]  # without the title, which is otherwise part of the frame
    text, *_ = " ".join(" ".join(rows).split()).split(" For full helptext")
    return f"{text.replace(' Argument helptext: ', '; give ').rstrip('.') or 'wrong usage'}. {_see(path)}"


def _fields(settings_type: Any) -> tuple[list[str], list[Any]]:
    """Names of a dataclass's options, and its unions of commands."""
    options, inner = [], []
    for name, hint in typing.get_type_hints(settings_type, include_extras=True).items():
        marks: list[Any] = []
        while typing.get_origin(hint) is typing.Annotated:
            hint, *more = typing.get_args(hint)
            marks += more
        if dataclasses.is_dataclass(hint):
            of_part, within = _fields(hint)
            options += of_part
            inner += within
        elif any(typing.get_origin(choice) is typing.Annotated for choice in typing.get_args(hint)):
            inner.append(hint)
        elif tyro.conf.Positional not in marks:
            named = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
            options.append(f"--{named.replace('_', '-')}")
    return options, inner


def _path(argv: Sequence[str], commands: Commands) -> tuple[str, ...]:
    """The command that a command line begins with."""
    return max((words for words in commands if tuple(argv[: len(words)]) == words), key=len, default=())


def _is_known(word: str, options: frozenset[str]) -> bool:
    name = word.replace("_", "-")
    return not name.startswith("--") or name in options or name.replace("--no-", "--", 1) in options


def _similar(option: str, path: tuple[str, ...], commands: Commands) -> list[str]:
    """Options that resemble an unknown one: of this command, else of other commands, with their names."""

    def close(options: frozenset[str]) -> list[str]:
        begun = sorted(name for name in options if name.startswith(option))
        return begun or difflib.get_close_matches(option, sorted(options), n=_MAX_SUGGESTIONS, cutoff=0.75)

    own = close(commands.get(path, frozenset()))
    others = {words: close(options) for words, options in commands.items()}
    nearest = sorted(others, key=lambda words: words[:1] != path[:1])
    return own or [f"{others[words][0]} of `openmarigold {' '.join(words)}`" for words in nearest if others[words]]


def _see(path: tuple[str, ...]) -> str:
    return f"See `{' '.join(('openmarigold', *path[:1], '--help'))}`"
