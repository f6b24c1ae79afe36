# SPDX-License-Identifier: Apache-2.0
"""Exit statuses, the progress bar and brief errors, shared by all commands."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from openmarigold import workers
from openmarigold.errors import OpenMarigoldError, OutputError
from openmarigold.printing import printable

if TYPE_CHECKING:
    from rich.table import Table

    from openmarigold.evaluation.report import Report

EXIT_SOME_FAILED = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def say(text: object, *, error: bool = False) -> None:
    """Prints one line, with control characters escaped.

    Raises:
        OutputError: stdout cannot be written; an unwritable stderr is ignored.
    """
    if error:
        workers.say(printable(text))
        return
    _print(printable(text))


def print_json(content: object) -> None:
    """Prints a value as JSON.

    Raises:
        OutputError: stdout cannot be written.
    """
    _print(json.dumps(content, indent=2))


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as failure:
        raise OutputError(f"cannot write to stdout: {failure.strerror}") from failure


def print_table(table: Table, *, width: int = 100) -> None:
    """Prints a table of rich, as wide as the terminal, or `width` characters elsewhere."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else width).print(table)


def cell(text: object) -> str:
    """A text for a table of rich, with its brackets escaped."""
    return escape(printable(text))


def scored_of_expected(report: Report) -> str:
    """Scored of expected images, such as "652 of 652"; a benchmark of any size expects all images that it holds."""
    scored = len(report.images)
    return f"{scored} of {scored + len(report.failed) if report.expected is None else report.expected}"


def share_without_number(report: Report) -> str:
    """The share of the measured pixels whose prediction is not a number, in percent."""
    return f"{100 * (1 - report.share_scored):.1f} %"


@contextlib.contextmanager
def progress_bar(
    label: str, *, speed: bool = False
) -> Iterator[tuple[Callable[[int, int | None], None], Callable[[str], None]]]:
    """Yields (advance(done, total), note(line)): a bar and the notes if stderr is a terminal, else only the notes.

    With `speed` the bar also shows how many are done per second. `total` is None if it is not known.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None, lambda line: say(line, error=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: tuple[Any, ...] = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    if speed:
        columns += (TextColumn("{task.fields[speed]}"),)
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(label, total=None, speed="")

        def advance(done: int, total: int | None) -> None:
            now = progress.tasks[0].speed
            progress.update(task, completed=done, total=total, speed="" if now is None else f"{now:.1f}/s")

        yield (
            advance,
            lambda line: console.print(printable(line), markup=False, highlight=False, soft_wrap=True),
        )


@contextlib.contextmanager
def brief_errors() -> Iterator[None]:
    """Turns errors of the operating system into one line."""
    try:
        yield
    except (OpenMarigoldError, BrokenPipeError):
        raise
    except MemoryError as error:
        raise OpenMarigoldError("out of memory; try a smaller processing_resolution or batch_size") from error
    except OSError as error:
        raise OpenMarigoldError(f"{error.strerror or error}: {error.filename or 'input or output'}") from error
