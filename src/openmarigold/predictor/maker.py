# SPDX-License-Identifier: Apache-2.0
"""The interface between a run over many photos and the maker of its results: a model here, or a server elsewhere.

A `Finisher` may change a prediction before its files are written. Packages above this one, such as `completion`,
provide it.
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
        """Name of the modality in the files."""

    @property
    @abstractmethod
    def request(self) -> dict[str, Any]:
        """Every setting that affects the results."""

    @property
    @abstractmethod
    def engine(self) -> str | None:
        """Name of the engine that runs the networks; None until a photo needs them."""

    @cached_property
    def manifest(self) -> Manifest:
        """This modality's lines in the output folder's manifest."""
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
        """`request`, and the settings that affect this photo alone.

        Raises:
            DataError: data that this photo needs are missing.
        """
        return self.request

    def is_done(self, result: str, input_sha256: str | None, paths: Sequence[Path], request: Mapping[str, Any]) -> bool:
        """Whether all files of a result are there, made from this photo with these settings."""
        names = [path.name for path in paths]
        return self.manifest.is_done(result, request=request, input_sha256=input_sha256, outputs=names)

    def share_cores(self, num_photos: int) -> int:
        """How many of `num_photos` photos may be predicted at the same time; called before the first one."""
        return 1

    def stop(self) -> None:  # noqa: B027 - makers that predict in one thread have nothing to stop
        """Ends the predictions of other threads soon, by KeyboardInterrupt, when the run is interrupted."""

    @abstractmethod
    def prepare(self, makers: Sequence[Maker]) -> None:
        """Prepares for the first photo, for example loads a model; `makers` are all makers of the run."""

    @abstractmethod
    def predict(self, photo: Any, path: Path, result: str) -> tuple[Any, list[str]]:
        """The prediction for one photo (as the run's reader returned it), for `write`; and notes with its name."""

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
        """Writes the results of a photo; returns provenance, valid files with sizes, whether others were removed.

        Raises:
            OutputError: a file cannot be written or removed.
        """


def divide_cores(makers: Sequence[Maker], num_photos: int) -> int:
    """How many photos are predicted at the same time: the smallest number of all makers, which each maker gets."""
    at_once = min(maker.share_cores(num_photos) for maker in makers)
    for maker in makers:
        maker.at_once = at_once
    return at_once


@contextmanager
def stopping(makers: Sequence[Maker]) -> Iterator[None]:
    """On an interruption, stops the predictions of other threads: the run would wait for them before it ends."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        for maker in makers:
            maker.stop()
        raise


PhotoReader: TypeAlias = Callable[[Path, Sequence[Maker], Callable[[str], object]], tuple[Any, int]]
"""Reads the photo at a path for these makers, and reports notes; returns the makers' input and its number of pixels."""


@runtime_checkable
class Finisher(Protocol):
    """Makes another prediction of a photo from the model's prediction."""

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
        """Settings that affect the results of every photo, as plain types."""
        ...

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises InvalidValueError or MissingExtraError for a checkpoint or settings that cannot be used."""
        ...

    def facts_of(self, photo: Path, result: str) -> Mapping[str, Any]:
        """Settings that affect this photo alone, as plain types; `result` is its path in the output folder.

        Raises:
            DataError: data that this photo needs are missing.
        """
        ...

    def finish(self, prediction: Prediction, photo: Path, result: str, predictor: Predictor) -> Prediction:
        """The prediction to write; `prediction` holds the photo (`rgb`) and its camera.

        Raises:
            DataError, InvalidValueError: this photo fails; others may succeed.
        """
        ...
