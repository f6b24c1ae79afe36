# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark_data import (
    image_bytes,
    make_depth,
    make_diode,
    make_eth3d,
    make_nyuv2_extracted,
    make_scannet,
    npy,
    write,
)
from openmarigold.cli import run
from openmarigold.config import PredictConfig
from openmarigold.errors import CheckpointError, DataError, InvalidValueError, MissingExtraError
from openmarigold.evaluation.benchmarks import BENCHMARKS
from openmarigold.evaluation.published import TABLES, Cell, PaperTable
from openmarigold.evaluation.report import read_report
from openmarigold.evaluation.reproduce import Progress, find_table, parse_checkpoints, reproduce
from tiny import make_photo


def test_tables_hold_the_published_numbers() -> None:
    table = TABLES["table1"]
    numbers = {(cell.row, cell.benchmark): cell.published for cell in table.cells}
    assert len(numbers) == 8 * 5
    assert numbers["Marigold, ensemble of 10", "nyuv2"] == (5.5, 96.4)
    assert numbers["Marigold, no ensemble", "diode"] == (31.0, 77.2)
    assert numbers["MiDaS", "kitti"] == (23.6, 63.0)
    ours = [cell for cell in table.cells if cell.model is not None]
    assert {(cell.num_inference_steps, cell.ensemble_size) for cell in ours} == {(50, 1), (50, 10)}
    assert TABLES["noise"].models == ["gaussian", "multi-resolution", "annealed"]
    assert TABLES["data-mix"].models == ["100:0", "95:5", "90:10", "50:50", "0:100"]
    for other in TABLES.values():
        assert {cell.benchmark for cell in other.cells} <= set(BENCHMARKS)
    normals = {(cell.row, cell.benchmark): cell.published for cell in TABLES["normals"].cells}
    assert normals["Marigold + E2E-FT", "nyuv2-normals"] == (16.2, 61.4)
    assert normals["Stable Diffusion + E2E-FT", "scannet-normals"] == (15.3, None)
    assert normals["Marigold, 50 steps, ensemble of 10", "sintel-normals"] == (39.1, 14.9)
    assert (TABLES["normals"].protocol, TABLES["normals"].models) == ("dsine", ["marigold", "e2e-ft", "sd-e2e-ft"])
    settings = [(cell.benchmark, cell.num_inference_steps, cell.ensemble_size, cell.seed, cell.published)
                for cell in TABLES["normals-v1-1"].cells]  # fmt: skip
    assert settings == [
        ("scannet-normals", 4, 10, 1234, (None, None)),
        ("nyuv2-normals", 4, 10, 4321, (None, None)),
        ("ibims-normals", 4, 10, 4321, (None, None)),
    ]
    assert TABLES["normals-v1-1"].protocol == "marigold-normals"
    with pytest.raises(InvalidValueError, match="table 'table2' is not known; use one of table1, v1-1, journal"):
        find_table("table2")


def test_tables_of_later_models() -> None:
    settings = {
        name: {(one.model, one.num_inference_steps, one.ensemble_size, one.timestep_spacing) for one in table.cells}
        for name, table in TABLES.items()
    }
    assert settings["v1-1"] == {("", 1, 10, None), ("", 1, 1, None)}
    assert settings["journal"] == {("v1-0", 50, 10, None), ("v1-1", 1, 1, None), ("v1-1", 4, 10, None)}
    assert settings["few-steps"] == {
        ("lcm", 4, 5, None),
        ("lcm", 1, 1, None),
        ("v1-0", 1, 1, "trailing"),
        ("e2e-ft", 1, 1, None),
        ("sd-e2e-ft", 1, 1, None),
    }
    for name in ("v1-1", "journal", "few-steps"):
        assert len(TABLES[name].cells) == 5 * len(settings[name])
        assert {cell.seed for cell in TABLES[name].cells} == {1234}
    journal = {(cell.row, cell.benchmark): cell for cell in TABLES["journal"].cells}
    quoted = journal["Marigold v1-1, 4 steps, ensemble of 10", "nyuv2"]
    assert quoted.published == (5.5, 96.4) and quoted.second_hand
    assert journal["Marigold v1-1, 1 step", "nyuv2"].published == (5.9, 96.1)
    assert journal["Marigold v1-1, 1 step", "kitti"].published == (None, None)
    few = {(cell.row, cell.benchmark): cell.published for cell in TABLES["few-steps"].cells}
    assert few["Marigold, 1 trailing step", "kitti"] == (10.8, 89.6)
    assert few["Marigold LCM, 4 steps, ensemble of 5", "diode"] == (30.9, 77.6)
    # The published code merged members in one way for the paper and in another since v1-1.
    reductions = {name: table.published_reduction for name, table in TABLES.items()}
    assert (reductions["table1"], reductions["v1-1"], reductions["normals"]) == ("published-v1-0", "published", None)


