# SPDX-License-Identifier: Apache-2.0
"""Drop the messages of Pillow, libtiff and OpenEXR on damaged files, only in the thread that reads.

Warning filters, `sys.stdout`, the file descriptors and libtiff's error handler belong to the whole process. So nothing
is switched off: the filters installed here check which thread sends a message.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p)  # module, format, its arguments
_installing = threading.Lock()


class _ThisThread(threading.local):
    """How many blocks of each kind the calling thread is in."""

    quiet = 0
    unprinted = 0

    def match(self, _: str) -> bool:
        """Whether a warning comes from a quiet thread. `warnings` calls it in place of a pattern."""
        return self.quiet > 0


class _Printed:
    """`sys.stdout` that drops the output of some threads."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return len(text) if _here.unprinted else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


_here = _ThisThread()
_FILTER: Any = ("ignore", None, Warning, _here, 0)
_unprinted_threads = 0
_libtiff: tuple[Any, ...] | None = None
"""Our handler and the one before it, kept alive; empty if Pillow does not expose libtiff."""


@contextmanager
def quiet() -> Iterator[None]:
    """Drop Python warnings and libtiff's messages of this thread."""
    with _installing:
        filters: Any = warnings.filters
        if filters[:1] != [_FILTER]:  # others come before it, or restored filters lack it
            filters[:] = [_FILTER, *(other for other in filters if other != _FILTER)]
        _handle_libtiff_errors()
    _here.quiet += 1
    try:
        yield
    finally:
        _here.quiet -= 1


@contextmanager
def unprinted() -> Iterator[None]:
    """Drop this thread's output to Python's `sys.stdout`: OpenEXR prints there, which would damage JSON output."""
    global _unprinted_threads
    with _installing:
        _unprinted_threads += 1
        if sys.stdout is not None and not isinstance(sys.stdout, _Printed):
            sys.stdout = _Printed(sys.stdout)
    _here.unprinted += 1
    try:
        yield
    finally:
        _here.unprinted -= 1
        with _installing:
            _unprinted_threads -= 1
            if not _unprinted_threads and isinstance(sys.stdout, _Printed):
                sys.stdout = sys.stdout.stream


def _handle_libtiff_errors() -> None:
    """Route libtiff's errors through a function that drops those of quiet threads."""
    global _libtiff
    if _libtiff is not None:
        return
    from PIL import _imaging

    try:
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler  # found in the libraries that it loads, too
    except (OSError, AttributeError):  # libtiff is built into Pillow, and its messages reach stderr
        _libtiff = ()
        return
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p

    previous = None

    @_HANDLER
    def handle(module: bytes | None, format: int | None, arguments: int | None) -> None:
        if previous is not None and not _here.quiet:
            previous(module, format, arguments)

    address = set_handler(ctypes.cast(handle, ctypes.c_void_p))
    previous = _HANDLER(address) if address else None
    _libtiff = (handle, previous)
