# SPDX-License-Identifier: Apache-2.0
"""An autoencoder in strips of rows: the result of one pass but for rounding, in a fraction of its memory.

One pass holds several images of 128 to 256 channels at full resolution at the same time. Here what lies between two
images that must be whole (normalization, activation, doubling, convolution) exists for one strip of rows only, and an
image is freed row by row while the next one is made of it. Statistics of normalizations are those of the whole image,
and the attention sees all of it, in parts of its queries. So there are no tiles and no seams.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openmarigold.networks.rewrites import is_plain_upsampler
from openmarigold.networks.rows import Activated, Convolved, Doubled, Kept, Rows, Sum, keep, moments

_Layer = Any  # of diffusers, whose classes do not state the types of their parts; `runs_in_strips` checks them
_ACTIVATIONS = (nn.SiLU, nn.Mish, nn.GELU, nn.ReLU)
_LOGITS = 2**25  # of the attention at once
_WORKING_BYTES = 300 * 2**20  # of strips, and of allocators that keep what was freed; measured on a CPU


def encode_in_strips(
    vae: AutoencoderKL, image: Float[Tensor, "b 3 H W"], *, num_whole: int = 2
) -> Float[Tensor, "b C h w"]:
    """The result of `backbone.encode_to_latent`, for an autoencoder that `runs_in_strips`.

    Args:
        vae: without gradients.
        image: in [-1, 1].
        num_whole: how many images as large as the largest that must be whole may be so at the same time. With 2
            nothing is computed twice but the rows next to a strip; with 1 what is inside a residual block is.
    """
    encoder: _Layer = vae.encoder
    held: Rows = _convolved(Kept.of(image), encoder.conv_in)
    room = num_whole * _largest(encoder.down_blocks, held.shape, image.element_size())
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            held = _resnet(held, resnet, room)
            if resnet is not block.resnets[-1] or not block.downsamplers:
                held = keep(held)[0]
        for downsampler in block.downsamplers or ():
            held = keep(_downsampled(held, downsampler))[0]
    held = _ended(_middle(held, encoder.mid_block, room), encoder)
    if vae.quant_conv is not None:
        held = _convolved(held, vae.quant_conv)
    return keep(held)[0].whole().chunk(2, dim=1)[0] * vae.config["scaling_factor"]


def decode_in_strips(
    vae: AutoencoderKL, latent: Float[Tensor, "b C h w"], *, num_whole: int = 2
) -> Float[Tensor, "b k H W"]:
    """The result of `backbone.decode_to_image`, for an autoencoder that `runs_in_strips`; see `encode_in_strips`."""
    decoder: _Layer = vae.decoder
    held: Rows = Kept.of(latent / vae.config["scaling_factor"])
    if vae.post_quant_conv is not None:
        held = _convolved(held, vae.post_quant_conv)
    held = keep(_convolved(held, decoder.conv_in))[0]
    room = num_whole * _largest(decoder.up_blocks, held.shape, latent.element_size())
    held = _middle(held, decoder.mid_block, room)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            held = keep(_resnet(held, resnet, room))[0]
        for upsampler in block.upsamplers or ():
            held = _upsampled(held, upsampler)
    return keep(_ended(held, decoder))[0].whole()


def runs_in_strips(vae: object) -> bool:
    """Whether each layer is of a kind that this module knows."""
    return (
        type(vae) is AutoencoderKL
        and type(vae.encoder) is Encoder
        and type(vae.decoder) is Decoder
        and all(_is_known_block(block, DownEncoderBlock2D) for block in vae.encoder.down_blocks)
        and all(_is_known_block(block, UpDecoderBlock2D) for block in vae.decoder.up_blocks)
        and all(_is_known_end(half) and _is_known_middle(half.mid_block) for half in (vae.encoder, vae.decoder))
        and all(layer is None or _is_known_convolution(layer) for layer in (vae.quant_conv, vae.post_quant_conv))
    )


def one_pass_bytes(half: _Layer, num_pixels: int, dtype: torch.dtype) -> int:
    """About the memory that one pass takes at the full resolution, where it takes most.

    In a residual block: its input, that normalized and activated, and what its two convolutions give.
    """
    return num_pixels * dtype.itemsize * max(3 * block.in_channels + 2 * block.out_channels for block in _finest(half))


def strips_bytes(half: _Layer, num_pixels: int, dtype: torch.dtype, *, num_whole: int) -> int:
    """About the memory that strips take at the full resolution; see `encode_in_strips`."""
    return num_whole * num_pixels * dtype.itemsize * max(b.out_channels for b in _finest(half)) + _WORKING_BYTES


def _resnet(image: Rows, block: _Layer, room: int) -> Rows:
    """Two convolutions and the shortcut around them.

    What is between the two is kept if it fits into `room` [bytes] next to the shortcut, else it is computed twice.
    """
    size = block.conv1.weight.element_size()
    if not isinstance(image, Kept) and _num_bytes(image, size) <= room:
        image = keep(image)[0]
    inner: Rows = _convolved(_activated(image, block.norm1, block.nonlinearity), block.conv1)
    shortcut = image if block.conv_shortcut is None else _convolved(image, block.conv_shortcut)
    fits = _num_bytes(inner, size) + _num_bytes(shortcut, size) <= room
    if fits and shortcut is image and isinstance(image, Kept):
        inner = keep(inner, last_use=False)[0]
    elif fits:
        inner, shortcut = keep(inner, shortcut)
    outer = _convolved(_activated(inner, block.norm2, block.nonlinearity), block.conv2)
    return Sum(shortcut, outer, float(block.output_scale_factor))


def _middle(image: Rows, block: _Layer, room: int) -> Rows:
    first, *others = block.resnets
    image = keep(_resnet(image, first, room))[0]
    for attention, resnet in zip(block.attentions, others, strict=True):
        if attention is not None:
            image = _attended(image, attention)
        image = keep(_resnet(image, resnet, room))[0]
    return image


def _attended(image: Kept, attention: _Layer) -> Kept:
    """Attention of each pixel to all, for parts of the pixels: some of torch's kernels hold all logits at once."""
    whole = image.whole()
    image.free_before(image.shape[2])
    tokens = whole.flatten(2)
    if attention.group_norm is not None:
        tokens = attention.group_norm(tokens)
    tokens = tokens.transpose(1, 2)
    layers = (attention.to_q, attention.to_k, attention.to_v)
    query, key, value = (layer(tokens).unflatten(2, (attention.heads, -1)).transpose(1, 2) for layer in layers)
    length = max(1, _LOGITS // (len(whole) * attention.heads * tokens.shape[1]))
    parts = [functional.scaled_dot_product_attention(part, key, value) for part in query.split(length, dim=2)]
    mixed = attention.to_out[0](torch.cat(parts, dim=2).transpose(1, 2).flatten(2))
    result = mixed.transpose(1, 2).unflatten(2, whole.shape[2:])
    if attention.residual_connection:
        result = result + whole
    return Kept.of(result / attention.rescale_output_factor)


def _upsampled(image: Rows, layer: _Layer) -> Rows:
    if isinstance(layer, nn.ConvTranspose2d):
        return Doubled(image, layer)
    return _convolved(Doubled(image), layer.conv)


def _downsampled(image: Rows, layer: _Layer) -> Rows:
    if layer.padding == 0:  # its forward pads below and on the right
        return Convolved(image, layer.conv, 0, 1, 0, 1)
    return _convolved(image, layer.conv)


def _ended(image: Rows, half: _Layer) -> Rows:
    return _convolved(_activated(image, half.conv_norm_out, half.conv_act), half.conv_out)


def _activated(image: Rows, norm: nn.GroupNorm, activation: nn.Module) -> Rows:
    return Activated(image, *moments(image).normalization(norm), activation)


def _convolved(image: Rows, layer: nn.Conv2d) -> Rows:
    rows, columns = (int(number) for number in layer.padding)
    return Convolved(image, layer, rows, rows, columns, columns)


def _largest(blocks: _Layer, shape: tuple[int, int, int, int], element_size: int) -> int:
    """Memory of the largest image that must be whole [bytes]: what a residual block gives."""
    batch, _, height, width = shape
    largest = 0
    for block in blocks:
        largest = max(largest, batch * block.resnets[-1].out_channels * height * width * element_size)
        if getattr(block, "upsamplers", None):
            height, width = 2 * height, 2 * width
        elif getattr(block, "downsamplers", None):
            height, width = height // 2, width // 2
    return largest


def _finest(half: _Layer) -> list[_Layer]:
    """The residual blocks of the full resolution."""
    blocks: _Layer = half.up_blocks if isinstance(half, Decoder) else half.down_blocks
    return list((blocks[-1] if isinstance(half, Decoder) else blocks[0]).resnets)


def _num_bytes(image: Rows, element_size: int) -> int:
    batch, channels, height, width = image.shape
    return batch * channels * height * width * element_size


def _is_known_block(block: _Layer, layer_type: Any) -> bool:
    upsamplers, downsamplers = getattr(block, "upsamplers", None) or (), getattr(block, "downsamplers", None) or ()
    return (
        type(block) is layer_type
        and len(block.resnets) > 0
        and all(_is_known_resnet(resnet) for resnet in block.resnets)
        and all(_is_known_upsampler(layer) for layer in upsamplers)
        and all(_is_known_downsampler(layer) for layer in downsamplers)
    )


def _is_known_middle(block: _Layer) -> bool:
    if type(block) is not UNetMidBlock2D:
        return False
    resnets, attentions = list[_Layer](block.resnets), list[_Layer](block.attentions)
    return (
        len(resnets) == 1 + len(attentions)
        and all(_is_known_resnet(resnet) for resnet in resnets)
        and all(layer is None or _is_known_attention(layer) for layer in attentions)
    )


def _is_known_end(half: _Layer) -> bool:
    return (
        _is_known_convolution(half.conv_in)
        and _is_known_norm(half.conv_norm_out)
        and isinstance(half.conv_act, _ACTIVATIONS)
        and _is_known_convolution(half.conv_out)
    )


def _is_known_resnet(block: _Layer) -> bool:
    return (
        type(block) is ResnetBlock2D
        and block.time_emb_proj is None
        and block.time_embedding_norm in ("default", "group")
        and block.upsample is None
        and block.downsample is None
        and isinstance(block.nonlinearity, _ACTIVATIONS)
        and _is_known_norm(block.norm1)
        and _is_known_norm(block.norm2)
        and _is_known_convolution(block.conv1)
        and _is_known_convolution(block.conv2)
        and (block.conv_shortcut is None or _is_known_convolution(block.conv_shortcut))
    )


def _is_known_attention(layer: _Layer) -> bool:
    return (
        type(layer) is Attention
        and type(layer.processor) is AttnProcessor2_0
        and layer.spatial_norm is None
        and layer.norm_q is None
        and layer.norm_k is None
        and layer.added_kv_proj_dim is None
        and (layer.group_norm is None or _is_known_norm(layer.group_norm))
    )


def _is_known_upsampler(layer: _Layer) -> bool:
    if type(layer) is nn.ConvTranspose2d:  # from `rewrites.fold_upsampling`
        return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((4, 4), (2, 2), (1, 1), 1)
    return type(layer) is Upsample2D and is_plain_upsampler(layer) and _is_known_convolution(layer.conv)


def _is_known_downsampler(layer: _Layer) -> bool:
    return type(layer) is Downsample2D and layer.use_conv and layer.norm is None and _is_known_convolution(layer.conv)


def _is_known_norm(layer: _Layer) -> bool:
    return type(layer) is nn.GroupNorm and layer.affine


def _is_known_convolution(layer: _Layer) -> bool:
    return (
        type(layer) is nn.Conv2d
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )
