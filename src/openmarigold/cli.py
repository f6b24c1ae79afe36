# SPDX-License-Identifier: Apache-2.0
"""The commands: predict, evaluate, train, export. No arithmetic and nothing heavy at import time.

Results are printed to stdout, with `--json` as one JSON object; progress and errors go to stderr. Exit status: 0 all
done, 1 some photos failed, 2 an error, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import tyro

from openmarigold.config import PredictConfig
from openmarigold.errors import OpenMarigoldError

if TYPE_CHECKING:
    from openmarigold.evaluation import Report

EXIT_SOME_FAILED = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict the depth of photos.

    For each photo: STEM_depth.npy (float32, 0 near to 1 far), STEM_depth.png (16 bits), STEM_depth_colored.png (near is
    red), and STEM_uncertainty.npy where ensemble-size is above 1.
    """

    inputs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="INPUT...", help_behavior_hint="")]
    """Photos, and folders of photos (not folders within)."""
    output_dir: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder of the results; made where it is missing."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Predict again where all results are there already; otherwise such photos are skipped."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print what was done as JSON."""
    config: tyro.conf.OmitArgPrefixes[PredictConfig] = field(default_factory=PredictConfig)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model on a folder of photos with measured depth.

    Per image, scale and shift are fitted to the measured depth; scores are means over the places of a kind.
    """

    benchmark: Path
    """Folder with manifest.json and, for each image, a folder with rgb.jpg, depth.png and meta.json."""
    baselines: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also score two estimators that do not look at the photo: a constant, and the image row."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print all metrics, per kind and per image, as JSON."""
    config: tyro.conf.OmitArgPrefixes[PredictConfig] = field(default_factory=PredictConfig)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model as a recipe says (extra `train`)."""

    recipe: Path
    """Recipe file (TOML)."""
    data_dir: Path
    """Folder of the training data that the recipe names."""
    output_dir: Path
    """Folder of checkpoints, state and logs."""
    benchmark: Path | None = None
    """Benchmark folder for the scores during training."""
    device: str = "auto"
    """Where to train: auto (an accelerator where there is one) or cpu."""
    resume: bool = True
    """Continue from the state in the output folder, if there is one."""
    stop_after_steps: int | None = None
    """Stop early, with the state saved, when so many steps are done."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Turn a checkpoint with safetensors weights into one that runs without torch, in ONNX format (extra `export`)."""

    checkpoint_dir: tyro.conf.Positional[Path]
    """Checkpoint folder."""
    output_dir: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder to write; replaced if it is there."""


Command: TypeAlias = (
    Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Exit status of a command line."""
    if list(argv) == ["--version"]:
        from openmarigold import __version__

        print(f"openmarigold {__version__}")
        return 0
    try:
        with _brief_errors():
            return _run(parse(argv))
    except OpenMarigoldError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR


