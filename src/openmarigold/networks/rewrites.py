# SPDX-License-Identifier: Apache-2.0
"""Exact rewrites of the networks: less to multiply, the same result but for rounding.

Weights are folded in float64 and rounded once, to the network's own precision.

A depth model's context is the embedding of the empty prompt, the same `n` = 2 tokens for every photo. Keys and values
of each cross-attention are constants then, and their products with the neighboring projections too. With `c` channels
and `h` heads, of softmax(q k) v between two c × c projections remain a projection to h·n logits, a softmax over n and a
projection back. Paper: §3.3 (the text condition is disabled).

A convolution of an image that was doubled by repeating pixels multiplies each of them up to four times with different
weights. Of its 3 × 3 taps those that meet the same pixel are summed beforehand. 2 × 2 remain for each output pixel,
other ones in even and odd rows and columns: a transposed convolution with 4 × 4 taps. 5 of 9 multiplications vanish.

Group normalization needs a mean and a variance of each group of neighboring channels. OpenVINO computes both on an
image that lies channel by channel, its convolutions on one that lies pixel by pixel, and the image is copied from one
order to the other and back. Means over pixels alone keep the order; what is left to do on one value a channel is small.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypeGuard, TypeVar

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_Network = TypeVar("_Network", bound=nn.Module)
_Layer = TypeVar("_Layer", nn.Linear, nn.ConvTranspose2d)


def fold_constant_context(unet: UNet2DConditionModel, context: Float[Tensor, "1 n d"]) -> UNet2DConditionModel:
    """The same U-Net for this context alone, with the attention layers rewritten in place.

    A rewritten layer ignores its argument `encoder_hidden_states`. Layers of an unusual kind stay as they are.
    """
    for block in unet.modules():
        if not isinstance(block, BasicTransformerBlock):
            continue
        if _is_plain(block.attn1) and not block.only_cross_attention:
            block.attn1 = FusedSelfAttention(block.attn1)  # pyright: ignore[reportAttributeAccessIssue]
        if block.attn2 is None or not _is_plain(block.attn2) or block.double_self_attention:
            continue
        if context.shape[1] < block.attn2.inner_dim // block.attn2.heads:  # else there is nothing to gain
            block.attn2 = ConstantCrossAttention(block.attn2, context)  # pyright: ignore[reportAttributeAccessIssue]
    return unet


def fold_upsampling(network: _Network) -> _Network:
    """The same network with each doubling and the convolution after it as one transposed convolution, in place.

    For autoencoders, which double; a U-Net's layers follow the size of a skip connection, which may be odd, and stay as
    they are.
    """
    if isinstance(network, UNet2DConditionModel):
        return network
    for module in network.modules():
        layers = list(module.named_children())
        for name, layer in layers:
            if is_plain_upsampler(layer) and _is_plain_convolution(layer.conv):
                setattr(module, name, doubling_convolution(layer.conv))
        for (name, layer), (next_name, following) in pairwise(layers if isinstance(module, nn.Sequential) else []):
            if _doubles(layer) and _is_plain_convolution(following):
                setattr(module, name, nn.Identity())
                setattr(module, next_name, doubling_convolution(following))
    return network


def doubling_convolution(convolution: nn.Conv2d) -> nn.ConvTranspose2d:
    """One transposed convolution that equals repeating each pixel twice in both directions and then this 3 × 3
    convolution.

    An even output row 2i meets rows i - 1, i, i of the input, an odd one 2i + 1 meets i, i, i + 1; columns likewise.
    Tap k of the transposed convolution brings row i of the input to row 2i + k - 1 of the output. The zeros around the
    doubled image are those around the input, doubled.
    """
    with torch.no_grad():
        # [k tap]: which of the three taps are summed into each of the four, along one direction.
        sums = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.float64)
        weight = convolution.weight.double()
        weight = torch.einsum("ky,lx,oiyx->iokl", sums.to(weight.device), sums.to(weight.device), weight)
        return _transposed_convolution(weight.to(convolution.weight.dtype), convolution.bias)


def split_group_norms(network: _Network) -> _Network:
    """The same network with its group normalizations of images in steps that never reorder the image, in place.

    For OpenVINO; elsewhere it is slower. Those of attention layers, whose pixels are a sequence, stay as they are.
    """
    for module in network.modules():
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.GroupNorm) and layer.affine and not isinstance(module, Attention):
                setattr(module, name, SplitGroupNorm(layer))
    return network


def fold_channel_mean(vae: AutoencoderKL | AutoencoderTiny) -> AutoencoderKL | AutoencoderTiny:
    """The same autoencoder, whose decoder ends in the mean of its three channels instead of in all three, in place.

    What follows the last convolution is affine and alike for all channels. Paper: §3.2.
    """
    last = vae.decoder.conv_out if isinstance(vae, AutoencoderKL) else vae.decoder.layers[-1]
    assert isinstance(last, nn.Conv2d)
    with torch.no_grad():
        last.weight = _constant(last.weight.double().mean(0, keepdim=True).to(last.weight.dtype))
        if last.bias is not None:
            last.bias = _constant(last.bias.double().mean(0, keepdim=True).to(last.bias.dtype))
    last.out_channels = 1
    return vae


class SplitGroupNorm(nn.Module):
    """Group normalization by means over pixels and by convolutions of the 1 × 1 pixel that remains.

    The variance is the mean square of what is left after the mean is subtracted: the difference of the mean square and
    the squared mean would be lost in bfloat16. The mean over a group's channels is a grouped convolution, because the
    order of its result is the image's own.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.eps = norm.num_groups, norm.eps
        self.weight = _constant(norm.weight[:, None, None])
        self.bias = _constant(norm.bias[:, None, None])
        size = norm.num_channels // norm.num_groups
        self.averages = _constant(torch.full_like(norm.weight, 1 / size)[:, None, None, None].repeat(1, size, 1, 1))

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        mean = self._group_mean(image.mean((2, 3), keepdim=True))
        variance = self._group_mean((image - mean).square().mean((2, 3), keepdim=True))
        scale = self.weight * (variance + self.eps).rsqrt()
        return image * scale + (self.bias - mean * scale)

    def _group_mean(self, values: Float[Tensor, "b c 1 1"]) -> Float[Tensor, "b c 1 1"]:
        return functional.conv2d(values, self.averages, groups=self.num_groups)


class FusedSelfAttention(nn.Module):
    """Self-attention with one projection to queries, keys and values instead of three."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        projections = [attention.to_q, attention.to_k, attention.to_v]
        self.num_heads = attention.heads
        self.to_qkv = _linear(
            torch.cat([layer.weight for layer in projections]),
            None if attention.to_q.bias is None else torch.cat([layer.bias for layer in projections]),
        )
        self.to_out = attention.to_out[0]  # pyright: ignore[reportOptionalSubscript]

    def forward(self, hidden_states: Float[Tensor, "b p c"], **_: object) -> Float[Tensor, "b p c"]:
        batch, positions, _channels = hidden_states.shape
        qkv = self.to_qkv(hidden_states).view(batch, positions, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.to_out(mixed.transpose(1, 2).reshape(batch, positions, -1))


class ConstantCrossAttention(nn.Module):
    """Cross-attention to a constant context: logits by one projection, output by another."""

    def __init__(self, attention: Attention, context: Float[Tensor, "1 n d"]) -> None:
        super().__init__()
        heads, num_tokens = attention.heads, context.shape[1]
        self.num_heads, self.num_tokens = heads, num_tokens
        out: nn.Linear = attention.to_out[0]  # pyright: ignore
        to_key, to_value = attention.to_k, attention.to_v
        assert to_key is not None and to_value is not None
        with torch.no_grad():
            tokens = context[0].to(to_key.weight.device).double()
            keys = _apply(to_key, tokens).view(num_tokens, heads, -1)
            values = _apply(to_value, tokens).view(num_tokens, heads, -1)
            size = keys.shape[2]
            # [h n c] logits of each head and token, from the channels of the input.
            to_query = attention.to_q.weight.double().view(heads, size, -1)
            to_logits = torch.einsum("nhs,hsc->hnc", keys, to_query) * size**-0.5
            bias = None
            if attention.to_q.bias is not None:
                bias = torch.einsum("nhs,hs->hn", keys, attention.to_q.bias.double().view(heads, size)) * size**-0.5
            # [c h n] what each head and token adds to the channels of the output.
            to_output = torch.einsum("chs,nhs->chn", out.weight.double().view(-1, heads, size), values)
        dtype = out.weight.dtype
        self.to_logits = _linear(to_logits.flatten(0, 1).to(dtype), None if bias is None else bias.flatten().to(dtype))
        self.to_out = _linear(to_output.flatten(1, 2).to(dtype), out.bias)

    def forward(self, hidden_states: Float[Tensor, "b p c"], *_: object, **__: object) -> Float[Tensor, "b p c"]:
        logits = self.to_logits(hidden_states).unflatten(-1, (self.num_heads, self.num_tokens))
        return self.to_out(logits.softmax(dim=-1).flatten(-2))


def _is_plain(attention: Attention) -> bool:
    """Whether the layer is projections, softmax and a projection, and nothing else."""
    return (
        isinstance(attention, Attention)
        and attention.spatial_norm is None
        and attention.group_norm is None
        and attention.norm_q is None
        and attention.norm_k is None
        and not attention.norm_cross
        and attention.added_kv_proj_dim is None
        and not attention.residual_connection
        and attention.rescale_output_factor == 1.0
        and attention.inner_dim == attention.inner_kv_dim
    )


def is_plain_upsampler(layer: object) -> TypeGuard[Upsample2D]:
    """Whether the layer doubles, applies its `conv`, and does nothing else."""
    return (
        isinstance(layer, Upsample2D)
        and layer.use_conv
        and not layer.use_conv_transpose
        and layer.norm is None
        and layer.interpolate
        and layer.name == "conv"
    )


def _doubles(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Upsample) and layer.scale_factor in (2, (2, 2)) and layer.mode == "nearest"


def _is_plain_convolution(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether the layer convolves 3 × 3 pixels and keeps the size."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == (1, 1)
        and layer.padding == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.groups == 1
    )


def _apply(layer: nn.Linear, tokens: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
    bias = None if layer.bias is None else layer.bias.double()
    return functional.linear(tokens, layer.weight.double(), bias)


def _linear(weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return _filled(layer, weight, bias)


def _transposed_convolution(weight: Float[Tensor, "i o 4 4"], bias: Float[Tensor, " o"] | None) -> nn.ConvTranspose2d:
    with torch.device("meta"):
        layer = nn.ConvTranspose2d(*weight.shape[:2], kernel_size=4, stride=2, padding=1, bias=bias is not None)
    return _filled(layer, weight, bias)


def _filled(layer: _Layer, weight: Tensor, bias: Tensor | None) -> _Layer:
    layer.weight = _constant(weight)
    if bias is not None:
        layer.bias = _constant(bias)
    return layer


def _constant(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach(), requires_grad=False)
