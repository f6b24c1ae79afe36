# SPDX-License-Identifier: Apache-2.0
"""`openmarigold predict`: photos to maps."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from openmarigold.cli.terminal import EXIT_SOME_FAILED, progress_bar, say
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError
from openmarigold.text_files import from_table, parse_toml


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict depth or normals of photos. `--help-all` lists the rare settings too.

    For each photo: STEM_depth.npy (float32, 0 near to 1 far), STEM_depth.png (16 bits), STEM_depth_colored.png (near is
    red); where ensemble-size is above 1 STEM_uncertainty.npy; of normals the same. An interrupted run goes on where it
    was. Exit status: 0 all done, 1 some photos failed, 2 an error, 130 interrupted.
    """

    inputs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="INPUT...", help_behavior_hint="")]
    """Photos, and folders of photos with those in the folders within."""
    output_dir: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder of the results; made where it is missing."""
    config_file: Annotated[Path | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """TOML file with settings (ensemble_size = 10); flags override it."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Predict again what is done with the same settings."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print what was done as JSON."""
    output: tyro.conf.OmitArgPrefixes[tyro.conf.FlagCreatePairsOff[OutputConfig]] = field(default_factory=OutputConfig)
    config: tyro.conf.UseAppendAction[tyro.conf.OmitArgPrefixes[PredictConfig]] = field(default_factory=PredictConfig)


# What `predict --help` shows; `--help-all` shows the rest.
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


def parse_predict(argv: Sequence[str], prog: str) -> Predict | None:
    """The command of the words after `predict`; None without a request for help or a settings file.

    Raises:
        InvalidValueError: a settings file that cannot be read, or a value that is not accepted.
        SystemExit: help was asked for, or the usage is wrong.
    """
    words = list(argv)
    if "--help-all" in words:
        return tyro.cli(Predict, args=["--help"], prog=prog)
    if {"-h", "--help"} & set(words):
        return tyro.cli(_brief(Predict), args=["--help"], prog=prog)
    paths = _values_of(words, "--config")
    if not paths:
        return None
    if len(paths) > 1:
        raise InvalidValueError(f"--config is given {len(paths)} times; give one file")
    config, output = _read_settings(Path(paths[0]))
    if _values_of(words, "--modality"):  # whose values are added to those that are there
        config = replace(config, modality=())
    hints = get_type_hints(Predict, include_extras=True)
    given = {name: hints[name] for name in ("config", "output")}
    found = tyro.cli(_varied(Predict, given, {"config": config, "output": output}), args=words, prog=prog)
    return Predict(**{setting.name: getattr(found, setting.name) for setting in fields(Predict)})


def _values_of(words: Sequence[str], option: str) -> list[str]:
    """The values of an option: the next word, or the text after =."""
    found = []
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == option:
            found += [value] if value else words[place + 1 : place + 2]
    return found


def _read_settings(path: Path) -> tuple[PredictConfig, OutputConfig]:
    """The settings of a TOML file.

    Raises:
        InvalidValueError: the file cannot be read, or holds a key or value that is not accepted.
    """
    try:
        table = parse_toml(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidValueError(f"--config {path} cannot be read ({reason}); give a TOML file with settings") from error
    names = {kind: [setting.name for setting in fields(kind)] for kind in (PredictConfig, OutputConfig)}
    known = [name for group in names.values() for name in group]
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            meant = f"did you mean {close[0]}?" if close else "see `openmarigold predict --help-all`"
            raise InvalidValueError(f"{path}: {key} is not a setting of predict; {meant}")
    parts = ({key: table[key] for key in table if key in group} for group in names.values())
    config, output = (
        from_table(kind, part, where=str(path), error=InvalidValueError)
        for kind, part in zip(names, parts, strict=True)
    )
    return config, output  # pyright: ignore[reportReturnType]


def _brief(command: type, shown: frozenset[str] | None = None) -> type:
    """A copy of a command, or of its settings, whose help shows only common settings."""
    hints = get_type_hints(command, include_extras=True)
    if shown is None:
        parts = {name: _brief(kind, _COMMON) for name, kind in (("config", PredictConfig), ("output", OutputConfig))}
        rare = {name: tyro.conf.UseAppendAction[tyro.conf.OmitArgPrefixes[part]] for name, part in parts.items()}
        return _varied(command, rare, {name: part() for name, part in parts.items()})
    rare = {setting.name: setting.default for setting in fields(command) if setting.name not in shown}
    return _varied(command, {name: tyro.conf.Suppress[hints[name]] for name in rare}, rare, text=" ")


def _varied(base: type, hints: dict[str, Any], defaults: dict[str, Any], text: str | None = None) -> type:
    """A dataclass like `base` with other types and defaults for these fields."""
    body = {"__annotations__": hints, "__doc__": text or base.__doc__, "__module__": base.__module__, **defaults}
    return dataclass(frozen=True, kw_only=True)(type(base.__name__, (base,), body))


def run_predict(command: Predict) -> int:
    """Predicts, prints what was done, and returns the exit status."""
    from openmarigold.predictor.run import Event, predict_files

    started = time.perf_counter()
    with progress_bar("photos") as (advance, note):

        def report(event: Event) -> None:
            if event.error is not None:
                note(f"error: {event.error}")
            if event.note is not None:
                note(f"note: {event.note}")
            advance(event.done, event.total)

        result = predict_files(
            command.inputs,
            output_dir=command.output_dir,
            config=command.config,
            output=command.output,
            overwrite=command.overwrite,
            report=report,
        )
    total_s = time.perf_counter() - started
    if command.json:
        print(json.dumps({**result.to_dict(), "total_s": round(total_s, 3)}, indent=2))
    else:
        renewed = f" ({len(result.renewed)} again: settings or photo changed)" if result.renewed else ""
        photos_s = total_s - result.load_s  # of neighbors, reading, predicting and writing overlap
        engine = f"engine {result.engine}, " if result.engine else ""
        each = f", {photos_s / result.num_predicted:.2f} s a photo" if result.num_predicted else ""
        say(
            f"{result.num_predicted} predicted{renewed}, {len(result.skipped)} skipped, {len(result.failed)} failed in "
            f"{total_s:.2f} s ({engine}model loaded in {result.load_s:.2f} s{each}) -> {command.output_dir}"
        )
    return EXIT_SOME_FAILED if result.failed else 0
