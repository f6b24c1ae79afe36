# SPDX-License-Identifier: Apache-2.0
"""The commands, one module each. No arithmetic and nothing heavy at import time.

Results are printed to stdout, with `--json` as one JSON object; progress and errors go to stderr. Exit status: 0 all
done, 1 some photos failed, 2 an error, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

import tyro

from openmarigold import process
from openmarigold.cli.benchmark import BenchmarkCommand, run_benchmark
from openmarigold.cli.checkpoint import CheckpointCommand, run_checkpoint
from openmarigold.cli.compare import Compare, run_compare
from openmarigold.cli.data import Data, run_data
from openmarigold.cli.evaluate import Evaluate, run_evaluate
from openmarigold.cli.export import Export, run_export
from openmarigold.cli.inspect import Inspect, run_inspect
from openmarigold.cli.predict import Predict, run_predict
from openmarigold.cli.reproduce import Reproduce, run_reproduce
from openmarigold.cli.terminal import EXIT_ERROR, EXIT_INTERRUPTED, brief_errors
from openmarigold.cli.train import Train, run_train
from openmarigold.errors import OpenMarigoldError

Command: TypeAlias = (
    Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[CheckpointCommand, tyro.conf.subcommand("checkpoint")]
    | Annotated[BenchmarkCommand, tyro.conf.subcommand("benchmark")]
)
_RUN: dict[type, Callable[[Any], int]] = {
    Predict: run_predict,
    Inspect: run_inspect,
    Evaluate: run_evaluate,
    Compare: run_compare,
    Reproduce: run_reproduce,
    Data: run_data,
    Train: run_train,
    Export: run_export,
    CheckpointCommand: run_checkpoint,
    BenchmarkCommand: run_benchmark,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits."""
    process.claim()
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Exit status of a command line."""
    if list(argv) == ["--version"]:
        from openmarigold import __version__

        print(f"openmarigold {__version__}")
        return 0
    try:
        with brief_errors():
            command = parse(argv)
            return _RUN[type(command)](command)
    except OpenMarigoldError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR


def parse(argv: Sequence[str]) -> Command:
    """The command that a command line asks for.

    Raises:
        InvalidValueError: a value that is not accepted.
        SystemExit: help was asked for, or the usage is wrong; tyro has said so.
    """
    if list(argv[:2]) == ["evaluate", "compare"]:
        argv = argv[1:]  # a subcommand of evaluate's would cost its plain form, `evaluate --benchmark DIR`
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
