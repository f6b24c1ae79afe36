# SPDX-License-Identifier: Apache-2.0
"""What `gpu.py` compares: the weights, our predictor and the pipeline of diffusers, made from the same folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.checkpoints.configured import read_tiny_vae
from openmarigold.config import ModelConfig
from openmarigold.diffusion import NoiseSchedule
from openmarigold.engines.torch import TorchEngine
from openmarigold.networks import backbone
from openmarigold.networks.graphs import RecordedNetwork
from openmarigold.predictor import Predictor

_UNET = {
    "sample_size": 96,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_TINY_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 32,
}
_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 768}
_TINY_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
_SMALL_TAESD = {
    "encoder_block_out_channels": (8,) * 4,
    "decoder_block_out_channels": (8,) * 4,
    "num_encoder_blocks": (1,) * 4,
    "num_decoder_blocks": (1,) * 4,
}


def photo(number: int, size: tuple[int, int]) -> np.ndarray:
    """Waves, other ones for each number."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = [np.sin(rows / (9 + k + number / 3) + k) * np.cos(columns / (13 + k + number / 5)) for k in range(3)]
    return (127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def machine(device: str) -> dict[str, Any]:
    """What the rows were measured on."""
    import diffusers

    facts: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": "CPU",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    if device == "cuda":
        facts |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": "unknown"}
        facts["device_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
            facts["driver"] = answer.stdout.strip().splitlines()[0]
        except (OSError, subprocess.SubprocessError, IndexError):
            pass
    return facts


def make_weights(folder: Path, rgb: np.ndarray, *, device: str, tiny: bool) -> None:
    """Random weights in half precision that see something in this photo: `checkpoint` and `taesd`."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            unet = UNet2DConditionModel(in_channels=8, out_channels=4, **(_TINY_UNET if tiny else _UNET))
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                latent_channels=4,
                **(_TINY_VAE if tiny else _VAE),
            )
            taesd = AutoencoderTiny(latent_channels=4, **(_SMALL_TAESD if tiny else {}))
            embedding = torch.randn(1, 2, unet.config["cross_attention_dim"])
    finally:
        torch.set_default_dtype(before)
    for autoencoder, last in ((vae, vae.decoder.conv_out), (taesd, taesd.decoder.layers[-1])):
        _spread(autoencoder, last, unet.eval(), embedding, rgb)
    backbone.save_checkpoint(
        folder / "checkpoint",
        vae=vae,
        unet=unet,
        empty_prompt_embedding=embedding.cpu().float(),
        schedule=NoiseSchedule(),
        dtype=torch.float16,
        index={
            "_class_name": "MarigoldDepthPipeline",
            "prediction_type": "depth",
            "scale_invariant": True,
            "shift_invariant": True,
            "default_denoising_steps": 1,
            "default_processing_resolution": 32 if tiny else 768,
        },
    )
    backbone.save_checkpoint(folder / "taesd", vae=taesd, dtype=torch.float16)


def _spread(vae: Any, last: Any, unet: UNet2DConditionModel, context: torch.Tensor, rgb: np.ndarray) -> None:
    """Changes the decoder's last layer so that depth uses its range; that of a fresh one is nearly constant."""
    with torch.no_grad():
        weight = last.weight
        image = torch.from_numpy(rgb.transpose(2, 0, 1)[None]).to(weight.device, weight.dtype) / 127.5 - 1
        latent = backbone.encode_to_latent(vae, image)
        sample = torch.cat([latent, torch.zeros_like(latent)], dim=1)
        # Of v-prediction at the last timestep, where nothing but noise is left.
        clean = -unet(sample, 999, encoder_hidden_states=context, return_dict=False)[0]
        if last.bias is None:
            last.bias = torch.nn.Parameter(torch.zeros_like(weight[:, 0, 0, 0]))
        gain = min(_MAX_GAIN, _DEPTH_STD / float(backbone.decode_to_image(vae, clean).float().mean(dim=1).std()))
        weight.mul_(gain)
        slope = 2 if isinstance(vae, AutoencoderTiny) else 1  # which decodes to [0, 1] first
        last.bias.sub_(float(backbone.decode_to_image(vae, clean).float().mean()) / slope)


def network_flops(folder: Path, size: tuple[int, int]) -> dict[str, dict[str, int]]:
    """Floating-point operations of each plain network for one image, counted without computing anything."""
    from torch.utils.flop_counter import FlopCounterMode

    unet = backbone.empty_network(folder / "checkpoint" / "unet")
    vaes = {name: backbone.empty_network(folder / part) for name, part in _VAE_FOLDERS.items()}
    with torch.device("meta"), torch.no_grad():
        image, latent = torch.zeros(1, 3, *size), torch.zeros(1, 4, size[0] // 8, size[1] // 8)
        context = torch.zeros(1, 2, unet.config["cross_attention_dim"])
        calls: dict[str, dict[str, Callable[[], object]]] = {
            name: {
                "encode": lambda vae=vae: vae.encode(image),
                "denoise": lambda: unet(torch.cat([latent] * 2, dim=1), torch.zeros(1), encoder_hidden_states=context),
                "decode": lambda vae=vae: vae.decode(latent),
            }
            for name, vae in vaes.items()
        }
        found: dict[str, dict[str, int]] = {}
        for vae, networks in calls.items():
            found[vae] = {}
            for name, call in networks.items():
                with FlopCounterMode(display=False) as counter:
                    call()
                found[vae][name] = counter.get_total_flops()
    return found


_DEPTH_STD = 0.4  # in [-1, 1]
_MAX_GAIN = 200.0  # which amplifies what half precision rounds
_VAE_FOLDERS = {"full": "checkpoint/vae", "tiny": "taesd/vae"}


class Ours:
    """Our predictor in one of its ways."""

    def __init__(self, setup: Any, folder: Path, device: str, size: tuple[int, int]) -> None:
        # Half precision is for GPUs; elsewhere the same row runs in float32.
        self.dtype = "float32" if setup.dtype == "float16" and device == "cpu" else setup.dtype
        checkpoint = read_checkpoint(folder / "checkpoint")
        tiny = {"tiny_vae": str(folder / "taesd"), "tiny_vae_for": "both"} if setup.vae == "tiny" else {}
        tiny_vae = read_tiny_vae(ModelConfig(**tiny), checkpoint)
        on_gpu = device == "cuda"
        options: dict[str, Any] = {"device": device, "dtype": self.dtype, "tiny_vae": tiny_vae}
        full = setup.way == "compiled+graphs" and on_gpu
        engine = TorchEngine(checkpoint, compile="full" if full else "off", plain=setup.way == "plain", **options)
        if setup.way == "channels_last":
            for network in (engine._unet, *engine._vaes.values()):
                network.to(memory_format=torch.channels_last)
        elif "compiled" in setup.way and not full:  # on a CPU without a compiler, to try it out
            backend = "inductor" if on_gpu else "eager"
            compiled = {
                name: torch.compile(call, dynamic=False, backend=backend) for name, call in engine._networks.items()
            }
            engine._networks = compiled
        elif setup.way == "graphs" and on_gpu:
            engine._networks = {name: RecordedNetwork(call) for name, call in engine._networks.items()}
        self.engine, self._device, self._size = engine, device, size
        self._predictor = Predictor(engine, checkpoint, tiny_vae=tiny_vae)

    def predict(
        self, photos: list[np.ndarray], members: int, *, zeros: bool = False, latents: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """The depth of each photo."""
        settings: dict[str, Any] = {"num_inference_steps": 1, "ensemble_size": members}
        settings["batch_size"] = max(len(photos), members)
        if latents is not None:
            return [self._predictor(photos[0], latents=latents[:members], **settings).depth]
        found = self._predictor(photos, start_noise="zeros" if zeros else "gaussian", **settings)
        return [one.depth for one in found]

    def networks(self, photos: list[np.ndarray], members: int) -> dict[str, Callable[[], object]]:
        """The networks alone, on what they were given in a prediction: another layout would be compiled anew."""
        networks = dict(self.engine._networks)
        seen: dict[str, list[torch.Tensor]] = {}

        def noting(name: str, *values: torch.Tensor) -> torch.Tensor:
            seen[name] = list(values)
            return networks[name](*values)

        def run(name: str) -> None:
            with torch.inference_mode():
                networks[name](*seen[name])

        self.engine._networks = {name: partial(noting, name) for name in networks}
        try:
            self.predict(photos, members)
        finally:
            self.engine._networks = networks
        return {name: partial(run, name) for name in networks}


class Theirs:
    """`diffusers.MarigoldDepthPipeline`, plain or in its documented recipe."""

    def __init__(self, setup: Any, folder: Path, device: str, size: tuple[int, int]) -> None:
        from diffusers import DDIMScheduler, MarigoldDepthPipeline

        self.dtype = "float32" if device == "cpu" else setup.dtype
        dtype = getattr(torch, self.dtype)
        checkpoint = folder / "checkpoint"
        pipeline: Any = MarigoldDepthPipeline(
            unet=backbone.load_unet(checkpoint / "unet", dtype=dtype),
            vae=backbone.load_vae(folder / _VAE_FOLDERS[setup.vae], dtype=dtype),  # pyright: ignore[reportArgumentType]
            scheduler=DDIMScheduler.from_pretrained(checkpoint / "scheduler"),
            text_encoder=None,  # pyright: ignore[reportArgumentType]
            tokenizer=None,  # pyright: ignore[reportArgumentType]
            prediction_type="depth",
            scale_invariant=True,
            shift_invariant=True,
            default_denoising_steps=1,
            default_processing_resolution=max(size),
        )
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.empty_text_embedding = backbone.load_empty_prompt_embedding(checkpoint).to(device, dtype)
        if setup.way == "recipe":
            ways = {"mode": "reduce-overhead"} if device == "cuda" else {"backend": "eager"}
            pipeline.unet = torch.compile(pipeline.unet, fullgraph=True, **ways)
        self._pipeline, self._device, self._size, self._torch_dtype = pipeline, device, size, dtype
        self._generator = torch.Generator(device).manual_seed(0)

    def predict(
        self, photos: list[np.ndarray], members: int, *, zeros: bool = False, latents: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """The depth of each photo."""
        from PIL import Image

        start: dict[str, Any] = {"generator": self._generator}
        if zeros or latents is not None:
            shape = (len(photos) * members, 4, self._size[0] // 8, self._size[1] // 8)
            values = torch.zeros(shape) if latents is None else torch.from_numpy(latents[:members])
            start = {"latents": values.to(self._device, self._torch_dtype)}
        images = [Image.fromarray(rgb) for rgb in photos]
        batch_size = max(len(photos), members)
        settings = {"num_inference_steps": 1, "ensemble_size": members, "batch_size": batch_size}
        found = self._pipeline(images, **settings, **start).prediction
        return list(found[..., 0])

    def networks(self, photos: list[np.ndarray], members: int) -> dict[str, Callable[[], object]]:
        """The networks alone, as functions of what lies on the device already."""
        pipeline = self._pipeline
        height, width = self._size
        options: dict[str, Any] = {"device": self._device, "dtype": self._torch_dtype}
        image = torch.rand(len(photos), 3, height, width, **options) * 2 - 1
        latent = torch.randn(len(photos) * members, 4, height // 8, width // 8, **options)
        context = pipeline.empty_text_embedding.repeat(len(latent), 1, 1)
        timestep = pipeline.scheduler.timesteps[0]

        def denoise() -> None:
            with torch.no_grad():
                both = torch.cat([latent, latent], dim=1)
                pipeline.unet(both, timestep, encoder_hidden_states=context, return_dict=False)

        def run(call: Callable[[torch.Tensor], object], value: torch.Tensor) -> None:
            with torch.no_grad():
                call(value)

        return {
            "encode": lambda: run(pipeline.vae.encode, image),
            "denoise": denoise,
            "decode": lambda: run(pipeline.decode_prediction, latent),
        }
