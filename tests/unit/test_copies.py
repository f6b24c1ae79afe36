# SPDX-License-Identifier: Apache-2.0
"""Copies of checkpoints say what was known of the original by its name, and replace nothing but older exports."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import run
from openmarigold.checkpoints.checkpoint import Checkpoint, read_checkpoint
from openmarigold.config import ModelConfig
from openmarigold.errors import OutputError
from openmarigold.networks.averaging import average_checkpoints
from openmarigold.networks.backbone import save_complete_checkpoint
from openmarigold.networks.conversion import export_checkpoint, export_shared
from openmarigold.predictor import Predictor
from tiny import edit_json, make_photo


def end_to_end(source: Path, folder: Path, *, by_script: bool) -> Path:
    """A checkpoint of normals as Garcia et al. published them, or as their training script saves them."""
    shutil.copytree(source, folder)
    schedule = {"_class_name": "DDPMScheduler"} if by_script else {"rescale_betas_zero_snr": False}
    edit_json(folder / "scheduler" / "scheduler_config.json", **schedule)
    index = json.loads((folder / "model_index.json").read_text())
    components = {name: value for name, value in index.items() if isinstance(value, list)}
    facts = {"default_denoising_steps": 1, "default_processing_resolution": 32, "prediction_type": "normals"}
    kind = (
        {"_class_name": "StableDiffusionPipeline"} if by_script else {"_class_name": "MarigoldNormalsPipeline", **facts}
    )
    (folder / "model_index.json").write_text(json.dumps({**components, **kind}))
    return folder


def facts(found: Checkpoint) -> tuple[object, ...]:
    defaults = found.default_num_inference_steps, found.default_start_noise, found.schedule.timestep_spacing
    return found.modality.name, found.modality.space, *defaults


@pytest.mark.parametrize("by_script", [False, True])
def test_copies_of_end_to_end_normals_stay_what_they_are(
    by_script: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = end_to_end(tiny_checkpoint, tmp_path / "mine", by_script=by_script)
    source = read_checkpoint(folder, wanted="normals")
    assert facts(source) == ("normals", "lub", 1, "zeros", "trailing")
    export_checkpoint(source, tmp_path / "onnx", format="onnx")
    export_shared(source, tmp_path / "shared")
    save_complete_checkpoint(source, tmp_path / "saved", dtype="float32")
    average_checkpoints([source, source], tmp_path / "mean")
    photo = make_photo(24, 32)
    expected = Predictor.from_config(ModelConfig(device="cpu"), found=source)(photo, processing_resolution=32)
    for name in ("onnx", "shared", "saved", "mean"):
        found = read_checkpoint(tmp_path / name)
        assert facts(found) == facts(source), name
        made = Predictor.from_config(ModelConfig(device="cpu"), found=found)(photo, processing_resolution=32)
        assert np.abs(made.maps["normals"] - expected.maps["normals"]).max() < 0.02, name


def test_a_folder_of_the_hubs_cache_is_known_by_its_id(tiny_checkpoint: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--prs-eth--marigold-normals-v1-1" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_checkpoint, snapshot)
    assert read_checkpoint(snapshot).name == "prs-eth/marigold-normals-v1-1"


def test_an_export_replaces_an_older_one_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source, folder, shared = read_checkpoint(tiny_checkpoint), tmp_path / "export", tmp_path / "shared"
    export_checkpoint(source, folder, format="onnx")
    export_checkpoint(source, folder, format="onnx")
    export_shared(source, shared)
    export_shared(read_checkpoint(shared), shared)
    before = {path.name for path in shared.iterdir()}
    (folder / ".DS_Store").touch()
    export_checkpoint(source, folder, format="onnx")
    (folder / "notes.txt").write_text("mine")
    for destination, message in (
        (folder, "export holds notes.txt, which this export would not hold"),
        (shared, "shared exists and is not an exported checkpoint"),
    ):
        with pytest.raises(OutputError, match=message):
            export_checkpoint(read_checkpoint(shared), destination, format="onnx")
    assert (folder / "notes.txt").read_text() == "mine" and {path.name for path in shared.iterdir()} == before


def test_folders_that_cannot_be_replaced_are_refused_first(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, mounted = read_checkpoint(tiny_checkpoint), tmp_path / "mounted"
    mounted.mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="the working folder, which cannot be replaced"):
        export_checkpoint(source, Path(), format="onnx")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == mounted)
    for write in (
        lambda: export_checkpoint(source, mounted, format="onnx"),
        lambda: save_complete_checkpoint(source, mounted, dtype="float32"),
    ):
        with pytest.raises(
            OutputError, match="mounted is a mount point, which cannot be replaced; give a folder inside"
        ):
            write()


def test_settings_without_effect_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["checkpoint", "export", str(tiny_checkpoint), "-o", str(tmp_path / "x")]
    for more, message in (
        (["--shared-weights", "--dtype", "int8"], "leave out tiny-vae, format and dtype"),
        (["--modality", "normals"], "predicts depth; leave modality out"),
    ):
        assert run([*words, *more]) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "x").exists()


def test_what_the_index_alone_states_is_part_of_results(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_checkpoint(tiny_checkpoint).facts_of_index == {}
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "log"))
    edit_json(folder / "model_index.json", space="log", shift_invariant=False, coarse_resolution=16)
    assert read_checkpoint(folder).facts_of_index == {"space": "log", "coarse_resolution": 16}
    Image.fromarray(make_photo(24, 32)).save(tmp_path / "photo.png")
    words = [
        "predict",
        str(tmp_path / "photo.png"),
        "-o",
        str(tmp_path / "out"),
        "--checkpoint",
        str(folder),
        "--device",
        "cpu",
    ]
    for coarse, expected in ((16, "1 predicted, 0 skipped"), (16, "0 predicted, 1 skipped"), (8, "1 predicted")):
        edit_json(folder / "model_index.json", coarse_resolution=coarse)
        assert run([*words, "--processing-resolution", "32"]) == 0
        assert expected in capsys.readouterr().out
