# SPDX-License-Identifier: Apache-2.0
"""Every fast path against the plain one: torch without folding, the checkpoint as diffusers runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch.nn import functional

from compiling import eager_and_compiled
from openmarigold.checkpoints.checkpoint import Checkpoint, read_checkpoint
from openmarigold.engines import open_engine
from openmarigold.engines.torch import TorchEngine
from openmarigold.errors import CheckpointError, OpenMarigoldError
from openmarigold.networks.rewrites import (
    ConstantCrossAttention,
    FusedSelfAttention,
    SplitGroupNorm,
    doubling_convolution,
    fold_channel_mean,
    fold_constant_context,
    fold_upsampling,
    split_group_norms,
)
from openmarigold.predictor import Predictor
from tiny import make_photo, make_unet, make_vae

pytestmark = pytest.mark.usefixtures("shared_cache")

FOLDED = 1e-5  # float32 sums in another order, of networks whose values are about 1
ENGINE = 1e-4  # other kernels
# Of a bfloat16 network, whose numbers have 8 bits: of the standard deviation of what it computes.
BFLOAT16 = 0.15
SIZES = [(48, 64), (40, 56), (8, 24)]  # latents of 6x8, 5x7 and 1x3 cells; the U-Net halves twice


@pytest.fixture(params=["kl", "tiny"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return read_checkpoint(request.getfixturevalue(f"{request.param}_checkpoint"))


def outputs(engine: Any, size: tuple[int, int], batch_size: int) -> list[np.ndarray]:
    """What the networks make of the same random numbers, each in the place of the one before."""
    rng = np.random.default_rng(4)
    rgb = rng.uniform(-1, 1, (1, 3, *size)).astype(np.float32)
    shape = (engine.latent_channels, size[0] // 8, size[1] // 8)
    rgb_latent = rng.standard_normal((1, *shape)).astype(np.float32)
    noise = rng.standard_normal((batch_size, *shape)).astype(np.float32)
    prediction = engine.denoise(engine.to_engine(rgb_latent), engine.to_engine(noise), timestep=999)
    return [np.asarray(engine.encode(rgb)), np.asarray(prediction), engine.decode(engine.to_engine(noise))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_folded_network_equals_the_plain_one(checkpoint: Checkpoint, size: tuple[int, int], batch_size: int) -> None:
    engines = [TorchEngine(checkpoint, device="cpu", plain=plain) for plain in (True, False)]
    for expected, found in zip(*(outputs(engine, size, batch_size) for engine in engines), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=FOLDED)


@pytest.mark.parametrize("num_tokens", [1, 2, 7])
@pytest.mark.parametrize("settings", [{}, {"use_linear_projection": True}, {"only_cross_attention": True}])
def test_folding_is_exact_for_any_short_context(num_tokens: int, settings: dict[str, Any]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        # Here this is the number of heads, not what its name says.
        unet = UNet2DConditionModel.from_config({**make_unet(4).config, "attention_head_dim": 1, **settings}).eval()
        context, sample = torch.randn(1, num_tokens, 16), torch.randn(2, 8, 8, 12)
    with torch.no_grad():
        expected = unet(sample, 500, encoder_hidden_states=context.expand(2, -1, -1)).sample
        fold_constant_context(unet, context)
        # Folded layers no longer look at the context; layers that attend to nothing else still do.
        given = context if "only_cross_attention" in settings else torch.zeros_like(context)
        found = unet(sample, 500, encoder_hidden_states=given.expand(2, -1, -1)).sample
    kinds = {type(module) for module in unet.modules()}
    assert ConstantCrossAttention in kinds
    assert FusedSelfAttention in kinds
    torch.testing.assert_close(found, expected, rtol=0, atol=FOLDED)


def test_a_long_context_stays_as_it_is() -> None:
    unet = make_unet(4)
    fold_constant_context(unet, torch.zeros(1, 77, 16))
    assert not any(isinstance(module, ConstantCrossAttention) for module in unet.modules())
    assert any(isinstance(module, FusedSelfAttention) for module in unet.modules())


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (5, 7), (6, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_doubling_convolution_equals_doubling_and_convolution(size: tuple[int, int], bias: bool) -> None:
    generator = torch.Generator().manual_seed(6)
    convolution = nn.Conv2d(3, 5, 3, padding=1, bias=bias).double()
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        image = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
        expected = convolution(functional.interpolate(image, scale_factor=2.0, mode="nearest"))
        found = doubling_convolution(convolution)(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["kl", "tiny"])
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 3)])
def test_folded_decoder_equals_the_plain_one(kind: str, size: tuple[int, int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        vae = make_vae(kind).eval()
        latent = torch.randn(2, vae.config["latent_channels"], *size)
    with torch.no_grad():
        expected = vae.decode(latent).sample
        assert fold_upsampling(vae) is vae
        assert sum(isinstance(module, nn.ConvTranspose2d) for module in vae.modules()) == 3
        torch.testing.assert_close(vae.decode(latent).sample, expected, rtol=0, atol=FOLDED)
        mean = fold_channel_mean(vae).decode(latent).sample
    torch.testing.assert_close(mean, expected.mean(dim=1, keepdim=True), rtol=0, atol=FOLDED)


def test_unusual_doublings_stay_as_they_are() -> None:
    unet = fold_upsampling(make_unet(4))  # its layers follow the size of a skip connection
    assert not any(isinstance(module, nn.ConvTranspose2d) for module in unet.modules())
    layers = [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(2, 2, 3, padding=1)]
    others = [
        [nn.Upsample(scale_factor=3, mode="nearest"), layers[1]],
        [nn.Upsample(scale_factor=2, mode="bilinear"), layers[1]],
        [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(2, 2, 3)],
        [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")],
        [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(2, 2, 3, padding=1, groups=2)],
        [nn.Upsample(scale_factor=2, mode="nearest"), nn.ReLU(), layers[1]],
    ]
    for other in others:
        assert list(fold_upsampling(nn.Sequential(*other))) == other
    assert isinstance(fold_upsampling(nn.Sequential(*layers))[1], nn.ConvTranspose2d)
    vae = make_vae("kl")
    assert isinstance(vae, AutoencoderKL)
    vae.decoder.up_blocks[0].upsamplers[0].use_conv = False
    fold_upsampling(vae)
    assert sum(isinstance(module, nn.ConvTranspose2d) for module in vae.modules()) == 2


@pytest.mark.parametrize("groups", [1, 4, 12])  # one for all channels, and one for each
@pytest.mark.parametrize("size", [(1, 2), (5, 7), (6, 8)])
def test_split_group_norm_equals_the_plain_one(groups: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(9)
    norm = nn.GroupNorm(groups, 12, eps=1e-3).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        image = 3 + torch.randn(2, 12, *size, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(SplitGroupNorm(norm)(image), norm(image), rtol=0, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 5.0, 30.0])
def test_split_group_norm_in_bfloat16_bears_a_large_mean(offset: float) -> None:
    generator = torch.Generator().manual_seed(10)
    norm = nn.GroupNorm(4, 16)
    image = (offset + torch.randn(1, 16, 24, 32, generator=generator)).bfloat16()
    with torch.no_grad():
        expected = norm(image.float())
        found = SplitGroupNorm(norm.bfloat16())(image).float()
    # The mean has 8 bits: half of the last one of them is 2 to the power of -9 of it, and so has the image.
    assert (found - expected).abs().max() < 0.05 + 2 * offset * 2**-8


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 3)])
def test_autoencoder_with_split_group_norms_equals_the_plain_one(size: tuple[int, int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        vae = make_vae("kl").double().eval()  # an identity: what float32 rounds depends on the machine
        latent, image = torch.randn(2, 4, *size).double(), torch.rand(2, 3, 8 * size[0], 8 * size[1]).double()
    assert isinstance(vae, AutoencoderKL)
    with torch.no_grad():
        expected = [vae.encode(image).latent_dist.mode(), vae.decode(latent).sample]
        assert split_group_norms(vae) is vae
        found = [vae.encode(image).latent_dist.mode(), vae.decode(latent).sample]
    plain = [name for name, module in vae.named_modules() if isinstance(module, nn.GroupNorm)]
    assert plain == [f"{half}.mid_block.attentions.0.group_norm" for half in ("encoder", "decoder")]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_folded_decoder_is_the_same_in_every_engine(checkpoint: Checkpoint, size: tuple[int, int]) -> None:
    shape = (2, checkpoint.latent_channels, size[0] // 8, size[1] // 8)
    latent = np.random.default_rng(8).standard_normal(shape).astype(np.float32)
    plain = TorchEngine(checkpoint, device="cpu", plain=True)
    expected = plain.decode(plain.to_engine(latent))
    for name in ("torch", "openvino", "onnx"):
        engine = open_engine(checkpoint, engine=name, device="cpu")  # type: ignore[arg-type]
        np.testing.assert_allclose(engine.decode(engine.to_engine(latent)), expected, rtol=0, atol=FOLDED, err_msg=name)


@pytest.fixture(params=["small", "large"])
def treated_as(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """OpenVINO opens large networks otherwise than small ones; here every one counts as what is asked for."""
    if request.param == "large":
        monkeypatch.setattr("openmarigold.engines.openvino.LARGE_BYTES", 0)
    return request.param


@pytest.mark.usefixtures("treated_as")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_openvino_equals_torch(checkpoint: Checkpoint, size: tuple[int, int], batch_size: int) -> None:
    plain = TorchEngine(checkpoint, device="cpu", plain=True)
    exact = open_engine(checkpoint, engine="openvino")
    expected = outputs(plain, size, batch_size)
    for ours, found in zip(expected, outputs(exact, size, batch_size), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, ours, rtol=0, atol=ENGINE)


def test_bfloat16_is_near_float32(checkpoint: Checkpoint) -> None:
    from openmarigold.engines.openvino import computes_in_bfloat16

    plain = TorchEngine(checkpoint, device="cpu", plain=True)
    narrow = [TorchEngine(checkpoint, device="cpu", dtype="bfloat16")]
    if computes_in_bfloat16():
        narrow.append(open_engine(checkpoint, engine="openvino", dtype="bfloat16"))  # type: ignore[arg-type]
    for size in SIZES:
        expected = outputs(plain, size, 1)
        for engine in narrow:
            for ours, found in zip(expected, outputs(engine, size, 1), strict=True):
                assert 0 < np.sqrt(np.mean((found - ours) ** 2)) < BFLOAT16 * max(ours.std(), 0.1), engine.name


@pytest.mark.usefixtures("treated_as")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_openvino_results_do_not_depend_on_company(tiny_checkpoint: Path, dtype: Any) -> None:
    from openmarigold.engines.openvino import computes_in_bfloat16

    if dtype == "bfloat16" and not computes_in_bfloat16():
        pytest.skip("this CPU has no bfloat16")
    rgb, others = make_photo(50, 70), [make_photo(64, 48), make_photo(33, 90), make_photo(50, 70, seed=1)]
    settings: dict[str, Any] = {"ensemble_size": 2, "num_inference_steps": 2, "processing_resolution": 0}
    alone = Predictor.load(tiny_checkpoint, engine="openvino", dtype=dtype)(rgb, **settings).depth
    predictor = Predictor.load(tiny_checkpoint, engine="openvino", dtype=dtype)
    for other in others:
        predictor(other, **settings)
    np.testing.assert_array_equal(predictor(rgb, **settings).depth, alone)
    np.testing.assert_array_equal(predictor(rgb, batch_size=2, **settings).depth, alone)


def test_large_networks_keep_the_last_sizes(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    monkeypatch.setattr("openmarigold.engines.openvino.LARGE_BYTES", 0)
    monkeypatch.setattr("openmarigold.engines.openvino._KEPT_SHAPES", 2)
    compiled: list[list[int]] = []
    compile_model = openvino.Core.compile_model

    def noting(core: Any, model: Any, *arguments: Any) -> Any:
        if not model.is_dynamic():
            compiled.append(list(model.inputs[0].shape))
        return compile_model(core, model, *arguments)

    monkeypatch.setattr(openvino.Core, "compile_model", noting)
    engine: Any = open_engine(read_checkpoint(tiny_checkpoint), engine="openvino")
    networks = engine.run.__self__
    assert all(not networks.requests[name].requests for name in ("vae_encoder", "vae_decoder"))
    compiled.clear()  # the small image on which weights are packed, and which is forgotten
    images = {size: np.full((1, 3, *size), 0.3, dtype=np.float32) for size in SIZES}
    first = {size: engine.encode(image) for size, image in images.items()}
    assert compiled == [[1, 3, *size] for size in SIZES]
    for size in (SIZES[1], SIZES[2], SIZES[1]):
        np.testing.assert_array_equal(engine.encode(images[size]), first[size])
    assert len(compiled) == 3
    np.testing.assert_array_equal(engine.encode(images[SIZES[0]]), first[SIZES[0]])
    assert compiled[3:] == [[1, 3, *SIZES[0]]]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [(MemoryError("std::bad_alloc"), "do not fit into memory"), (RuntimeError("broken"), "get the checkpoint again")],
)
def test_large_networks_that_cannot_be_packed(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, expected: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("openmarigold.engines.openvino.LARGE_BYTES", 0)
    monkeypatch.setattr("openmarigold.engines.openvino._NetworkBySize.infer", fail)
    with pytest.raises(OpenMarigoldError, match=expected) as caught:
        open_engine(read_checkpoint(tiny_checkpoint), engine="openvino")
    assert "processing_resolution" not in str(caught.value)  # there is no photo yet
    assert isinstance(caught.value, CheckpointError) == isinstance(failure, RuntimeError)


@pytest.mark.slow
def test_compiled_network_equals_the_plain_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = {"checkpoint": str(tiny_checkpoint), "device": "cpu"}
    expected, *found = eager_and_compiled(tmp_path, make_photo(50, 70), options, {"num_inference_steps": 2})
    for depth in found:
        np.testing.assert_allclose(depth, expected, rtol=0, atol=1e-4)
