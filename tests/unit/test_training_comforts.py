# SPDX-License-Identifier: Apache-2.0
"""What surrounds a training: its memory told beforehand, its device and precision, its end, its logs."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from openmarigold.cli import parse
from openmarigold.cli.train import _with_precision
from openmarigold.errors import InvalidValueError, MissingExtraError, OutputError, RecipeError
from openmarigold.training import dry_run, memory, train
from openmarigold.training.batches import Batches, plan_batches
from openmarigold.training.keeping import keep_checkpoint, validations_since_best
from openmarigold.training.loop import make_accelerator
from openmarigold.training.loss import Loss
from openmarigold.training.marigold import MarigoldTask
from openmarigold.training.memory import MemoryEstimate, activation_bytes, check_memory, estimate_memory
from openmarigold.training.monitor import open_boards
from openmarigold.training.settings import OptimizationConfig, RunConfig
from openmarigold.training.state import StateWriter, saved_scaler
from openmarigold.training.trainer import Trainer
from own_pictures import prepare_own_pictures
from tiny import make_checkpoint, make_unet

GIB = 2**30


def optimization(**changes: Any) -> OptimizationConfig:
    return OptimizationConfig(**{"num_steps": 4, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 0, **changes})


def test_memory_of_a_training_by_hand() -> None:
    network = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5, bias=False))  # 220 and 100 weights
    network[1].requires_grad_(False)
    found = estimate_memory(network, optimization(ema_decay=0.9), activations=1000)
    assert (found.weights, found.gradients, found.moments, found.average) == (1280, 880, 1760, 880)
    assert found.total == 1280 + 880 + 1760 + 880 + 1000
    assert estimate_memory(network, optimization(), num_processes=2).gradients == 2 * 880
    eighth = estimate_memory(network, optimization(optimizer="adamw_8bit", mixed_precision="bf16"), activations=1000)
    assert (eighth.moments, eighth.average, eighth.activations) == (440, 0, 1000 + 2 * 220)


def test_activations_by_hand() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(10, 20, bias=False), nn.ReLU(), nn.Linear(20, 5, bias=False))

    # Kept are the input [3 10], and the output of the ReLU [3 20], which serves both layers after it.
    assert activation_bytes(make, lambda network: network(torch.zeros(3, 10))) == 4 * (3 * 10 + 3 * 20)


def test_activations_are_those_that_a_real_pass_keeps() -> None:
    inputs = torch.zeros(2, 8, 16, 16), torch.tensor([1, 2]), torch.zeros(2, 2, 16)

    def run(network: Any) -> Any:
        return network(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample

    unet = make_unet(4).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(unet)
    real = sum(storage.nbytes() for storage in kept.values())
    counted = activation_bytes(lambda: make_unet(4), run)
    assert counted == pytest.approx(real, rel=0.03)
    assert activation_bytes(lambda: make_unet(4), run, recomputed=True) < 0.5 * counted


def test_what_does_not_fit_is_said_before_it_starts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    needed = MemoryEstimate(weights=4 * GIB, gradients=4 * GIB, moments=8 * GIB, average=0, activations=3 * GIB)
    cpu, gpu = torch.device("cpu"), torch.device("cuda:1")
    check_memory(needed, gpu, free=20.0 * GIB)
    parts = "weights 4.00, gradients 4.00, moments 8.00, activations 3.00"
    assert caplog.messages == [f"memory: about 19.00 GiB ({parts}); free on cuda:1: 20.0 GiB"]
    check_memory(needed, gpu, free=17.0 * GIB)
    assert caplog.messages[-1].startswith(
        "this may not fit: about 19.0 GiB are needed, and 17.0 GiB are free on cuda:1; s"
    )
    with pytest.raises(
        RecipeError, match=r"16\.0 GiB for weights, gradients and moments alone, and 15\.0 GiB are free on"
    ):
        check_memory(needed, gpu, free=15.0 * GIB)
    check_memory(needed, cpu, free=16.0 * GIB)  # of which the weights are taken already
    assert caplog.messages[-1].endswith("free on cpu: 20.0 GiB")


def test_devices_and_precisions_that_are_not_there() -> None:
    for device, message in (
        ("gpu", "use auto, cpu, cuda, cuda:N or mps"),
        ("cpu:1", "use auto, cpu, cuda, cuda:N or mps"),
        ("cuda:97", "device='cuda:97' is not there: torch finds"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            make_accelerator("no", device)
    with pytest.raises(InvalidValueError, match=r"fp16 needs a GPU; on a CPU use bf16 \(--dtype bf16\)"):
        make_accelerator("fp16", "cpu")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("float32", "no"), ("bfloat16", "bf16"), ("bf16", "bf16"), ("float16", "fp16"), ("fp16", "fp16")],
)
def test_dtype_is_a_value_of_the_recipe(given: str, wanted: str) -> None:
    command: Any = parse(["train", "--data-dir", "d", "--set", "seed=1", "--dtype", given])
    assert _with_precision(command).set == ("seed=1", f"optimization.mixed_precision={wanted}")


def test_validations_since_the_best(tmp_path: Path) -> None:
    log = tmp_path / "validation.jsonl"
    assert validations_since_best(log, "x", higher_is_better=True) == 0
    values = [0.5, 0.7, 0.7, 0.6, float("nan")]
    log.write_text("".join(json.dumps({"step": 10 * n, "x": v}) + "\n" for n, v in enumerate(values)))
    assert validations_since_best(log, "x", higher_is_better=True) == 2  # the first of equals is the best
    assert validations_since_best(log, "x", higher_is_better=False) == 3
    with pytest.raises(RecipeError, match="patience counts validations; set validation_period"):
        RunConfig(patience=2)


def test_a_completed_checkpoint_keeps_what_was_trained(tmp_path: Path) -> None:
    last, kept = tmp_path / "checkpoint", tmp_path / "step-1"
    for folder, text in ((last, "last"), (kept, "first")):
        for name in ("unet/w", "vae/w", "image_encoder/w"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        (folder / "vae" / "config.json").write_text("{}")
    (last / "text_encoder").mkdir()
    (last / "text_encoder" / "w").write_text("last")
    (kept / "notes").mkdir()
    (kept / "notes" / "mine").write_text("added")
    keep_checkpoint(last, kept, trained_of=kept)
    found = {path.relative_to(kept).as_posix(): path.read_text() for path in kept.rglob("*") if path.is_file()}
    trained = {f"{name}/w": "first" for name in ("unet", "vae", "image_encoder")}
    assert found == {**trained, "vae/config.json": "{}", "text_encoder/w": "last", "notes/mine": "added"}
    assert (kept / "vae" / "config.json").samefile(last / "vae" / "config.json")


class Quadratic:
    """A task whose loss is the squared distance of two weights from a target."""

    inputs: ClassVar[dict[str, str]] = {}
    mixture = SimpleNamespace(sha256="")

    def __init__(self) -> None:
        self.model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.model.weight)

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> Loss:
        return Loss((model(batch["x"]) - 1.0).square().sum(), torch.tensor(1.0), None)

    def batch(self, share: Any) -> Any: ...

    def save(self, directory: Path, *, final: bool = True) -> None: ...

    def validate(self, directory: Path) -> Any: ...


class Given(Batches):
    """A batch that is there."""

    def __init__(self, value: float) -> None:
        self.value = value

    def next(self) -> Any:
        return {"x": torch.tensor([[self.value, 2 * self.value]])}, {}


def steps(scale: float, inputs: list[float], *, clip: float = 0.0) -> tuple[Trainer, torch.Tensor]:
    """A trainer after a step for each input, with a loss that is scaled as on a GPU; 0 = not scaled."""
    accelerator = make_accelerator("no", "cpu")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
    config = optimization(gradient_clip=clip, batch_size=1)
    task: Any = Quadratic()
    trainer = Trainer(task, config, plan_batches(config, num_processes=1), accelerator)
    for number, value in enumerate(inputs):
        trainer.take_step(number, Given(value))
    return trainer, task.model.weight.detach().clone()


def test_a_scaled_loss_moves_weights_as_a_plain_one() -> None:
    for clip in (0.0, 0.1):
        plain, scaled = steps(0.0, [1.0, 3.0], clip=clip)[1], steps(2.0**10, [1.0, 3.0], clip=clip)[1]
        assert torch.equal(plain, scaled) and plain.abs().min() > 0


def test_gradients_that_overflow_move_nothing_and_halve_the_scale(tmp_path: Path) -> None:
    trainer, weight = steps(2.0**127, [1e3])
    assert torch.equal(weight, torch.zeros(1, 2))
    writer = StateWriter(tmp_path, keep=1)
    writer.submit(trainer.state(1, {}))
    writer.wait()
    assert saved_scaler(tmp_path / "step-00000001")["scale"] == 2.0**126
    other, _ = steps(2.0**5, [1.0])
    other.restore(tmp_path / "step-00000001")
    assert other.state(1, {}).described["scaler"]["scale"] == 2.0**126


RECIPE = """
kind = "depth"
base = "BASE"
data = { sources = { mine = 1.0 }, size = [32, 48], cache = false }
checkpoint = { name = "tiny", processing_resolution = 48 }
run = { validation_period = 1, patience = 2, patience_of = "loss" }
optimization = { num_steps = 20, batch_size = 1, learning_rate = 1e-3, warmup_steps = 0 }
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comforts")
    prepare_own_pictures(folder / "raw", folder / "data")
    make_checkpoint(folder / "base", "kl")
    (folder / "recipe.toml").write_text(RECIPE.replace("BASE", str(folder / "base")))
    return folder


