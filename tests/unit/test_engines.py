# SPDX-License-Identifier: Apache-2.0
"""Which engine runs what, what it says where it cannot, and how it makes do with the memory there is."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openmarigold import engines
from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.engines import choose_engine, converted, open_engine
from openmarigold.engines.torch import TorchEngine
from openmarigold.errors import InvalidValueError
from openmarigold.networks.strips import decode_in_strips
from openmarigold.predictor import Predictor
from tiny import make_photo

pytestmark = pytest.mark.usefixtures("shared_cache")


def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LARGE_BYTES", 1)


def without(package: str) -> Callable[[str], bool]:
    return lambda name: name != package and importlib.util.find_spec(name) is not None


def test_auto_takes_what_is_fastest_here(
    onnx_checkpoint: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx, weights = read_checkpoint(onnx_checkpoint), read_checkpoint(tiny_checkpoint)
    monkeypatch.setattr(engines, "_has_gpu", lambda: False)
    monkeypatch.setattr("openmarigold.engines.openvino.computes_in_bfloat16", lambda: True)
    assert choose_engine(onnx) == "onnx"
    assert choose_engine(onnx, dtype="bfloat16") == "openvino"
    assert choose_engine(weights) == choose_engine(weights, dtype="bfloat16") == "torch"
    everything_is_large(monkeypatch)
    assert choose_engine(onnx) == choose_engine(weights) == choose_engine(weights, device="cpu") == "openvino"
    assert choose_engine(weights, device="cuda") == choose_engine(weights, device="mps") == "torch"
    assert choose_engine(weights, compile="full") == choose_engine(weights, dtype="float16") == "torch"
    monkeypatch.setattr(engines, "_has_gpu", lambda: True)
    assert choose_engine(weights) == "torch"
    assert choose_engine(weights, device="cpu") == "openvino"
    monkeypatch.setattr("openmarigold.engines.openvino.computes_in_bfloat16", lambda: False)
    assert choose_engine(weights, device="cpu", dtype="bfloat16") == "torch"
    monkeypatch.setattr(engines, "is_installed", without("openvino"))
    assert choose_engine(onnx) == "onnx"
    assert choose_engine(weights, device="cpu") == "torch"


def test_auto_keeps_nothing_where_there_is_no_room(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything_is_large(monkeypatch)
    found = read_checkpoint(tiny_checkpoint)
    assert converted.can_keep_converted(found)
    monkeypatch.setattr(converted, "weight_bytes", lambda checkpoint: 2**60)
    assert not converted.can_keep_converted(found)
    assert choose_engine(found, device="cpu") == "torch"


def test_an_engine_that_is_not_installed_is_named(tiny_checkpoint: Path, onnx_checkpoint: Path, cache: Path) -> None:
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from openmarigold.predictor import Predictor\n"
        f"Predictor.load({str(onnx_checkpoint)!r}, engine='openvino')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "openmarigold[openvino]"' in result.stderr
    code = code.replace("'openvino'] = None", "'torch'] = None").replace(str(onnx_checkpoint), str(tiny_checkpoint))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'torch is not installed; it belongs to an optional part: pip install "openmarigold[torch]"' in result.stderr


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("onnx", {"engine": "torch"}, "engine='torch' does not run ONNX networks; use auto"),
        ("onnx", {"engine": "onnx", "dtype": "bfloat16"}, "dtype='bfloat16' is not for ONNX networks.*engine openvino"),
        ("onnx", {"engine": "openvino", "dtype": "float16"}, "dtype='float16' is not for CPUs"),
        (
            "onnx",
            {"engine": "openvino", "device": "cuda"},
            "device='cuda' is not for engine openvino.*engine torch",
        ),
        ("onnx", {"engine": "onnx", "compile": "full"}, "compile='full' is for engine torch, not onnx"),
    ],
)
def test_what_an_engine_cannot_do_is_said(
    kind: str, settings: dict[str, Any], message: str, onnx_checkpoint: Path, tiny_checkpoint: Path
) -> None:
    checkpoint = onnx_checkpoint if kind == "onnx" else tiny_checkpoint
    with pytest.raises(InvalidValueError, match=message):
        Predictor.load(checkpoint, **settings)


def test_bfloat16_needs_a_cpu_that_has_it(onnx_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmarigold.engines.openvino.computes_in_bfloat16", lambda: False)
    with pytest.raises(InvalidValueError, match="dtype='bfloat16' is not supported by this CPU; use float32"):
        Predictor.load(onnx_checkpoint, engine="openvino", dtype="bfloat16")


def out_of_memory(*_: object, **__: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_a_network_that_does_not_fit_goes_in_strips(
    kl_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    engine = TorchEngine(read_checkpoint(kl_checkpoint), device="cpu")
    generator = torch.Generator().manual_seed(0)
    value: Any = torch.randn(2, 4, 16, 24, generator=generator)
    if name == "encode":
        value = torch.rand(2, 3, 128, 192, generator=generator).numpy()
    run = getattr(engine, name)
    expected = np.asarray(run(value))
    monkeypatch.setitem(engine._networks, name, out_of_memory)
    np.testing.assert_allclose(np.asarray(run(value)), expected, rtol=0, atol=1e-5 * np.ptp(expected))
    assert "tiles" not in caplog.text


def test_strips_that_do_not_fit_compute_more_of_it_twice(kl_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(read_checkpoint(kl_checkpoint), device="cpu")
    latent = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    expected, tried = engine.decode(latent), []

    def narrow(vae: Any, value: torch.Tensor, *, num_whole: int) -> torch.Tensor:
        tried.append(num_whole)
        return decode_in_strips(vae, value, num_whole=num_whole) if num_whole == 1 else out_of_memory()

    monkeypatch.setitem(engine._networks, "decode", out_of_memory)
    monkeypatch.setattr("openmarigold.engines.torch.decode_in_strips", narrow)
    np.testing.assert_allclose(engine.decode(latent), expected, rtol=0, atol=1e-5 * np.ptp(expected))
    assert tried == [2, 1]


def test_a_large_image_or_little_memory_means_strips(kl_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(read_checkpoint(kl_checkpoint), device="cpu")
    small, large = torch.zeros(1, 4, 16, 24), torch.zeros(1, 4, 128, 128)  # of 2^20 pixels
    for free, fitting, ways in ((1e12, [True, False], (2, 1)), (2e6, [False, False], (1,))):
        monkeypatch.setattr("openmarigold.engines.torch.available_memory", lambda device, free=free: free)
        assert [engine._fits_in_one_pass("decode", latent) for latent in (small, large)] == fitting
        assert engine._strips_that_fit("decode", small) == ways
    monkeypatch.setattr(engine, "_compile", "full")
    assert engine._fits_in_one_pass("decode", large)


@pytest.mark.parametrize("unknown", [False, True])
def test_what_does_not_fit_in_strips_goes_in_tiles(
    kl_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, unknown: bool
) -> None:
    engine = TorchEngine(read_checkpoint(kl_checkpoint), device="cpu")
    latent = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    expected = engine.decode(latent)
    monkeypatch.setitem(engine._networks, "decode", out_of_memory)
    if unknown:
        monkeypatch.setitem(engine._in_strips, "decode", False)
    else:
        monkeypatch.setattr("openmarigold.engines.torch.decode_in_strips", out_of_memory)
    tiled = engine.decode(latent)
    assert tiled.shape == expected.shape
    assert 0 < np.abs(tiled - expected).mean() < expected.std()  # tiles of 4x4 cells, each with statistics of its own
    assert "it decodes in tiles" in caplog.text
    assert not engine._vaes["decode"].use_tiling


def test_a_batch_that_does_not_fit_goes_one_by_one(
    kl_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = TorchEngine(read_checkpoint(kl_checkpoint), device="cpu")
    images = np.random.default_rng(0).uniform(-1, 1, (3, 3, 64, 96)).astype(np.float32)
    expected = torch.cat([engine.encode(image[None]) for image in images])
    encode = engine._networks["encode"]

    def full(value: torch.Tensor) -> torch.Tensor:
        if len(value) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(value)

    monkeypatch.setitem(engine._networks, "encode", full)
    np.testing.assert_array_equal(engine.encode(images), expected)
    assert "tiles" not in caplog.text


def test_a_batch_fits_for_the_network_that_takes_most(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(read_checkpoint(tiny_checkpoint), device="cpu")
    monkeypatch.setattr(engine, "device", "cuda")
    for name, answer in (("mem_get_info", (9_000_000, 10**9)), ("memory_reserved", 3000), ("memory_allocated", 2000)):
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    sizes = []
    for name, needed in (("encode", 200.0), ("denoise", 50.0), ("decode", 100.0), ("decode", 700.0)):
        monkeypatch.setitem(engine._bytes_per_pixel, name, needed)
        sizes.append(engine.fitting_batch_size(48, 64))
    assert sizes == [1, 1, 11, 3]  # one until each network has been seen; then 0.8 of what is free


class OnADevice:
    """An engine whose answers arrive late and whose batches may be large, as on a GPU."""

    def __init__(self, engine: Any, fitting: int) -> None:
        self._engine, self._fitting, self.batches = engine, fitting, []
        self.max_batch_size = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def is_finite(self, latent: Any) -> Any:
        return np.bool_(np.isfinite(latent).all())

    def fitting_batch_size(self, height: int, width: int) -> int:
        return 1 if not self.batches else self._fitting

    def denoise(self, rgb_latent: Any, noisy_latent: Any, *, timestep: int) -> Any:
        self.batches.append(len(noisy_latent))
        return self._engine.denoise(rgb_latent, noisy_latent, timestep=timestep)


def test_members_go_together_as_memory_allows(onnx_checkpoint: Path) -> None:
    predictor, rgb = Predictor.load(onnx_checkpoint), make_photo(40, 48)
    settings: dict[str, Any] = {"num_inference_steps": 1, "ensemble_size": 6}
    expected = predictor(rgb, **settings).depth
    own = predictor.engine
    for batch_size, fitting, batches in ((None, 3, [1, 3, 2]), (2, 100, [2, 2, 2]), (None, 100, [1, 5])):
        predictor.engine = OnADevice(own, fitting)
        np.testing.assert_allclose(predictor(rgb, batch_size=batch_size, **settings).depth, expected, atol=1e-5)
        assert predictor.engine.batches == batches


def test_command_line_predicts_without_transformers(tiny_checkpoint: Path, photo_dir: Path, tmp_path: Path) -> None:
    assert importlib.util.find_spec("transformers") is not None
    arguments = ["predict", str(photo_dir / "a.png"), "-o", str(tmp_path / "out"), "--checkpoint", str(tiny_checkpoint)]
    code = (
        "import json, sys\nfrom openmarigold.cli import main\n"
        f"try:\n    main({arguments!r})\n"
        "except SystemExit as error:\n"
        "    imported = [name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules]\n"
        "    print(json.dumps([error.code, imported]))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == [0, ["torch", "diffusers"]]


@pytest.mark.slow
def test_the_process_of_a_library_user_is_left_as_it_is() -> None:
    code = (
        "import sys, openmarigold.networks.backbone; from diffusers.utils import is_transformers_available as there; "
    )
    code += "print(there(), 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True"]


def test_engine_that_was_chosen_is_said(
    onnx_checkpoint: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level("INFO"):
        engine = open_engine(read_checkpoint(onnx_checkpoint))
    assert engine.name == "onnx"
    assert "tiny-8-onnx runs on engine onnx, cpu, float32" in caplog.text
