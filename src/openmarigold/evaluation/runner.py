# SPDX-License-Identifier: Apache-2.0
"""From a benchmark and an estimator to a report: in memory (`evaluate`), or with workers and resuming.

A run with an output folder appends each image's scores to `scores.jsonl`, under a key of everything that they depend
on: the image's files, the estimator's settings and weights, the protocol and this package's version. A later run reuses
the scores with the same key. So an interrupted run continues where it stopped, and a changed run starts anew.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openmarigold.errors import DataError, InvalidValueError, OutputError
from openmarigold.evaluation.benchmark import Benchmark, BenchmarkRow
from openmarigold.evaluation.benchmark_readers import Entry
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.evaluation.estimators import MapEstimator, estimate_sample, predictor_estimator
from openmarigold.evaluation.folder_readers import parse_manifest
from openmarigold.evaluation.image_run import MAX_BEYOND, Elsewhere, ImageRun, Scored, scored_elsewhere
from openmarigold.evaluation.report import (
    USUAL_IMAGES,
    ImageScore,
    Report,
    checked_tally,
    describe_machine,
    is_score,
    write_page,
    write_report,
)
from openmarigold.evaluation.scoring import (
    Measured,
    choose_protocol,
    interval_score_names,
    listed_scores,
    measure_sample,
)
from openmarigold.evaluation.specs import EstimatorSpec
from openmarigold.evaluation.statistics import summarize
from openmarigold.files import as_path
from openmarigold.modalities import DEPTH
from openmarigold.modalities.modality import Modality
from openmarigold.modalities.protocol import Protocol
from openmarigold.predictor import Predictor
from openmarigold.text_files import parse_json_lines

LOG_NAME = "scores.jsonl"
PAGE_NAME = "page.html"


def read_manifest(benchmark_dir: Path | str) -> list[dict[str, Any]]:
    """A benchmark folder's list of images.

    Raises:
        DataError: `manifest.json` is missing, damaged or empty.
    """
    return parse_manifest(open_folder_benchmark(benchmark_dir).archive)


def evaluate(
    benchmark_dir: Path | str,
    estimator: MapEstimator | Predictor,
    *,
    modality: Modality | None = None,
    protocol: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """The estimator's scores on a benchmark in the generic layout.

    Args:
        benchmark_dir: folder, tar or zip with `manifest.json`; see docs/evaluation.md.
        estimator: a `Predictor` with its default settings (`predictor_estimator` gives it others), or any object that
            is called with a photo, uint8 [h w 3], and has an `invariance`.
        modality: what is measured and predicted. None: the estimator's own, else depth.
        protocol: how predictions are aligned and scored, by name. None: the default for the estimator's invariance.
        progress: called with (done, total) after each image.

    Raises:
        DataError: the benchmark is missing, incomplete or damaged.
        InvalidValueError: not an estimator, the protocol does not fit, or the estimator returned other maps or another
            size than the photo's.
    """
    if isinstance(estimator, Predictor):
        estimator = predictor_estimator(estimator)
    if not isinstance(estimator, MapEstimator):
        raise InvalidValueError(
            f"{type(estimator).__name__} is not an estimator; give a Predictor, or an object that is called with a "
            "photo and has an `invariance`, such as an Estimator"
        )
    own: Modality = getattr(estimator, "modality", DEPTH)
    benchmark = open_folder_benchmark(benchmark_dir, modality or own)
    return score_benchmark(benchmark, estimator, protocol=protocol, progress=progress)


def score_benchmark(
    benchmark: Benchmark,
    estimator: MapEstimator,
    *,
    entries: Sequence[Entry] | None = None,
    protocol: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """The estimator's scores on a benchmark, or on some `entries` of it. Raises what `evaluate` raises."""
    row = benchmark.row
    chosen = choose_protocol(row.modality, protocol or row.protocol, estimator.invariance)
    chosen = chosen.with_seams() if getattr(estimator, "has_seams", False) else chosen
    entries = benchmark.entries if entries is None else entries
    images = []
    for done, entry in enumerate(entries, start=1):
        sample = benchmark.sample(entry)
        found = measure_sample(sample, estimate_sample(estimator, sample), chosen, estimator.invariance)
        images.append(
            ImageScore(name=entry.name, kind=entry.kind, place=entry.place, metrics=found.metrics, tally=found.tally)
        )
        if progress is not None:
            progress(done, len(entries))
    return _report(benchmark, chosen, images)


def _report(benchmark: Benchmark, protocol: Protocol, images: Sequence[ImageScore], /, **facts: Any) -> Report:
    """The report of images that were scored by a protocol."""
    row = benchmark.row
    over_places = row.average_over_places and protocol.pooled is None
    return Report(
        images=images,
        kinds=summarize(images, over_places=over_places, pooled=protocol.pooled),
        protocol=protocol.name,
        pooled=protocol.pooled,
        modality=row.modality.name,
        given=row.given_facts,
        over_places=over_places,
        **{"scores": protocol.scores, **facts},
    )