def parse(argv: Sequence[str]) -> Predict | Evaluate | Train | Export:
    """The command that a command line asks for.

    Raises:
        InvalidValueError: a value that is not accepted.
        SystemExit: help was asked for, or the usage is wrong; tyro has said so.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(Command, args=list(argv), prog="openmarigold")
    except SystemExit as exit_request:
        # tyro frames every ValueError of a setting's own check; one line says the same.
        error: BaseException | None = exit_request
        while error is not None:
            if isinstance(error, OpenMarigoldError):
                raise error from None
            error = error.__cause__ or error.__context__
        sys.stderr.write(printed.getvalue())
        raise


def _run(command: Predict | Evaluate | Train | Export) -> int:
    if isinstance(command, Predict):
        return _predict(command)
    if isinstance(command, Evaluate):
        return _evaluate(command)
    if isinstance(command, Train):
        return _train(command)
    return _export(command)


def _predict(command: Predict) -> int:
    from openmarigold.batch import Event, predict_files

    started = time.perf_counter()
    with _progress("photos") as (advance, note):

        def report(event: Event) -> None:
            if event.error is not None:
                note(f"error: {event.error}")
            advance(event.done, event.total)

        result = predict_files(
            command.inputs,
            output_dir=command.output_dir,
            config=command.config,
            overwrite=command.overwrite,
            report=report,
        )
    total_s = time.perf_counter() - started
    if command.json:
        print(json.dumps({**result.to_dict(), "total_s": round(total_s, 3)}, indent=2))
    else:
        photos = sum(result.predict_s)
        each = f", {photos / result.num_predicted:.2f} s a photo" if result.num_predicted else ""
        print(
            f"{result.num_predicted} predicted, {len(result.skipped)} skipped, {len(result.failed)} failed in "
            f"{total_s:.2f} s (model loaded in {result.load_s:.2f} s{each}) -> {command.output_dir}"
        )
    return EXIT_SOME_FAILED if result.failed else 0


def _evaluate(command: Evaluate) -> int:
    from openmarigold.evaluation import BASELINES, evaluate, predictor_estimator, read_manifest
    from openmarigold.predictor import Predictor

    read_manifest(command.benchmark)
    config = command.config
    predictor = Predictor.load(config.checkpoint, device=config.device)
    estimator = predictor_estimator(
        predictor,
        num_inference_steps=config.num_inference_steps,
        ensemble_size=config.ensemble_size,
        processing_resolution=config.processing_resolution,
        seed=config.seed,
        batch_size=config.batch_size,
        final_step=config.final_step,
    )
    estimators = {predictor.name: estimator}
    if command.baselines:
        estimators |= {name: make() for name, make in BASELINES.items()}
    reports = {}
    for name, chosen in estimators.items():
        with _progress(name) as (advance, _):
            reports[name] = evaluate(command.benchmark, chosen, progress=advance)
    if command.json:
        print(json.dumps({name: report.to_dict() for name, report in reports.items()}, indent=2))
    else:
        _print_table(reports)
    return 0


def _train(command: Train) -> int:
    from openmarigold.errors import MissingExtraError

    try:
        from openmarigold.training import train
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("openmarigold"):
            raise
        raise MissingExtraError(error.name, "train") from error

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    directory = train(
        command.recipe,
        data_dir=command.data_dir,
        output_dir=command.output_dir,
        benchmark_dir=command.benchmark,
        device=command.device,
        resume=command.resume,
        stop_after_steps=command.stop_after_steps,
    )
    print("stopped before the end of the recipe" if directory is None else f"checkpoint -> {directory}")
    return 0


def _export(command: Export) -> int:
    from openmarigold.errors import MissingExtraError

    try:
        from openmarigold.backbone import export_onnx
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("openmarigold"):
            raise
        raise MissingExtraError(error.name, "export") from error

    export_onnx(command.checkpoint_dir, command.output_dir)
    print(f"ONNX checkpoint -> {command.output_dir}")
    return 0


def _print_table(reports: dict[str, Report]) -> None:
    from rich.console import Console
    from rich.table import Table

    kinds = next(iter(reports.values())).kinds
    table = Table(title="AbsRel % (lower is better) / delta1 % (higher is better)")
    table.add_column("estimator")
    for name, kind in kinds.items():
        table.add_column(f"{name}\n{kind.num_places} places", justify="right")
    for name, report in reports.items():
        scores = (kind.metrics for kind in report.kinds.values())
        table.add_row(name, *(f"{100 * score['abs_rel']:.1f} / {100 * score['delta1']:.1f}" for score in scores))
    Console(width=None if sys.stdout.isatty() else 100).print(table)


@contextlib.contextmanager
def _progress(label: str) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """Yields (advance(done, total), note(line)): a bar on a terminal's stderr, only the notes elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None, lambda line: print(line, file=sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: tuple[Any, ...] = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield (
            lambda done, total: progress.update(task, completed=done, total=total),
            lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
        )


@contextlib.contextmanager
def _brief_errors() -> Iterator[None]:
    """Turns errors of the operating system that have no message of ours into one line."""
    try:
        yield
    except (OpenMarigoldError, BrokenPipeError):
        raise
    except MemoryError as error:
        raise OpenMarigoldError("out of memory; try a smaller processing_resolution or batch_size") from error
    except OSError as error:
        raise OpenMarigoldError(f"{error.strerror or error}: {error.filename or 'input or output'}") from error
