"""Warnings that are dropped in one thread, whatever filters others set."""

from __future__ import annotations

import threading
import warnings

import pytest

from openmarigold.images.quiet import quiet


def test_filters_that_were_set_later_do_not_matter() -> None:
    with quiet():
        warnings.warn("dropped", UserWarning, stacklevel=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet():
            warnings.warn("dropped", UserWarning, stacklevel=1)
            warnings.warn("dropped", DeprecationWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="heard"):
            warnings.warn("heard", UserWarning, stacklevel=1)
        assert sum(entry[3] is not None and "_ThisThread" in repr(entry[3]) for entry in warnings.filters) == 1


def test_other_threads_are_heard() -> None:
    heard: list[str] = []

    def warn() -> None:
        try:
            warnings.warn("heard", UserWarning, stacklevel=1)
        except UserWarning as warning:
            heard.append(str(warning))

    with quiet():
        thread = threading.Thread(target=warn)
        thread.start()
        thread.join()
    assert heard == ["heard"]