def go(workspace: Path, name: str, *overrides: str, **settings: Any) -> Path | None:
    paths = {"data_dir": workspace / "data", "output_dir": workspace / name}
    return train(workspace / "recipe.toml", overrides=overrides, device="cpu", **paths, **settings)


def test_a_run_ends_when_patience_does(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.25, 1.0, 1.5, 1.5])
    monkeypatch.setattr(MarigoldTask, "validate", lambda *_: {"held_out_loss": next(losses)})
    checkpoint = go(workspace, "patient")
    assert checkpoint is not None and (checkpoint / "model_index.json").is_file()

    def rows(name: str) -> list[Any]:
        return [json.loads(line) for line in (workspace / "patient" / name).read_text().splitlines()]

    assert [row["held_out_loss"] for row in rows("validation.jsonl")] == [3.0, 2.0, 2.5, 2.25]
    assert len(rows("metrics.jsonl")) == 4
    assert go(workspace, "patient") == checkpoint  # the same command has nothing more to do
    assert len(rows("metrics.jsonl")) == 4
    go(workspace, "patient", "run.patience=3", stop_after_steps=5)  # with more patience it continues
    assert [row["step"] for row in rows("validation.jsonl")] == [1, 2, 3, 4, 5]


def test_held_out_scenes_measure_a_base_in_16_bits(workspace: Path) -> None:
    low_rank = ("lora.rank=2", 'lora.targets=["to_q"]', "lora.half_base=true", "optimization.mixed_precision=bf16")
    go(workspace, "half", *low_rank, "run.patience=0", "optimization.num_steps=1", "validation.num_images=1")
    [line] = map(json.loads, (workspace / "half" / "validation.jsonl").read_text().splitlines())
    assert 0 < line["held_out_loss"] < 10


