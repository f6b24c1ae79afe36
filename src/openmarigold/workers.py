# SPDX-License-Identifier: Apache-2.0
"""Signals and streams of our own command line; a program that imports this package keeps its own.

Our own process handles the signals that ask it to end, and always has all three standard streams.
"""

from __future__ import annotations

# Little is imported here: until `claim` has run, an interrupt ends in a traceback.
import os
import signal
import sys
from contextlib import suppress

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP

_ours = False
_heard: int | None = None


class Interrupted(KeyboardInterrupt):
    """A signal has asked for the end. (An interpreter that has seen KeyboardInterrupt itself changes the status.)"""


def claim() -> None:
    """Notes that the command line was started as a program: no other code needs the libraries in this process.

    Until `start_work`, a signal that asks for the end ends the process at once: there is nothing to clean up yet, and
    an exception in the middle of an import would be swallowed or shown in a traceback.
    """
    global _ours
    _ours = True
    _hear(_end_at_once)
    _open_streams()


def start_work() -> None:
    """From here on, a signal that asks for the end raises KeyboardInterrupt in the main thread of our own process."""
    if not _ours:
        return
    pid = os.getpid()

    def interrupt(number: int, frame: object) -> None:
        global _heard
        if os.getpid() != pid:  # a child of this process, which does not clean up for it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif _heard is None or number == signal.SIGINT:  # what closes a session may send several
            _heard = _heard or number
            raise Interrupted

    _hear(interrupt)


def interrupted_by() -> int | None:
    """The number of the signal that has asked for the end, if one has."""
    return _heard


def end_work(status: int) -> int:
    """Writes out both streams; the exit status, which is 2 where stdout cannot be written.

    Afterwards a signal ends the process as it ends any other.
    """
    _hear(signal.SIG_DFL)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if not isinstance(error, BrokenPipeError) and status < 2:
            say(f"error: cannot write to stdout: {error.strerror}")
        status = max(status, 2)
    with suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.flush()
        return status
    _discard(sys.stderr)
    return status


def say(line: str) -> None:
    """Prints a line to stderr; an unwritable stderr is ignored."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def is_claimed() -> bool:
    """Whether this process is our own command line."""
    return _ours


def _hear(handler: object) -> None:
    """Sets what a signal that asks for the end does, unless it was ignored from the start, as by nohup."""
    for number in _SIGNALS:
        with suppress(ValueError):  # not in the main thread
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, handler)  # pyright: ignore[reportArgumentType]


def _end_at_once(number: int, frame: object) -> None:
    status = 128 + number
    with suppress(OSError):
        os.write(2, b"interrupted\n")
    if "--json" in sys.argv:
        with suppress(OSError):
            os.write(1, b'{\n  "error": "interrupted",\n  "status": %d\n}\n' % status)
    os._exit(status)


def _open_streams() -> None:
    """Gives closed standard streams (`2>&-`) to the null device.

    Otherwise the next file to be opened would take the number of the stream, and what is printed would go into it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _discard(stream: object) -> None:
    """Sends the rest of a stream to the null device."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[attr-defined]
        os.close(nowhere)
