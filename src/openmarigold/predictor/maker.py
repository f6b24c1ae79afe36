# SPDX-License-Identifier: Apache-2.0
"""What a run over many photos asks of whoever makes the results: a model here, or a server elsewhere.

A `Finisher` may follow a prediction before its files are written: the seam for rooms above, such as `completion`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.config import Invariance
from openmarigold.modalities import Modality
from openmarigold.predictor import Predictor
from openmarigold.results.manifest import Manifest
from openmarigold.results.prediction import Prediction
from openmarigold.results.replacing import ResultFiles


class Maker(ABC):
    """Makes the results of one modality, for the photos of a run."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.load_s = 0.0
        """Time to load the checkpoint [s]."""
        self.at_once = 1
        """About how many threads will predict at the same time; the run sets it before `prepare`."""

    @property
    @abstractmethod
    def modality_name(self) -> str:
        """What the files hold."""

    @property
    @abstractmethod
    def request(self) -> dict[str, Any]:
        """Every setting that shapes the results."""

    @property
    @abstractmethod
    def engine(self) -> str | None:
        """What runs the networks; None until a photo needs them."""

    @cached_property
    def manifest(self) -> Manifest:
        """The lines of the output folder's manifest that are of this modality."""
        return Manifest(self.output_dir, self.modality_name)

    @cached_property
    def files(self) -> ResultFiles:
        """The rules for replacing files."""
        return ResultFiles(self.manifest)

    @abstractmethod
    def check(self) -> None:
        """Check the settings before any photo is read."""

    @abstractmethod
    def paths(self, result: str) -> list[Path]:
        """The files of a result (its path in the output folder, without suffixes)."""

    def request_of(self, photo: Path, result: str) -> dict[str, Any]:
        """`request`, and what shapes the results of this photo alone.

        Raises:
            DataError: what is needed for this photo is missing.
        """
        return self.request

    def is_done(self, result: str, input_sha256: str | None, paths: Sequence[Path], request: Mapping[str, Any]) -> bool:
        """Whether all files of a result are there, made from this photo with these settings."""
        names = [path.name for path in paths]
        return self.manifest.is_done(result, request=request, input_sha256=input_sha256, outputs=names)

    def share_cores(self, num_photos: int) -> int:
        """How many of so many photos may be predicted at the same time; asked before the first one."""
        return 1

    def stop(self) -> None:  # noqa: B027 - makers that predict in one thread have nothing to stop
        """Ends the predictions of other threads soon, by KeyboardInterrupt: the run is interrupted."""

    @abstractmethod
    def prepare(self, makers: Sequence[Maker]) -> None:
        """Does what the first photo waits for, such as loading; `makers` are all of the run."""

    @abstractmethod
    def predict(self, photo: Any, path: Path, result: str) -> tuple[Any, list[str]]:
        """The prediction for one photo (as the run's reader gave it), for `write`; and notes on it, with its name."""

    @abstractmethod
    def write(
        self,
        prediction: Any,
        result: str,
        photo: Path,
        paths: Sequence[Path],
        input_sha256: str | None,
        request: Mapping[str, Any],
    ) -> tuple[dict[str, Any], dict[str, int | None], bool]:
        """Writes the results of a photo: their provenance, the valid files with their sizes, and whether others went.

        Raises:
            OutputError: a file cannot be written or removed.
        """


def divide_cores(makers: Sequence[Maker], num_photos: int) -> int:
    """How many photos are predicted at the same time: as many as all makers allow; each is told."""
    at_once = min(maker.share_cores(num_photos) for maker in makers)
    for maker in makers:
        maker.at_once = at_once
    return at_once


@contextmanager
def stopping(makers: Sequence[Maker]) -> Iterator[None]:
    """On an interruption it stops the predictions of other threads, for which the end of a run would wait."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        for maker in makers:
            maker.stop()
        raise


PhotoReader: TypeAlias = Callable[[Path, Sequence[Maker], Callable[[str], object]], tuple[Any, int]]
"""Reads the photo at a path for these makers, and tells notes: what they predict from, and its number of pixels."""


@runtime_checkable
class Finisher(Protocol):
    """Makes another prediction of a photo from the model's own."""

    @property
    def modality(self) -> Modality:
        """The modality of its prediction: names and contents of the files."""
        ...

    @property
    def invariance(self) -> Invariance:
        """The invariance of its prediction."""
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
