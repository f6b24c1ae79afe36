# SPDX-License-Identifier: Apache-2.0
"""From clips and a model to a report: predictions as a stream or frame by frame, or saved ones; resumed clip by clip.

A clip's scores lie in `clips/`, under a key of everything that they depend on. A later run takes what has its key.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from openmarigold.checkpoints.configured import read_configured
from openmarigold.config import PredictConfig
from openmarigold.errors import DataError, InvalidValueError, OpenMarigoldError, OutputError
from openmarigold.evaluation.clip_scores import ALIGNMENTS, Alignment, FlowSource, score_clip, scores_of
from openmarigold.evaluation.clips import Clip
from openmarigold.evaluation.clips.clip import within
from openmarigold.evaluation.estimators import SavedPredictions
from openmarigold.evaluation.report import describe_machine, version_of
from openmarigold.evaluation.scoring import choose_protocol
from openmarigold.evaluation.specs import EstimatorSpec, predictor_spec, saved_spec
from openmarigold.evaluation.video_report import ClipScore, VideoReport, write_video_report
from openmarigold.files import as_path, files_sha256, make_directory, write_atomically
from openmarigold.predictor import Predictor
from openmarigold.temporal.settings import StreamConfig
from openmarigold.text_files import DamagedTextError, parse_json

Mode: TypeAlias = Literal["stream", "per-frame", "saved"]
_MEASURED = "depth"
_FOLDER = "clips"


@dataclass(frozen=True, kw_only=True)
class VideoEvaluation:
    """What is scored, and how.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    frames: tuple[int, int] | None = None
    """First frame, and last frame plus one; None: all frames."""
    alignments: tuple[Alignment, ...] = ALIGNMENTS
    protocol: str | None = None
    flow: FlowSource = "truth"
    depth_range: tuple[float, float] | None = None
    """Measured depth that counts, exclusive, and bounds of aligned depth [m]; None: the layout's own."""

    def __post_init__(self) -> None:
        if self.depth_range is not None and not 0 < self.depth_range[0] < self.depth_range[1]:
            raise InvalidValueError(
                f"depth_range {self.depth_range[0]:g} {self.depth_range[1]:g} is not accepted; give two depths [m], "
                "the first above 0 and below the second"
            )
        if unknown := [how for how in self.alignments if how not in ALIGNMENTS]:
            raise InvalidValueError(f"alignment {unknown[0]!r} is not known; use {', '.join(ALIGNMENTS)}")
        if not self.alignments:
            raise InvalidValueError(f"no alignment was given; use one or more of {', '.join(ALIGNMENTS)}")
        if self.frames is not None and not 0 <= self.frames[0] < self.frames[1] - 1:
            raise InvalidValueError(
                f"frames {self.frames[0]} {self.frames[1]} is not accepted; give the first frame and the one after the "
                "last, at least two frames"
            )

    def numbers(self, clip: Clip) -> range:
        """Numbers of the clip's frames that are scored. Raises DataError for fewer than two."""
        first, end = (0, len(clip)) if self.frames is None else self.frames
        chosen = range(len(clip))[first:end]
        if len(chosen) < 2:
            raise DataError(f"{clip.name} has {len(clip)} frames, of which {len(chosen)} are asked for; two are needed")
        return chosen


@dataclass(frozen=True, kw_only=True)
class ClipEstimator:
    """A source of the maps of a clip.

    Attributes:
        mode: what tables call it.
        spec: its description, for the report and for resuming.
        maps: the map of each of these frames of a clip, in their order.
        hash_of: hash of saved predictions, for resuming.
    """

    mode: Mode
    spec: EstimatorSpec
    maps: Callable[[Clip, Sequence[int]], Iterator[np.ndarray]]
    hash_of: Callable[[Clip, Sequence[int]], str] = field(default=lambda clip, numbers: "")


