# SPDX-License-Identifier: Apache-2.0
"""One recipe on 1, 2 and 4 processes: the same samples, the same losses; and what the others do when one is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from openmarigold.training import train
from openmarigold.training.batches import plan_batches
from openmarigold.training.recipe import OptimizationConfig
from openmarigold.training.settings import DataConfig
from openmarigold.training.views import Mixture
from stable_diffusion import write_stable_diffusion
from training_data import write_training_data

TESTS = Path(__file__).parents[1]
RECIPE: dict[str, Any] = {
    "kind": "depth",
    "data": {
        "sources": {"synthetic": 0.6, "synthetic-val": 0.4},
        "size": [32, 48],
        "sizes": {"synthetic-val": [24, 64]},
        "mixture": "micro_batch",
        "cache": False,
    },
    "optimization": {
        "num_steps": 3,
        "batch_size": 4,
        "micro_batch_size": 1,
        "learning_rate": 3e-4,
        "warmup_steps": 2,
    },
    "run": {"num_workers": 1},
    "checkpoint": {"name": "tiny"},
}
STEPS_WITHOUT_END = 10_000
PORT = "29655"
SHARDED = {  # what `accelerate launch --config_file recipes/fsdp.yaml` sets
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BasicTransformerBlock,ResnetBlock2D",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of different sizes, a tiny Stable Diffusion, and the runs: `one` here, the others forked."""
    folder = tmp_path_factory.mktemp("processes")
    write_training_data(folder / "data", num_pairs=7)
    (write_training_data(folder / "more", num_pairs=6) / "synthetic" / "train-00.tar").rename(
        folder / "data" / "synthetic" / "val-00.tar"
    )
    write_stable_diffusion(folder / "sd", prediction_type="v_prediction")
    table = {**RECIPE, "base": str(folder / "sd")}
    whole = {**table["data"], "sources": {"synthetic": 1.0}, "sizes": {}}
    recipes = {
        "parts": table,
        "whole": {**table, "data": whole, "optimization": {**table["optimization"], "micro_batch_size": 0}},
        "long": {
            **table,
            "run": {"save_period_s": 0.0},
            "optimization": {**table["optimization"], "num_steps": STEPS_WITHOUT_END},
        },
    }
    averaged = {**table["optimization"], "num_steps": 4, "ema_decay": 0.9, "gradient_clip": 0.1}
    recipes["sharded"] = {**table, "optimization": averaged}
    for name, content in recipes.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    for name in ("parts", "whole", "sharded"):
        train(folder / f"{name}.json", data_dir=folder / "data", output_dir=folder / f"{name}-1", device="cpu")
    jobs = [job(folder, "parts", 2), job(folder, "parts", 4), job(folder, "whole", 2), job(folder, "long", 2)]
    jobs[-1]["kill"] = [1, str(folder / "long-2" / "states" / "step-00000002")]
    jobs.append({**job(folder, "sharded", 2), "environment": SHARDED})
    jobs[-1]["arguments"] += ["--stop-after-steps", "2"]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, TESTS / "forked_training.py", folder / "jobs.json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "done.json").write_text(done.stdout.splitlines()[-1])
    return folder


def job(folder: Path, recipe: str, count: int) -> dict[str, Any]:
    arguments = ["train", "--recipe", str(folder / f"{recipe}.json"), "--data-dir", str(folder / "data")]
    arguments += ["--output-dir", str(folder / f"{recipe}-{count}"), "--device", "cpu"]
    return {"num_processes": count, "arguments": arguments}


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("recipe", "count"), [("parts", 2), ("parts", 4), ("whole", 2)])
def test_losses_do_not_depend_on_the_number_of_processes(workspace: Path, recipe: str, count: int) -> None:
    done = json.loads((workspace / "done.json").read_text())[
        {"parts2": 0, "parts4": 1, "whole2": 2}[f"{recipe}{count}"]
    ]
    assert done["statuses"] == [0] * count, done["outputs"]
    expected = losses(workspace / f"{recipe}-1")
    assert len(expected) == 3
    np.testing.assert_allclose(losses(workspace / f"{recipe}-{count}"), expected, rtol=1e-5)
    assert f"device cpu, {count} processes" in done["outputs"][0]
    assert not any("checkpoint ->" in output for output in done["outputs"][1:]), "only the main process speaks"


