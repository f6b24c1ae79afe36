# SPDX-License-Identifier: Apache-2.0
"""Texts with names in them, as they reach a terminal or a log: on one line, and without control sequences."""

from __future__ import annotations

import logging
import math
import unicodedata

# Cc: control characters, Cf: invisible ones that turn or hide text, Cs: bytes of a name that is not UTF-8, Zl and Zp:
# further line breaks.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: object) -> str:
    r"""The text with every character that is not shown as itself written as Python would, on one line.

    >>> printable("a\nb\x1b[31m.jpg"), printable("plain é.jpg")
    ('a\\nb\\x1b[31m.jpg', 'plain é.jpg')
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(_escape(char) if unicodedata.category(char) in _ESCAPED else char for char in text)


def format_time(seconds: float) -> str:
    """Hours, minutes and seconds; "?" where they are not finite.

    >>> format_time(3723.4), format_time(math.inf)
    ('1:02:03', '?')
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def quoted_logger(name: str) -> logging.Logger:
    """The logger of a module, whose messages are printable whoever shows them."""
    logger = logging.getLogger(name)
    if _quote not in logger.filters:
        logger.addFilter(_quote)
    return logger


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def _quote(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True
