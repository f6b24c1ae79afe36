# SPDX-License-Identifier: Apache-2.0
"""What may follow a prediction before its files are written: the seam for rooms above, such as `completion`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.config import Invariance
from openmarigold.modalities import Modality
from openmarigold.predictor import Predictor
from openmarigold.results.prediction import Prediction


@runtime_checkable
class Finisher(Protocol):
    """Makes another prediction of a photo from the model's own."""

    @property
    def modality(self) -> Modality:
        """What it makes: names and contents of the files."""
        ...

    @property
    def invariance(self) -> Invariance:
        """What is unknown about that."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What shapes the results of every photo, of plain types: other settings make other results."""
        ...

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises InvalidValueError or MissingExtraError for a checkpoint or settings that do not serve."""
        ...

    def facts_of(self, photo: Path, result: str) -> Mapping[str, Any]:
        """What shapes the results of this photo, of plain types; `result` is its path in the output folder.

        Raises:
            DataError: what is needed for this photo is missing.
        """
        ...

    def finish(self, prediction: Prediction, photo: Path, result: str, predictor: Predictor) -> Prediction:
        """The prediction that is written; `prediction` holds the photo (`rgb`) and its camera.

        Raises:
            DataError, InvalidValueError: of this photo alone.
        """
        ...
