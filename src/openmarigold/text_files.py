# SPDX-License-Identifier: Apache-2.0
"""JSON and TOML from files that may be damaged or hostile: a value that is safe to use, or one error on one line.

A table becomes a frozen dataclass by `from_table`.

Python's own parsers end in different exceptions for bytes that are not UTF-8, nesting that is too deep and whole
numbers that are too long. Others they let pass, to fail later: a whole number that no float can hold, a NUL in a name.
Here all of them are a `DamagedTextError`. NaN and Infinity pass: logs of a diverging training hold them.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from openmarigold.errors import OpenMarigoldError, one_line

# Nesting that no file of ours or of other tools comes near, far below Python's own limit.
MAX_DEPTH = 100
_LARGEST_DIGITS = 308  # of a whole number that a float can hold
_LONG_NUMBER = re.compile(rf"[0-9]{{{_LARGEST_DIGITS + 1}}}")
# Keys of version 0.1's files, and how they are spelled now.
_OLD_KEYS = {
    "metres_per_unit": "meters_per_unit",
    "licence": "license",
    "normalisation": "normalization",
    "latent_regularisation": "latent_regularization",
    "colour_map": "color_map",
}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
_Target = TypeVar("_Target")
_NUL = re.compile(r"\0|(?<!\\)(?:\\\\)*\\u0000")


class DamagedTextError(ValueError):
    """A text that is not what it should be, and why, on one line."""


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        DamagedTextError: no UTF-8, no JSON, nested more than `MAX_DEPTH` deep, or with a NUL or a whole number of more
            than 308 digits in it.
    """
    text = _text(content)
    try:
        # A call for each number costs time, and few texts hold a number that is so long.
        value = json.loads(text, parse_int=_whole_number if _LONG_NUMBER.search(text) else None)
    except DamagedTextError:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedTextError(one_line(error)) from error
    for _ in _values(value):  # only for its check of the depth
        pass
    return value


def parse_json_lines(content: bytes) -> Iterator[Any]:
    """The values of the whole lines of a JSON Lines file; lines that are cut or damaged are passed over."""
    for line in content.split(b"\n"):
        if line.strip():
            try:
                yield parse_json(line)
            except DamagedTextError:
                continue


def parse_toml(content: bytes | str) -> dict[str, Any]:
    """The table of a TOML text.

    Raises:
        DamagedTextError: as for `parse_json`.
    """
    text = _text(content)
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedTextError(one_line(error)) from error
    for value in _values(table):
        if isinstance(value, int) and abs(value) >= 10**_LARGEST_DIGITS:
            raise DamagedTextError(f"it holds a whole number of more than {_LARGEST_DIGITS} digits")
        if isinstance(value, str) and "\0" in value:
            raise DamagedTextError("it holds the character NUL")
    return table


def with_current_keys(value: Any) -> Any:
    """The value of a file of ours, with the keys of version 0.1 renamed at every depth.

    >>> with_current_keys({"depth": {"metres_per_unit": 0.001}})
    {'depth': {'meters_per_unit': 0.001}}
    """
    if isinstance(value, dict):
        return {_OLD_KEYS.get(key, key): with_current_keys(entry) for key, entry in value.items()}
    return [with_current_keys(entry) for entry in value] if isinstance(value, list) else value


def from_table(
    target: type[_Target], table: Any, *, where: str, error: type[OpenMarigoldError], prefix: str = ""
) -> _Target:
    """A dataclass of the values in a table, whose fields may be dataclasses of tables within it.

    Args:
        target: the dataclass; its own checks may raise `error`.
        table: of TOML or JSON.
        where: what error messages begin with.
        error: the kind of error to raise.
        prefix: what the names of keys begin with in messages.

    Raises:
        OpenMarigoldError: of the kind `error`: an unknown, missing or wrong key.
    """
    if not isinstance(table, Mapping):
        raise error(f"{where}: [{prefix.rstrip('.')}] must be a table, not {table!r}")
    hints = typing.get_type_hints(target)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            advice = f"did you mean {prefix}{near[0]}?" if near else f"accepted: {', '.join(hints)}"
            raise error(f"{where}: unknown key {prefix}{key}; {advice}")
    for entry in dataclasses.fields(target):  # pyright: ignore[reportArgumentType]
        optional = entry.default is not dataclasses.MISSING or entry.default_factory is not dataclasses.MISSING
        if entry.name not in table and not optional:
            raise error(f"{where}: {prefix}{entry.name} is missing; give a value")
    values = {
        key: _converted(hints[key], value, where=where, error=error, name=f"{prefix}{key}")
        for key, value in table.items()
    }
    try:
        return target(**values)
    except error as problem:
        raise error(f"{where}: {prefix}{problem}") from problem


def _converted(hint: Any, value: Any, *, where: str, error: type[OpenMarigoldError], name: str) -> Any:
    """A value as the type of its field."""

    def part(hint: Any, value: Any, name: str = name) -> Any:
        return _converted(hint, value, where=where, error=error, name=name)

    if dataclasses.is_dataclass(hint):
        return from_table(typing.cast(Any, hint), value, where=where, error=error, prefix=f"{name}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType and types.NoneType in arguments:
        rest = next(argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else part(rest, value)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        expected = arguments if Ellipsis not in arguments else (arguments[0],) * len(value)
        if len(expected) == len(value):
            return tuple(map(part, expected, value))
    if origin is dict and isinstance(value, Mapping):
        return {str(key): part(arguments[1], entry, f"{name}.{key}") for key, entry in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, (int, float)) and type(value) is not bool and not math.isnan(value):
        return float(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    raise error(f"{where}: {name}={value!r} is not accepted; it must be {_described(hint)}")


def _described(hint: Any) -> str:
    """What is accepted for a type, in words.

    >>> _described(tuple[str, ...]), _described(tuple[int, int]), _described(dict[str, float])
    ('a list, each a text', 'a list of a whole number and a whole number', 'a table, each value a number')
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is types.UnionType:
        return " or ".join(_described(argument) for argument in arguments if argument is not types.NoneType)
    if origin is tuple and Ellipsis in arguments:
        return f"a list, each {_described(arguments[0])}"
    if origin is tuple:
        return f"a list of {' and '.join(map(_described, arguments))}"
    if origin is dict:
        return f"a table, each value {_described(arguments[1])}"
    return _KINDS.get(hint) or "a table"


def _text(content: bytes | str) -> str:
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedTextError(f"it is not UTF-8 ({one_line(error)})") from error
    if _NUL.search(text):
        raise DamagedTextError("it holds the character NUL")
    return text


def _whole_number(digits: str) -> int:
    if len(digits.lstrip("-")) > _LARGEST_DIGITS:
        raise DamagedTextError(f"it holds a whole number of {len(digits)} digits")
    return int(digits)


def _values(value: Any) -> Iterator[Any]:
    """A value and all within it, level by level.

    Raises:
        DamagedTextError: there are more than `MAX_DEPTH` levels.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        yield from level
        level = [
            entry
            for outer in level
            if isinstance(outer, (dict, list))
            for entry in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise DamagedTextError(f"it is nested more than {MAX_DEPTH} deep")
