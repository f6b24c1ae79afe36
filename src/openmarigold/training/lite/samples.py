# SPDX-License-Identifier: Apache-2.0
"""Samples kept decoded in memory, and random views of them made on the device.

A step's views are cut, rolled, mirrored and colored where the network runs, so that two cores feed a GPU. All draws but
pixel noise are made on the CPU, as functions of (seed, step); pixel noise comes from the device's own generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8, Int16, Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from openmarigold.camera import Camera
from openmarigold.errors import DataError
from openmarigold.geometry import unit_vectors
from openmarigold.modalities.modality import Maps
from openmarigold.training.lite.recipes import ViewConfig
from openmarigold.training.settings import DataConfig
from openmarigold.training.views import Mixture

_NEAREST, _FARTHEST = 0.02, 1000.0  # m; one step of the code is 0.02 %
_INVALID = -32768
_LEVELS = 65_534
_SPAN = math.log(_FARTHEST / _NEAREST)
_BLUR_RADIUS = 3  # px
_MOST_SKEW = 0.01  # cosine of the angle between a view's axes
_UNIT = 127  # code of a component of 1; a step is 0.5 degrees at most


def pack_depth(maps: Maps, valid_mask: Bool[np.ndarray, "h w"]) -> Int16[np.ndarray, "h w"]:
    """Log depth in 16 bits."""
    code = np.full(valid_mask.shape, _INVALID, dtype=np.int16)
    if valid_mask.any():
        log_depth = np.log(np.clip(maps["depth"][valid_mask], _NEAREST, _FARTHEST) / _NEAREST)
        code[valid_mask] = np.rint(log_depth / _SPAN * _LEVELS) - (_LEVELS // 2)
    return code


def pack_normals(maps: Maps, valid_mask: Bool[np.ndarray, "h w"]) -> Int8[np.ndarray, "h w 3"]:
    """Unit vectors in 8 bits a component; (0, 0, 0) where there is none."""
    code = np.zeros((*valid_mask.shape, 3), dtype=np.int8)
    if valid_mask.any():
        code[valid_mask] = np.rint(unit_vectors(maps["normals"][valid_mask], axis=-1) * _UNIT)
    return code


class Samples:
    """All samples of a mixture, decoded: color in 8 bits, a map as codes; about half a megabyte each at 384x288.

    Attributes:
        size: height and width of the largest samples [px]; all have this shape, and some may have fewer pixels.
        cameras: of each sample, if they were asked for.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        num_workers: int,
        pack: Callable[[Maps, Bool[np.ndarray, "h w"]], Shaped[np.ndarray, "h w *c"]] = pack_depth,
        with_cameras: bool = False,
    ) -> None:
        """Reads everything.

        Args:
            pack: makes the codes of a sample's maps and the pixels that count.
            with_cameras: read `cameras` too.

        Raises:
            DataError: a sample is damaged, or shapes differ, or a camera is asked for and not known.
        """
        self._mixture, self._pack = mixture, pack
        numbers = range(int(mixture.starts[-1]))
        with ThreadPoolExecutor(num_workers) as executor:
            read = list(executor.map(self._read, numbers))
        sizes = sorted({rgb.shape[:2] for rgb, _ in read})
        self.size: tuple[int, int] = sizes[-1]
        for height, width in sizes:
            if abs(height - self.size[0] * width / self.size[1]) > 0.5:  # px
                raise DataError(
                    f"the samples have several shapes, such as {width}x{height} and {self.size[1]}x{self.size[0]}; "
                    "prepare them in one shape (sizes may differ)"
                )
        self._rgb = [rgb for rgb, _ in read]
        self._code = [code for _, code in read]
        self.cameras: list[Camera] = [self._camera(index) for index in numbers] if with_cameras else []

    def pick(
        self, chosen: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], Shaped[np.ndarray, "n h w *c"]]:
        """Colors and codes of some samples, all in the size of the largest one among them."""
        rgb, code = [self._rgb[index] for index in chosen.tolist()], self.codes(chosen)
        return np.stack([_enlarged_rgb(one, code.shape[1:3]) for one in rgb]), code

    def codes(self, chosen: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n h w *c"]:
        """Codes of some samples, all in the size of the largest one among them."""
        found = [self._code[index] for index in chosen.tolist()]
        size = max((one.shape[:2] for one in found), default=self.size)
        return np.stack([_enlarged(one, size) for one in found])

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        mixture = self._mixture
        number = mixture.source_of(index)
        sample = mixture.sources[number].read(index - int(mixture.starts[number]))
        valid_mask = mixture.valid_mask(sample, mixture.sources[number])
        if valid_mask is None:
            valid_mask = np.zeros(sample.rgb.shape[:2], dtype=bool)
        return sample.rgb, self._pack(sample.maps, valid_mask)

    def _camera(self, index: int) -> Camera:
        number = self._mixture.source_of(index)
        source, place = self._mixture.sources[number], index - int(self._mixture.starts[number])
        camera = source.camera(place)
        if camera is None:
            raise DataError(
                f'sample {source.keys[place]} of source {source.name} states no intrinsics, and condition_on = "rays" '
                "needs them: prepare the source with intrinsics, leave it out, or leave condition_on out"
            )
        return camera


def _enlarged(code: Shaped[np.ndarray, "h w *c"], size: tuple[int, int]) -> Shaped[np.ndarray, "H W *c"]:
    """Codes of the nearest pixels."""
    if code.shape[:2] == size:
        return code
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(int) for new, old in zip(size, code.shape, strict=False)
    )
    return code[rows[:, None], columns]