def evaluate_benchmark(
    benchmark: Benchmark,
    spec: EstimatorSpec,
    *,
    protocol: str | None = None,
    output_dir: Path | str | None = None,
    num_workers: int = 1,
    elsewhere: Elsewhere | None = None,
    allow_partial: bool = False,
    page_images: int = USUAL_IMAGES,
    progress: Callable[[int, int], object] = lambda done, total: None,
    note: Callable[[str], object] = lambda line: None,
) -> Report:
    """Scores of an estimator on any benchmark; with `output_dir` also the files of `docs/evaluation.md`, resumed.

    Workers read and score images at the same time, the estimator sees one photo at a time: the result does not depend
    on their number. An image that cannot be scored is noted and the others are scored. `elsewhere` names processes
    that score the images instead, each with an estimator of its own, to the same bits on the same kind of machine. The
    page shows `page_images` images at most: best, median and worst ones.

    Raises:
        DataError: an image could not be scored (unless `allow_partial`), or none.
        InvalidValueError: a protocol or number that is not accepted, or an estimator of another modality.
        OutputError: the output folder cannot be written.
    """
    _check_settings(benchmark, spec, num_workers=num_workers, page_images=page_images)
    output_dir = None if output_dir is None else as_path(output_dir, "output_dir")
    row = benchmark.row
    run = ImageRun.of(benchmark, spec, protocol)
    run.check_predictions()
    started, wall = datetime.now(UTC), time.perf_counter()
    with _Log(output_dir, run.protocol, interval_score_names(spec.band)) as log:
        images, failed = _score_all(run, log, elsewhere or num_workers, progress, note)
    if log.num_beyond:
        note(_note_beyond(log.num_beyond, row))
    _check_failures(failed, len(benchmark.entries), allow_partial)
    report = _report(
        benchmark,
        run.protocol,
        images,
        scores=(*run.protocol.scores, *listed_scores(spec.band)),
        benchmark=row.name,
        expected=row.expected_count,
        settings=dict(spec.settings),
        provenance={"estimator": spec.name, **describe_machine(), "inputs_sha256": _hash_of_all(images)},
        failed=failed,
        times={
            "started": started.isoformat(timespec="seconds"),
            "wall_s": round(time.perf_counter() - wall, 3),
            "images_from_earlier_runs": log.num_found,
        },
    )
    if output_dir is not None:
        write_report(report, output_dir)
        title = f"{spec.name} on {row.title}, protocol {run.protocol.name}"
        page = output_dir / PAGE_NAME
        write_page(report, row.modality, run.aligned, page, title=title, num_images=page_images)
    return report


def _note_beyond(count: int, row: BenchmarkRow) -> str:
    """The note on images whose kind has too small a range."""
    kind, limit = max(row.max_value_by_kind.items(), key=lambda item: (item[1], item[0] == "outdoor"))
    images = "1 image" if count == 1 else f"{count} images"
    return (
        f"note: in {images} more than {100 * MAX_BEYOND:g} % of the measured pixels lie beyond {row.max_value:g} m, to "
        f"which predictions are clipped; outdoor images need another kind, such as {kind!r} ({limit:g} m)"
    )


def _check_settings(benchmark: Benchmark, spec: EstimatorSpec, *, num_workers: int, page_images: int) -> None:
    if num_workers < 1:
        raise InvalidValueError(f"num_workers={num_workers} is not accepted; give 1 or above")
    if page_images < 3:
        raise InvalidValueError(f"page_images={page_images} is not accepted; give 3 or above")
    row = benchmark.row
    if spec.modality.name != row.modality.name:
        raise InvalidValueError(
            f"{spec.name} predicts {spec.modality.title} and {row.name} measures {row.modality.title}; use a benchmark "
            f"of {spec.modality.title}"
        )


def _score_all(
    run: ImageRun,
    log: _Log,
    workers: Elsewhere | int,
    progress: Callable[[int, int], object],
    note: Callable[[str], object],
) -> tuple[list[ImageScore], dict[str, str]]:
    """Scores of the images, and why the others have none."""
    entries = run.benchmark.entries
    images: dict[int, ImageScore] = {}
    failed: dict[int, str] = {}
    scored = _scored_here(run, log, workers) if isinstance(workers, int) else _scored_there(run, log, workers)
    with closing(scored):
        for done, (place, made) in enumerate(scored, start=1):
            if isinstance(made, str):
                failed[place] = made
                note(f"error: {made}")
            else:
                images[place] = made
            progress(done, len(entries))
    return [images[place] for place in sorted(images)], {entries[place].name: failed[place] for place in sorted(failed)}