@pytest.mark.parametrize("mixture", ["micro_batch", "sample"])
def test_a_step_has_the_same_samples_on_1_2_4_and_8_processes(workspace: Path, mixture: Any) -> None:
    sources, optimization = {"synthetic": 0.6, "synthetic-val": 0.4}, OptimizationConfig
    config = DataConfig(sources=sources, size=(32, 48), mixture=mixture)
    draws = Mixture(config, data_dir=workspace / "data", seed=3)
    settings = optimization(num_steps=9, batch_size=16, learning_rate=1.0, micro_batch_size=2)

    def taken(num_processes: int, step: int) -> list[list[int]]:
        """The micro-batches of a step in their order."""
        plans = [plan_batches(settings, num_processes=num_processes, process_index=i) for i in range(num_processes)]
        found = {}
        for plan in plans:
            for micro_step in range(plan.num_micro_steps):
                share = plan.slice_of(step, micro_step)
                _, chosen, rows = draws.choose("test", share, settings.batch_size)
                found[share.micro_step] = chosen[rows].tolist()
        return [found[number] for number in sorted(found)]

    for step in range(4):
        alone = taken(1, step)
        assert len(alone) == 8 and all(len(micro) == 2 for micro in alone)
        for num_processes in (2, 4, 8):
            assert taken(num_processes, step) == alone
    if mixture == "micro_batch":
        of_source = [{draws.source_of(index) for index in micro} for step in range(4) for micro in taken(8, step)]
        assert all(len(numbers) == 1 for numbers in of_source) and len(set(map(frozenset, of_source))) == 2


def test_a_killed_process_ends_the_others_with_a_clear_line(workspace: Path) -> None:
    done = json.loads((workspace / "done.json").read_text())[3]
    assert done["statuses"] == [2, -9], done["outputs"]
    last = done["outputs"][0].strip().splitlines()[-1]
    assert "process 0 of 2: another process of this run ended" in last and "continues from the newest state" in last
    assert "Traceback" not in done["outputs"][0]
    assert sorted((workspace / "long-2" / "states").glob("step-*"))


def test_a_killed_run_goes_on_with_another_number_of_processes(workspace: Path, tmp_path: Path) -> None:
    done = losses(workspace / "long-2")
    (state,) = sorted((workspace / "long-2" / "states").glob("step-*"))[-1:]
    last = int(state.name.removeprefix("step-")) + 2
    shutil.copytree(workspace / "long-2", tmp_path / "long-2")
    for folder in (tmp_path / "long-2", tmp_path / "long-1"):
        train(
            workspace / "long.json",
            data_dir=workspace / "data",
            output_dir=folder,
            device="cpu",
            stop_after_steps=last,
        )
    expected = losses(tmp_path / "long-1")
    assert len(expected) == last
    np.testing.assert_allclose(losses(tmp_path / "long-2"), expected, rtol=1e-5)
    np.testing.assert_allclose(done[: last - 2], expected[: len(done[: last - 2])], rtol=1e-5)


def test_weights_may_be_spread_over_processes(workspace: Path) -> None:
    """FSDP, with accumulation, clipping and averaged weights, resumed by a process that holds whole weights."""
    (done,) = json.loads((workspace / "done.json").read_text())[4:]
    assert done["statuses"] == [0, 0], done["outputs"]
    first = done["outputs"][0]
    assert "2 processes, precision float32, weights spread over them (FSDP)" in first
    assert "batch: 4 = 1 a process x 2 processes x 2 accumulated" in first
    run = workspace / "sharded-2"
    assert len(losses(run)) == 2
    train(workspace / "sharded.json", data_dir=workspace / "data", output_dir=run, device="cpu")
    np.testing.assert_allclose(losses(run), losses(workspace / "sharded-1"), rtol=1e-5)
    found, expected = (
        load_file(workspace / name / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")
        for name in ("sharded-2", "sharded-1")
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # A mean: Adam turns a rounded gradient near 0 into a step of either sign.
        assert np.abs(found[name] - value).mean() < 5e-6, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nodes", "fsdp"])
def test_the_documented_commands(workspace: Path, kind: str) -> None:
    """Two nodes of a process each, or FSDP by its file, as `accelerate launch` starts them."""
    more = {"nodes": ["--cpu", "--num_machines", "2", "--num_processes", "2"]}.get(
        kind, ["--config_file", str(TESTS.parent / "recipes" / "fsdp.yaml")]
    )
    started = []
    for rank in range(2 if kind == "nodes" else 1):
        place = ["--machine_rank", str(rank), "--main_process_ip", "127.0.0.1", "--main_process_port", PORT]
        words = ["launch", *more, *(place if kind == "nodes" else []), "-m", "openmarigold"]
        arguments = job(workspace, "parts", 0)["arguments"]
        arguments[arguments.index("--output-dir") + 1] = str(workspace / kind)
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "accelerate.commands.accelerate_cli", *words, *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        )
    assert [process.wait(timeout=240) for process in started] == [0] * len(started)
    np.testing.assert_allclose(losses(workspace / kind), losses(workspace / "parts-1"), rtol=1e-5)