def _enlarged_rgb(rgb: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    if rgb.shape[:2] == size:
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.BILINEAR))


class Draws(NamedTuple):
    """One batch's random numbers, on the CPU."""

    size: tuple[int, int]
    arrays: dict[str, np.ndarray]


def draw_views(
    rng: np.random.Generator, count: int, *, stored: tuple[int, int], data: DataConfig, views: ViewConfig
) -> Draws:
    """Where views lie in their pictures of `stored` size (height, width), and how their colors change."""
    size = data.size
    if views.other_share and rng.random() < views.other_share:
        size = views.other_sizes[int(rng.integers(len(views.other_sizes)))]
    angle = np.radians(rng.uniform(-views.rotation, views.rotation, count)) * (rng.random(count) < views.rotated_share)
    aspect = size[1] / size[0] * np.exp(rng.uniform(-1, 1, count) * np.log1p(data.aspect_jitter))
    # Half sides of the largest view of this shape and angle that fits; then smaller, uniform in the logarithm.
    cos, sin = np.cos(angle), np.abs(np.sin(angle))
    half = 0.5 / np.maximum((cos * aspect + sin) / stored[1], (sin * aspect + cos) / stored[0])
    half *= np.exp(rng.uniform(np.log(data.min_scale), 0.0, count))
    half_width, half_height = half * aspect, half
    reach_x, reach_y = cos * half_width + sin * half_height, sin * half_width + cos * half_height
    center_x = rng.uniform(-1, 1, count) * np.maximum(0.0, stored[1] / 2 - reach_x)
    center_y = rng.uniform(-1, 1, count) * np.maximum(0.0, stored[0] / 2 - reach_y)
    flip = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    scaled = np.stack(
        [
            np.stack([flip * np.cos(angle) * half_width, -np.sin(angle) * half_height, center_x], axis=1)
            / (stored[1] / 2),
            np.stack([flip * np.sin(angle) * half_width, np.cos(angle) * half_height, center_y], axis=1)
            / (stored[0] / 2),
        ],
        axis=1,
    )
    return Draws(size, {"affine": scaled.astype(np.float32), **_draw_colors(rng, count, data.appearance)})


