# SPDX-License-Identifier: Apache-2.0
"""Predictions on a GPU: parity with a CPU, batches, graphs, threads, streams and memory that runs out."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compiling import eager_and_compiled
from openmarigold.checkpoints.checkpoint import Checkpoint, read_checkpoint
from openmarigold.engines.torch import TorchEngine
from openmarigold.errors import InvalidValueError
from openmarigold.networks.graphs import RecordedNetwork
from openmarigold.predictor import Predictor
from tiny import make_photo

# Of the networks' outputs, in their standard deviations: root mean square of the difference to float32 on a CPU.
RELATIVE = {"float32": 1e-4, "float16": 0.03, "bfloat16": 0.15}
# Of depth in [0, 1]: mean difference to float32 on a CPU.
DEPTH = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
# Of depth in [0, 1], at most: in a batch of another size, where convolutions may choose another algorithm.
BATCH = {"float32": 1e-4, "float16": 0.05}
SIZES = [(48, 64), (40, 56), (8, 24)]
SETTINGS: dict[str, Any] = {"num_inference_steps": 2, "ensemble_size": 3}


@pytest.fixture(params=["kl", "tiny"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return read_checkpoint(request.getfixturevalue(f"{request.param}_checkpoint"))


def on(device: str, folder: Path, **options: Any) -> Predictor:
    if device == "cpu" and options.get("dtype") == "float16":
        options["dtype"] = "float32"
    return Predictor.load(folder, engine="torch", device=device, **options)


def outputs(engine: TorchEngine, size: tuple[int, int], batch_size: int) -> list[np.ndarray]:
    """What the three networks make of the same random numbers."""
    rng = np.random.default_rng(4)
    rgb = rng.uniform(-1, 1, (batch_size, 3, *size)).astype(np.float32)
    shape = (engine.latent_channels, size[0] // 8, size[1] // 8)
    rgb_latent = rng.standard_normal((1, *shape)).astype(np.float32)
    noise = rng.standard_normal((batch_size, *shape)).astype(np.float32)
    encoded = engine.from_engine(engine.encode(rgb))
    prediction = engine.denoise(engine.to_engine(rgb_latent), engine.to_engine(noise), timestep=999)
    return [encoded, engine.from_engine(prediction), engine.decode(engine.to_engine(noise))]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_networks_agree_with_the_cpu(device: str, checkpoint: Checkpoint, dtype: Any) -> None:
    used = "float32" if (device, dtype) == ("cpu", "float16") else dtype
    plain, tested = (
        TorchEngine(checkpoint, device="cpu", plain=True),
        TorchEngine(checkpoint, device=device, dtype=used),
    )
    for size in SIZES:
        for batch_size in (1, 3):
            pairs = zip(outputs(plain, size, batch_size), outputs(tested, size, batch_size), strict=True)
            for name, (expected, found) in zip(("encode", "denoise", "decode"), pairs, strict=True):
                assert found.dtype == np.float32
                apart = np.sqrt(np.mean((found - expected) ** 2)) / max(expected.std(), 0.1)
                assert apart < RELATIVE[dtype], f"{name} {size} {batch_size}: {apart:.2g}"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_depth_agrees_with_the_cpu(device: str, kl_checkpoint: Path, dtype: Any) -> None:
    rgb = make_photo(50, 70)
    expected = on("cpu", kl_checkpoint)(rgb, **SETTINGS)
    found = on(device, kl_checkpoint, dtype=dtype)(rgb, **SETTINGS)
    assert found.settings["device"] == device
    assert np.abs(found.depth - expected.depth).mean() < DEPTH[dtype]


def test_tf32_stays_near_float32(device: str, kl_checkpoint: Path) -> None:
    rgb = make_photo(50, 70)
    expected = on("cpu", kl_checkpoint)(rgb, **SETTINGS).depth
    torch.backends.cudnn.allow_tf32 = True  # torch's default, and so what users have
    assert np.abs(on(device, kl_checkpoint)(rgb, **SETTINGS).depth - expected).mean() < 5e-3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_batches_change_rounding_only(device: str, kl_checkpoint: Path, dtype: Any) -> None:
    predictor, photos = on(device, kl_checkpoint, dtype=dtype), [make_photo(48, 64, seed=seed) for seed in range(5)]
    alone = [predictor(rgb, **SETTINGS, batch_size=1).depth for rgb in photos]
    again = [predictor(rgb, **SETTINGS, batch_size=1).depth for rgb in photos]
    for one, two in zip(alone, again, strict=True):
        np.testing.assert_array_equal(one, two)
    for batch_size in (None, 2, 3, 15):
        together = predictor(photos, **SETTINGS, batch_size=batch_size)
        for one, found in zip(alone, together, strict=True):
            np.testing.assert_allclose(found.depth, one, rtol=0, atol=BATCH[dtype])


def test_engine_learns_how_many_fit(cuda: str, kl_checkpoint: Path) -> None:
    predictor = on(cuda, kl_checkpoint)
    assert predictor.engine.fitting_batch_size(48, 64) == 1
    predictor(make_photo(48, 64), **SETTINGS)
    assert predictor.engine.fitting_batch_size(48, 64) > 100
    assert predictor.engine.fitting_batch_size(4800, 6400) < predictor.engine.fitting_batch_size(480, 640)


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[None]:
    """No more than so many bytes for everything that this process keeps on the GPU."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(num_bytes / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def kept_bytes() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def needed_bytes(engine: TorchEngine, latent: Any) -> int:
    """What decoding takes from the GPU."""
    kept = kept_bytes()
    engine.decode(latent)
    return torch.cuda.memory_reserved() - kept