def test_patience_needs_something_to_count(workspace: Path) -> None:
    with pytest.raises(RecipeError, match=r"run\.patience needs a validation score, and this run has none; hold out"):
        go(workspace, "nothing", "data.held_out=0.0", "run.patience_of=score")


class Stub:
    """In the place of wandb."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.points: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802
        return settings

    def Image(self, picture: Any) -> str:  # noqa: N802
        return f"picture of {picture.shape}"

    def init(self, **given: Any) -> Any:
        self.started.append(given)
        return SimpleNamespace(log=lambda values, step: self.points.append((step, values)), finish=self.finish)

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_curves_and_the_recipe_and_nothing_else(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stub = Stub()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    quiet = ("run.patience=0", "run.validation_period=0", "data.held_out=0.0")
    go(workspace, "silent", *quiet, stop_after_steps=1)
    assert not stub.started, "nothing is started unasked"
    watched = (*quiet, "run.wandb=offline", "run.wandb_project=mine")
    go(workspace, "watched", *watched, stop_after_steps=1)
    go(workspace, "watched", *watched, stop_after_steps=2)
    first, second = stub.started
    assert (first["mode"], first["project"], first["name"]) == ("offline", "mine", "watched")
    assert first["dir"] == str(workspace / "watched") and first["config"]["optimization"]["num_steps"] == 20
    kept = {"disable_code": True, "disable_git": True, "console": "off", "x_disable_stats": True}
    assert first["settings"].items() >= kept.items()
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert [step for step, values in stub.points if "train/loss" in values] == [0, 1]
    assert stub.finished == 2
    [board] = open_boards(tmp_path, RunConfig(wandb="offline"), {}, step=0)
    board.pictures({"pictures/a": np.zeros((2, 3, 3), np.uint8)}, 7)
    assert stub.points[-1] == (7, {"pictures/a": "picture of (2, 3, 3)"})
    assert stub.started[-1]["id"] != first["id"]


def test_wandb_that_is_absent_or_without_a_key_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"openmarigold\[wandb\]"):
        open_boards(tmp_path, RunConfig(wandb="online"), {}, step=0)
    stub = Stub()
    monkeypatch.setattr(stub, "init", lambda **_: (_ for _ in ()).throw(ValueError("no key")))
    monkeypatch.setitem(sys.modules, "wandb", stub)
    with pytest.raises(OutputError, match=r"does not start \(.*no key\); run `wandb login`, or set run\.wandb"):
        open_boards(tmp_path, RunConfig(wandb="online"), {}, step=0)


def test_a_training_that_cannot_fit_does_not_start(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda *_: 1000.0)
    with pytest.raises(RecipeError, match=r"for weights, gradients and moments alone, and .* free on cpu; set l"):
        go(workspace, "large")
    with pytest.raises(RecipeError, match="alone, and"):
        dry_run(workspace / "recipe.toml", device="cpu", data_dir=workspace / "data", output_dir=workspace / "large")
    go(workspace, "large", "run.check_memory=false", "run.patience=0", "data.held_out=0.0", stop_after_steps=1)
