# SPDX-License-Identifier: Apache-2.0
"""Errors for users: each message states what was given, what is accepted and what to do.

OpenMarigoldError
├── InvalidValueError (ValueError)     a setting or argument that is not accepted
│   └── RecipeError                    a training recipe with unknown or contradictory keys
├── ImageError (ValueError)            an input image that cannot be read
├── CheckpointError (ValueError)       a checkpoint that is missing, incomplete or not understood
├── DataError (ValueError)             a data set or benchmark that is missing, incomplete or damaged
├── OutputError (OSError)              a result that cannot be written
├── ServerError (ConnectionError)      a server that cannot be reached, or refuses
├── NumericalError (ArithmeticError)   non-finite values in a network's output
├── LostProcessError (RuntimeError)    another process of the same run ended
└── MissingExtraError (ImportError)    an optional dependency that is not installed
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class OpenMarigoldError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidValueError(OpenMarigoldError, ValueError):
    """A setting or argument that is not accepted."""


class RecipeError(InvalidValueError):
    """A training recipe with unknown or contradictory keys."""


class ImageError(OpenMarigoldError, ValueError):
    """An input image that cannot be read."""


class CheckpointError(OpenMarigoldError, ValueError):
    """A checkpoint that is missing, incomplete or not understood."""


class DataError(OpenMarigoldError, ValueError):
    """A data set or benchmark that is missing, incomplete or damaged."""


class OutputError(OpenMarigoldError, OSError):
    """A result that cannot be written."""


class ServerError(OpenMarigoldError, ConnectionError):
    """A server of `openmarigold serve` that cannot be reached, or refuses."""


class NumericalError(OpenMarigoldError, ArithmeticError):
    """Non-finite values in a network's output."""


class LostProcessError(OpenMarigoldError, RuntimeError):
    """Another process of the same run ended."""


class MissingExtraError(OpenMarigoldError, ImportError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f'{package} is not installed; it belongs to an optional part: pip install "openmarigold[{extra}]"'
        )
        self._given = package, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Made again from what it was made of, so that it reaches the caller of a worker process."""
        return type(self), self._given


@contextmanager
def needs_extra(extra: str, package: str | None = None) -> Iterator[None]:
    """For imports inside that belong to an optional part; `package` is its name where it differs from the module's.

    Raises:
        MissingExtraError: in the place of a `ModuleNotFoundError` of another package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("openmarigold"):
            raise
        raise MissingExtraError(package or error.name.partition(".")[0], extra) from error


def one_line(error: BaseException | str) -> str:
    """Another library's error on one line of readable length, after the name of its class; a text of it as it is.

    Without the addresses in memory that some messages hold: the same fault has the same text in every run.

    >>> one_line(OSError("cannot identify image file <_io.BytesIO object at 0x7f0c>"))
    'OSError: cannot identify image file <_io.BytesIO object>'
    """
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split()))
    if isinstance(error, str):
        return text[:160] or "no reason given"
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
