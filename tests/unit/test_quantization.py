# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper
from openvino import opset13 as operations
from PIL import Image

from openmarigold import Predictor
from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.checkpoints.integrity import describe, verify
from openmarigold.config import ModelConfig
from openmarigold.engines import choose_engine
from openmarigold.errors import CheckpointError, InvalidValueError
from openmarigold.networks.quantization import chosen_layers, layers_to_keep, relative_error
from openmarigold.networks.quantization_onnx import quantize_onnx
from openmarigold.predictor import quantized
from openmarigold.predictor.quantized import export_int8, in_int8
from tiny import make_photo

RNG = np.random.default_rng(5)
KERNELS = {name: RNG.standard_normal((8, 8, 3, 3)).astype(np.float32) / 8 for name in ("first", "second", "third")}


def outlier(shape: tuple[int, ...]) -> np.ndarray:
    """Values in [-1, 1], but for the first channel, which is ten thousand times as large."""
    values = RNG.uniform(-1, 1, shape).astype(np.float32)
    values[:, 0] *= 1e4
    return values


def blind_to_first_channel(kernel: np.ndarray) -> np.ndarray:
    kernel = kernel.copy()
    kernel[:, 0] = 0
    return kernel


def test_the_worst_layers_are_kept_until_the_squares_of_the_rest_fit():
    errors = {"a": 0.03, "b": 0.01, "c": 0.015, "d": 0.005, "e": math.nan}
    # d, b and c: sqrt(0.005^2 + 0.01^2 + 0.015^2) = 0.0187; with a it would be 0.0354.
    assert list(layers_to_keep(errors, limit=0.02)) == ["e", "a"]
    assert list(layers_to_keep(errors, limit=0.018)) == ["e", "a", "c"]
    assert layers_to_keep({"a": 0.02}, limit=0.02) == {}
    assert layers_to_keep({}) == {}


def test_more_layers_are_kept_where_errors_add_to_more():
    asked: list[list[str]] = []

    def quantize(kept: Any) -> float:
        asked.append(list(kept))
        return 0.04 if len(kept) < 2 else 0.019

    kept, error = chosen_layers({"a": 0.008, "b": 0.009, "c": 0.001}, quantize)
    assert asked == [[], ["b"], ["b", "a"]] and (list(kept), error) == (["b", "a"], 0.019)
    kept, _ = chosen_layers({"a": 0.008, "b": 0.009}, lambda kept: 0.5)
    assert list(kept) == ["b", "a"]


def test_relative_error_is_that_of_all_outputs_together():
    expected = [np.array([0.0, 2.0]), np.array([4.0, 6.0])]  # mean 3, variance 5
    found = [np.array([0.0, 2.0]), np.array([4.0, 8.0])]  # mean squared error 1
    assert relative_error(found, expected) == pytest.approx(math.sqrt(1 / 5))
    assert relative_error(expected, expected) == 0