def _draw_colors(rng: np.random.Generator, count: int, strength: float) -> dict[str, np.ndarray]:
    changed = rng.random(count) < 0.8 * min(1.0, strength)
    gray = rng.random(count) < 0.08 * strength
    saturation = np.where(gray, 0.0, np.exp(rng.normal(0, 0.35 * strength, count)))
    matrix = np.eye(3) + rng.normal(0, 0.06 * strength, (count, 3, 3))
    gains = np.exp(rng.normal(0, 0.08 * strength, (count, 3)) + rng.normal(0, 0.15 * strength, (count, 1)))
    blurred = rng.random(count) / max(strength, 1e-6)
    drawn = {
        "gamma": np.where(changed, np.exp(rng.normal(0, 0.3 * strength, count)), 1.0),
        "saturation": np.where(changed, saturation, 1.0),
        "contrast": np.where(changed, np.exp(rng.normal(0, 0.2 * strength, count)), 1.0),
        "color": np.where(changed[:, None, None], matrix * gains[:, :, None], np.eye(3)),
        "sigma": rng.uniform(0.3, 1.5, count),
        # -1 leaves the blurred picture; above 0 sharpens, as cameras and down-sized photos are sharper than renders.
        "detail": np.where(blurred < 0.25, -1.0, rng.uniform(0.0, 1.5, count)) * (blurred < 0.5) * (strength > 0),
        "noise_std": rng.uniform(0.005, 0.05, count) * (rng.random(count) < 0.4 * strength),
    }
    return {name: values.astype(np.float32) for name, values in drawn.items()}


def view_camera(camera: Camera, affine: Float[np.ndarray, "2 3"], size: tuple[int, int]) -> Camera:
    """The camera of a view of `size` (height, width) that is cut from its picture, rolled and mirrored as the view is.

    Raises:
        DataError: a roll of pixels that are not square, which no camera sees.
    """
    half, focal = np.array([camera.width, camera.height]) / 2, np.array([camera.fx, camera.fy])
    # From places in the view, -1 to 1 over its sides, to x/z and y/z in the axes of the sample's camera.
    axes = affine[:, :2] * (half / focal)[:, None]
    middle = ((affine[:, 2] + 1.0) * half - 0.5 - np.array([camera.cx, camera.cy])) / focal
    lengths = np.linalg.norm(axes, axis=0)
    directions = axes / lengths
    if abs(directions[:, 0] @ directions[:, 1]) > _MOST_SKEW:
        raise DataError(
            f"a picture with focal lengths {camera.fx:.1f} and {camera.fy:.1f} px cannot be rolled; set views.rotation "
            "to 0, or prepare it with square pixels"
        )
    x, y = directions.T @ middle
    fx, fy = size[1] / 2 / lengths[0], size[0] / 2 / lengths[1]
    center = {"cx": (size[1] - 1) / 2 - fx * x, "cy": (size[0] - 1) / 2 - fy * y}
    return Camera(fx=fx, fy=fy, height=size[0], width=size[1], source=camera.source, **center)


def make_views(
    rgb: UInt8[Tensor, "b h w 3"],
    code: Shaped[Tensor, "b h w *c"],
    draws: dict[str, Tensor],
    *,
    size: tuple[int, int],
    generator: torch.Generator,
    cut: Cut | None = None,
) -> tuple[Float[Tensor, "b 3 H W"], Float[Tensor, "b c H W"]]:
    """Colors in [-1, 1] and what `cut` makes of the codes, of the drawn views, on the samples' device.

    Without `cut` that is log depth (`cut_depth`).
    """
    grid = functional.affine_grid(draws["affine"], [len(rgb), 1, *size], align_corners=False)
    image = rgb.permute(0, 3, 1, 2).float() / 255.0
    image = functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return _colored(image, draws, generator) * 2.0 - 1.0, (cut or cut_depth)(code, draws["affine"], size=size)


