# SPDX-License-Identifier: Apache-2.0
"""Commands with many settings: read them from a file and from flags, and show only the common ones in `--help`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError
from openmarigold.text_files import from_table, parse_toml

GROUPS: Mapping[str, type] = {"config": PredictConfig, "output": OutputConfig}
"""Fields of a command that a settings file may fill; a command with other fields has a class attribute `GROUPS`."""

# Settings that `--help` shows; `--help-all` shows all. A command adds more with the class attribute `COMMON`.
_COMMON = frozenset(
    {
        "checkpoint",
        "modality",
        "num_inference_steps",
        "ensemble_size",
        "processing_resolution",
        "device",
        "format",
        "color_map",
    }
)
_Command = TypeVar("_Command")


def parse_with_settings(command: type[_Command], argv: Sequence[str], prog: str) -> _Command:
    """The command, parsed from the words after its name.

    `command` is a dataclass with the fields of `GROUPS` (or its own), and with `config_file` for `--config`.

    Raises:
        InvalidValueError: a settings file that cannot be read, or a value that is not accepted.
        SystemExit: help was asked for, or the usage is wrong.
    """
    words = list(argv)
    if "--help-all" in words:
        return tyro.cli(command, args=["--help"], prog=prog)
    if {"-h", "--help"} & set(words):
        return tyro.cli(_brief(command), args=["--help"], prog=prog)
    paths = _values_of(words, "--config")
    if not paths:
        return tyro.cli(command, args=words, prog=prog)
    if len(paths) > 1:
        raise InvalidValueError(f"--config is given {len(paths)} times; give one file")
    read = _read_settings(Path(paths[0]), prog, _groups(command))
    if _values_of(words, "--modality"):  # tyro adds its values to those that are there
        read["config"] = replace(read["config"], modality=())
    hints = get_type_hints(command, include_extras=True)
    found = tyro.cli(_varied(command, {name: hints[name] for name in read}, read), args=words, prog=prog)
    return command(**{setting.name: getattr(found, setting.name) for setting in fields(command)})  # pyright: ignore


def _values_of(words: Sequence[str], option: str) -> list[str]:
    """The values of an option: the next word, or the text after =."""
    found = []
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == option:
            found += [value] if value else words[place + 1 : place + 2]
    return found


def _groups(command: type) -> Mapping[str, type]:
    return getattr(command, "GROUPS", GROUPS)


def _read_settings(path: Path, prog: str, groups: Mapping[str, type]) -> dict[str, Any]:
    """The settings of a TOML file, by group.

    Raises:
        InvalidValueError: the file cannot be read, or holds a key or value that is not accepted.
    """
    try:
        table = parse_toml(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidValueError(f"--config {path} cannot be read ({reason}); give a TOML file with settings") from error
    names = {group: [setting.name for setting in fields(settings_type)] for group, settings_type in groups.items()}
    known = [name for group in names.values() for name in group]
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            meant = f"did you mean {close[0]}?" if close else f"see `{prog} --help-all`"
            raise InvalidValueError(f"{path}: {key} is not a setting of {prog.split()[-1]}; {meant}")
    return {
        group: from_table(
            settings_type,
            {key: table[key] for key in table if key in names[group]},
            where=str(path),
            error=InvalidValueError,
        )
        for group, settings_type in groups.items()
    }


def _brief(command: type) -> type:
    """A copy of a command whose help shows only common settings."""
    hints = get_type_hints(command, include_extras=True)
    parts: dict[str, Any] = {}
    common = _COMMON | getattr(command, "COMMON", frozenset())
    for name, settings_type in _groups(command).items():
        settings = get_type_hints(settings_type, include_extras=True)
        rare = {setting.name: setting.default for setting in fields(settings_type) if setting.name not in common}
        hidden = {setting: tyro.conf.Suppress[settings[setting]] for setting in rare}
        parts[name] = _varied(settings_type, hidden, rare, text=" ")
    marked: dict[str, Any] = {name: tyro.conf.OmitArgPrefixes[part] for name, part in parts.items()}
    marked["config"] = tyro.conf.UseAppendAction[marked["config"]]
    return _varied(command, {**hints, **marked}, {name: part() for name, part in parts.items()})


def _varied(base: type, hints: dict[str, Any], defaults: dict[str, Any], text: str | None = None) -> type:
    """A dataclass like `base` with other types and defaults for these fields."""
    own = {name: hint for name, hint in hints.items() if name in defaults}
    body = {"__annotations__": own, "__doc__": text or base.__doc__, "__module__": base.__module__, **defaults}
    return dataclass(frozen=True, kw_only=True)(type(base.__name__, (base,), body))
