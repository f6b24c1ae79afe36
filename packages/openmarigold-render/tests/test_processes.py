# SPDX-License-Identifier: Apache-2.0
"""Work in processes of their own."""

from __future__ import annotations

import operator
import os

import pytest

from openmarigold_render import processes


def test_processes_are_replaced_before_their_caches_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "JOBS_OF_A_PROCESS", 2)
    jobs = [os.getpid] * 5
    ids = [found for _, found in processes.in_processes(processes.settle, operator.call, jobs, workers=1)]
    assert ids[0] == ids[1] != ids[2] == ids[3] != ids[4] and os.getpid() not in ids


def test_without_jobs_no_process_is_started() -> None:
    assert list(processes.in_processes(pytest.fail, pytest.fail, [], workers=2)) == []