def cut_depth(
    code: Int16[Tensor, "b h w"], affine: Float[Tensor, "b 2 3"], *, size: tuple[int, int]
) -> Float[Tensor, "b 1 H W"]:
    """Log depth [log m] of the drawn views, NaN where there is none."""
    codes = _cut_codes(code[:, None], affine, size)
    log_depth = (codes + _LEVELS // 2) * (_SPAN / _LEVELS) + math.log(_NEAREST)
    return log_depth.masked_fill(codes <= _INVALID + 0.5, torch.nan)


def cut_normals(
    code: Int8[Tensor, "b h w 3"], affine: Float[Tensor, "b 2 3"], *, size: tuple[int, int]
) -> Float[Tensor, "b 3 H W"]:
    """Unit normals (frame "rub") of the drawn views, in the axes of their cameras, NaN where there is none.

    Where a view is rolled or mirrored, so are its vectors. Another size of its pixels along one side alone would also
    change the surfaces that it shows; recipes leave `aspect_jitter` at 0.
    """
    codes = _cut_codes(code.permute(0, 3, 1, 2), affine, size)
    height, width = code.shape[1:3]
    axes = functional.normalize(affine[:, :, :2] * affine.new_tensor([width, height]).view(1, 2, 1), dim=1)
    # Columns of `axes` are the view's axes right and down in the picture's pixels; normals have y up.
    down = affine.new_tensor([1.0, -1.0])
    turned = torch.einsum("bpv,bphw->bvhw", axes, codes[:, :2] * down.view(1, 2, 1, 1)) * down.view(1, 2, 1, 1)
    normals = functional.normalize(torch.cat([turned, codes[:, 2:]], dim=1), dim=1)
    return normals.masked_fill((codes == 0).all(dim=1, keepdim=True), torch.nan)


Cut = Callable[..., Tensor]
"""`cut_depth` or `cut_normals`."""


def _cut_codes(
    code: Shaped[Tensor, "b c h w"], affine: Float[Tensor, "b 2 3"], size: tuple[int, int]
) -> Float[Tensor, "b c H W"]:
    grid = functional.affine_grid(affine, [len(code), 1, *size], align_corners=False)
    # Nearest: a mean over an edge would invent surfaces. Codes are whole numbers below 2**24, exact in float32.
    return functional.grid_sample(code.float(), grid, mode="nearest", padding_mode="border", align_corners=False)


def _colored(image: Float[Tensor, "b 3 H W"], draws: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Another camera: gamma, colors, contrast, blur or sharpening, and noise; values in [0, 1]."""
    wide = {name: value.view(-1, 1, 1, 1) for name, value in draws.items() if value.ndim == 1}
    image = image.clamp(0, 1) ** wide["gamma"]
    image = torch.einsum("bij,bjhw->bihw", draws["color"], image)
    gray = image.mean(dim=1, keepdim=True)
    image = gray + (image - gray) * wide["saturation"]
    level = gray.mean(dim=(2, 3), keepdim=True)
    image = (image - level) * wide["contrast"] + level
    image = image + wide["detail"] * (image - _blurred(image, draws["sigma"]))
    noise = torch.randn(image.shape, generator=generator, device=image.device)
    return (image + noise * wide["noise_std"]).clamp(0, 1)


def _blurred(image: Float[Tensor, "b 3 H W"], sigma: Float[Tensor, " b"]) -> Tensor:
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=image.device)
    kernel = torch.exp(-0.5 * (offsets[None] / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    batch, channels, height, width = image.shape
    kernels = kernel.repeat_interleave(channels, dim=0)
    flat = image.reshape(1, batch * channels, height, width)
    for shape, pad in (
        ((-1, 1, 1, kernel.shape[1]), (_BLUR_RADIUS,) * 2 + (0, 0)),
        ((-1, 1, kernel.shape[1], 1), (0, 0) + (_BLUR_RADIUS,) * 2),
    ):
        flat = functional.conv2d(
            functional.pad(flat, pad, mode="replicate"), kernels.view(shape), groups=batch * channels
        )
    return flat.reshape(image.shape)