def test_a_batch_that_does_not_fit_goes_one_by_one(
    cuda: str, kl_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = TorchEngine(read_checkpoint(kl_checkpoint), device=cuda)
    noise = np.random.default_rng(0).standard_normal((8, 4, 64, 96)).astype(np.float32)
    latent = engine.to_engine(noise)
    expected = engine.decode(latent)
    one, all_together = needed_bytes(engine, latent[:1]), needed_bytes(engine, latent)
    images = 2 * latent[:, :3].numel() * 64 * latent.element_size()  # kept, and joined in the end
    assert one + images < all_together, "the test must take larger images"
    with memory_limit(kept_bytes() + (one + images + all_together) // 2):
        found = engine.decode(latent)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert "tiles" not in caplog.text


def test_an_image_that_does_not_fit_goes_in_tiles(
    cuda: str, kl_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = TorchEngine(read_checkpoint(kl_checkpoint), device=cuda)
    engine._in_strips["decode"] = False  # as if it were of an unknown kind
    vae: Any = engine._vaes["decode"]
    vae.tile_sample_min_size, vae.tile_latent_min_size = 128, 16  # fewer tiles
    latent = engine.to_engine(np.random.default_rng(0).standard_normal((1, 4, 128, 128)).astype(np.float32))
    expected = engine.decode(latent)
    activation = 8 * 1024**2 * latent.element_size()  # a layer's, of which three exist at a time
    with memory_limit(kept_bytes() + 9 * activation // 4):
        tiled = engine.decode(latent)
    assert "it decodes in tiles" in caplog.text
    assert 0 < np.abs(tiled - expected).mean() < expected.std()
    np.testing.assert_allclose(engine.decode(latent), expected, rtol=0, atol=1e-3)  # the next one fits again


def test_graphs_replay_what_they_recorded(cuda: str) -> None:
    generator = torch.Generator(cuda).manual_seed(0)
    layers = [torch.nn.Conv2d(4, 4, 3, padding=1).to(cuda) for _ in range(2)]
    first, second = (RecordedNetwork(layer) for layer in layers)
    with torch.inference_mode():
        for size in (8, 12, 8, 16, 12):
            values = [torch.randn(2, 4, size, size, device=cuda, generator=generator) for _ in range(3)]
            kept = [first(value) for value in values]  # no output may lie in the memory of a later one
            found = [second(value) for value in kept]
            for value, middle, end in zip(values, kept, found, strict=True):
                torch.testing.assert_close(middle, layers[0](value), rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(end, layers[1](layers[0](value)), rtol=1e-4, atol=1e-4)
        assert len(first._recordings) == 3


def recorded(predictor: Predictor) -> Predictor:
    """The same with graphs, without the time that compiling takes."""
    engine: Any = predictor.engine
    engine._networks = {name: RecordedNetwork(network) for name, network in engine._networks.items()}
    return predictor


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_recorded_engine_equals_the_eager_one(cuda: str, kl_checkpoint: Path, dtype: Any) -> None:
    eager, graphs = on(cuda, kl_checkpoint, dtype=dtype), recorded(on(cuda, kl_checkpoint, dtype=dtype))
    for batch_size in (1, 2, 3):  # several steps and batches use the photo's latent
        for seed in range(2):
            rgb = make_photo(50, 70, seed=seed)
            expected = eager(rgb, **SETTINGS, batch_size=batch_size).depth
            found = graphs(rgb, **SETTINGS, batch_size=batch_size).depth
            np.testing.assert_allclose(found, expected, rtol=0, atol=BATCH[dtype])


def test_compiled_engine_equals_the_eager_one(cuda: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = {"checkpoint": str(tiny_checkpoint), "device": cuda, "dtype": "float16"}
    eager, first, *others = eager_and_compiled(tmp_path, make_photo(50, 70), options, {**SETTINGS, "batch_size": 3})
    assert np.abs(first - eager).mean() < DEPTH["float16"]
    for again in others:  # a graph is replayed, in any thread
        np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("graphs", [False, True])
def test_threads_share_a_predictor(device: str, kl_checkpoint: Path, graphs: bool) -> None:
    predictor = on(device, kl_checkpoint, dtype="float16")
    if graphs:
        if device != "cuda":
            pytest.skip("a CPU records no graphs")
        recorded(predictor)
    photos = [make_photo(*size, seed=seed) for seed, size in enumerate([(48, 64), (50, 70), (64, 48), (48, 64)] * 3)]
    alone = [predictor(rgb, **SETTINGS, batch_size=3).depth for rgb in photos]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda rgb: predictor(rgb, **SETTINGS, batch_size=3).depth, photos))
    for one, found in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found, one)


def test_a_stream_of_its_own_changes_nothing(cuda: str, kl_checkpoint: Path) -> None:
    predictor, rgb = on(cuda, kl_checkpoint), make_photo(50, 70)
    expected = predictor(rgb, **SETTINGS, batch_size=3).depth
    streams = [torch.cuda.Stream() for _ in range(2)]

    def predict(number: int) -> np.ndarray:
        with torch.cuda.stream(streams[number % 2]):
            return predictor(rgb, **SETTINGS, batch_size=3).depth

    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(predict, range(6)):
            np.testing.assert_array_equal(found, expected)


def test_cpu_and_gpu_work_side_by_side(device: str, kl_checkpoint: Path, tiny_checkpoint: Path) -> None:
    rgb = make_photo(50, 70)
    predictors = [on(name, folder) for folder in (kl_checkpoint, tiny_checkpoint) for name in ("cpu", device)]
    alone = [predictor(rgb, **SETTINGS).depth for predictor in predictors]
    with ThreadPoolExecutor(4) as threads:
        jobs = [
            threads.submit(lambda one=one: one(rgb, **SETTINGS, batch_size=1).depth)
            for one in predictors
            for _ in "123"
        ]
        found = [job.result() for job in jobs]
    for place, depth in enumerate(found):
        np.testing.assert_allclose(depth, alone[place // 3], rtol=0, atol=BATCH["float32"])
    for cpu, gpu in (alone[:2], alone[2:]):
        assert np.abs(cpu - gpu).mean() < DEPTH["float32"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embedded_model_agrees_with_onnx_runtime(device: str, dtype: Any) -> None:
    rgb = make_photo(96, 128)
    expected = Predictor.load(engine="onnx")(rgb, ensemble_size=2).depth
    used = "float32" if device == "cpu" else dtype
    found = Predictor.load(engine="torch", device=device, dtype=used)(rgb, ensemble_size=2).depth
    assert np.abs(found - expected).mean() < DEPTH[dtype]


def test_a_device_that_is_not_there(cuda: str, kl_checkpoint: Path) -> None:
    with pytest.raises(InvalidValueError, match="device='cuda:63' is not available to torch"):
        on("cuda:63", kl_checkpoint)
    assert np.isfinite(on(cuda, kl_checkpoint)(make_photo(16, 24)).depth).all()  # the others still work


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 1e-4), ("float16", 0.02)])
def test_autoencoder_in_strips_equals_one_pass(
    device: str, kl_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, apart: float
) -> None:
    monkeypatch.setattr("openmarigold.networks.rows._STRIP_BYTES", 1)
    used = "float32" if device == "cpu" else dtype
    engine = TorchEngine(read_checkpoint(kl_checkpoint), device=device, dtype=used)
    rng = np.random.default_rng(7)
    latent = engine.to_engine(rng.standard_normal((1, 4, 11, 13)).astype(np.float32))
    image = rng.uniform(-1, 1, (1, 3, 88, 104)).astype(np.float32)
    whole = [engine.from_engine(engine.encode(image)), engine.decode(latent)]
    monkeypatch.setattr(engine, "_fits_in_one_pass", lambda *_: False)
    strips = [engine.from_engine(engine.encode(image)), engine.decode(latent)]
    for one, other in zip(whole, strips, strict=True):
        assert np.abs(other - one).max() < apart * np.ptp(one)