@pytest.fixture
def onnx_network(tmp_path: Path) -> Path:
    """The first convolution sees an outlier in a channel that it does not use; two more follow."""
    kernels = {**KERNELS, "first": blind_to_first_channel(KERNELS["first"])}
    names = ["x", "a", "b", "y"]
    nodes = [
        helper.make_node("Conv", [names[number], name], [names[number + 1]], name=name, pads=[1, 1, 1, 1])
        for number, name in enumerate(kernels)
    ]
    graph = helper.make_graph(
        nodes,
        "three",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, "h", "w"])],
        [numpy_helper.from_array(values, name) for name, values in kernels.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


def test_onnx_runtime_keeps_the_layer_that_suffers(onnx_network: Path, tmp_path: Path):
    samples = [{"x": outlier((1, 8, 12, 16))} for _ in range(2)]
    report = quantize_onnx(onnx_network, tmp_path, samples, samples[:1])
    assert set(report.kept) == {"first"} and report.kept["first"] > 0.5
    assert report.num_layers == 2 and report.output_error < 0.03
    model = onnx.load(tmp_path / "model.onnx")
    inputs = {node.name: node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    quantized_layers = {name for name, weight in inputs.items() if "Dequantize" in weight}
    assert quantized_layers == {"second", "third"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float.onnx", "model.onnx"]


def openvino_network(path: Path, kernels: dict[str, np.ndarray], *, skips: bool = False) -> Path:
    """Convolutions without bias, one after another; with `skips`, each output is added to that of the next."""
    x = operations.parameter([1, 8, -1, -1], np.float32, name="x")
    x.output(0).set_names({"x"})
    value: Any = x
    for name, kernel in kernels.items():
        made = operations.convolution(value, kernel, [1, 1], [1, 1], [1, 1], [1, 1])
        made.set_friendly_name(name)
        value = operations.add(made, value) if skips else made
    model: Any = openvino.Model([value], [x])  # pyright: ignore
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def test_openvino_keeps_the_layer_that_suffers(tmp_path: Path):
    from openmarigold.networks.quantization_openvino import quantize_openvino

    kernels = {**KERNELS, "first": blind_to_first_channel(KERNELS["first"])}
    source = openvino_network(tmp_path / "float.xml", kernels)
    samples = [{"x": outlier((1, 8, 12, 16))} for _ in range(2)]
    report = quantize_openvino(source, tmp_path, samples, samples[:1])
    assert set(report.kept) == {"first"} and report.kept["first"] > 0.5
    assert report.num_layers == 2 and report.output_error < 0.03
    stored = {node.get_friendly_name(): node for node in openvino.Core().read_model(tmp_path / "model.xml").get_ops()}
    assert stored["first"].input_value(1).get_node().get_type_name() == "Constant"
    assert stored["second"].input_value(1).get_node().get_type_name() == "Multiply"  # of int8 and a scale


def test_openvino_gives_weights_on_the_left_back(tmp_path: Path):
    from openmarigold.networks import quantization_openvino as quantization

    random = np.random.default_rng(0)
    x = operations.parameter([1, 8, 64], np.float32, name="x")
    x.output(0).set_names({"x"})
    product = operations.matmul(random.normal(size=(8, 8)).astype(np.float32), operations.relu(x), False, False)
    model: Any = openvino.Model([product], [x])  # pyright: ignore
    openvino.save_model(model, tmp_path / "float.xml", compress_to_fp16=False)
    core, sample = openvino.Core(), {"x": random.normal(size=(1, 8, 64)).astype(np.float32)}
    network = quantization._quantized(core.read_model(tmp_path / "float.xml"), [sample])
    groups = quantization._groups(network)
    assert groups
    for group in groups.values():
        quantization._keep(network, core.read_model(tmp_path / "float.xml"), group)
    quantization._save(network, tmp_path / "kept.xml")
    expected, kept = (quantization._outputs(core, tmp_path / name, [sample])[0] for name in ("float.xml", "kept.xml"))
    np.testing.assert_array_equal(kept, expected)


def test_openvino_computes_convolutions_without_bias_right(tmp_path: Path):
    """Without the bias that we add, OpenVINO 2026.4.1 is wrong by a third of the deviation and more."""
    from openmarigold.networks.quantization_openvino import quantize_openvino

    source = openvino_network(tmp_path / "float.xml", KERNELS, skips=True)
    samples = [{"x": RNG.uniform(-1, 1, (1, 8, 24, 32)).astype(np.float32)} for _ in range(2)]
    report = quantize_openvino(source, tmp_path, samples, samples[:1])
    assert report.output_error < 0.03


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        Image.fromarray(make_photo(48, 64, seed=number)).save(path)
    return paths


@pytest.fixture(scope="module")
def int8_folder(tiny_checkpoint: Path, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "tiny-int8"
    export_int8(read_checkpoint(tiny_checkpoint), folder, format="onnx", photos=photos)
    return folder


def test_exported_folder_says_what_it_is_and_predicts_by_the_ordinary_path(
    int8_folder: Path, tiny_checkpoint: Path, photos: list[Path]
):
    found = read_checkpoint(int8_folder)
    stated = describe(found)["quantization"]
    assert stated["dtype"] == "int8" and stated["num_photos"] == 2 and stated["source"] == "tiny-8"
    assert stated["networks"]["unet"]["int8_layers"] > 10
    weights = onnx.load(int8_folder / "unet" / "model.onnx").graph.initializer
    largest = max(weights, key=lambda tensor: int(np.prod(tensor.dims)))
    assert largest.data_type == TensorProto.INT8

    predictor = Predictor.load(int8_folder)
    assert (predictor.engine.name, predictor.engine.dtype) == ("onnx", "int8")
    prediction = predictor(photos[0])
    assert prediction.settings["dtype"] == "int8"
    exact = Predictor.load(tiny_checkpoint, engine="onnx")(photos[0]).depth
    difference = float(np.sqrt(np.mean((prediction.depth - exact) ** 2)) / exact.std())
    assert 0 < difference < 0.15


def test_a_changed_byte_is_found(int8_folder: Path, tmp_path: Path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(int8_folder, copy)
    assert not [line for _, problems in verify(read_checkpoint(copy)) for line in problems]
    path = copy / "vae_decoder" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    problems = [line for _, problems in verify(read_checkpoint(copy)) for line in problems]
    assert len(problems) == 1 and "vae_decoder/model.onnx has SHA-256" in problems[0]


def test_what_int8_does_not_run_on_is_said(
    int8_folder: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(InvalidValueError, match="are in int8; leave it out"):
        Predictor.load(int8_folder, dtype="bfloat16")
    with pytest.raises(InvalidValueError, match="engine='openvino' is not for int8 ONNX networks such as tiny-int8"):
        Predictor.load(int8_folder, engine="openvino")
    monkeypatch.setattr("openmarigold.engines.LARGE_BYTES", 0)
    assert choose_engine(read_checkpoint(int8_folder)) == "onnx"
    monkeypatch.undo()
    plain = read_checkpoint(tiny_checkpoint)
    for settings in ({"engine": "torch"}, {"device": "cuda"}):
        with pytest.raises(InvalidValueError, match="int8' is for engines onnx and openvino on a CPU"):
            choose_engine(plain, dtype="int8", **settings)  # pyright: ignore
    assert choose_engine(plain, dtype="int8") == "onnx"
    with pytest.raises(CheckpointError, match="int8 already"):
        export_int8(read_checkpoint(int8_folder), tmp_path / "again", format="onnx")


def test_dtype_int8_quantizes_once_and_again_when_damaged(
    tiny_checkpoint: Path, int8_folder: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import shutil

    made: list[Path] = []

    def export(source: Any, destination: Path, **settings: Any) -> None:
        made.append(destination)
        shutil.rmtree(destination, ignore_errors=True)
        shutil.copytree(int8_folder, destination)

    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(quantized, "default_photos", lambda: photos)
    monkeypatch.setattr(quantized, "export_int8", export)
    predictor = Predictor.load(tiny_checkpoint, dtype="int8")
    assert (predictor.engine.dtype, predictor.checkpoint.name) == ("int8", "tiny-8")
    again = Predictor.load(tiny_checkpoint, dtype="int8")
    np.testing.assert_array_equal(again(photos[0]).depth, predictor(photos[0]).depth)
    assert len(made) == 1 and made[0].is_relative_to(tmp_path / "cache")
    (made[0] / "unet" / "model.onnx").write_bytes(b"cut off")
    Predictor.load(tiny_checkpoint, dtype="int8")
    assert len(made) == 2


def test_of_several_that_need_the_copy_one_makes_it(
    tiny_checkpoint: Path, int8_folder: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Threads here; the lock is the same for processes, such as those of `evaluate --workers`."""
    import shutil

    made: list[Path] = []

    def export(source: Any, destination: Path, **settings: Any) -> None:
        made.append(destination)
        time.sleep(0.2)
        shutil.copytree(int8_folder, destination)

    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(quantized, "default_photos", lambda: photos)
    monkeypatch.setattr(quantized, "export_int8", export)
    checkpoint, found = read_checkpoint(tiny_checkpoint), []
    threads = [
        threading.Thread(target=lambda: found.append(in_int8(checkpoint, ModelConfig(dtype="int8")).directory))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and found == made * 3
    (found[0] / "unet" / "model.onnx").unlink()  # not even a checkpoint
    in_int8(checkpoint, ModelConfig(dtype="int8"))
    assert len(made) == 2 and (found[0] / "unet" / "model.onnx").is_file()


def test_without_photos_the_export_is_named(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantized, "_PACKAGE", tmp_path / "a" / "b")
    with pytest.raises(InvalidValueError, match="checkpoint export --dtype int8 --photos"):
        Predictor.load(tiny_checkpoint, dtype="int8")


def test_command_line_exports_with_the_photos_that_are_given(
    onnx_checkpoint: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from openmarigold.cli import run

    given: dict[str, Any] = {}
    monkeypatch.setattr(quantized, "export_int8", lambda found, folder, **rest: given.update(rest, folder=folder))
    command = ["checkpoint", "export", str(onnx_checkpoint), "-o", str(tmp_path / "out"), "--format", "onnx"]
    assert run([*command, "--dtype", "int8", "--photos", str(photos[0].parent)]) == 0
    assert (given["photos"], given["format"], given["tiny_vae"]) == (photos, "onnx", None)
    assert run([*command, "--photos", str(photos[0])]) == 2


def test_weight_files_are_returned_while_networks_are_packed_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from openmarigold.engines import openvino as engine

    returned: list[list[Path]] = []
    twice = threading.Event()

    def give_back(files: Any) -> None:
        returned.append(list(files))
        if len(returned) > 1:
            twice.set()

    monkeypatch.setattr(engine, "_return_memory", give_back)
    monkeypatch.setattr(engine, "_BETWEEN_RETURNS_S", 0.001)
    with engine._returned_meanwhile([tmp_path / "model.bin"]):
        assert twice.wait(10)
    number = len(returned)
    assert returned[0] == [tmp_path / "model.bin"]
    time.sleep(0.02)
    assert len(returned) == number
    with engine._returned_meanwhile([]):
        time.sleep(0.02)
    assert len(returned) == number, "small networks are not mapped twice"
