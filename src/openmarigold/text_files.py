# SPDX-License-Identifier: Apache-2.0
"""JSON and TOML from files that may be damaged or hostile: a value that is safe to use, or one error on one line.

Python's own parsers end in different exceptions for bytes that are no UTF-8, for nesting that is too deep and for whole
numbers that are too long. Others they let pass, to fail later: a whole number that no float can hold, a NUL in a name.
Here all of them are a `DamagedTextError`. NaN and Infinity pass: logs of a diverging training hold them.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

from openmarigold.errors import one_line

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
