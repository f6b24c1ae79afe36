# SPDX-License-Identifier: Apache-2.0
"""The papers' tables as rows: published numbers and the settings they were made with.

Paper: table 1, the ablations of noise, data mix, ensemble size and steps. Where a figure shows a curve, only the ends
of its axis are known, to about a tenth (`read_off`). Martin Garcia et al. 2024 (E2E-FT): its comparisons of few steps
and of normals, and the README of its code. Marigold's scripts of v1-1 and its journal paper (arXiv 2505.09358), whose
table 1 is known to us from a survey that quotes it (`second_hand`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from openmarigold.config import FinalStep, TimestepSpacing
from openmarigold.modalities import DEPTH, NORMALS
from openmarigold.modalities.modality import Modality
from openmarigold.modalities.protocol import Score

SEED = 1234
PAPER_STEPS, PAPER_ENSEMBLE = 50, 10


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number pair of a table: what was run on what, and the published pair.

    Attributes:
        row: the table's row.
        benchmark: name of the benchmark.
        published: the table's two headline scores as they are shown (AbsRel [%] and delta1 [%]); None is not known.
        model: label of the checkpoint it needs; "" is the only one of a table, None a peer, whose number is quoted.
        read_off: read off a figure's axis.
        second_hand: known from someone who quotes it.
        seed: of the noise.
        timestep_spacing: None: the checkpoint's own.
    """

    row: str
    benchmark: str
    published: tuple[float | None, float | None] = (None, None)
    model: str | None = ""
    num_inference_steps: int = PAPER_STEPS
    ensemble_size: int = PAPER_ENSEMBLE
    read_off: bool = False
    second_hand: bool = False
    seed: int = SEED
    timestep_spacing: TimestepSpacing | None = None


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table or figure of a paper; `models` are the labels of the checkpoints it needs."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    modality: Modality = DEPTH
    protocol: str = "marigold"
    final_step: FinalStep | None = "reference"
    """None: each checkpoint's own."""
    published_reduction: str | None = "published-v1-0"
    """How the published code merged members; None: as this package does by default."""

    @property
    def scores(self) -> list[Score]:
        """The two scores of each cell."""
        known = {score.name: score for score in self.modality.protocols[self.protocol].scores}
        return [known[name] for name in self.modality.headline(self.protocol)]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(cell.model for cell in self.cells if cell.model is not None))


_TABLE_1_SETS = ("nyuv2", "kitti", "eth3d", "scannet", "diode")
_ABLATION_SETS = ("nyuv2-train", "kitti-val")

_PEERS = {
    "DiverseDepth": "11.7/87.5 19.0/70.4 22.8/69.4 10.9/88.2 37.6/63.1",
    "MiDaS": "11.1/88.5 23.6/63.0 18.4/75.2 12.1/84.6 33.2/71.5",
    "LeReS": "9.0/91.6 14.9/78.4 17.1/77.7 9.1/91.7 27.1/76.6",
    "Omnidata": "7.4/94.5 14.9/83.5 16.6/77.8 7.5/93.6 33.9/74.2",
    "HDN": "6.9/94.8 11.5/86.7 12.1/83.3 8.0/93.9 24.6/78.0",
    "DPT": "9.8/90.3 10.0/90.1 7.8/94.6 8.2/93.4 18.2/75.8",
}
_NOISE = {
    "gaussian": "7.7/93.4 14.2/82.1",
    "multi-resolution": "5.8/96.1 12.1/87.1",
    "annealed": "5.6/96.5 11.3/88.7",
}
# Shares of Hypersim and Virtual KITTI.
_DATA_MIX = {
    "100:0": "5.7/96.3 13.7/82.5",
    "95:5": "5.8/96.2 11.1/88.8",
    "90:10": "5.6/96.5 11.3/88.7",
    "50:50": "6.0/96.0 12.8/85.5",
    "0:100": "13.9/83.4 15.4/79.3",
}


def _row(cell: Cell, benchmarks: tuple[str, ...], numbers: str) -> Iterator[Cell]:
    for benchmark, pair in zip(benchmarks, numbers.split(), strict=True):
        first, _, second = pair.partition("/")
        published = float(first), float(second) if second else None
        yield replace(cell, benchmark=benchmark, published=published)


