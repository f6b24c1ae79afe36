# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose weights are the mean of others'."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from encoded import make_encoded_checkpoint
from openmarigold.checkpoints.calibration import CALIBRATION_FILE
from openmarigold.checkpoints.checkpoint import EMBEDDING_FILE, read_checkpoint
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.checkpoints.integrity import stated_license, verify
from openmarigold.cli import run
from openmarigold.errors import CheckpointError, InvalidValueError, OutputError
from openmarigold.networks.averaging import average_checkpoints
from openmarigold.networks.backbone import save_complete_checkpoint
from openmarigold.networks.tensors import read_tensors, save_tensors
from openmarigold.predictor import Predictor
from tiny import edit_json, make_photo

pytestmark = pytest.mark.usefixtures("shared_cache")

UNET, VAE, ENCODER = (f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "vae", "image_encoder"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoded_checkpoint(tmp_path_factory.mktemp("start") / "start")


def weights(path: Path) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in read_tensors(path)}


def changed(source: Path, folder: Path, change: Callable[[Tensor], Tensor], *files: str) -> Path:
    """A copy with other weights in `files`."""
    shutil.copytree(source, folder)
    for name in files:
        save_tensors({key: change(value) for key, value in weights(folder / name).items()}, folder / name)
    return folder


def average(*folders: Path, to: Path, shares: tuple[float, ...] = ()) -> dict[str, dict[str, Tensor]]:
    average_checkpoints([read_checkpoint(folder) for folder in folders], to, shares=shares)
    return {name: weights(to / name) for name in (UNET, VAE, ENCODER)}


def test_each_weight_is_the_weighted_mean_and_the_autoencoder_stays(start: Path, tmp_path: Path) -> None:
    other = changed(start, tmp_path / "other", lambda value: value * 3 + 0.25, UNET, ENCODER)
    found = average(start, other, to=tmp_path / "mean", shares=(0.75, 0.25))
    for name in (UNET, ENCODER):
        first, second = weights(start / name), weights(other / name)
        assert found[name].keys() == first.keys()
        for key, value in found[name].items():
            expected = 0.75 * first[key].double() + 0.25 * second[key].double()
            assert value.dtype == torch.float32 and torch.equal(value, expected.float()), key
    assert all(torch.equal(value, found[VAE][key].to(value)) for key, value in weights(start / VAE).items())


@pytest.mark.parametrize("shares", [(), (0.1, 0.2, 0.7)])
def test_the_mean_of_equal_weights_is_these_weights(start: Path, tmp_path: Path, shares: tuple[float, ...]) -> None:
    found = average(start, start, start, to=tmp_path / "mean", shares=shares)
    for name, values in found.items():
        assert all(torch.equal(value.float(), values[key]) for key, value in weights(start / name).items())
    rgb = make_photo(48, 64)
    maps = [Predictor.load(folder, device="cpu")(rgb).depth for folder in (start, tmp_path / "mean")]
    np.testing.assert_array_equal(*maps)


def test_the_folder_is_whole_and_says_what_it_is_made_of(start: Path, tmp_path: Path) -> None:
    first = changed(start, tmp_path / "first", lambda value: value, UNET)
    second = changed(start, tmp_path / "second", lambda value: value * 1.5, UNET)
    (first / "README.md").write_text("# Model card: AbsRel 1 %")
    (first / CALIBRATION_FILE).write_text("{}")
    (first / "LICENSE.md").write_text("Apache-2.0")
    (second / "LICENSE.md").write_text("research only")
    mean = tmp_path / "mean"
    average(first, second, to=mean, shares=(0.4, 0.6))

    checkpoint = read_checkpoint(mean)
    assert checkpoint.name == "mean" and checkpoint.invariance == "scale"
    assert all(not problems for _, problems in verify(checkpoint))
    hashes = [checkpoint_sha256(read_checkpoint(folder)) for folder in (first, second)]
    index = json.loads((mean / "model_index.json").read_text())
    assert index["averaged_from"] == {hashes[0]: 0.4, hashes[1]: 0.6}
    card = (mean / "README.md").read_text()
    assert "AbsRel" not in card and all(f"`{digest}`" in card for digest in hashes)
    assert not (mean / CALIBRATION_FILE).exists()
    assert (mean / "LICENSE.md").read_text() == "Apache-2.0"
    assert (mean / "LICENSE-2.md").read_text() == "research only"


def test_an_autoencoder_in_32_bits_is_the_one_in_16(start: Path, tmp_path: Path) -> None:
    exact = changed(start, tmp_path / "exact", lambda value: value.float() * (1 + 2**-12), VAE)
    average(start, exact, to=tmp_path / "mean")


def test_a_checkpoint_and_its_saved_copy_are_of_one_form(tmp_path: Path) -> None:
    """The copy's scheduler states the last step, which diffusers must be told."""
    start = make_encoded_checkpoint(tmp_path / "start", default_final_step="clean")
    save_complete_checkpoint(read_checkpoint(start), tmp_path / "copy", dtype="float16")
    schedules = [read_checkpoint(folder).schedule for folder in (start, tmp_path / "copy")]
    assert schedules[0] != schedules[1]
    average(start, tmp_path / "copy", to=tmp_path / "mean")


