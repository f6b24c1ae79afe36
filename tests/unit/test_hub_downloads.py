# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the hub: decided before the download, resumed, fetched again; its faults are explained."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from hub_server import COMMIT, HALF_WEIGHTS, HUB_ID, WEIGHTS, Hub
from openmarigold.checkpoints.checkpoint import (
    EMBEDDING_FILE,
    Checkpoint,
    loaded_variant,
    read_checkpoint,
    read_outline,
)
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.checkpoints.hub import HubFile
from openmarigold.checkpoints.hub_checkpoint import open_checkpoint
from openmarigold.checkpoints.known import FAMILIES, KNOWN
from openmarigold.checkpoints.weight_files import GRAPH_FILES, NETWORK_FILES, NETWORKS
from openmarigold.cli import run
from openmarigold.config import ModelConfig, PredictConfig
from openmarigold.errors import CheckpointError, InvalidValueError
from openmarigold.networks.tensors import save_tensors
from openmarigold.predictor import Predictor
from openmarigold.predictor.run import predict_files
from tiny import add_text_encoder, edit_json, make_photo

SMALL = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "README.md",
}


def read() -> Checkpoint:
    return read_checkpoint(Path(HUB_ID))


def snapshot(tmp_path: Path) -> Path:
    return tmp_path / "hub-cache" / "models--tiny--marigold" / "snapshots" / COMMIT


