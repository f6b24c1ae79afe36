# SPDX-License-Identifier: Apache-2.0
"""Depth completion by guided denoising: at each step the noisy latent is moved so that its depth fits measured points.

Viola et al. 2024, "Marigold-DC: zero-shot monocular depth completion with guided diffusion" (arXiv 2412.13389),
section 3; docs/faithfulness.md lists the differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

from openmarigold.camera import Camera
from openmarigold.completion.evidence import Completed, RelativeDepth, SparsePoints
from openmarigold.completion.fits import Fit
from openmarigold.completion.guidance import Adam, AffineFit, GuidedFit, PowerFit, Smoothing, loss_at_points, neighbors
from openmarigold.completion.guided_settings import GuidedSettings, with_defaults
from openmarigold.completion.leave_out import pixel_indices
from openmarigold.completion.methods import Method, Options
from openmarigold.config import CallConfig
from openmarigold.diffusion import to_clean_and_noise
from openmarigold.engines import Latent, Linearized, differentiable
from openmarigold.errors import InvalidValueError, NumericalError
from openmarigold.images.photo import as_rgb, processing_size, resize, unpad
from openmarigold.predictor import ImageInput, Predictor
from openmarigold.predictor.sampling import Step

GUIDED_FOLDS = 4
_LEAST_NORM = 1e-8
_OUTLIER = 3.5
_LEAST_SPREAD = 0.01
_BETTER = 0.99  # a loss below this share of the best one so far is progress


def guided(
    predictor: Predictor,
    rgb: ImageInput,
    points: SparsePoints,
    settings: GuidedSettings | None = None,
    *,
    camera: Camera | None = None,
) -> Completed:
    """Metric depth of a photo from a depth model that is guided by measured points.

    Args:
        predictor: of a checkpoint that predicts depth, on engine torch.
        rgb: the photo, in any form that a `Predictor` accepts.
        points: depth at its pixels.
        settings: None is the defaults; `GuidedSettings.published()` is the loop of the published code.
        camera: of the upright photo, for checkpoints that see its rays; None: assumed.

    Returns:
        Planar depth [m] at the photo's size; it depends on the arguments only.

    Raises:
        InvalidValueError: no point, a point without depth above 0 or outside of the photo, or (checkpoints whose depth
            is known up to scale and shift) points of one depth only; a checkpoint of another modality; an engine
            without gradients.
        NumericalError: the loss is not finite.
    """
    settings = settings or GuidedSettings()
    differentiable(predictor.engine, "guided denoising")
    if predictor.modality.relative_depth is None:
        raise InvalidValueError(
            f"guided denoising needs a model of depth; {predictor.checkpoint.name} predicts {predictor.modality.title}"
        )
    image = as_rgb(rgb)
    size = (image.shape[0], image.shape[1])
    _check_points(points, size)
    guide = _Guide(predictor, with_defaults(settings, predictor), points, size)
    maps = np.stack(guide.members_in_meters(image, camera))
    depth = (maps[0] if len(maps) == 1 else np.median(maps, axis=0)).astype(np.float32)
    return Completed(
        depth=depth,
        method="guided",
        **guide.global_fit(depth),
        facts=guide.facts(len(points)),
        notes=(*points.notes, *guide.notes()),
    )


def guided_method(predictor: Predictor, settings: GuidedSettings | None = None) -> Method:
    """Guided denoising as one more method next to `methods.METHODS`; `RelativeDepth.rgb` must hold the photo.

    Its error is measured at points that are left out in `GUIDED_FOLDS` parts: `complete` runs it this many more times.
    """

    def run(relative: RelativeDepth, points: SparsePoints, options: Options) -> _Fitted:
        del options  # for global fits only
        if relative.rgb is None:
            raise InvalidValueError("guided denoising needs the photo; give RelativeDepth with rgb")
        return _Fitted(guided(predictor, relative.rgb, points, settings, camera=relative.camera), points)

    return Method(name="guided", title="guided denoising", run=run, folds=GUIDED_FOLDS)


@dataclass(frozen=True, eq=False)
class _Fitted:
    completed: Completed
    points: SparsePoints

    @property
    def outliers(self) -> Bool[np.ndarray, " n"]:
        """Points from which the guided map stays far away."""
        error = np.abs(np.log(self.at(self.points.pixels) / self.points.depth))
        return error > _OUTLIER * max(_LEAST_SPREAD, 1.4826 * float(np.median(error)))

    @property
    def fit(self) -> Fit:
        found = self.completed
        span = {"floor": float(found.depth.min()), "ceiling": float(found.depth.max())}
        return Fit(
            space=found.space,
            scale=found.scale,
            shift=found.shift,
            outliers=self.outliers,
            reason="optimized together with the latent",
            **span,
        )

    @property
    def facts(self) -> Mapping[str, object]:
        """For provenance."""
        return self.completed.facts

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, without those of the points."""
        return self.completed.notes[len(self.points.notes) :]

    def at(self, pixels: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
        return self.map()[pixel_indices(pixels, self.completed.depth.shape)]

    def map(self) -> Float64[np.ndarray, "h w"]:
        return self.completed.depth.astype(np.float64)


def _check_points(points: SparsePoints, size: tuple[int, int]) -> None:
    wrong = ~(np.isfinite(points.depth) & (points.depth > 0) & np.isfinite(points.pixels).all(axis=1))
    if wrong.any():
        raise InvalidValueError(
            f"{int(wrong.sum())} of {len(points)} points have no depth above 0 or no place; leave them out"
        )
    points.check_inside(size)


@dataclass
class _Member:
    """The fit of one ensemble member, and the optimizers' states for its latent and its fit."""

    mirrored: bool
    fit: GuidedFit
    move_latent: Adam
    move_fit: Adam
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Evaluated:
    """The results of one pass with a latent."""

    linearized: Linearized
    loss: float
    by_decoded: Float[np.ndarray, "h w"]
    """Gradient of the loss by the decoded map."""
    by_parameters: Float64[np.ndarray, " k"]


class _Guide:
    """Guides the members of one photo; a `Guide` of the sampler."""

    def __init__(
        self, predictor: Predictor, settings: GuidedSettings, points: SparsePoints, size: tuple[int, int]
    ) -> None:
        self._predictor, self._settings, self._size = predictor, settings, size
        self._engine = differentiable(predictor.engine, "guided denoising")
        checkpoint = predictor.checkpoint
        resolution = settings.processing_resolution
        resolution = checkpoint.one_pass_resolution if resolution is None else resolution
        self._call = CallConfig(
            num_inference_steps=settings.num_inference_steps,
            ensemble_size=settings.ensemble_size,
            seed=settings.seed,
            processing_resolution=resolution,
            timestep_spacing=settings.timestep_spacing,
            batch_size=1,  # the networks keep all activations of a member
        )
        resolved = predictor.resolve(self._call)
        assert resolved.processing_resolution is not None
        self._grid = processing_size(
            *size, processing_resolution=resolved.processing_resolution, side=checkpoint.processing_side
        )
        self._known = points.depth.astype(np.float64)
        mirrored = np.stack([size[1] - 1 - points.pixels[:, 0], points.pixels[:, 1]], axis=1)
        self._neighbors = [neighbors(pixels, size, self._grid) for pixels in (points.pixels, mirrored)]
        self._is_affine = checkpoint.invariance == "affine"
        if self._is_affine and self._known.min() == self._known.max():
            raise InvalidValueError(
                f"all {len(points)} points lie at {self._known.min():g} m, and {checkpoint.name} predicts depth up to "
                "scale and shift: give points of at least two depths"
            )
        modality = checkpoint.modality
        assert modality.relative_depth is not None
        self._relative_depth = modality.relative_depth
        self._members: dict[int, _Member] = {}

    def __call__(self, latent: Latent, step: Step) -> tuple[Latent, Latent]:
        (number,) = step.members
        iterations = self._settings.iterations
        assert iterations is not None
        if number not in self._members:
            self._members[number] = self._new_member(latent, step)
        member = self._members[number]
        if iterations > 1:
            return self._searched(latent, step, member, iterations)
        found = self._evaluated(latent, step, member)
        return self._moved(latent, step, member, found), found.linearized.prediction

    def _searched(self, latent: Latent, step: Step, member: _Member, iterations: int) -> tuple[Latent, Latent]:
        """The best of several iterations at one timestep, with the U-Net's output there."""
        best, without_progress = None, 0
        for iteration in range(iterations + 1):
            found = self._evaluated(latent, step, member)
            without_progress += 1
            if best is None or found.loss < best[0]:
                if best is None or found.loss < _BETTER * best[0]:
                    without_progress = 0
                best = found.loss, latent, found.linearized.prediction, member.fit.parameters
            if iteration == iterations or without_progress >= self._settings.patience:
                break
            latent = self._moved(latent, step, member, found)
        assert best is not None
        _, latent, prediction, member.fit.parameters = best
        return latent, prediction

    def _evaluated(self, latent: Latent, step: Step, member: _Member) -> _Evaluated:
        linearized = self._linearized(latent, step)
        depth, slope = self._relative_depth(self._unpadded(linearized.decoded))
        index, weight = self._neighbors[member.mirrored]
        values = (depth.ravel()[index].astype(np.float64) * weight).sum(axis=1)
        by_depth, by_parameters = member.fit.derivatives(values)
        loss, by_meters = loss_at_points(member.fit(values), self._known, self._settings.loss)
        if not math.isfinite(loss):
            raise NumericalError(
                f"the loss of guided denoising is not finite at step {step.number + 1} of {step.num_steps}; try a "
                "smaller learning_rate, or dtype float32"
            )
        member.losses.append(loss)
        by_decoded = np.zeros(depth.size)
        np.add.at(by_decoded, index, (by_meters * by_depth)[:, None] * weight)
        return _Evaluated(
            linearized=linearized,
            loss=loss,
            by_decoded=by_decoded.reshape(depth.shape) * slope,
            by_parameters=by_parameters @ by_meters,
        )

    def _moved(self, latent: Latent, step: Step, member: _Member, found: _Evaluated) -> Latent:
        """The latent after one step of Adam; the fit takes one too."""
        cotangent = np.zeros(found.linearized.decoded.shape, dtype=np.float32)
        height, width = found.by_decoded.shape
        cotangent[0, 0, 0, :height, :width] = found.by_decoded
        gradient = found.linearized.pullback(cotangent)
        if self._settings.smoothing:
            smooth = Smoothing((latent.shape[2], latent.shape[3]), len(self._known), self._settings.smoothing)
            gradient = self._engine.to_engine(smooth(self._engine.from_engine(gradient)))
        if self._settings.rescale:
            _, noise = self._clean_and_noise(latent, found.linearized.prediction, step)
            gradient = gradient * (
                (_norm(noise) or math.sqrt(math.prod(latent.shape))) / max(_norm(gradient), _LEAST_NORM)
            )
        member.fit.parameters = member.move_fit(member.fit.parameters, found.by_parameters)
        return member.move_latent(latent, gradient)

    def _linearized(self, latent: Latent, step: Step) -> Linearized:
        return self._engine.linearize(
            step.rgb_latent,
            latent,
            timestep=step.timestep,
            preview=lambda noisy, prediction: self._clean_and_noise(noisy, prediction, step)[0],
            save_memory=self._settings.save_memory,
        )

    def _clean_and_noise(self, noisy: Latent, prediction: Latent, step: Step) -> tuple[Latent, Latent]:
        schedule = self._predictor.checkpoint.schedule
        weights = schedule.coefficients(step.timestep)
        return to_clean_and_noise(noisy, prediction, *weights, prediction_type=schedule.prediction_type)

    def _unpadded(self, decoded: Float[np.ndarray, "1 1 1 H W"]) -> Float32[np.ndarray, "h w"]:
        return unpad(decoded[0, 0, 0], self._grid)

    def _new_member(self, latent: Latent, step: Step) -> _Member:
        settings, fit = self._settings, None
        if self._is_affine:
            low, high = float(self._known.min()), float(self._known.max())
            fit = AffineFit(low=low, span=high - low)
        else:  # the scale of the first preview
            depth, _ = self._relative_depth(self._unpadded(self._linearized(latent, step).decoded))
            index, weight = self._neighbors[step.mirrored]
            values = (depth.ravel()[index] * weight).sum(axis=1)
            unit = math.exp(float(np.median(np.log(self._known / np.maximum(values, _LEAST_NORM)))))
            fit = PowerFit(unit=unit, with_exponent=settings.exponent)
        latent_rate, fit_rate = Adam(settings.learning_rate or 0.0), Adam(settings.fit_rate)
        return _Member(mirrored=step.mirrored, fit=fit, move_latent=latent_rate, move_fit=fit_rate)

    def members_in_meters(
        self, image: UInt8[np.ndarray, "h w 3"], camera: Camera | None
    ) -> list[Float32[np.ndarray, "h w"]]:
        """Predicts, and returns the map [m] of each member."""
        self._prediction = self._predictor(image, camera=camera, guide=self, **_options(self._call))
        maps: list[np.ndarray] = []
        assert self._prediction.latent is not None
        for number, latent in enumerate(self._prediction.latent):
            member = self._members[number]
            decoded = self._engine.decode(self._engine.to_engine(latent[None]))
            depth, _ = self._relative_depth(self._unpadded(decoded))
            depth = depth[:, ::-1] if member.mirrored else depth
            depth = resize(np.ascontiguousarray(depth, dtype=np.float32), self._size, antialias=False)
            maps.append(np.asarray(member.fit(depth), dtype=np.float32))
        return maps

    def global_fit(self, depth: Float32[np.ndarray, "h w"]) -> dict[str, Any]:
        """Scale, shift and space of `Completed`, from the median of the members' parameters."""
        parameters = np.median([member.fit.parameters for member in self._members.values()], axis=0)
        first = self._members[0].fit
        if isinstance(first, AffineFit):
            s, h = map(float, parameters)
            return {"scale": s * s * first.span, "shift": h * h * first.low, "space": "depth"}
        return {"scale": float(parameters[1]), "shift": math.log(float(depth.max())), "space": "log"}

    def facts(self, num_points: int) -> dict[str, object]:
        """For provenance."""
        stated = ("checkpoint", "processing_resolution", "start_noise", "engine", "device", "dtype")
        also = ("tiny_vae", "tiny_vae_for")
        of_call = {
            name: self._prediction.settings[name] for name in (*stated, *also) if name in self._prediction.settings
        }
        losses = [member.losses for member in self._members.values()]
        return {
            **of_call,
            **{name: value for name, value in asdict(self._settings).items() if name not in of_call},
            "num_points": num_points,
            "evaluations": [len(values) for values in losses],
            "first_loss": [values[0] for values in losses],
            "last_loss": [min(values) if (self._settings.iterations or 1) > 1 else values[-1] for values in losses],
        }

    def notes(self) -> tuple[str, ...]:
        """Notes for the user about the run."""
        failed = sum(member.losses[-1] > member.losses[0] for member in self._members.values())
        return (f"guidance did not lower the loss of {failed} of {len(self._members)} members",) if failed else ()


def _norm(latent: Latent) -> float:
    return float((latent * latent).sum()) ** 0.5


def _options(call: CallConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(call).items() if value is not None}
