# SPDX-License-Identifier: Apache-2.0
"""Weights of ONNX networks in other files: hashed, refused where they are elsewhere, shared with safetensors files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file, save_file

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.checkpoints.external_data import read_onnx_facts
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.checkpoints.integrity import describe, verify
from openmarigold.checkpoints.weight_files import GRAPH_FILES
from openmarigold.errors import CheckpointError
from openmarigold.networks.conversion import export_shared
from openmarigold.predictor import Predictor
from tiny import make_photo


@pytest.fixture
def external(onnx_checkpoint: Path, tmp_path: Path) -> Path:
    """An ONNX checkpoint whose U-Net keeps its weights in a file of a free name."""
    directory = tmp_path / "external"
    shutil.copytree(onnx_checkpoint, directory)
    path = directory / "unet" / "model.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="free-name.weights", size_threshold=0)
    return directory


def test_negated_weights_in_a_file_of_any_name_change_the_hash(external: Path, onnx_checkpoint: Path) -> None:
    photo = make_photo(32, 40)
    depth = Predictor.load(external)(photo).depth
    np.testing.assert_array_equal(depth, Predictor.load(onnx_checkpoint)(photo).depth)
    before = checkpoint_sha256(read_checkpoint(external))
    weights = external / "unet" / "free-name.weights"
    weights.write_bytes((-np.frombuffer(weights.read_bytes(), dtype=np.float16)).tobytes())
    assert checkpoint_sha256(read_checkpoint(external)) != before
    assert "unet/free-name.weights" in describe(read_checkpoint(external))["files"]


@pytest.mark.parametrize("location", ["../free-name.weights", "/etc/passwd", "sub/weights", "*/_ORT_MEM_ADDR_/*", ".."])
def test_weights_elsewhere_are_refused(external: Path, location: str) -> None:
    path = external / "unet" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="accepted are files in its own folder"):
        read_checkpoint(external)


def test_weights_of_constants_in_subgraphs_are_found(tmp_path: Path) -> None:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="hidden.bin")
    constant = onnx.helper.make_node("Constant", [], ["w"], value=tensor)
    graph = onnx.helper.make_graph([constant], "branch", [], [])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])).SerializeToString())
    with pytest.raises(CheckpointError, match=r"hidden\.bin is missing"):
        read_onnx_facts(path)
    (tmp_path / "hidden.bin").write_bytes(bytes(8))
    assert read_onnx_facts(path).external_files == [tmp_path / "hidden.bin"]


def test_missing_and_cut_weights_are_named(external: Path) -> None:
    weights = external / "unet" / "free-name.weights"
    weights.write_bytes(weights.read_bytes()[:-2])
    with pytest.raises(CheckpointError, match=r"free-name\.weights is truncated"):
        read_checkpoint(external)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"free-name\.weights is missing"):
        read_checkpoint(external)


def test_shared_weights_give_the_bytes_of_an_export_with_its_own(
    tiny_checkpoint: Path, onnx_checkpoint: Path, tmp_path: Path
) -> None:
    shared, photo = tmp_path / "shared", make_photo(40, 56)
    export_shared(read_checkpoint(tiny_checkpoint), shared)
    for name in ("unet", "vae"):
        file = f"{name}/diffusion_pytorch_model.safetensors"
        assert (shared / file).read_bytes() == (tiny_checkpoint / file).read_bytes()
    found = read_checkpoint(shared)
    assert found.graphs and [line for _, lines in verify(found) for line in lines] == []
    ours, theirs = Predictor.load(shared), Predictor.load(onnx_checkpoint)
    assert ours.engine.name == "onnx"
    np.testing.assert_array_equal(ours(photo).depth, theirs(photo).depth)
    torch_depth = Predictor.load(shared, engine="torch", device="cpu")(photo).depth
    np.testing.assert_allclose(torch_depth, theirs(photo).depth, rtol=0, atol=2e-3)
    assert {GRAPH_FILES[name] for name in found.networks} < set(describe(found)["files"])

    path = shared / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file({name: -value for name, value in weights.items()}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unet\.onnx was made from other weights or settings.*--shared-weights"):
        read_checkpoint(shared)
