# SPDX-License-Identifier: Apache-2.0
"""The model that predicts a clip, and the outcome of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from openmarigold.checkpoints.configured import resolve_settings
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.modalities import Modality
from openmarigold.predictor.model_run import ModelRun
from openmarigold.predictor.stream import Stream, frames_at_once
from openmarigold.temporal.settings import StreamConfig
from openmarigold.video.pipeline import FrameStream


@dataclass(kw_only=True)
class VideoResult:
    """The outcome of a clip."""

    written: list[Path] = field(default_factory=list)
    """Result files; folders of files for each frame."""
    skipped: bool = False
    """Whether everything was there already, made from the same clip with the same settings."""
    num_frames: int = 0
    """Frames in the results."""
    num_predicted: int = 0
    """Frames that this run predicted."""
    resumed_at: int | None = None
    """Frames that an interrupted run had finished; None if there was no such run."""
    cuts: list[int] = field(default_factory=list)
    """Numbers of the first frames of new shots."""
    problem: str | None = None
    """Why the clip ended before its end; what was read is in the results."""
    notes: list[str] = field(default_factory=list)
    engine: str | None = None
    """Name of the engine that ran the networks; None if nothing was predicted."""
    load_s: float = 0.0
    """Time to load the checkpoint [s]."""
    predict_s: float = 0.0
    """Time from the first frame to the last, without loading and joining [s]."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **{setting.name: getattr(self, setting.name) for setting in fields(self)},
            "written": [str(path) for path in self.written],
            "load_s": round(self.load_s, 3),
            "predict_s": round(self.predict_s, 3),
        }


@dataclass(frozen=True, kw_only=True)
class VideoEvent:
    """Progress: `done` of about `total` frames (None: not known) are predicted; or a note."""

    done: int
    total: int | None
    note: str | None = None


@runtime_checkable
class StreamModel(Protocol):
    """A model that predicts the frames of a clip."""

    @property
    def modality(self) -> Modality:
        """The predicted modality."""
        ...

    @property
    def request(self) -> Mapping[str, Any]:
        """Every setting that affects the results."""
        ...

    def check(self) -> None:
        """Checks the settings before anything is read."""
        ...

    def open(self, state: dict[str, np.ndarray] | None) -> FrameStream:
        """A new stream, or one that resumes from a state."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """For records: software, checkpoint, quantity."""
        ...


class LoadedModel:
    """A model that is loaded for the first frame."""

    def __init__(
        self,
        config: PredictConfig,
        stream: StreamConfig,
        output: OutputConfig,
        target: Path,
        *,
        run: ModelRun | None = None,
    ) -> None:
        self._config, self._stream, self._output = config, stream, output
        self._run = run or ModelRun(config, output, target)  # a given one is loaded already

    @property
    def modality(self) -> Modality:
        """The predicted modality."""
        return self._run.writes

    @property
    def request(self) -> Mapping[str, Any]:
        """Every setting that affects the results."""
        return {**self._run.request, "stream": asdict(self._stream)}

    @property
    def facts(self) -> Mapping[str, Any]:
        """For records."""
        checkpoint = self._run.checkpoint
        return {"quantity": self.modality.quantities.get(checkpoint.invariance), "checkpoint": checkpoint.name}

    @property
    def engine(self) -> str | None:
        """Name of the engine that runs the networks; None until a frame needs them."""
        return self._run.engine

    @property
    def load_s(self) -> float:
        """Time to load the checkpoint [s]."""
        return self._run.load_s

    def check(self) -> None:
        """Checks the settings before anything is read."""
        self._run.check()

    def open(self, state: dict[str, np.ndarray] | None) -> FrameStream:
        """A new stream, or one that resumes from a state."""
        self._run.at_once = frames_at_once(self._stream, resolve_settings(self._config, self._run.checkpoint))
        predictor = self._run.load()
        if state is None:
            return Stream(predictor, self._stream, self._config.call)
        return Stream.restored(predictor, self._stream, self._config.call, state)
