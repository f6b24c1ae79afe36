# SPDX-License-Identifier: Apache-2.0
"""The description of a modality, which all other packages use. A new modality is a new file with one instance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

from openmarigold.camera import Camera
from openmarigold.config import CallConfig, OutputConfig
from openmarigold.errors import InvalidValueError
from openmarigold.modalities.protocol import Baseline, BenchmarkSample, Maps, PredictionSpace, Protocol
from openmarigold.reconstruction.saving import RELATIVE


@dataclass(frozen=True, kw_only=True)
class MapKind:
    """One of the maps of a modality."""

    name: str
    """Its key in samples, results and shards."""
    channels: int
    range: tuple[float, float]
    unit: str
    """Unit of a predicted value, in words."""
    space: Literal["linear", "log", "disparity", "srgb", "vector"]
    exr_channels: tuple[str, ...]
    """One name for each channel."""
    exr_aliases: tuple[str, ...] = ()
    """For maps of one channel: names that other tools use, the most likely first."""
    resample: Literal["nearest", "bilinear"] = "nearest"
    """How training views are cut from it: nearest where a mean over an edge would invent a value."""
    file_name: str = ""
    """The end of its file names, `<stem>_<file_name>.npy`: its name, unless another modality of MODALITIES has one."""

    def __post_init__(self) -> None:
        if not self.file_name:
            object.__setattr__(self, "file_name", self.name)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the network learns of one view."""

    values: Float32[np.ndarray, "t k H W"]
    """Pictures in [-1, 1], one for each target. Pictures of one channel (`k` = 1) are repeated to three for the
    autoencoder."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """The values that -1 and 1 mean, in the unit of the sample's map, if the view sets them."""

    @property
    def pictures(self) -> Float32[np.ndarray, "t 3 H W"]:
        """The targets as the autoencoder takes them."""
        return self.values if self.values.shape[1] == 3 else np.repeat(self.values, 3, axis=1)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The consensus of an ensemble."""

    stack: Float32[np.ndarray, "c h w"]
    uncertainty: Float32[np.ndarray, "u h w"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A result file for eyes or for tools that read pictures."""

    suffix: str
    """The end of its name, such as `_depth.png`."""
    content: str | Callable[[Maps], str]
    """Its content in words, for the provenance record; a function of the values if the content depends on them."""
    make: Callable[[Maps, OutputConfig], np.ndarray]
    """The pixels, uint8 or uint16, from maps (or uncertainties)."""
    wanted: Callable[[OutputConfig], bool] = lambda output: "png" in output.format
    of_uncertainty: bool = False
    of_interval: bool = False
    """Whether it is made from the maps of an interval, and exists with these only."""
    applies: Callable[[Mapping[str, Any]], bool] = lambda settings: True
    """Whether it has something to show, given the facts that results state about their settings."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """The surface from which points and meshes are made."""

    depth: Float[np.ndarray, "h w"]
    """Planar depth up to scale, or in meters; NaN, infinity and what is not above 0 are unknown."""
    unit: str = RELATIVE
    """Unit of lengths: `reconstruction.saving.METERS` or `RELATIVE`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Assumptions, which the files state."""


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """The allowed difference of two predictions of one scene: `scale * other + shift` in a space of their values."""

    to_space: Callable[[Float[np.ndarray, "*shape"]], Float[np.ndarray, "*shape"]]
    from_space: Callable[[Float[np.ndarray, "*shape"]], Float[np.ndarray, "*shape"]]
    with_scale: bool
    """Whether the scale is unknown too; it is 1 otherwise."""
    space: Literal["linear", "log"]
    """Name of the fit, for files."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """The definition of an interval of predictions: a half width in a space in which errors are measured."""

    summary: str
    """How the prediction is fitted to the truth before an error is measured, in words."""
    unit: str
    """Unit of errors and half widths, in words."""
    names: tuple[str, ...]
    """Ends of the file names of an interval's maps; file names of bounds end in `_lo` and `_hi`."""
    error: Callable[[Maps, Maps, Bool[np.ndarray, "h w"]], Float64[np.ndarray, "h w"]]
    """Errors of predicted maps, given the measured ones, fitted on the pixels that are True; not below 0, and infinite
    where the fit means nothing."""
    signals: Mapping[str, Callable[[Float[np.ndarray, "c h w"], Float[np.ndarray, "u h w"] | None], np.ndarray]]
    """What a half width may be made of, `[h w]` and not below 0: from the stack at the networks' size, and the
    uncertainty of an ensemble."""
    of_ensemble: frozenset[str]
    """Names of the signals that need an ensemble."""
    bounds: Callable[[Maps, Float[np.ndarray, "h w"]], Maps]
    """The maps of an interval, by name, float32 of the photo's size."""
    half_width: Callable[[Maps, Maps], Float64[np.ndarray, "h w"]]
    """The inverse of `bounds`: from predicted maps and the maps of their interval."""
    strata: Mapping[str, Callable[[Maps, Bool[np.ndarray, "h w"]], Bool[np.ndarray, "h w"]]]
    """Parts of a picture in which coverage is stated by itself: from the measured maps and their valid pixels."""


