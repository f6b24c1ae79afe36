# SPDX-License-Identifier: Apache-2.0
"""`openmarigold predict`: maps of photos."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from openmarigold.cli.terminal import EXIT_SOME_FAILED, print_json, progress_bar, say
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict depth or normals of photos. `--help-all` lists the rare settings too.

    For each photo: STEM_depth.npy (float32, 0 near to 1 far), STEM_depth.png (16 bits), STEM_depth_colored.png (near is
    red); with ensemble-size above 1 also STEM_uncertainty.npy; for normals STEM_normals.npy and others. An interrupted
    run resumes. Exit status: 0 all done, 1 some photos failed, 2 an error, 130 interrupted.
    """

    inputs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="INPUT...", help_behavior_hint="")]
    """Photos, and folders of photos, with their subfolders."""
    output_dir: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder of the results; created if missing."""
    config_file: Annotated[Path | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """TOML file of settings (seed = 10); flags override it."""
    server: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """Predict on this server (`openmarigold serve`), not here."""
    token_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File with the server's token. None: OPENMARIGOLD_TOKEN."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Repeat photos that are done with the same settings."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print a summary as JSON."""
    output: tyro.conf.OmitArgPrefixes[tyro.conf.FlagCreatePairsOff[OutputConfig]] = field(default_factory=OutputConfig)
    config: tyro.conf.UseAppendAction[tyro.conf.OmitArgPrefixes[PredictConfig]] = field(default_factory=PredictConfig)


def run_predict(command: Predict) -> int:
    """Predicts, prints a summary, and returns the exit status."""
    predict = _predictor(command)
    started = time.perf_counter()
    with progress_bar("photos") as (advance, note):

        def report(event: Any) -> None:
            if event.error is not None:
                note(f"error: {event.error}")
            if event.note is not None:
                note(f"note: {event.note}")
            advance(event.done, event.total)

        result = predict(
            command.inputs,
            output_dir=command.output_dir,
            config=command.config,
            output=command.output,
            overwrite=command.overwrite,
            report=report,
        )
    total_s = time.perf_counter() - started
    if command.json:
        print_json({**result.to_dict(), "total_s": round(total_s, 3)})
    else:
        renewed = f" ({len(result.renewed)} again: settings or photo changed)" if result.renewed else ""
        photos_s = total_s - result.load_s  # reading, predicting and writing of neighboring photos overlap
        engine = f"engine {result.engine}, " if result.engine else ""
        where = f"{engine}model loaded in {result.load_s:.2f} s" if command.server is None else f"on {command.server}"
        each = f", {photos_s / result.num_predicted:.2f} s a photo" if result.num_predicted else ""
        say(
            f"{result.num_predicted} predicted{renewed}, {len(result.skipped)} skipped, {len(result.failed)} failed in "
            f"{total_s:.2f} s ({where}{each}) -> {command.output_dir}"
        )
    return EXIT_SOME_FAILED if result.failed else 0


def _predictor(command: Predict) -> Callable[..., Any]:
    """The function that predicts: by a model here, or on a server."""
    if command.server is None:
        if command.token_file is not None:
            raise InvalidValueError("--token-file has no effect without --server; give both or none")
        from openmarigold.predictor.run import predict_files

        return predict_files
    from functools import partial

    from openmarigold.serving.connection import client_token
    from openmarigold.serving.remote import predict_on_server

    return partial(predict_on_server, server=command.server, token=client_token(None, command.token_file))
