# SPDX-License-Identifier: Apache-2.0
"""`openmarigold evaluate`: scores on photos with measured depth."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from openmarigold import workers
from openmarigold.cli.engines import MOST_WORKERS, OnRay, ray_engine
from openmarigold.cli.terminal import (
    EXIT_SOME_FAILED,
    cell,
    print_json,
    print_table,
    progress_bar,
    say,
    scored_of_expected,
    share_without_number,
)
from openmarigold.config import PredictConfig
from openmarigold.errors import InvalidValueError, OpenMarigoldError, OutputError

if TYPE_CHECKING:
    from openmarigold.data.units import UnitEngine
    from openmarigold.evaluation import Report
    from openmarigold.evaluation.benchmark import Benchmark
    from openmarigold.evaluation.specs import EstimatorSpec
    from openmarigold.modalities.modality import Modality
    from openmarigold.modalities.protocol import Score


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnRay):
    """Measure a model, or maps of any tool, on photos with measured maps.

    Per image, depth is fitted to the measured depth; scores are means over images or, for a folder, over the places of
    a kind. With --points the depth is completed to meters instead. `evaluate compare A B` compares the output folders
    of two runs.
    """

    benchmark: Path
    """Folder, tar or zip with manifest.json and, for each image, a folder with rgb.jpg and depth.npy, or depth.png and
    meta.json. With --data: a name, such as nyuv2 (`openmarigold data list`)."""
    data: Path | None = None
    """Folder of the known benchmarks (`openmarigold data where NAME`)."""
    predictions: Path | None = None
    """Folder of maps (npy, exr, 16-bit png) to score instead of a model."""
    invariance: str | None = None
    """Kind of the maps in --predictions; for depth: affine_depth (up to scale and shift), scale (up to scale), metric
    (meters) or disparity; for normals: normals (Marigold's frame), normals_lub or normals_opencv. None: the first."""
    protocol: str | None = None
    """How maps are aligned and scored; for depth: marigold, disparity, log, log-ransac, scale, scale-median or metric;
    for its drawn edges: edges, edges-disparity or edges-metric; for normals: marigold-normals or dsine; for metric
    depth: metric or completion. None: disparity for disparity, completion with points, else the first."""
    points: int | None = None
    """Depth completion: reveal this many points of each image's measured depth, complete the model's depth with them,
    and score the other pixels, next to interpolation and plain least squares. Some benchmarks include points."""
    outliers: float = 0.0
    """Share of these points to make wrong, 1.3 to 2 times farther or nearer: 0 to 0.5."""
    points_seed: int = 2024
    """Seed of the points and of their errors."""
    method: tuple[str, ...] = ("auto",)
    """How the depth is completed, one or more: fit (robust scale and shift), field (fit and a field of its residuals),
    guided (points guide the denoising; extra torch), or auto (fit or field, by the smaller error at unseen points)."""
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Folder of the report: summary.json, images.csv, page.html. An interrupted run resumes."""
    page_images: int = 9
    """Maximum number of images on page.html: a third each of the best, the median and the worst ones."""
    num_workers: int = 1
    """Images that are read and scored at the same time by one process; the result does not depend on it."""
    workers: int = 1
    """Processes, or actors of --ray, each with the model, for large benchmarks; the result does not depend on it."""
    allow_partial: tyro.conf.FlagCreatePairsOff[bool] = False
    """Score the other images if some are missing or damaged."""
    baselines: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also score estimators that do not look at the photo: a constant and the image row; for normals: facing the
    camera, and floor and wall."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print all metrics, per kind and per image, as JSON."""
    config: tyro.conf.UseAppendAction[tyro.conf.OmitArgPrefixes[PredictConfig]] = field(default_factory=PredictConfig)


def run_evaluate(command: Evaluate) -> int:
    """Scores, prints a table or JSON, and returns the exit status."""
    benchmark, specs = _what_runs(command)
    engine = _engine(command)
    modality = benchmark.row.modality
    if ignored := _without_effect(command):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        say(f"warning: not used with{'' if command.predictions else 'out'} --predictions: {options}", error=True)
    for line in benchmark.notes:
        say(f"note: {line}", error=True)
    reports: dict[str, Report] = {}
    for place, chosen in enumerate(specs):
        try:
            reports[chosen.name] = _report(command, benchmark, chosen, place, engine)
        except OpenMarigoldError as error:
            if place == 0 or isinstance(error, OutputError) or workers.interrupted_by() is not None:
                raise
            say(f"error: {chosen.name}: {error}", error=True)  # what was scored before is shown without it
    if command.json:
        print_json({name: report.to_dict() for name, report in reports.items()})
    else:
        row = benchmark.row
        _print_tables(reports, modality, command.benchmark.name if row.name == "folder" else f"{row.name}: {row.title}")
        if command.output_dir is not None:
            say(f"summary.json, images.csv, page.html -> {command.output_dir}")
    some_failed = len(reports) < len(specs) or any(report.failed for report in reports.values())
    return EXIT_SOME_FAILED if some_failed else 0


def _report(
    command: Evaluate, benchmark: Benchmark, spec: EstimatorSpec, place: int, engine: UnitEngine | None
) -> Report:
    """The scores of the estimator at index `place`. Raises what `evaluate_benchmark` raises."""
    from openmarigold.evaluation.image_run import Elsewhere
    from openmarigold.evaluation.runner import evaluate_benchmark

    # Some estimators need another protocol: the image row is disparity.
    named = benchmark.row.modality.protocols.get(command.protocol or "")
    protocol = command.protocol if place == 0 or (named and spec.invariance in named.accepts) else None
    folder = command.output_dir
    if folder is not None and place > 0:
        folder = folder / spec.name.rpartition(", ")[2].replace(" ", "-")
    with progress_bar(spec.name) as (advance, note):
        return evaluate_benchmark(
            benchmark,
            spec,
            protocol=protocol,
            output_dir=folder,
            num_workers=command.num_workers,
            elsewhere=None if engine is None else Elsewhere(engine=engine, opened=partial(_opened, command, place)),
            allow_partial=command.allow_partial,
            page_images=command.page_images,
            progress=advance,
            note=note,
        )


def _engine(command: Evaluate) -> UnitEngine | None:
    """Where images are scored; None: in this process.

    Raises:
        InvalidValueError: a number of workers that is not accepted, or flags that exclude or need each other.
    """
    if not 1 <= command.workers <= MOST_WORKERS:
        raise InvalidValueError(f"workers={command.workers} is not accepted; give 1 to {MOST_WORKERS}")
    on_ray = ray_engine(command.ray, workers=command.workers, gpus_per_worker=command.gpus_per_worker)
    if command.workers > 1 or on_ray is not None:
        if command.num_workers > 1:
            raise InvalidValueError("num_workers is for one process; give it, or --workers and --ray")
        from openmarigold.data.units import local_engine

        return on_ray or local_engine(command.workers)
    return None


def _opened(command: Evaluate, place: int) -> tuple[Benchmark, EstimatorSpec]:
    """In a worker: the benchmark, and the estimator at index `place`."""
    benchmark, specs = _what_runs(command)
    return benchmark, specs[place]


def _what_runs(command: Evaluate) -> tuple[Benchmark, list[EstimatorSpec]]:
    """The benchmark, and the estimators to score on it: first the requested one, then those for comparison."""
    from openmarigold.evaluation.benchmarks import open_benchmark, open_folder_benchmark
    from openmarigold.evaluation.specs import baseline_specs, predictor_spec, saved_spec
    from openmarigold.modalities import DEPTH, METRIC, only_modality

    config, wanted = command.config, only_modality(command.config.modality)
    spec: EstimatorSpec | None = None
    if command.data is not None:
        benchmark = open_benchmark(str(command.benchmark), command.data, allow_partial=command.allow_partial)
        if wanted is None:  # predict the measured modality, or derive it from the prediction
            config = replace(config, modality=(benchmark.row.modality.name,))
    elif command.points is not None:
        benchmark = open_folder_benchmark(command.benchmark, wanted or METRIC)
    else:
        spec = None if command.predictions is not None else predictor_spec(config, at_once=command.workers)
        benchmark = open_folder_benchmark(command.benchmark, spec.modality if spec else wanted or DEPTH)
    if command.points is not None or benchmark.row.reveal is not None:
        return _completions(command, benchmark)
    for name in ("outliers", "points_seed", "method"):
        if getattr(command, name) != getattr(Evaluate, name):
            raise InvalidValueError(f"--{name.replace('_', '-')} is for depth completion; give --points, such as 500")
    modality = benchmark.row.modality
    if command.predictions is not None:
        spec = saved_spec(command.predictions, command.invariance, modality)
    spec = spec or predictor_spec(config, at_once=command.workers)
    return benchmark, [spec, *(baseline_specs(modality) if command.baselines else ())]


def _completions(command: Evaluate, benchmark: Benchmark) -> tuple[Benchmark, list[EstimatorSpec]]:
    """A benchmark with points, the methods that complete depth, and their baselines."""
    from openmarigold.evaluation.completion_estimators import completion_specs, interpolation_specs
    from openmarigold.evaluation.revealing import with_points
    from openmarigold.evaluation.specs import saved_spec

    if command.config.interval is not None:
        raise InvalidValueError("interval is calibrated for depth without completion; leave out interval or the points")
    if command.points is not None:
        benchmark = with_points(benchmark, command.points, outliers=command.outliers, seed=command.points_seed)
    elif command.outliers or command.points_seed != Evaluate.points_seed:
        raise InvalidValueError(f"{benchmark.row.name} has points of its own; leave --outliers and --points-seed out")
    if command.predictions is None:
        return benchmark, completion_specs(command.config, command.method, at_once=command.workers)
    return benchmark, [
        saved_spec(command.predictions, command.invariance, benchmark.row.modality),
        *interpolation_specs(),
    ]


def _without_effect(command: Evaluate) -> list[str]:
    """Options that were given but have no effect on this evaluation."""
    if command.predictions is None:
        return ["invariance"] if command.invariance != Evaluate.invariance else []
    defaults = PredictConfig()
    names = (setting.name for setting in fields(PredictConfig) if setting.name != "modality")
    ignored = [name for name in names if getattr(command.config, name) != getattr(defaults, name)]
    return [*ignored, *(["method"] if command.method != Evaluate.method else [])]


def _print_tables(reports: dict[str, Report], modality: Modality, named: str) -> None:
    """Prints a table for each protocol, since their scores must not be compared; `named` is the benchmark."""
    from rich.table import Table

    from openmarigold.modalities.protocol import SEAM_ENERGY

    for protocol in dict.fromkeys(report.protocol for report in reports.values()):
        chosen = {name: report for name, report in reports.items() if report.protocol == protocol}
        first = next(iter(chosen.values()))
        headline = _headline(first, modality)
        scores = " / ".join(map(_with_direction, headline))
        table = Table(title=f"{cell(named)}\n{scores}, protocol {protocol}")
        table.add_column("estimator")
        for name, kind in first.kinds.items():
            table.add_column(f"{cell(name)}\n{_counts(kind.num_places, kind.num_images)}", justify="right")
        table.add_column("images", justify="right")
        table.add_column("pixels without\na number", justify="right")
        for name, report in chosen.items():
            cells = (
                " / ".join(score.text(kind.metrics[score.name]) for score in headline) for kind in report.kinds.values()
            )
            table.add_row(cell(name), *cells, scored_of_expected(report), share_without_number(report))
        print_table(table)
    _print_intervals(reports)
    for name, report in reports.items():
        for drawn, intervals in report.kinds["all"].intervals.items():
            spans = ("–".join(map(score.text, intervals[score.name])) for score in _headline(report, modality))
            say(f"{name}, all: 95 % interval over {drawn} {' / '.join(spans)}")
        if SEAM_ENERGY in report.scores:
            mean = SEAM_ENERGY.text(report.kinds["all"].metrics[SEAM_ENERGY.name])
            say(f"{name}, all: seam energy {mean}, on the worst line between tiles; edges of the scene count too")
        for score in report.scores:
            if count := report.num_flagged.get(score.name):
                say(f"{name}: in {count} of {len(report.images)} images {score.flag}; check --invariance")
        if report.failed:
            say(f"{name}: {len(report.failed)} images failed and are not counted")


def _print_intervals(reports: dict[str, Report]) -> None:
    """Prints the coverage of each estimator's intervals, by kind of place; skips estimators without intervals."""
    from rich.table import Table

    from openmarigold.evaluation.scoring import heading_of, summary_of

    for name, report in reports.items():
        found = {kind: summary_of(score.metrics) for kind, score in report.kinds.items()}
        found = {kind: summary for kind, summary in found.items() if summary is not None}
        if not found:
            continue
        stated = report.settings["interval"]
        table = Table(title=f"{name}: {100 * stated['level']:g} % intervals of {stated['error']}")
        table.add_column("")
        for kind in found:
            table.add_column(cell(kind), justify="right")
        table.add_row("coverage %", *(f"{100 * summary['coverage']:.1f}" for summary in found.values()))
        for part in found["all"]["coverage_by"]:
            shares = (summary["coverage_by"].get(part) for summary in found.values())
            table.add_row(
                f"  {heading_of(part)}", *("–" if share is None else f"{100 * share:.1f}" for share in shares)
            )
        for what, heading in (("half_width", "mean half width"), ("ause", "AUSE"), ("aurg", "AURG (above 0 is good)")):
            table.add_row(heading, *(f"{summary[what]:.3f}" for summary in found.values()))
        print_table(table)


def _headline(report: Report, modality: Modality) -> list[Score]:
    scores = {score.name: score for score in report.scores}
    return [scores[name] for name in modality.headline(report.protocol)]


def _with_direction(score: Score) -> str:
    return f"{score.heading} ({'higher' if score.higher_is_better else 'lower'} is better)"


def _counts(num_places: int, num_images: int) -> str:
    return f"{num_places} places" if num_places == num_images else f"{num_places} places\n{num_images} images"
