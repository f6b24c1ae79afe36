# SPDX-License-Identifier: Apache-2.0
"""Every setting of prediction, its default and its check; the command line is generated from it."""

from __future__ import annotations

import math
import numbers
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeGuard, get_args

from openmarigold.errors import InvalidValueError
from openmarigold.files import as_path

FinalStep = Literal["reference", "clean"]
FileFormat = Literal["npy", "png", "npz", "exr", "ply", "glb"]
SpaceContent = Literal["points", "mesh"]
StartNoise = Literal["gaussian", "zeros"]
TimestepSpacing = Literal["leading", "trailing"]
Dtype = Literal["float32", "bfloat16", "float16", "int8"]
FloatDtype = Literal["float32", "bfloat16", "float16"]
Invariance = Literal["affine", "scale", "absolute"]
NormalFrame = Literal["rub", "lub", "opencv"]
Green = Literal["gl", "dx"]

EngineName = Literal["auto", "onnx", "openvino", "torch"]
TinyVaeUse = Literal["decode", "encode", "both"]
CompileMode = Literal["off", "full"]
ConvertedFormat = Literal["onnx", "openvino"]
StoredDtype = Literal["float32", "float16"]
ExportDtype = Literal["float32", "float16", "int8"]

MAX_INFERENCE_STEPS = 1000
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16", "int8")
INVARIANCES: tuple[Invariance, ...] = ("affine", "scale", "absolute")
LATENT_FACTOR = 8


class ModelOptions(TypedDict, total=False):
    """The settings of `ModelConfig` but the checkpoint, as keywords."""

    variant: str | None
    revision: str | None
    local_files_only: bool
    engine: EngineName
    device: str
    dtype: Dtype
    tiny_vae: str | Path | None
    tiny_vae_for: TinyVaeUse
    compile: CompileMode
    modality: tuple[str, ...] | str | None