def test_published_ensembling_engine_and_progress(
    tmp_path: Path, onnx_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scipy")
    data = tmp_path / "data"
    make_scannet(data / "scannet", {f"scene0001_00/{i:06d}": make_depth(32, 48, seed=i) for i in range(3)})
    cells = [
        Cell(row=f"{members}", benchmark="scannet", num_inference_steps=1, ensemble_size=members) for members in (1, 3)
    ]
    table = PaperTable(name="small", title="small", cells=tuple(cells), published_reduction="published-v1-0")
    seen: list[Progress] = []
    wanted: dict[str, Any] = {"data_dir": data, "checkpoints": {"": onnx_checkpoint}, "allow_partial": True}
    wanted |= {"output_dir": tmp_path / "out"}
    own = reproduce(table, **wanted, config=PredictConfig(engine="onnx"), progress=seen.append)
    # An image of one member is three passes of a network, one of three members seven: 9 + 21 in all.
    assert [(now.number, now.num_cells, now.done, now.total) for now in seen] == [
        (cell, 2, done, 3) for cell in (1, 2) for done in (1, 2, 3)
    ]
    assert [now.share for now in seen] == pytest.approx([3 / 30, 6 / 30, 9 / 30, 16 / 30, 23 / 30, 1.0])
    assert seen[0].cell == "1 on scannet" and seen[-1].remaining_s == 0.0
    assert all(now.remaining_s is not None and now.remaining_s > 0 for now in seen[:-1])
    published = reproduce(table, **wanted, ensembling="published")
    merged = [result.to_dict()["settings"].get("ensemble_reduction") for result in (*own, *published)]
    assert merged == [None, None, None, "published-v1-0"]
    assert own[0].to_dict()["settings"]["engine"] == "onnx" and own[0].to_dict()["share_scored"] == 1.0
    assert own[0].ours == published[0].ours and own[1].ours != published[1].ours
    folders = sorted(path.name for path in (tmp_path / "out" / "small").iterdir())
    assert folders == ["scannet-1x1", "scannet-1x3", "scannet-1x3-published-v1-0"]
    with pytest.raises(InvalidValueError, match="members of normals are merged as published anyway"):
        reproduce(TABLES["normals"], **wanted, ensembling="published")
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtraError, match="metric"):
        reproduce(table, **wanted, ensembling="published")


def test_progress_off_a_terminal(
    tmp_path: Path, onnx_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_scannet(tmp_path / "scannet", {f"scene0001_00/{i:06d}": make_depth(32, 48, seed=i) for i in range(3)})
    arguments = ["reproduce", "v1-1", "--data", str(tmp_path), "--checkpoint", str(onnx_checkpoint), "--allow-partial"]
    arguments += ["--benchmarks", "scannet", "-o", str(tmp_path / "out"), "--engine", "onnx", "--dtype", "float32"]
    monkeypatch.setattr("openmarigold.cli.reproduce.PERIOD_S", 0.0)
    assert run(arguments) == 0
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("cell ")]
    assert len(lines) == 6
    start = "cell 1 of 2: 1 step, ensemble of 10 (README) on scannet, 2 of 3 images, about "
    assert lines[1].startswith(start) and re.fullmatch(r"\d:\d\d:\d\d left in all", lines[1].removeprefix(start))
    assert lines[-1].endswith("3 of 3 images, about 0:00:00 left in all")
    shown = " ".join(printed.out.split())
    assert "3 of 800" in shown and "0.0 %" in shown and "a number" in shown
    monkeypatch.setattr("openmarigold.cli.reproduce.PERIOD_S", 3600.0)
    assert run(arguments) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cell ")]
    assert len(lines) == 4, "the first and the last image of each cell"