def _table_1() -> Iterator[Cell]:
    for name, numbers in _PEERS.items():
        yield from _row(Cell(row=name, benchmark="", model=None), _TABLE_1_SETS, numbers)
    single = Cell(row="Marigold, no ensemble", benchmark="", ensemble_size=1)
    yield from _row(single, _TABLE_1_SETS, "6.0/95.9 10.5/90.4 7.1/95.1 6.9/94.5 31.0/77.2")
    ensemble = Cell(row="Marigold, ensemble of 10", benchmark="")
    yield from _row(ensemble, _TABLE_1_SETS, "5.5/96.4 9.9/91.6 6.5/96.0 6.4/95.1 30.8/77.3")


def _version_1_1() -> Iterator[Cell]:
    """Cells of Marigold's scripts of v1-1; we do not know their numbers from their source."""
    for members, row in ((10, "1 step, ensemble of 10 (README)"), (1, "1 step, no ensemble (scripts)")):
        for benchmark in _TABLE_1_SETS:
            yield Cell(row=row, benchmark=benchmark, num_inference_steps=1, ensemble_size=members)


def _journal() -> Iterator[Cell]:
    known = {("v1-0", 50, 10): (5.5, 96.4), ("v1-1", 1, 1): (5.9, 96.1), ("v1-1", 4, 10): (5.5, 96.4)}
    for (model, steps, members), on_nyu in known.items():
        ensemble = f", ensemble of {members}" if members > 1 else ""
        for benchmark in _TABLE_1_SETS:
            yield Cell(
                row=f"Marigold {model}, {steps} step{'s' if steps > 1 else ''}{ensemble}",
                benchmark=benchmark,
                published=on_nyu if benchmark == "nyuv2" else (None, None),
                model=model,
                num_inference_steps=steps,
                ensemble_size=members,
                second_hand=True,
            )


def _few_steps() -> Iterator[Cell]:
    """E2E-FT's comparison of few steps, one pipeline for all."""
    lcm = Cell(row="Marigold LCM, 4 steps, ensemble of 5", benchmark="", model="lcm")
    lcm = replace(lcm, num_inference_steps=4, ensemble_size=5)
    yield from _row(lcm, _TABLE_1_SETS, "6.2/95.6 9.9/91.7 6.9/95.5 7.0/94.5 30.9/77.6")
    single = replace(lcm, row="Marigold LCM, 1 step", num_inference_steps=1, ensemble_size=1)
    yield from _row(single, _TABLE_1_SETS, "6.5/95.4 10.7/89.9 7.5/94.5 7.6/93.8 31.5/76.3")
    trailing = replace(single, row="Marigold, 1 trailing step", model="v1-0", timestep_spacing="trailing")
    yield from _row(trailing, _TABLE_1_SETS, "5.7/96.2 10.8/89.6 6.9/95.5 6.6/95.2 31.1/76.8")
    tuned = replace(single, row="Marigold + E2E-FT", model="e2e-ft")
    yield from _row(tuned, _TABLE_1_SETS, "5.2/96.6 9.6/91.9 6.2/95.9 5.8/96.2 30.2/77.9")
    tuned = replace(single, row="Stable Diffusion + E2E-FT", model="sd-e2e-ft")
    yield from _row(tuned, _TABLE_1_SETS, "5.4/96.5 9.6/92.1 6.4/95.9 5.8/96.5 30.3/77.6")


def _trained(numbers: Mapping[str, str]) -> Iterator[Cell]:
    for label, row in numbers.items():
        yield from _row(Cell(row=label, benchmark="", model=label), _ABLATION_SETS, row)


def _curve(what: str, values: tuple[int, ...], known: Mapping[tuple[int, str], float]) -> Iterator[Cell]:
    for value in values:
        for benchmark in _ABLATION_SETS:
            steps, members = (value, 1) if what == "steps" else (PAPER_STEPS, value)
            yield Cell(
                row=f"{value} {what}",
                benchmark=benchmark,
                published=(known.get((value, benchmark)), None),
                num_inference_steps=steps,
                ensemble_size=members,
                read_off=True,
            )