OTHER_KINDS: dict[str, dict[str, Any]] = {
    "lotus": {"_class_name": "LotusGPipeline"},
    "geowizard": {"_class_name": "DepthNormalEstimationPipeline"},
    "generator": {"_class_name": "StableDiffusionPipeline"},
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_are_refused_before_their_weights_are_fetched(kind: str, hub: Hub) -> None:
    edit_json(hub.folder / "model_index.json", **OTHER_KINDS[kind])
    with pytest.raises(CheckpointError, match="which is not supported; ") as caught:
        read()
    assert f"{HUB_ID} predicts {FAMILIES[kind].predicts}" in str(caught.value)
    assert set(hub.fetched) <= SMALL


def test_intrinsic_images_of_unknown_targets_are_refused_before_their_weights_are_fetched(hub: Hub) -> None:
    index = {"_class_name": "MarigoldIntrinsicsPipeline", "target_properties": {"target_names": ["gloss"]}}
    edit_json(hub.folder / "model_index.json", **index)
    with pytest.raises(CheckpointError, match=r"target_names is \['gloss'\]; known are \['albedo', 'material'\]"):
        read()
    assert set(hub.fetched) <= SMALL


def test_known_checkpoints_of_other_kinds_are_refused_without_the_network(hub: Hub) -> None:
    others = [name for name, known in KNOWN.items() if known.family in FAMILIES]
    assert len(others) > 10
    for name in others:
        with pytest.raises(CheckpointError, match=f"{name} predicts .* not supported"):
            read_checkpoint(Path(name))
    assert hub.fetched == [] and hub.resolved == 0


def test_an_unknown_scheduler_is_refused_before_the_weights_are_fetched(hub: Hub) -> None:
    edit_json(hub.folder / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler")
    with pytest.raises(CheckpointError, match=r"tiny/marigold, .*: the scheduler is PNDMScheduler"):
        read()
    assert set(hub.fetched) <= SMALL


def test_the_size_is_said_in_one_line(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    read()
    (line,) = [message for message in caplog.messages if message.startswith("downloading")]
    assert line.startswith("downloading tiny/marigold: ") and "in 3 files" in line
    assert f"from {hub.url} (revision main, commit aaaaaaaa) to " in line
    caplog.clear()
    read()
    assert not caplog.messages


def test_info_downloads_no_weights(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["checkpoint", "info", HUB_ID, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert set(hub.fetched) == SMALL
    assert content["sha256"] is None and content["parameters"] is None and content["latent_channels"] == 8
    assert content["bytes_to_download"] == sum(
        (hub.folder / name).stat().st_size for name in (f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", EMBEDDING_FILE)
    )
    assert run(["checkpoint", "info", HUB_ID]) == 0
    assert "are not downloaded yet" in capsys.readouterr().out
    sha256 = content["files"][f"unet/{WEIGHTS}"]
    read()
    assert run(["checkpoint", "info", HUB_ID, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["sha256"] is not None and content["files"][f"unet/{WEIGHTS}"] == sha256


def test_an_outline_is_checked_and_needs_no_graphs_here(hub: Hub) -> None:
    for file in (GRAPH_FILES[name] for name in NETWORKS):
        (hub.folder / file).write_bytes(b"not downloaded")
    repository = open_checkpoint(HUB_ID)
    assert read_outline(repository).graphs
    edit_json(repository.folder / "vae" / "config.json", latent_channels=2048)
    with pytest.raises(CheckpointError, match="latent_channels is 2048; a whole number from 1 to 1024 is needed"):
        read_outline(repository)
    converted = replace(repository, files={**repository.files, NETWORK_FILES["onnx"]["unet"]: HubFile(1, None)})
    edit_json(repository.folder / "model_index.json", latent_channels=2048)
    with pytest.raises(CheckpointError, match="latent_channels is 2048; a whole number from 1 to 1024 is needed"):
        read_outline(converted)


def test_a_run_resolves_the_revision_once(hub: Hub, tmp_path: Path) -> None:
    Image.fromarray(make_photo(24, 32)).save(tmp_path / "photo.png")
    config = PredictConfig(checkpoint=Path(HUB_ID), device="cpu")
    result = predict_files([tmp_path / "photo.png"], output_dir=tmp_path / "out", config=config)
    assert result.num_predicted == 1
    assert hub.resolved == 1


def test_a_text_encoder_is_fetched_once_for_checkpoints_that_share_it(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / EMBEDDING_FILE).unlink()
    add_text_encoder(hub.folder)
    second = tmp_path / "second"
    shutil.copytree(hub.folder, second)
    content = bytearray((second / "unet" / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (second / "unet" / WEIGHTS).write_bytes(content)
    hub.repositories["tiny/second"] = second
    read()
    assert "text_encoder/model.safetensors" in hub.fetched
    hub.fetched.clear()
    found = read_checkpoint(Path("tiny/second"))
    assert {name for name in hub.fetched if name.endswith(".safetensors")} == {f"unet/{WEIGHTS}"}
    assert (found.directory / "text_encoder" / "model.safetensors").is_file()
    Predictor.from_config(ModelConfig(device="cpu"), found=found)


def test_the_hash_of_half_weights_does_not_depend_on_an_earlier_plain_run(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub.folder / EMBEDDING_FILE).unlink()
    add_text_encoder(hub.folder)
    encoder = load_file(hub.folder / "text_encoder" / "model.safetensors")
    half = {name: value.half() for name, value in encoder.items()}
    save_tensors(half, hub.folder / "text_encoder" / "model.fp16.safetensors")

    def loaded(variant: str | None) -> str:
        found = read_checkpoint(Path(HUB_ID), variant=variant)
        Predictor.from_config(ModelConfig(device="cpu"), found=found)
        return checkpoint_sha256(found)

    loaded(None)
    after = loaded("fp16")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "another-hub-cache"))
    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "another-user-cache"))
    assert loaded("fp16") == after


def test_offline_from_a_cache_without_readme_and_with_half_weights_only(hub: Hub, tmp_path: Path) -> None:
    """As diffusers fills it with variant="fp16": the list of files, which it keeps too, names more than are there."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", f"*/{HALF_WEIGHTS}", EMBEDDING_FILE]
    snapshot_download(HUB_ID, allow_patterns=wanted)
    hub.fetched.clear()
    found = read_checkpoint(Path(HUB_ID), local_files_only=True)
    assert loaded_variant(found) == "fp16" and not (found.directory / "README.md").exists()
    assert found.directory == snapshot(tmp_path) and hub.fetched == []
    (found.directory / "vae" / HALF_WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"was downloaded in part only: vae/.*safetensors is missing"):
        read_checkpoint(Path(HUB_ID), local_files_only=True)


def test_a_hub_that_is_down_is_replaced_by_what_is_here(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    directory = read().directory
    hub.refusal = (503, "")
    caplog.clear()
    assert read().directory == directory
    assert any("the earlier download is used" in message for message in caplog.messages)


def test_plain_weights_that_are_a_pickle_do_not_bring_a_second_unet(
    hub: Hub,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (hub.folder / "vae" / WEIGHTS).unlink()
    found = read()
    assert loaded_variant(found) == "unet plain, vae fp16"
    assert [name for name in hub.fetched if name.startswith("unet/d")] == [f"unet/{WEIGHTS}"]
    assert "tiny/marigold, vae/ has its plain weights only as a pickle, which is never loaded" in caplog.text


def test_a_download_goes_on_where_it_ended(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "openmarigold.checkpoints.hub_download._MAX_STALLS", -1
    )  # the first end of a connection is the last
    hub.drop_after = 5000
    with pytest.raises(CheckpointError, match=r"stopped at .* the received bytes are kept: run the command again"):
        read()
    (partial,) = (tmp_path / "hub-cache").rglob("*.incomplete")
    assert partial.stat().st_size == 5000
    hub.drop_after = None
    assert np.isfinite(Predictor.from_config(ModelConfig(device="cpu"), found=read())(make_photo(24, 32)).depth).all()
    assert hub.ranges == [5000]
    assert not list((tmp_path / "hub-cache").rglob("*.incomplete"))


def test_an_unsteady_connection_is_resumed_by_itself(hub: Hub) -> None:
    hub.drop_after = 5000
    found = read()
    assert (found.directory / "unet" / WEIGHTS).read_bytes() == (hub.folder / "unet" / WEIGHTS).read_bytes()
    assert 5000 in hub.ranges and 10000 in hub.ranges


def test_a_file_that_is_shorter_than_stated_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.short = 10
    with pytest.raises(
        CheckpointError, match=r"has fewer bytes at .* than the .* that it states; the received bytes were removed"
    ):
        read()
    assert not list((tmp_path / "hub-cache").rglob("*.incomplete"))
    hub.short = 0
    read()


def test_other_bytes_than_stated_are_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.flip = True
    with pytest.raises(CheckpointError, match=r"came with other bytes than .* states, and was removed"):
        read()
    assert not list((tmp_path / "hub-cache").rglob("*.incomplete"))
    hub.flip = False
    read()


@pytest.mark.parametrize("file", [f"unet/{WEIGHTS}", "model_index.json", "unet/config.json"])
def test_damaged_files_are_fetched_again(
    file: str,
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = read().directory / file
    blob = path.resolve()
    blob.write_bytes(blob.read_bytes()[:-9])
    assert run(["checkpoint", "verify", HUB_ID]) == 2
    hub.fetched.clear()
    assert run(["checkpoint", "verify", HUB_ID, "--fetch-again"]) == 0, capsys.readouterr()
    assert hub.fetched == [file]
    assert path.read_bytes() == (hub.folder / file).read_bytes()


REFUSALS = {
    "gated": (
        401,
        "GatedRepo",
        r"is gated, and no token .*; accept its terms at http://.*/tiny/marigold with",
    ),
    "gated, with a token": (403, "GatedRepo", "is gated, and the token in use has no access; accept its terms"),
    "wrong token": (401, "", r"HF_TOKEN"),
    "too many": (429, "", r"limits the requests of this address \(status 429\).* wait some minutes"),
    "down": (503, "", r"has a fault or is overloaded \(status 503\).* try again later"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_have_a_cause_and_a_cure(refusal: str, hub: Hub) -> None:
    status, code, message = REFUSALS[refusal]
    hub.refusal = (status, code)
    with pytest.raises(CheckpointError, match=message) as caught:
        read()
    assert "does not exist" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(CheckpointError, match=r"cannot be written .*; set HF_HOME to a folder that can be written"):
        read()


def test_a_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    from huggingface_hub import close_session, constants

    close_session()  # which has read the environment before
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    with pytest.raises(CheckpointError, match=r"check the proxy of HTTP_PROXY \(http://127.0.0.1:9\)") as caught:
        read()
    close_session()
    assert "secret" not in str(caught.value)


def test_variants_and_pickles_are_explained_before_the_download(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="not published in variant 'bf16', only as the plain weights and fp16"):
        read_checkpoint(Path(HUB_ID), variant="bf16")
    for name in (WEIGHTS, HALF_WEIGHTS):
        (hub.folder / "unet" / name).unlink()
    with pytest.raises(CheckpointError, match=r"\(unet/\) has its weights only as a pickle .*weights_only=True"):
        read()
    shutil.rmtree(hub.folder / "unet")
    (hub.folder / "model_index.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"has no model_index\.json, so it is not a checkpoint in diffusers layout"
    ):
        read()
    assert set(hub.fetched) <= SMALL


def test_a_git_lfs_pointer_is_told(tiny_checkpoint: Path, onnx_checkpoint: Path, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    for source, file in ((tiny_checkpoint, f"vae/{WEIGHTS}"), (onnx_checkpoint, "unet/model.onnx")):
        directory = tmp_path / source.name
        shutil.copytree(source, directory)
        (directory / file).write_text(pointer)
        with pytest.raises(CheckpointError, match=f"{file} is a Git LFS pointer, .* `git lfs pull`"):
            read_checkpoint(directory)


def end_to_end(directory: Path) -> None:
    """What the training script of E2E-FT saves: the pipeline of an image generator with a scheduler for training."""
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    (directory / "model_index.json").write_text(json.dumps(index))
    scheduler = json.loads((directory / "scheduler" / "scheduler_config.json").read_text())
    scheduler |= {"_class_name": "DDPMScheduler", "rescale_betas_zero_snr": False, "timestep_spacing": "leading"}
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))


def test_networks_of_one_unstated_modality_do_not_predict_two(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "saved-by-e2e-ft"
    shutil.copytree(tiny_checkpoint, directory)
    end_to_end(directory)
    for names in (("depth", "normals"), ("normals", "depth")):
        config = PredictConfig(checkpoint=directory, modality=names)
        with pytest.raises(InvalidValueError, match="modality depth, normals: saved-by-e2e-ft predicts one of these"):
            predict_files([tmp_path / "x.png"], output_dir=tmp_path / "out", config=config)


def test_what_the_script_of_e2e_ft_saves_is_used_as_its_authors_do(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "saved-by-e2e-ft"
    shutil.copytree(tiny_checkpoint, directory)
    end_to_end(directory)
    found = read_checkpoint(directory)
    assert (found.default_num_inference_steps, found.default_start_noise) == (1, "zeros")
    assert (found.schedule.sampler, found.schedule.timestep_spacing) == ("ddim", "trailing")
    assert "do not state whether it predicts depth or normals" in caplog.text
    depth = Predictor.from_config(ModelConfig(device="cpu"), found=found)(make_photo(24, 32)).depth
    assert np.isfinite(depth).all()
    edit_json(directory / "unet" / "config.json", in_channels=8)  # a generator: it does not see the photo
    with pytest.raises(CheckpointError, match="predicts images from a text, not depth"):
        read_checkpoint(directory)


def test_facts_about_known_checkpoints_stand_in_for_what_files_do_not_say(
    hub: Hub,
    caplog: pytest.LogCaptureFixture,
) -> None:
    end_to_end(hub.folder)
    hub.repositories["GonzaloMG/stable-diffusion-e2e-ft-depth"] = hub.folder
    found = read_checkpoint(Path("GonzaloMG/stable-diffusion-e2e-ft-depth"))
    assert (found.default_num_inference_steps, found.default_start_noise) == (1, "zeros")
    assert "do not state" not in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_ends_a_download_at_once(hub: Hub, tmp_path: Path) -> None:
    path = hub.folder / "unet" / WEIGHTS
    content = path.read_bytes() + bytes(2_000_000)  # announced, and never sent whole
    path.write_bytes(content)
    real = hub._send

    def stall(request: Any, content: bytes, headers: Any = None, **settings: Any) -> None:
        if len(content) < 1_000_000 or request.command == "HEAD":
            real(request, content, headers, **settings)
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[:100_000])
        request.wfile.flush()
        time.sleep(30)

    hub._send = stall  # type: ignore[method-assign]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url,
    }
    command = [sys.executable, "-m", "openmarigold", "checkpoint", "verify", HUB_ID]
    # A job in the background of a shell ignores SIGINT, and so would its children.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, heard)
    with process:
        deadline = time.monotonic() + 60
        while not (list((tmp_path / "hf").rglob("*.incomplete")) or time.monotonic() > deadline):
            time.sleep(0.05)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert time.monotonic() - sent < 2