def _scored_here(run: ImageRun, log: _Log, num_workers: int) -> Generator[tuple[int, ImageScore | str], None, None]:
    """The result of each image, by its place."""

    def score(entry: Entry) -> ImageScore | str:
        made = run.attempt(entry, log)
        return made if isinstance(made, str) else log.taken(entry, made)

    with ThreadPoolExecutor(num_workers) as pool:
        tasks = [pool.submit(score, entry) for entry in run.benchmark.entries]
        try:
            for place, task in enumerate(tasks):
                yield place, task.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _scored_there(
    run: ImageRun, log: _Log, elsewhere: Elsewhere
) -> Generator[tuple[int, ImageScore | str], None, None]:
    entries = run.benchmark.entries
    with closing(scored_elsewhere(run.benchmark, elsewhere, run.protocol.name, log.keys_of)) as scored:
        for place, made in scored:
            yield place, made if isinstance(made, str) else log.taken(entries[place], made)


class _Log:
    """`scores.jsonl`: a line for each scored image, of this and earlier runs. Without a folder, nothing is kept."""

    def __init__(self, output_dir: Path | None, protocol: Protocol, more: Sequence[str] = ()) -> None:
        """`more` are names of scores besides those of the protocol."""
        self.num_found = self.num_beyond = 0
        self._found: dict[str, Measured] = {}
        self._keys: defaultdict[str, list[str]] = defaultdict(list)
        self._lock = threading.Lock()
        self._file = None
        if output_dir is None:
            return
        path = output_dir / LOG_NAME
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+", encoding="utf-8", errors="replace")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; choose another --output-dir") from error
        self._file.seek(0)
        for key, name, found in _whole_lines(path.read_bytes(), protocol, more):
            self._found[key] = found
            self._keys[name].append(key)
        self._file.seek(0, 2)
        if self._file.tell() and not _ends_with_newline(path):
            self._file.write("\n")  # a line that an interruption cut stays on its own line

    def __contains__(self, key: object) -> bool:
        """Whether an earlier run has scored it."""
        return key in self._found

    def keys_of(self, name: str) -> Sequence[str]:
        """The keys under which earlier runs have scored an image."""
        return self._keys.get(name, ())

    def taken(self, entry: Entry, scored: Scored) -> ImageScore:
        """The scores of an image: written, or those of an earlier run."""
        found = scored.found
        if found is None:
            with self._lock:
                found = self._found[scored.key]
                self.num_found += 1
        else:
            self._add(scored.key, entry.name, found)
            with self._lock:
                self.num_beyond += scored.is_beyond
        return ImageScore(
            name=entry.name,
            kind=entry.kind,
            place=entry.place,
            metrics=found.metrics,
            input_hash=scored.input_hash,
            tally=found.tally,
        )

    def _add(self, key: str, name: str, found: Measured) -> None:
        if self._file is None:
            return
        line = {"key": key, "name": name, "metrics": found.metrics}
        if found.tally:
            line["tally"] = found.tally
        with self._lock:
            try:
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()
            except OSError as error:  # the error does not depend on the image, so that every other image would fail too
                raise OutputError(f"cannot write {self._file.name}: {error.strerror}; check free space") from error

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # of buffered lines, whose error was raised before
                self._file.close()


def _whole_lines(content: bytes, protocol: Protocol, more: Sequence[str]) -> Iterator[tuple[str, str, Measured]]:
    """Keys, names and scores of the lines that hold all scores of an image; the images of others are scored again."""
    names, tally = (*protocol.score_names, *more), ""
    for entry in parse_json_lines(content):
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            continue
        metrics = entry.get("metrics")
        if not isinstance(metrics, dict) or metrics.keys() != set(names) or not all(map(is_score, metrics.values())):
            continue
        if protocol.pooled is not None:
            try:
                tally = checked_tally(entry.get("tally"), protocol.pooled)
            except ValueError:
                continue
        yield (
            entry["key"],
            str(entry.get("name")),
            Measured(metrics={name: float(metrics[name]) for name in names}, tally=tally),
        )


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _check_failures(failed: Mapping[str, str], total: int, allow_partial: bool) -> None:
    if failed and (len(failed) == total or not allow_partial):
        name, reason = next(iter(failed.items()))
        named = reason if reason.startswith(f"{name}:") else f"{name}: {reason}"
        hint = "" if len(failed) == total else "; fix them and run again, or give --allow-partial to report the others"
        raise DataError(f"{len(failed)} of {total} images could not be scored ({named}){hint}")


def _hash_of_all(images: list[ImageScore]) -> str:
    lines = "".join(f"{image.name} {image.input_hash}\n" for image in images)
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