def model_estimators(config: PredictConfig, stream: StreamConfig, modes: Sequence[Mode]) -> list[ClipEstimator]:
    """A checkpoint in these modes; it is loaded once, when the first clip needs it.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        InvalidValueError: a setting that does not apply to it, or a checkpoint that predicts no depth.
    """
    if config.processing_resolution is None:  # clips take one pass: single frames are compared at the same resolution
        config = replace(config, processing_resolution=read_configured(config).one_pass_resolution)
    spec = predictor_spec(config)
    loaded: list[Predictor] = []

    def predictor() -> Predictor:
        if not loaded:
            loaded.append(Predictor.from_config(config))
        return loaded[0]

    def streamed(clip: Clip, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        photos = (clip.read(number).rgb for number in numbers)
        for frame in predictor().stream(photos, stream=stream, **config.call_options):
            yield frame.prediction.maps[_MEASURED]

    def single(clip: Clip, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        for number in numbers:
            yield predictor()(clip.read(number).rgb, **config.call_options).maps[_MEASURED]

    makers = {"stream": streamed, "per-frame": single}
    settings = {"stream": {"stream": asdict(stream)}, "per-frame": {}}
    return [
        ClipEstimator(
            mode=mode,
            spec=replace(spec, settings={**spec.settings, "mode": mode, **settings[mode]}),
            maps=makers[mode],
        )
        for mode in modes
    ]


def saved_estimator(folder: Path | str, invariance: str | None = None) -> ClipEstimator:
    """Saved depth: for each clip a folder of its name, or the folder itself; names as of frames, or numbers from 0.

    Raises:
        DataError: the folder does not exist.
        InvalidValueError: an invariance that depth does not have.
    """
    spec = saved_spec(folder, invariance)
    root = as_path(folder, "the folder of predictions")

    def found(clip: Clip, numbers: Sequence[int]) -> tuple[SavedPredictions, list[str]]:
        place = root / clip.name
        saved = SavedPredictions(place if place.is_dir() else root, spec.invariance, spec.modality)
        names = []
        for number in numbers:
            candidates = (clip.frame_names[number], f"{number:06d}", f"{number:05d}")
            names.append(next((name for name in candidates if _is_there(saved, name)), candidates[0]))
        return saved, names

    def maps(clip: Clip, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        saved, names = found(clip, numbers)
        for name in names:
            yield saved.read(name)[_MEASURED]

    def hash_of(clip: Clip, numbers: Sequence[int]) -> str:
        saved, names = found(clip, numbers)
        return hashlib.sha256("".join(map(saved.hash_of, names)).encode()).hexdigest()

    return ClipEstimator(mode="saved", spec=spec, maps=maps, hash_of=hash_of)


def _is_there(saved: SavedPredictions, name: str) -> bool:
    try:
        return bool(saved.find(name))
    except DataError:
        return False


def evaluate_clips(
    clips: Sequence[Clip],
    estimators: Sequence[ClipEstimator],
    *,
    settings: VideoEvaluation | None = None,
    output_dir: Path | str | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
    note: Callable[[str], object] = lambda line: None,
) -> VideoReport:
    """Scores of estimators on clips; with `output_dir` also report.json and report.md, resumed clip by clip.

    A clip that cannot be scored is noted and the others are scored.

    Args:
        clips: of `open_clips`.
        estimators: one or more, such as those of `model_estimators`; the first is compared with the others.
        settings: what is scored, and how.
        output_dir: of the report, made where it is missing.
        progress: called with the steps done and all steps; each frame is predicted and scored.
        note: called with a line for each failed clip.

    Raises:
        DataError: no clip could be scored.
        InvalidValueError: a protocol that does not fit, or an estimator that predicts no depth.
        OutputError: the output folder cannot be written.
    """
    settings = settings or VideoEvaluation()
    runs = [_Run(estimator, settings) for estimator in estimators]
    folder = None if output_dir is None else as_path(output_dir, "output_dir")
    if folder is not None:
        make_directory(folder / _FOLDER)
    scores, failed = _scores(clips, runs, folder, progress, note)
    if len(failed) == len(clips):
        why = next(iter(failed.values()), "there is none")
        raise DataError(why if len(clips) == 1 else f"none of {len(clips)} clips could be scored; of the first: {why}")
    report = VideoReport(
        clips=scores,
        scores=scores_of(settings.alignments),
        settings={run.estimator.mode: run.stated for run in runs},
        facts={clip.name: {"layout": clip.layout, "frames": len(clip), **clip.facts} for clip in clips},
        provenance=describe_machine(),
        failed=failed,
    )
    if folder is not None:
        write_video_report(report, folder)
    return report


def _scores(
    clips: Sequence[Clip],
    runs: Sequence[_Run],
    folder: Path | None,
    progress: Callable[[int, int], object],
    note: Callable[[str], object],
) -> tuple[dict[str, list[ClipScore]], dict[str, str]]:
    """The scores of the clips by mode, and why the others have none."""
    total, done = 2 * len(runs) * sum(map(len, clips)), 0
    scores: dict[str, list[ClipScore]] = {run.estimator.mode: [] for run in runs}
    failed: dict[str, str] = {}
    for clip in clips:
        at_start = done

        def step() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        try:
            of_clip = {run.estimator.mode: run.score(clip, folder, step) for run in runs}
        except (DataError, InvalidValueError) as error:
            failed[clip.name] = str(error)
            if len(clips) > 1:  # the error of the only clip is that of the run
                note(f"error: {error}")
        else:
            for mode, score in of_clip.items():
                scores[mode].append(score)
        done = at_start + 2 * len(runs) * len(clip)
        progress(done, total)
    return scores, failed


class _Run:
    """How one estimator is scored on a clip."""

    def __init__(self, estimator: ClipEstimator, settings: VideoEvaluation) -> None:
        self.estimator, self.settings, spec = estimator, settings, estimator.spec
        if _MEASURED not in (kind.name for kind in spec.modality.maps):
            raise InvalidValueError(
                f"clips measure depth, and {spec.name} predicts {spec.modality.title}; give a checkpoint for depth"
            )
        self.protocol = choose_protocol(spec.modality, settings.protocol, spec.invariance)
        self.stated = {
            "estimator": spec.name,
            "protocol": self.protocol.name,
            "frames": settings.frames,
            "alignments": list(settings.alignments),
            "flow": settings.flow,
            **({} if settings.depth_range is None else {"depth_range": list(settings.depth_range)}),
            "settings": dict(spec.settings),
        }

    def score(self, clip: Clip, folder: Path | None, step: Callable[[], object]) -> ClipScore:
        if self.settings.depth_range is not None:
            clip = within(clip, self.settings.depth_range)
        numbers = self.settings.numbers(clip)
        key, input_hash = self._key(clip, numbers)
        path = None if folder is None else folder / _FOLDER / f"{clip.name}-{self.estimator.mode}.json"
        if path is not None and (found := _resumed(path, key, self.settings.alignments)) is not None:
            return found
        with tempfile.TemporaryDirectory(prefix="openmarigold-") as scratch:
            started = time.perf_counter()
            predictions = self._predict(clip, numbers, Path(scratch), step)
            seconds = time.perf_counter() - started
            metrics = score_clip(
                clip,
                numbers,
                predictions,
                protocol=self.protocol,
                space=self.estimator.spec.invariance,
                alignments=self.settings.alignments,
                flow=self.settings.flow,
                progress=step,
            )
            del predictions  # before its file goes
        score = ClipScore(
            name=clip.name,
            kind=clip.layout,
            num_frames=len(numbers),
            metrics=metrics,
            input_hash=input_hash,
            seconds=round(seconds, 3),
        )
        if path is not None:
            text = json.dumps({"key": key, **score.to_dict()}, indent=2, allow_nan=False) + "\n"
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return score

    def _predict(self, clip: Clip, numbers: Sequence[int], scratch: Path, step: Callable[[], object]) -> np.ndarray:
        """The maps of the clip `[t h w]`, in a file: a long clip does not fit memory."""
        maps = self.estimator.maps(clip, numbers)
        stored: np.ndarray | None = None
        count = 0
        for count, values in enumerate(maps, start=1):
            if stored is None:
                shape = (len(numbers), *values.shape)
                try:
                    stored = np.lib.format.open_memmap(scratch / "maps.npy", mode="w+", dtype=np.float32, shape=shape)
                except OSError as error:
                    raise OutputError(f"cannot write {scratch}: {error.strerror}; check free space") from error
            if values.shape != stored.shape[1:]:
                raise DataError(f"{clip.name}: frame {count - 1} is {list(values.shape)}, unlike the ones before")
            stored[count - 1] = values
            step()
        if stored is None or count != len(numbers):
            raise DataError(f"{clip.name}: {count} maps of {len(numbers)} frames")
        return stored

    def _key(self, clip: Clip, numbers: Sequence[int]) -> tuple[str, str]:
        """The hash of everything that the scores depend on, and that of the clip's files."""
        files = dict.fromkeys(path for number in numbers for path in clip.files(number))
        try:
            input_hash = files_sha256(files)
        except OSError as error:
            raise DataError(
                f"{clip.name}: {error.filename} cannot be read ({error.strerror}); the clip is incomplete"
            ) from error
        context = {**self.stated, "version": version_of("openmarigold"), "clip": clip.name, "layout": clip.layout}
        parts = [json.dumps(context, sort_keys=True, default=str), input_hash, self.estimator.hash_of(clip, numbers)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest(), input_hash


def _resumed(path: Path, key: str, alignments: Sequence[Alignment]) -> ClipScore | None:
    """The scores of an earlier run; None where there are none of this key."""
    try:
        content: Mapping[str, Any] = parse_json(path.read_bytes())
        if content["key"] != key:
            return None
        score = ClipScore.from_dict(content)
    except (OSError, DamagedTextError, KeyError, TypeError, ValueError, AttributeError, OpenMarigoldError):
        return None
    return score if score.metrics.keys() == scores_of(alignments).keys() else None