@dataclass(frozen=True, kw_only=True)
class Modality:
    """What a model predicts. Stacks `[.. c h w]` hold the channels of all maps in the order of `maps`."""

    name: str
    title: str
    """For people, in the plural or as a mass noun: "depth", "surface normals"."""
    pipeline_classes: tuple[str, ...]
    """Classes in model_index.json; what we write states the first."""
    prediction_type: str
    """The `prediction_type` in model_index.json."""
    maps: tuple[MapKind, ...]
    num_targets: int
    """Latents t that the U-Net denoises together: it takes C(1 + t) channels and gives C·t."""
    decoded_channels: Literal[1, 3]
    """Channels k of a decoded latent that count; 1 is the mean of the three."""
    uncertainties: tuple[str, ...]
    """Names of the uncertainty maps, the ends of their file names."""

    valid_mask: Callable[[Maps, tuple[float, float]], Bool[np.ndarray, "h w"]]
    """Pixels of a sample that count, given the exclusive range of accepted values."""
    usual_limits: Mapping[str, float] = field(default_factory=dict)
    """By kind of picture, the largest value that training uses, exclusive, if neither the data nor the recipe states
    one. Kinds that are not named have no limit."""
    to_target: Callable[[Maps, Bool[np.ndarray, "h w"], str], Target]
    """The target of a view: its maps, the pixels that count, and the recipe's rule for those that do not ("far" or
    "raw"). Raises DataError where there is nothing to learn."""
    from_decoded: Callable[[Float[np.ndarray, "t k h w"]], Float[np.ndarray, "c h w"]]
    """One member's stack from its decoded latents, which are about [-1, 1]."""
    merge: Callable[[Float32[np.ndarray, "n c h w"], str, str], Merged]
    """Consensus of members that are known up to an invariance, by one of the `reductions`."""
    reductions: tuple[str, ...]
    """Ways to merge members; the first one is the default."""
    finish: Callable[[Float[np.ndarray, "c h w"]], Float[np.ndarray, "c h w"]]
    """The stack after resizing to the photo's size, back in its range."""
    mirror: Callable[[Maps], Maps]
    """The maps of a photo that is mirrored left to right."""
    picture: Callable[[Maps, str], np.ndarray]
    """The picture that shows a prediction, uint8 `[h w 3]`, in a color map."""
    check_output: Callable[[OutputConfig], object]
    """Raises InvalidValueError or MissingExtraError for a setting of `pictures` that cannot be met here."""
    pictures: tuple[Picture, ...]
    quantities: Mapping[str, str]
    """What a predicted value means under each invariance that predictions may have, for provenance."""
    pixel_loss: Literal["affine_invariant", "absolute", "angular"]
    """How decoded targets are compared in end-to-end training: `PIXEL_LOSSES` of training/loss.py."""
    index_facts: Mapping[str, Any]
    """Entries of a trained checkpoint's model_index.json besides its class and prediction type."""

    protocols: Mapping[str, Protocol]
    """How predictions are scored, by name."""
    default_protocol: Callable[[PredictionSpace], str]
    """Name of the protocol for predictions of a space where none is named."""
    headline_metrics: tuple[str, ...]
    """Scores that tables and validation show first; pages sort images by the first one. A protocol may have others."""
    spaces: tuple[PredictionSpace, ...]
    """Spaces of predictions (up to which transform they are known); the first one is the default."""
    prediction_space: Callable[[str], PredictionSpace]
    """The space of a checkpoint's predictions, from its invariance."""
    stated_space: Callable[[Mapping[str, Any], str], PredictionSpace | None] = lambda record, suffix: None
    """The space that the provenance record of a result file (with a suffix such as ".png") states; None where it states
    none. One that is not among `spaces` cannot be scored."""
    picture_spaces: frozenset[PredictionSpace] = frozenset()
    """Spaces that need no unit and no zero, so that saved 16-bit pictures of a map can be scored."""
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    """Estimators to compare with that do not look at the photo, by name."""
    space: str = "linear"
    """What decoded values are: proportional to depth or to its logarithm, or vectors of a frame; model_index.json may
    state one of the variants."""
    variants: Mapping[str, Modality] = field(default_factory=dict)
    """The same modality with decoded values in another space, by `space`."""
    space_of: Callable[[Mapping[str, Any]], object] = lambda index: index.get("space")
    """The space that a model_index.json states; None where it states none. Raises InvalidValueError for what does not
    fit together."""
    claims: Callable[[Mapping[str, Any]], bool] = lambda index: True
    """Whether a model_index.json of one of its classes is of this modality: classes may serve several."""
    unclaimed: Callable[[Mapping[str, Any]], str] = lambda index: ""
    """What is wrong, in words, with a model_index.json of one of its classes that no modality claims."""
    exported: Callable[[Maps, OutputConfig], Maps] = lambda maps, output: maps
    """The maps as files of numbers hold them."""
    imported: Callable[[Maps, Mapping[str, Any]], Maps] = lambda maps, facts: maps
    """Measured maps of a folder in this package's form, given what the image's meta.json states. Raises DataError for a
    fact that is missing or not accepted; its text continues the file's path ("has no ...")."""
    measured_from: Mapping[str, Callable[[Maps, Mapping[str, Any]], Maps]] = field(default_factory=dict)
    """By name of another modality: measured maps from those of that one and the image's facts. Raises as `imported`."""
    marks: tuple[str, ...] = ()
    """What a folder to score on may hold besides the maps: pictures `<mark>.png` that are white where people drew."""
    output_facts: Callable[[OutputConfig], Mapping[str, Any]] = lambda output: {}
    """What files state about settings of `exported` and `pictures`; other facts make other results."""
    complete: Callable[[Maps, Maps, UInt8[np.ndarray, "h w 3"], CallConfig], tuple[Maps, Mapping[str, Any]]] | None = (
        None
    )
    """The maps, compared or made consistent with their photo (sRGB) in place, with their uncertainties, and what is to
    be stated about it; None: they stay."""
    derivations: Mapping[str, Callable[[Modality, str, Camera], Modality]] = field(default_factory=dict)
    """By name of another modality: this one, decoded from what a model of that modality (of an invariance) gives for a
    picture of this camera."""
    relief: Callable[[Maps], Float[np.ndarray, "h w"]] | None = None
    """Planar depth, near small, known up to the checkpoint's invariance, from which a camera can be estimated; None:
    the maps hold none."""
    relative_depth: Callable[[Float[np.ndarray, "h w"]], tuple[np.ndarray, np.ndarray]] | None = None
    """Depth of decoded values, not below 0 and known up to the checkpoint's invariance, and its derivative, for what is
    optimized through the decoder; None: it is not depth."""
    gauge: Callable[[str], Gauge | None] = lambda invariance: None
    """The fit, given a checkpoint's invariance, of a map to another of the same scene: frames of a clip, tiles of a
    photo. None: no fit is needed, the values of both mean the same."""
    band: Callable[[str], Band | None] = lambda invariance: None
    """The definition of intervals of predictions, given a checkpoint's invariance; None: there are no intervals."""
    picture_within: Callable[[Maps, str, tuple[float, float]], np.ndarray] | None = None
    """`picture` of a frame of a clip: its colors go from the lower to the upper of two values of the map, the same for
    many frames. None: the colors of a pixel depend on its own values alone, so that `picture` does not flicker."""
    surface: Callable[[Maps, Mapping[str, Any]], Surface] | None = None
    """The surface that the maps show, given what results state about their settings; None: they show none, and there
    are no files of points and meshes."""
    panels: Callable[[BenchmarkSample, Maps, int], Mapping[str, np.ndarray]] = lambda sample, maps, step: {}
    """Pictures for a page, uint8 `[h w 3]` by heading: measured and aligned maps and their difference, of every n-th
    pixel."""

    def split(self, stack: Float[np.ndarray, "c h w"]) -> dict[str, np.ndarray]:
        """The maps of a stack, by name: views of it."""
        maps, start = {}, 0
        for kind in self.maps:
            part = stack[start : start + kind.channels]
            maps[kind.name] = part[0] if kind.channels == 1 else np.moveaxis(part, 0, -1)
            start += kind.channels
        return maps

    def stack(self, maps: Maps) -> Float[np.ndarray, "c h w"]:
        """The inverse of `split`."""
        parts = [maps[kind.name] for kind in self.maps]
        return np.concatenate([part[None] if part.ndim == 2 else np.moveaxis(part, -1, 0) for part in parts])

    def mirrored(self, stack: Float[np.ndarray, "c h w"]) -> Float[np.ndarray, "c h w"]:
        """The stack of the photo that is mirrored left to right."""
        return self.stack(self.mirror(self.split(stack)))

    def headline(self, protocol: str) -> tuple[str, ...]:
        """Names of the scores of a protocol that tables show first."""
        return self.protocols[protocol].headline or self.headline_metrics

    def __reduce__(self) -> tuple[Any, ...]:  # its functions cannot be pickled, its name can
        from openmarigold.modalities import find_modality

        return find_modality, (self.name, self.space)


def latent_valid_mask(valid_mask: Bool[np.ndarray, "... h w"], *, factor: int = 8) -> Bool[np.ndarray, "... hl wl"]:
    """Mask on the latent grid [... h/factor w/factor]: a cell is valid only if all its pixels are.

    A latent cell depends on all its pixels, so one invalid pixel makes it invalid. Paper: supplement, training.

    Raises:
        InvalidValueError: a side that is not a multiple of `factor`.
    """
    *lead, height, width = valid_mask.shape
    if height % factor or width % factor:
        raise InvalidValueError(f"a mask of {height}x{width} does not divide into cells of {factor}; pad it first")
    cells = valid_mask.reshape(*lead, height // factor, factor, width // factor, factor)
    return np.asarray(cells.all(axis=(-3, -1)))