def test_each_cell_is_run_or_listed_with_the_reason(tmp_path: Path, onnx_checkpoint: Path) -> None:
    data = tmp_path / "data"
    size = (32, 48)
    make_eth3d(data / "eth3d", {"office/DSC_1": make_depth(*size)})
    make_diode(data / "diode", {f"indoors/scene_1/scan_1/{i}": make_depth(*size, seed=i) for i in range(2)})
    make_scannet(data / "scannet", {"scene0001_00/000000": make_depth(*size)})
    make_nyuv2_extracted(data / "nyuv2", [make_depth(480, 640)])
    (data / "diode" / "indoors" / "scene_1" / "scan_1" / "0_depth.npy").write_bytes(b"damaged")
    # One step and one member, so that it is quick; the settings of the real tables are tested above.
    sets = ("eth3d", "diode", "scannet", "kitti", "nyuv2")
    cells = [Cell(row="ours", benchmark=name, published=(6.5, 96.0), num_inference_steps=1, ensemble_size=1)
             for name in sets]  # fmt: skip
    cells.append(Cell(row="peer", benchmark="eth3d", published=(7.8, 94.6), model=None))
    table = PaperTable(name="small", title="small", cells=tuple(cells))
    wanted = {"data_dir": data, "checkpoints": {"": onnx_checkpoint}, "output_dir": tmp_path / "out"}

    strict = reproduce(table, **wanted)
    assert all(result.report is None for result in strict)
    assert "holds 1 images of ETH3D" in (strict[0].reason or "")

    chosen = reproduce(table, **wanted, benchmarks=("eth3d", "diode", "kitti"), allow_partial=True)
    assert [result.cell.benchmark for result in chosen] == ["eth3d", "diode", "kitti", "eth3d"]
    eth3d, diode, kitti, peer = chosen
    assert eth3d.report is not None and diode.report is not None
    assert eth3d.report.settings["processing_resolution"] == 752
    assert eth3d.report.settings["seed"] == 1234
    assert eth3d.report.settings["final_step"] == "reference"
    assert list(diode.report.failed) == ["indoors/scene_1/scan_1/0"]
    ours, difference = eth3d.ours, eth3d.difference
    assert ours is not None and difference[0] == pytest.approx(ours[0] - 6.5)
    assert "kitti does not exist; `openmarigold data where kitti`" in (kitti.reason or "")
    assert (peer.report, peer.reason) == (None, None)
    as_dict = json.loads(json.dumps([result.to_dict() for result in chosen]))
    assert [item["share_scored"] for item in as_dict] == [1.0, 0.5, None, None]
    assert [item["complete"] for item in as_dict] == [False, False, None, None]
    assert as_dict[2]["not_run"] == kitti.reason
    again = reproduce(table, **wanted, benchmarks=("eth3d",), allow_partial=True)[0].report
    assert again is not None and again.times["images_from_earlier_runs"] == 1
    with pytest.raises(DataError, match="unknown benchmark 'nyu'"):
        reproduce(table, **wanted, benchmarks=("nyu",))


def test_tables_of_normals_show_degrees(
    tmp_path: Path, onnx_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    normals = np.zeros((24, 32, 3), np.float32)
    normals[..., 2] = 1
    write(tmp_path / "nyuv2" / "test" / "000000_img.png", image_bytes(make_photo(24, 32)))
    write(tmp_path / "nyuv2" / "test" / "000000_normal.npy", npy(normals))
    # A model of depth, whose normals are derived.
    arguments = ["reproduce", "normals", "--data", str(tmp_path), "--checkpoint", f"e2e-ft={onnx_checkpoint}"]
    arguments += ["--benchmarks", "nyuv2-normals", "--allow-partial", "-o", str(tmp_path / "out")]
    assert run([*arguments, "--json"]) == 1
    cells = json.loads(capsys.readouterr().out)
    (cell,) = (cell for cell in cells if cell["ours"])
    assert (cell["row"], cell["protocol"]) == ("Marigold + E2E-FT", "dsine")
    assert cell["published"] == {"mean_angle": 16.2, "below_11.25": 61.4, "read_off": False}
    report = read_report(tmp_path / "out" / "normals" / "nyuv2-normals-e2e-ft-1x1")
    metrics = report.kinds["all"].metrics
    assert cell["ours"] == {"mean_angle": metrics["mean_angle"], "below_11.25": 100 * metrics["below_11.25"]}
    assert cell["difference"]["mean_angle"] == pytest.approx(metrics["mean_angle"] - 16.2)
    assert run(arguments) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "mean ° / < 11.25° %, protocol dsine" in printed and "figure's axis" not in printed
    assert "16.2 / 61.4" in printed and "quoted only" in printed


def test_checkpoints_of_ablations_have_labels(onnx_checkpoint: Path, tmp_path: Path) -> None:
    assert parse_checkpoints(TABLES["table1"], [str(onnx_checkpoint)]) == {"": onnx_checkpoint}
    found = parse_checkpoints(TABLES["data-mix"], [f"90:10={onnx_checkpoint}"])
    assert found == {"90:10": onnx_checkpoint}
    results = reproduce(TABLES["data-mix"], data_dir=tmp_path, checkpoints=found, output_dir=tmp_path / "out")
    reasons = {(result.cell.row, result.cell.benchmark): result.reason for result in results}
    assert reasons["100:0", "kitti-val"] == "no --checkpoint 100:0=DIR"
    assert "kitti does not exist" in (reasons["90:10", "kitti-val"] or "")
    with pytest.raises(InvalidValueError, match="table1 needs one --checkpoint DIR; 2 were given"):
        parse_checkpoints(TABLES["table1"], ["a", "b"])
    with pytest.raises(InvalidValueError, match="is not LABEL=DIR; the labels of noise are gaussian, multi-resolution"):
        parse_checkpoints(TABLES["noise"], [str(onnx_checkpoint)])
    with pytest.raises(InvalidValueError, match="needs --checkpoint LABEL=DIR for at least one of gaussian"):
        parse_checkpoints(TABLES["noise"], [])
    with pytest.raises(CheckpointError, match="is not a folder"):
        parse_checkpoints(TABLES["table1"], [str(tmp_path / "none")])
    PredictConfig(processing_resolution=BENCHMARKS["eth3d"].processing_resolution)  # is accepted
