# SPDX-License-Identifier: Apache-2.0
"""The commands, one module each. They do no arithmetic and import nothing heavy at import time.

Results are printed to stdout, with `--json` as one JSON object; progress and errors go to stderr. Exit status: 0 all
done, 1 some photos failed, 2 an error, 130 interrupted (143 by SIGTERM, 129 by SIGHUP). With `--json` an error or an
interruption prints `{"error", "status"}`.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Union

import tyro

from openmarigold import __version__, workers
from openmarigold.cli.batch import Batch, run_batch
from openmarigold.cli.benchmark import BenchmarkCommand, run_benchmark
from openmarigold.cli.calibrate import Calibrate, run_calibrate
from openmarigold.cli.checkpoint import CheckpointCommand, run_checkpoint
from openmarigold.cli.compare import Compare, run_compare
from openmarigold.cli.data import Data, check_moved, run_data
from openmarigold.cli.evaluate import Evaluate, run_evaluate
from openmarigold.cli.evaluate_video import EvaluateVideo, run_evaluate_video
from openmarigold.cli.inspect import Inspect, run_inspect
from openmarigold.cli.measure import Measure, run_measure
from openmarigold.cli.metric import Metric, run_metric
from openmarigold.cli.predict import Predict, run_predict
from openmarigold.cli.reproduce import Reproduce, run_reproduce
from openmarigold.cli.serve import Serve, run_serve
from openmarigold.cli.settings import parse_with_settings
from openmarigold.cli.terminal import EXIT_ERROR, EXIT_INTERRUPTED, brief_errors, say
from openmarigold.cli.train import Train, run_train
from openmarigold.cli.usage import plain_refusals
from openmarigold.cli.video import Video, run_video
from openmarigold.errors import InvalidValueError, OpenMarigoldError
from openmarigold.printing import quoted_logger

_COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
    "predict": (Predict, run_predict),
    "metric": (Metric, run_metric),
    "video": (Video, run_video),
    "batch": (Batch, run_batch),
    "measure": (Measure, run_measure),
    "serve": (Serve, run_serve),
    "inspect": (Inspect, run_inspect),
    "evaluate": (Evaluate, run_evaluate),
    "evaluate-video": (EvaluateVideo, run_evaluate_video),
    "calibrate": (Calibrate, run_calibrate),
    "compare": (Compare, run_compare),
    "reproduce": (Reproduce, run_reproduce),
    "data": (Data, run_data),
    "train": (Train, run_train),
    "checkpoint": (CheckpointCommand, run_checkpoint),
    "benchmark": (BenchmarkCommand, run_benchmark),
}
"""The settings of each command, and the function that runs it."""
Command: Any = Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, (kind, _) in _COMMANDS.items())]  # noqa: UP007
_YES_OR_NO_OR_NONE = ("tiles", "ensemble-mirror")  # settings that take True, False or None
_logger = quoted_logger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits."""
    workers.claim()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that stdout cannot print, such as a dash in ASCII, must not end a successful run.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = run(sys.argv[1:] if argv is None else argv)
    except SystemExit as request:  # help was asked for, or a library gave up printing
        status = EXIT_ERROR if request.code else 0
    sys.exit(workers.end_work(status))


def run(argv: Sequence[str]) -> int:
    """Exit status of a command line."""
    workers.start_work()
    try:
        try:
            with brief_errors():
                if list(argv) == ["--version"]:
                    print(f"openmarigold {__version__}")
                    return 0
                command = parse(argv)
                return next(run for kind, run in _COMMANDS.values() if kind is type(command))(command)
        except OpenMarigoldError as error:
            if workers.interrupted_by() is not None:
                return _end_interrupted(argv)  # an interrupted import raises another error
            message = str(error)
            say(f"error: {message}", error=True)
            return _end(argv, message, EXIT_ERROR)
        except KeyboardInterrupt:
            return _end_interrupted(argv)
        except BrokenPipeError:
            raise
        except Exception:  # not status 1, which means that some photos failed
            if workers.interrupted_by() is not None:
                return _end_interrupted(argv)
            _logger.exception("error: a fault of openmarigold itself; please report it with the lines below")
            return _end(argv, "a fault of openmarigold itself; see stderr", EXIT_ERROR)
    except BrokenPipeError:  # the reader of stdout closed it, as in `... | head`
        return EXIT_ERROR


def _end(argv: Sequence[str], message: str, status: int) -> int:
    """The status of a command that ends early; with --json it also prints an object to stdout."""
    if "--json" in argv:
        try:
            print(json.dumps({"error": message, "status": status}, indent=2), flush=True)
        except BrokenPipeError:
            raise
        except OSError:  # the first error is on stderr
            pass
    return status


def _end_interrupted(argv: Sequence[str]) -> int:
    say("interrupted", error=True)
    number = workers.interrupted_by()
    return _end(argv, "interrupted", EXIT_INTERRUPTED if number is None else 128 + number)


def parse(argv: Sequence[str]) -> Any:
    """The command of a command line.

    Raises:
        InvalidValueError: wrong usage, or a value that is not accepted.
        SystemExit: help was asked for.
    """
    if list(argv[:2]) == ["evaluate", "compare"]:
        argv = argv[1:]  # as a real subcommand it would break the plain form `evaluate --benchmark DIR`
    check_moved(argv)
    _refuse_empty(argv)
    argv = _one_modality_each(argv)
    for name in _YES_OR_NO_OR_NONE:
        argv = _with_value(argv, name)
    with plain_refusals(argv, Command):
        kind, _ = _COMMANDS.get(argv[0] if argv else "", (None, None))
        if kind is not None and hasattr(kind, "config_file"):  # parse this one alone: building all others takes time
            return parse_with_settings(kind, argv[1:], f"openmarigold {argv[0]}")
        return tyro.cli(Command, args=list(argv), prog="openmarigold")


def _one_modality_each(argv: Sequence[str]) -> list[str]:
    """`--modality A B` as `--modality A --modality B`; the first word that names no modality ends the list."""
    if not any(word.split("=")[0] == "--modality" for word in argv):
        return list(argv)
    from openmarigold.modalities import MODALITIES

    words: list[str] = []
    follows = False  # whether a modality's name at this place is one more value
    for word in argv:
        if follows and word in MODALITIES:
            words += ["--modality", word]
            continue
        follows = word.startswith("--modality=") or words[-1:] == ["--modality"]
        words.append(word)
    return words


def _with_value(argv: Sequence[str], name: str) -> list[str]:
    """Rewrites `--tiles` as `--tiles True` and `--no-tiles` as `--tiles False`, since the setting may also be None."""
    words: list[str] = []
    for place, word in enumerate(argv):
        if word == f"--no-{name}":
            words += [f"--{name}", "False"]
        elif word == f"--{name}" and argv[place + 1 : place + 2] not in (["True"], ["False"], ["None"]):
            words += [word, "True"]
        else:
            words.append(word)
    return words


def _refuse_empty(argv: Sequence[str]) -> None:
    """Refuses empty words: an unset shell variable gives one, and an empty path would mean the current folder.

    Raises:
        InvalidValueError: a word is empty.
    """
    for place, word in enumerate(argv):
        if re.fullmatch(r"(--?[\w-]+=)?", word):
            option = word.rstrip("=") or (argv[place - 1] if place else "")
            where = f" for {option}" if option.startswith("-") else ""
            raise InvalidValueError(f"an empty text was given{where}; give a value, or . for the current folder")