_NORMALS_SETS = ("nyuv2-normals", "scannet-normals", "ibims-normals", "sintel-normals")


def _normals() -> Iterator[Cell]:
    """Mean angle [deg] and share below 11.25 degrees [%]; of some rows only the first is published with its source."""
    trained = Cell(row="Marigold, 50 steps, ensemble of 10", benchmark="", model="marigold")
    yield from _row(trained, _NORMALS_SETS, "18.8/55.9 17.7/58.8 18.4/64.3 39.1/14.9")
    one_step = Cell(row="Marigold, 1 step", benchmark="", model="marigold", num_inference_steps=1, ensemble_size=1)
    yield from _row(one_step, _NORMALS_SETS, "17.4/56.5 16.8/57.6 18.1/62.9 37.1/15.7")
    tuned = replace(one_step, row="Marigold + E2E-FT", model="e2e-ft")
    yield from _row(tuned, _NORMALS_SETS, "16.2/61.4 14.7/66.0 15.8/69.9 33.5/21.5")
    tuned = replace(one_step, row="Stable Diffusion + E2E-FT", model="sd-e2e-ft")
    yield from _row(tuned, _NORMALS_SETS, "16.5 15.3 16.1 33.5")
    yield from _row(Cell(row="GeoWizard + E2E-FT", benchmark="", model=None), _NORMALS_SETS, "16.1 14.7 16.2 33.4")
    yield from _row(
        Cell(row="Marigold V2", benchmark="", model=None), _NORMALS_SETS, "16.6/61.2 14.1/67.4 15.9/70.9 28.7/27.6"
    )


def _normals_settings() -> Iterator[Cell]:
    for benchmark, seed in (("scannet-normals", SEED), ("nyuv2-normals", 4321), ("ibims-normals", 4321)):
        yield Cell(row="Marigold v1-1", benchmark=benchmark, num_inference_steps=4, seed=seed)


TABLES: Mapping[str, PaperTable] = MappingProxyType(
    {
        table.name: table
        for table in (
            PaperTable(name="table1", title="Table 1: zero-shot comparison", cells=tuple(_table_1())),
            PaperTable(
                name="v1-1",
                title="Marigold v1-1, the settings of its scripts (the numbers are not known to us)",
                cells=tuple(_version_1_1()),
                published_reduction="published",
            ),
            PaperTable(
                name="journal",
                title="Marigold's journal paper, table 1: v1-0 and v1-1",
                cells=tuple(_journal()),
                published_reduction="published",
            ),
            PaperTable(
                name="few-steps",
                title="Few steps, as compared by E2E-FT",
                cells=tuple(_few_steps()),
                final_step=None,
            ),
            PaperTable(
                name="ensemble",
                title="Ensemble size, 50 steps",
                cells=tuple(
                    _curve(
                        "members",
                        (1, 2, 5, 10, 20),
                        {
                            (1, "nyuv2-train"): 6.1,
                            (20, "nyuv2-train"): 5.5,
                            (1, "kitti-val"): 11.9,
                            (20, "kitti-val"): 11.2,
                        },
                    )
                ),
            ),
            PaperTable(
                name="steps",
                title="Denoising steps, no ensemble, the checkpoint's own timestep spacing (leading in the paper)",
                cells=tuple(_curve("steps", (1, 2, 5, 10, 20, 50), {(1, "nyuv2-train"): 35.0, (1, "kitti-val"): 62.0})),
            ),
            PaperTable(name="noise", title="Training noise", cells=tuple(_trained(_NOISE))),
            PaperTable(
                name="data-mix", title="Training data, Hypersim : Virtual KITTI", cells=tuple(_trained(_DATA_MIX))
            ),
            PaperTable(
                name="normals",
                title="Surface normals, as compared by E2E-FT",
                cells=tuple(_normals()),
                modality=NORMALS,
                protocol="dsine",
                final_step=None,
                published_reduction=None,
            ),
            PaperTable(
                name="normals-v1-1",
                title="Surface normals, the settings of Marigold's scripts (the numbers are not known to us)",
                cells=tuple(_normals_settings()),
                modality=NORMALS,
                protocol="marigold-normals",
                published_reduction=None,
            ),
        )
    }
)
