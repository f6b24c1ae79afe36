# SPDX-License-Identifier: Apache-2.0
"""The prediction for one photo: its maps, their uncertainty, and the settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from openmarigold.camera import Camera
from openmarigold.config import OutputConfig
from openmarigold.modalities import DEPTH, Modality, find_modality
from openmarigold.results.surfaces import surface_arguments
from openmarigold.results.writers import write_prediction

if TYPE_CHECKING:  # points and meshes are imported when they are asked for
    from openmarigold.reconstruction.mesh import Mesh
    from openmarigold.reconstruction.points import PointCloud


@dataclass(frozen=True, kw_only=True, repr=False)
class Prediction:
    """The maps of one photo, at the photo's size.

    A map is also an attribute: `prediction.depth` is `prediction.maps["depth"]`. Normals are unit vectors, x right, y
    up, z backward (docs/normals.md); docs/intrinsics.md lists the spaces of intrinsic images. Depth is in [0, 1],
    nearer is smaller. True depth follows from the checkpoint's invariance: "affine" (every published one):
    `scale * depth + shift`, near plane 0, far plane 1; "scale": `scale * depth`; "absolute": a fixed multiple of
    `depth`, which the checkpoint's authors state.
    """

    maps: dict[str, np.ndarray]
    """float32 by name: `[h w]` of one channel, `[h w c]` of more."""
    uncertainties: dict[str, np.ndarray] = field(default_factory=dict)
    """float32 `[h w]` by name; empty for a single member. For depth "uncertainty": the median absolute deviation over
    the aligned members, in units of `depth`; for normals "normals_uncertainty": the mean angle [deg] between members
    and their mean direction."""
    bounds: dict[str, np.ndarray] = field(default_factory=dict)
    """float32 `[h w]` by name, where an interval was asked for: of depth "depth_lo" and "depth_hi" in units of `depth`
    (the upper one may be above 1), of normals "normals_within" [deg]; docs/uncertainty.md describes their coverage."""
    latent: Float32[np.ndarray, "n C h w"] | None = None
    """The denoised latents of the members, as the decoder got them; those of members that saw the mirrored photo are
    mirrored."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The resolved settings: checkpoint, invariance, num_inference_steps, ensemble_size, num_members (of which the
    maps were made; fewer than ensemble_size where ensemble_tolerance stopped), processing_resolution, seed,
    timestep_spacing, start_noise, final_step, engine, device, dtype; tiny_vae and tiny_vae_for where one was used;
    derived_from and quantity (with what was assumed) of maps that are computed from another modality's; camera
    (`Camera.to_dict`); camera_confidence, shift and shift_source where they were estimated; panorama where the photo is
    one."""
    modality: str = DEPTH.name
    """Name of what the model predicts."""
    space: str | None = None
    """Variant of the modality that the model predicts; None for the modality itself."""
    camera: Camera | None = None
    """The camera of the upright photo, in pixels. `camera.source` names its origin. Predictors always set a camera."""
    rgb: UInt8[np.ndarray, "H W 3"] | None = None
    """The photo, for the colors of points; None where it was not kept."""

    def __getattr__(self, name: str) -> np.ndarray:
        maps = self.__dict__.get("maps", {})
        if name in maps:
            return maps[name]
        raise AttributeError(f"a prediction of {', '.join(maps)} has no attribute {name!r}")

    @property
    def uncertainty(self) -> np.ndarray | None:
        """The uncertainty map; None for a single member. Where there are several, take them from `uncertainties`."""
        return next(iter(self.uncertainties.values()), None)

    @property
    def interval(self) -> float | None:
        """The share of pixels for which `bounds` are to hold; None where no interval was asked for."""
        stated = self.settings.get("interval")
        return None if stated is None else stated["level"]

    @property
    def lo(self) -> np.ndarray | None:
        """The lower bound; None without an interval, or of normals, whose bound is an angle."""
        return next((values for name, values in self.bounds.items() if name.endswith("_lo")), None)

    @property
    def hi(self) -> np.ndarray | None:
        """The upper bound; None as for `lo`."""
        return next((values for name, values in self.bounds.items() if name.endswith("_hi")), None)

    def picture(self, color_map: str = "Spectral") -> Image.Image:
        """The maps in colors, as `predict` writes them.

        Raises:
            InvalidValueError, MissingExtraError: see `modalities.colors.color_table`.
        """
        return Image.fromarray(find_modality(self.modality, self.space).picture(self.maps, color_map))

    def save(
        self, folder: Path | str, stem: str, *, output: OutputConfig | None = None, overwrite: bool = False
    ) -> list[Path]:
        """Writes the result files of `openmarigold predict`, with the settings as provenance; returns their paths.

        Args:
            folder: made where it is missing.
            stem: the beginning of the file names: "cat" gives cat_depth.npy, cat_depth.png, cat_depth_colored.png.
            output: which files; None is npy and png.
            overwrite: replace files of these names.

        Raises:
            InvalidValueError: a stem that is empty or names another folder, or a color map that is not known.
            MissingExtraError: a format or color map without its extra.
            OutputError: a file exists and `overwrite` is off, or the folder cannot be written.
        """
        modality = find_modality(self.modality, self.space)
        return write_prediction(
            self.maps,
            self.uncertainties,
            self.bounds,
            modality=modality,
            output_dir=folder,
            stem=stem,
            output=output,
            provenance=self._record(modality),
            overwrite=overwrite,
            camera=self.camera,
            rgb=self.rgb,
        )

    def points(
        self,
        *,
        max_points: int | None = None,
        max_depth: float | None = None,
        drop_far: float = 0.0,
        drop_uncertain: float = 0.0,
        cut_edges: bool = True,
    ) -> PointCloud:
        """The 3D points of the depth map, in the colors of the photo. See docs/points.md.

        Args:
            max_points: largest number of points, taken on a grid of pixels; None: every pixel.
            max_depth: leave out points with a larger depth, in the unit of the depth.
            drop_far: leave out the farthest pixels, such as a sky: their share, from 0 to below 1.
            drop_uncertain: leave out the pixels that the members of an ensemble agree least on: their share.
            cut_edges: leave out points that float between an object and what is behind it.

        Raises:
            InvalidValueError: a value that is not accepted, a modality that shows no surface, a panorama, or
                `drop_uncertain` without an ensemble.
        """
        from openmarigold.reconstruction.points import points_from_depth

        surface = self._surface(
            max_points=max_points,
            max_depth=max_depth,
            drop_far=drop_far,
            drop_uncertain=drop_uncertain,
            cut_edges=cut_edges,
        )
        return points_from_depth(**surface)

    def mesh(
        self,
        *,
        max_points: int | None = None,
        max_depth: float | None = None,
        drop_far: float = 0.0,
        drop_uncertain: float = 0.0,
        cut_edges: bool = True,
    ) -> Mesh:
        """The surface that the depth shows, with the photo on it; arguments and errors as of `points`.

        `max_points` is the budget of vertices. With `cut_edges` the mesh is open where depth jumps.
        """
        from openmarigold.reconstruction.mesh import mesh_from_depth

        surface = self._surface(
            max_points=max_points,
            max_depth=max_depth,
            drop_far=drop_far,
            drop_uncertain=drop_uncertain,
            cut_edges=cut_edges,
        )
        return mesh_from_depth(**surface)

    def _record(self, modality: Modality) -> dict[str, Any]:
        quantity = modality.quantities.get(str(self.settings.get("invariance")))
        return {**({} if quantity is None else {"quantity": quantity}), **self.settings}

    def _surface(self, **choice: Any) -> dict[str, Any]:
        from openmarigold.reconstruction.grid import PixelChoice

        pixels, modality = PixelChoice(**choice), find_modality(self.modality, self.space)
        known = {"settings": self._record(modality), "camera": self.camera, "rgb": self.rgb}
        arguments = surface_arguments(self.maps, self.uncertainties, modality=modality, **known)
        return {**arguments, "choice": pixels}

    def __repr__(self) -> str:
        shown = {**self.maps, **self.uncertainties, **self.bounds}
        maps = [f"{name} {list(values.shape)}" for name, values in shown.items()]
        said = ("checkpoint", "num_inference_steps", "ensemble_size", "seed")
        settings = [f"{name}={self.settings[name]!r}" for name in said if name in self.settings]
        return f"Prediction({', '.join(maps + settings)})"