class CallOptions(TypedDict, total=False):
    """The settings of `CallConfig` as keywords."""

    num_inference_steps: int | None
    ensemble_size: int
    ensemble_tolerance: float | None
    processing_resolution: int | None
    seed: int
    background: str
    batch_size: int | None
    final_step: FinalStep | None
    timestep_spacing: TimestepSpacing | None
    start_noise: StartNoise | None
    ensemble_reduction: str | None
    fov: float | None
    focal_px: float | None
    camera_file: Path | str | None
    estimate_camera: bool
    normals_checkpoint: Path | str | None
    recompose: bool
    ensemble_mirror: bool | None
    tiles: bool | None
    interval: float | None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is loaded, and what runs it.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    checkpoint: Path | str | None = None
    """Folder of a checkpoint, or its id on Hugging Face (extra `torch`), such as
    prs-eth/marigold-depth-v1-1. None: the embedded model."""
    variant: str | None = None
    """Weight files to read: fp16 for those named so (half the download). None: the plain ones, else fp16."""
    revision: str | None = None
    """Branch, tag or commit of a checkpoint on the hub. None: the newest."""
    local_files_only: bool = False
    """Take a checkpoint of the hub as it was downloaded before, without the network."""
    engine: EngineName = "auto"
    """What runs the networks: onnx and openvino (extra `openvino`) on a CPU, torch (extra `torch`) on CPUs and GPUs.
    auto: the fastest that is installed and can run this checkpoint."""
    device: str = "auto"
    """Where the networks run: auto, cpu, cuda, cuda:1 or mps. ONNX and OpenVINO networks run on cpu."""
    dtype: Dtype = "float32"
    """Precision of the networks: float32, bfloat16 (half the memory), float16 (GPUs only) or int8 (CPUs; the fastest,
    measured on photos once)."""
    tiny_vae: str | Path | None = None
    """Small autoencoder with the checkpoint's latent space, much faster and less exact: folder or hub id of an
    AutoencoderTiny, such as madebyollin/taesd for checkpoints made from Stable Diffusion 2. None: the checkpoint's
    own."""
    tiny_vae_for: TinyVaeUse = "decode"
    """What tiny-vae is used for: decode, encode or both."""
    compile: CompileMode = "off"
    """Engine torch, for many photos of one size: full compiles the networks (a minute or two for each new size)."""
    modality: tuple[str, ...] = ()
    """What to predict: depth, normals, appearance, lighting (`predict`: several). Nothing: the checkpoint's own."""

    def __post_init__(self) -> None:
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", as_path(self.checkpoint, "checkpoint"))
        if isinstance(self.modality, str):
            object.__setattr__(self, "modality", (self.modality,))
        if isinstance(self.tiny_vae, Path):
            object.__setattr__(self, "tiny_vae", str(self.tiny_vae))
        _make_plain(self)
        if not isinstance(self.device, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise InvalidValueError(f"device={self.device!r} is not known; use auto, cpu, cuda, cuda:1 or mps")
        if self.tiny_vae is not None and (not isinstance(self.tiny_vae, str) or not self.tiny_vae):
            raise InvalidValueError(f"tiny_vae={self.tiny_vae!r} is not accepted; give a folder or a hub id")
        if self.tiny_vae is None and self.tiny_vae_for != "decode":
            raise InvalidValueError(
                f"tiny_vae_for={self.tiny_vae_for!r} has no effect without tiny_vae; give both or none"
            )
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("engine", self.engine, get_args(EngineName))
        check_choice("tiny_vae_for", self.tiny_vae_for, get_args(TinyVaeUse))
        check_choice("compile", self.compile, get_args(CompileMode))


@dataclass(frozen=True, kw_only=True)
class CallConfig:
    """What each call of a loaded model may change.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    num_inference_steps: int | None = None
    """Denoising steps, 1 to 1000. None: the checkpoint's default."""
    ensemble_size: int = 1
    """Predictions from different noise that are aligned and merged; 2 or more also give an uncertainty map."""
    ensemble_tolerance: float | None = None
    """Stop before ensemble-size when one more member changes the merged depth by less than this: mean absolute change,
    in units of the depth's range, from the third member on. None: always use all."""
    processing_resolution: int | None = None
    """Longer side (embedded model: shorter side) that the networks see [px], a multiple of 8; 0 is the photo's own
    size. None: the checkpoint's default."""
    seed: int = 2024
    """Seed of the noise. The same photo and seed give the same depth, alone or among others."""
    background: str = "white"
    """Color behind transparent pixels: a name as in CSS, or #rrggbb."""
    batch_size: int | None = None
    """Ensemble members that are denoised at once on a GPU, at most. None: as many as fit into its memory. On a CPU they
    run one after another."""
    final_step: FinalStep | None = None
    """Last denoising step: reference (as published, keeps 3 % of the noise) or clean. None: the checkpoint's
    default."""
    timestep_spacing: TimestepSpacing | None = None
    """Which timesteps DDIM visits: trailing starts from pure noise, leading (marigold-depth-v1-0) just below it, which
    few steps do not forgive. None: the checkpoint's own."""
    start_noise: StartNoise | None = None
    """What denoising starts from: gaussian noise, or zeros (checkpoints fine-tuned end to end). None: the checkpoint's
    own."""
    ensemble_reduction: str | None = None
    """How members are merged: closest (to the mean direction) or mean for normals, median or mean for all else; depth
    also published (aligned by the solver of Marigold's code; slow, extra `metric`) or published-v1-0. None: the first
    of these."""
    fov: float | None = None
    """Field of view of the camera along the photo's longer side [deg]. None, with neither focal-px nor camera-file:
    what the photo's metadata state, else 55, stated as assumed."""
    focal_px: float | None = None
    """Focal length of the camera in pixels of the photo."""
    camera_file: Path | str | None = None
    """File with the camera's intrinsics: JSON, a 3x3 matrix (.txt, .npy, JSON), ROS camera_info, COLMAP's cameras.txt
    or a KITTI calibration."""
    estimate_camera: bool = False
    """Estimate the field of view where nothing is known, and the shift of affine depth, from depth and normals. Takes a
    second model, of normals."""
    normals_checkpoint: Path | str | None = None
    """For estimate-camera: a checkpoint of normals, folder or hub id. None: the embedded one."""
    ensemble_mirror: bool | None = None
    """Show every second member of an ensemble the photo mirrored, and mirror what it gives. None: the checkpoint's own
    (published ones: no)."""
    tiles: bool | None = None
    """Predict overlapping parts of the photo too, for details that the whole photo at processing-resolution cannot show
    (--tiles, --no-tiles). None: of photos above 33.5 megapixels."""
    interval: float | None = None
    """Also give lower and upper bounds that hold for this share of a picture's pixels, such as 0.9. Needs a calibration
    of the checkpoint for these settings; the embedded model of depth has one (docs/uncertainty.md). None: no
    bounds."""
    recompose: bool = False
    """Make albedo * shading + residual equal the photo, in linear light: the albedo stays, the shading becomes a
    quotient, and what is left becomes the residual, which may be negative."""

    def __post_init__(self) -> None:
        _make_plain(self)
        if self.num_inference_steps is not None:
            check_whole("num_inference_steps", self.num_inference_steps, most=MAX_INFERENCE_STEPS)
        check_whole("ensemble_size", self.ensemble_size)
        tolerance = self.ensemble_tolerance
        if tolerance is not None and not (is_number(tolerance) and 0 < tolerance < 1):
            raise InvalidValueError(
                f"ensemble_tolerance={self.ensemble_tolerance!r} is not accepted; give a number between 0 and 1, such "
                "as 0.005"
            )
        if self.batch_size is not None:
            check_whole("batch_size", self.batch_size)
        if self.processing_resolution is not None:
            check_processing_resolution(self.processing_resolution)
        check_whole("seed", self.seed, least=0)
        check_choice("final_step", self.final_step, (None, *get_args(FinalStep)))
        check_choice("start_noise", self.start_noise, (None, *get_args(StartNoise)))
        check_choice("timestep_spacing", self.timestep_spacing, (None, *get_args(TimestepSpacing)))
        for name in ("tiles", "ensemble_mirror"):
            check_choice(name, getattr(self, name), (None, False, True))
        for name in ("estimate_camera", "recompose"):
            check_choice(name, getattr(self, name), (False, True))
        if self.interval is not None and not (is_number(self.interval) and 0 < self.interval < 1):
            raise InvalidValueError(
                f"interval={self.interval!r} is not accepted; give a share between 0 and 1, such as 0.9"
            )
        self._check_camera()

    def _check_camera(self) -> None:
        for name in ("camera_file", "normals_checkpoint"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_path(value, name))
        given = [name for name in ("fov", "focal_px", "camera_file") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InvalidValueError(f"{' and '.join(given)} state the same thing; give one of them")
        if self.fov is not None:
            check_fov(self.fov)
        if self.focal_px is not None:
            check_focal_px(self.focal_px)
        if self.normals_checkpoint is not None and not self.estimate_camera:
            raise InvalidValueError("normals_checkpoint has no effect without estimate_camera; give both or none")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(ModelConfig, CallConfig):
    """All settings of `openmarigold predict` that shape its results: the model and its call.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    def __post_init__(self) -> None:
        ModelConfig.__post_init__(self)
        CallConfig.__post_init__(self)

    @property
    def model(self) -> ModelConfig:
        """What is loaded."""
        return ModelConfig(**self._part(ModelConfig))

    @property
    def call(self) -> CallConfig:
        """What is given with each call."""
        return CallConfig(**self._part(CallConfig))

    @property
    def call_options(self) -> dict[str, Any]:
        """`call` as keywords of a `Predictor`'s call."""
        return self._part(CallConfig)

    def _part(self, part: type[ModelConfig | CallConfig]) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(part)}


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Which files a prediction becomes.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    format: tuple[FileFormat, ...] = ("npy", "png")
    """Kinds of files, one or more: npy (float32), png (16 bits, and in colors), npz (all in one), exr (extra `exr`); of
    depth also ply (points) and glb (mesh)."""
    color_map: str = "Spectral"
    """Colors of the picture: Spectral (near is red), or any color map of matplotlib (extra `plots`)."""
    inverted: bool = False
    """Also write 16 bits with near = white, far = black, as ControlNet and its kin expect."""
    uncertainty_picture: bool = False
    """Also write the uncertainty of an ensemble as a picture, white where it is largest."""
    normal_frame: NormalFrame = "rub"
    """Axes of written normals: rub (x right, y up, z backward; Marigold, OpenGL), lub (x left; DSINE, E2E-FT, Lotus) or
    opencv (right, down, forward)."""
    green: Green = "gl"
    """Green of normal maps: gl (up; OpenGL, Blender, glTF, Unity) or dx (down; DirectX, Unreal)."""
    ply: SpaceContent = "points"
    """What .ply files hold: points or a mesh."""
    glb: SpaceContent = "mesh"
    """What .glb files hold: points or a mesh."""
    max_points: int = 1_000_000
    """Points of .ply and .glb files, or vertices of their mesh, at most; they lie on a grid of pixels."""
    max_depth: float | None = None
    """Leave out of .ply and .glb what is deeper, in the unit of the depth. None: nothing."""
    drop_far: float = 0.0
    """Leave out of .ply and .glb the farthest pixels, such as a sky: their share, from 0 to below 1."""
    drop_uncertain: float = 0.0
    """Leave out of .ply and .glb the pixels that the members of an ensemble agree least on: their share."""

    def __post_init__(self) -> None:
        _make_plain(self)
        if isinstance(self.format, str):
            object.__setattr__(self, "format", (self.format,))
        known = get_args(FileFormat)
        if not self.format or not set(self.format) <= set(known):
            given = ", ".join(map(repr, self.format)) or "nothing"
            raise InvalidValueError(f"format: {given} is not known; give one or more of {', '.join(known)}")
        if not isinstance(self.color_map, str):
            raise InvalidValueError(f"color_map={self.color_map!r} is not accepted; give a name, such as Spectral")
        check_choice("normal_frame", self.normal_frame, get_args(NormalFrame))
        check_choice("green", self.green, get_args(Green))
        check_choice("ply", self.ply, get_args(SpaceContent))
        check_choice("glb", self.glb, get_args(SpaceContent))
        check_whole("max_points", self.max_points)
        check_max_depth(self.max_depth)
        check_share("drop_far", self.drop_far)
        check_share("drop_uncertain", self.drop_uncertain)


def _make_plain(config: ModelConfig | CallConfig | OutputConfig) -> None:
    """Turns NumPy values into plain ones, which JSON can hold."""
    for setting in fields(config):
        value = getattr(config, setting.name)
        if not isinstance(value, (str, int, float, Path)) and callable(getattr(value, "item", None)):
            if getattr(value, "ndim", None) == 0:
                object.__setattr__(config, setting.name, value.item())
        elif isinstance(value, (float, str)) and type(value) not in (float, str):  # numpy.float64 and numpy.str_
            object.__setattr__(config, setting.name, float(value) if isinstance(value, float) else str(value))


def check_processing_resolution(value: object) -> None:
    """Accepts 0 and positive multiples of 8."""
    if not is_integer(value) or value < 0:
        raise InvalidValueError(
            f"processing_resolution={value!r} is not accepted; give a multiple of {LATENT_FACTOR}, or 0 for the "
            "photo's own size"
        )
    if value % LATENT_FACTOR:
        nearest = max(LATENT_FACTOR, LATENT_FACTOR * round(value / LATENT_FACTOR))
        raise InvalidValueError(
            f"processing_resolution={value} is not a multiple of {LATENT_FACTOR}; try {nearest}, or 0 for the photo's "
            "own size"
        )


def check_fov(fov: object) -> None:
    """Accepts a field of view [deg] of a pinhole camera."""
    if not is_number(fov) or not 1 <= fov <= 170:
        raise InvalidValueError(f"fov={fov!r} is not accepted; give degrees from 1 to 170, along the longer side")


def check_focal_px(focal_px: object) -> None:
    """Accepts a focal length [px]."""
    if not is_number(focal_px) or not 0 < focal_px < math.inf:
        raise InvalidValueError(f"focal_px={focal_px!r} is not accepted; give pixels, above 0")


def check_max_depth(depth: object) -> None:
    """Accepts a largest depth, or None."""
    if depth is not None and not (is_number(depth) and depth > 0):
        raise InvalidValueError(f"max_depth={depth!r} is not accepted; give a number above 0, in the unit of the depth")


def check_share(name: str, share: object) -> None:
    """Accepts a share of pixels that are left out."""
    if not (is_number(share) and 0 <= share < 1):
        raise InvalidValueError(
            f"{name}={share!r} is not accepted; give a share of the pixels from 0 to below 1, such as 0.1"
        )


def check_whole(name: str, value: object, *, least: int = 1, most: int | None = None) -> None:
    """Accepts a whole number from `least` to `most`."""
    if not is_integer(value) or value < least or (most is not None and value > most):
        accepted = f"{least} or above" if most is None else f"{least} to {most}"
        raise InvalidValueError(f"{name}={value!r} is not accepted; give a whole number, {accepted}")


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number, also one of NumPy's; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, also one of NumPy's; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_choice(name: str, value: object, accepted: tuple[object, ...]) -> None:
    """Raises InvalidValueError unless the value is one of those accepted."""
    if value not in accepted:
        choices = " or ".join(str(choice) for choice in accepted if choice or choice is False)
        raise InvalidValueError(f"{name}={value!r} is not known; use {choices}")
