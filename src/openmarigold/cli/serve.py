# SPDX-License-Identifier: Apache-2.0
"""`openmarigold serve`: predictions over HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field

import tyro

from openmarigold.cli.terminal import say
from openmarigold.config import PredictConfig
from openmarigold.serving.settings import ServeConfig


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Predict photos over HTTP (extra `web`): POST /v1/predict, POST /v1/jobs; /openapi.json describes them.

    By default it listens on this machine only; another --host needs a token. Log lines are JSON on stderr. After an
    interrupt or SIGTERM it finishes the running requests and ends.
    """

    serve: tyro.conf.OmitArgPrefixes[ServeConfig] = field(default_factory=ServeConfig)
    config: tyro.conf.UseAppendAction[tyro.conf.OmitArgPrefixes[PredictConfig]] = field(default_factory=PredictConfig)


def run_serve(command: Serve) -> int:
    """Serves until interrupted, and returns the exit status."""
    from openmarigold.serving.server import serve

    serve(command.config, command.serve, ready=lambda address: say(f"listening on {address}"))
    return 0
