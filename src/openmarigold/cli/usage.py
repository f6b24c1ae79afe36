# SPDX-License-Identifier: Apache-2.0
"""One-line messages about wrong usage: unknown commands and options with suggestions, else tyro's finding."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import tyro

from openmarigold.errors import InvalidValueError, OpenMarigoldError

_MAX_SUGGESTIONS = 3

Commands = Mapping[tuple[str, ...], frozenset[str]]  # words of a command -> its options


@contextlib.contextmanager
def plain_refusals(argv: Sequence[str], command: Any) -> Iterator[None]:
    """Raises one-line errors in place of the messages that tyro prints.

    Raises:
        InvalidValueError: wrong usage of one of the commands in the union `command`.
        OpenMarigoldError: the check of a setting raised it.
    """
    try:
        from tyro._errors import on_parse_error
    except ImportError:  # this private module may change with any release; then tyro prints its messages and exits
        yield
        return

    def refuse(event: Any) -> NoReturn:
        error = sys.exc_info()[1]
        while error is not None:
            if isinstance(error, OpenMarigoldError):
                raise error from None
            error = error.__cause__ or error.__context__
        try:
            found = _found(event)
        except (ImportError, AttributeError, TypeError):  # as above: the events may change, too
            found = "wrong usage"
        raise InvalidValueError(wrong_usage(found, argv, commands_of(command))) from None

    with on_parse_error(refuse):
        yield


def _found(event: Any) -> str:
    """An event of `tyro._errors` as a message."""
    match type(event).__name__:
        case "MissingArgs":
            missing = " ".join(_explained(one.arg) for one in event.missing_arguments)
            command = f"{event.prog} {event.missing_arguments[0].source_parser.prog_suffix}".strip()
            unknown = f" Unrecognized options: {', '.join(given)}" if (given := event.unrecognized_tokens) else ""
            return f"Missing from {command}: {missing}{unknown}"
        case "MissingSubcommand":
            return f"Expected one of {{{', '.join(event.subcommand_spec.parser_from_name)}}}"
        case "InvalidChoice":
            return (
                f"invalid choice {event.value!r} for argument '{event.argument.display_name()}'. Expected one of "
                f"{event.choices}"
            )
        case "BadValue" if event.offending_value is None:
            return (
                f"Missing value for argument '{event.argument.display_name()}'. Expected "
                f"{event.argument.lowered.nargs} values"
            )
        case "InstantiationFailure" if event.argument is not None:
            message = _plain(str(event.message))
            return f"Error parsing {event.argument.display_name()}: {message}; give {_explained(event.argument)}"
        case "InstantiationFailure":
            return str(event.message)
        case "UnrecognizedArgs":
            return f"Unrecognized options: {', '.join(event.tokens)}"
    return "wrong usage"


def _plain(message: str) -> str:
    r"""A message about a wrong value, without the names of Python's types and functions.

    >>> _plain("no type matching {None}|INT could be instantiated from ['many'].\n\nGot errors: ...")
    "'many' is not accepted"
    >>> _plain("invalid literal for int() with base 10: 'x'")
    "'x' is not a whole number"
    """
    if of_union := re.search(r"could be instantiated from \[(.*?)\]\.\s+Got errors", message):
        return f"{of_union[1]} is not accepted"
    message = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number", message)
    return re.sub(r"could not convert string to float: (.*)", r"\1 is not a number", message)


def _explained(argument: Any) -> str:
    """An argument's names and help, as `--help` shows them."""
    from tyro._arguments import generate_argument_helptext

    parts = argument.get_invocation_text()[1], generate_argument_helptext(argument, argument.lowered)
    return " ".join(" ".join(part.as_str_no_ansi() for part in parts).split())


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


def wrong_usage(found: str, argv: Sequence[str], commands: Commands) -> str:
    r"""The message about an unknown command or option, else `found`, with a hint to the help.

    >>> commands = {("predict",): frozenset({"--seed"})}
    >>> wrong_usage("Missing value for argument '--seed'", ["predict", "--seed"], commands)
    "Missing value for argument '--seed'. See `openmarigold predict --help`"
    >>> wrong_usage("", ["predict", "--sed"], commands)
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
    return f"{' '.join(found.split()).rstrip('.')}. {_see(path)}"


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