def test_what_does_not_fit_together_is_refused(start: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    others = {
        "have different autoencoders": changed(start, tmp_path / "vae", lambda value: value * 1.1, VAE),
        "embeddings of the empty prompt": changed(start, tmp_path / "prompt", lambda value: value + 1, EMBEDDING_FILE),
        "vae/config.json differs (scaling_factor)": Path(shutil.copytree(start, tmp_path / "scaled")),
        "differ in condition channels (11 and 14)": make_encoded_checkpoint(tmp_path / "rays", condition_on="rays"),
        "differ in space (log and linear)": tiny_checkpoint,
    }
    edit_json(tmp_path / "scaled" / "vae" / "config.json", scaling_factor=0.5)
    others["differ in prediction_type (v_prediction and sample)"] = Path(shutil.copytree(start, tmp_path / "sample"))
    edit_json(tmp_path / "sample" / "scheduler" / "scheduler_config.json", prediction_type="sample")
    for message, other in others.items():
        with pytest.raises(CheckpointError, match=re.escape(message)):
            average(start, other, to=tmp_path / "mean")
        assert not (tmp_path / "mean").exists()


def test_a_network_of_another_form_is_refused(start: Path, tmp_path: Path) -> None:
    """With other heads the weights have the same names and shapes and mean something else."""
    other = Path(shutil.copytree(start, tmp_path / "other"))
    edit_json(other / "unet" / "config.json", attention_head_dim=4)
    with pytest.raises(CheckpointError, match=r"unet/config\.json differs \(attention_head_dim\)"):
        average(start, other, to=tmp_path / "mean")


def test_facts_of_denoising_and_of_size_may_differ(start: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(start, tmp_path / "other"))
    edit_json(other / "scheduler" / "scheduler_config.json", _class_name="LCMScheduler", timestep_spacing="leading")
    edit_json(other / "unet" / "config.json", sample_size=96)
    average(start, other, to=tmp_path / "mean")


def test_every_license_stays_once(start: Path, tmp_path: Path) -> None:
    """In a mean of a mean, too, and those that only model cards and indices state."""
    folders = {}
    for number, text in enumerate(["one", "two", "one", "three"], start=1):
        folders[number] = Path(shutil.copytree(start, tmp_path / f"model {number}"))
        (folders[number] / "LICENSE.md").write_text(text)
    average(folders[1], folders[2], folders[3], to=tmp_path / "mean")
    average(tmp_path / "mean", folders[4], to=tmp_path / "both")
    texts = [path.read_text() for path in (tmp_path / "both").glob("LICENSE*")]
    assert sorted(texts) == ["one", "three", "two"]

    (folders[1] / "LICENSE.md").unlink()
    edit_json(folders[1] / "model_index.json", license="cc0-1.0", name="a|b\n<i>c")
    (folders[2] / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    average(folders[1], folders[2], to=tmp_path / "stated")
    card = (tmp_path / "stated" / "README.md").read_text()
    assert r"| a\|b\\n\<i\>c | 0.5 | cc0-1.0 |" in card and "| model 2 | 0.5 | cc-by-nc-4.0 |" in card
    assert stated_license(read_checkpoint(tmp_path / "stated")) == "see README.md"
    average(folders[1], folders[1], to=tmp_path / "same")
    assert stated_license(read_checkpoint(tmp_path / "same")) == "cc0-1.0"


def test_a_share_of_what_is_not_finite_is_refused(start: Path, tmp_path: Path) -> None:
    broken = changed(start, tmp_path / "broken", lambda value: value * float("nan"), UNET)
    with pytest.raises(CheckpointError, match="not finite"):
        average(start, broken, to=tmp_path / "mean", shares=(1.0, 0.0))
    large = changed(start, tmp_path / "large", lambda value: value.float() + 1e6, UNET)
    sources = [read_checkpoint(folder) for folder in (start, large)]
    with pytest.raises(CheckpointError, match=r"too large for torch\.float16"):
        average_checkpoints(sources, tmp_path / "mean", dtype="float16")
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.5,), "1 shares for 2 checkpoints"),
        ((0.5, 0.6), "shares 0.5 0.6 have the sum 1.1; give values from 0 up whose sum is 1"),
        ((1.5, -0.5), "shares 1.5 -0.5 have the sum 1; give values from 0 up"),
        ((float("nan"), 1.0), "give values from 0 up"),
    ],
)
def test_shares_are_checked(start: Path, tmp_path: Path, shares: tuple[float, ...], message: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        average(start, start, to=tmp_path / "mean", shares=shares)


def test_shares_may_be_rounded(start: Path, tmp_path: Path) -> None:
    average(start, start, start, to=tmp_path / "mean", shares=(0.333, 0.333, 0.333))
    index = json.loads((tmp_path / "mean" / "model_index.json").read_text())
    assert list(index["averaged_from"].values()) == [pytest.approx(1.0, abs=1e-12)]


def test_files_that_are_there_stay(
    start: Path, onnx_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mean").mkdir()
    (tmp_path / "mean" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="choose a new folder"):
        average(start, start, to=tmp_path / "mean")
    assert [path.name for path in (tmp_path / "mean").iterdir()] == ["mine.txt"]
    with pytest.raises(CheckpointError, match="holds ONNX networks"):
        average(onnx_checkpoint, start, to=tmp_path / "other")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(OutputError, match="is the working folder"):
        average(start, start, to=Path())


def test_command(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = changed(start, tmp_path / "other", lambda value: value * 1.5, UNET)
    command = ["checkpoint", "average", str(start), str(other), "-o", str(tmp_path / "mean"), "--dtype", "float16"]
    assert run([*command, "--shares", "0.5", "0.5"]) == 0
    assert capsys.readouterr().out == f"mean of 2 checkpoints -> {tmp_path / 'mean'}\n"
    assert all(value.dtype == torch.float16 for value in weights(tmp_path / "mean" / UNET).values())
    assert run(["checkpoint", "average", str(start), "-o", str(tmp_path / "one")]) == 2
    assert "a mean needs two checkpoints or more; 1 given" in capsys.readouterr().err
