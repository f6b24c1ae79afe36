# SPDX-License-Identifier: Apache-2.0
"""The prediction for one photo: its maps, their uncertainty, and the settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from openmarigold.camera import Camera
from openmarigold.config import OutputConfig
from openmarigold.modalities import DEPTH, find_modality
from openmarigold.results.writers import write_prediction


@dataclass(frozen=True, kw_only=True, repr=False)
class Prediction:
    """The maps of one photo, at the photo's size.

    A map is also an attribute: `prediction.depth` is `prediction.maps["depth"]`. Normals are unit vectors, x right, y
    up, z backward (docs/normals.md); the spaces of intrinsic images stand in docs/intrinsics.md. Depth is in [0, 1],
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
    latent: Float32[np.ndarray, "n C h w"] | None = None
    """The denoised latents of the members, as the decoder got them; those of members that saw the mirrored photo are
    mirrored."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The resolved settings: checkpoint, invariance, num_inference_steps, ensemble_size, num_members (of which the
    maps were made; fewer than ensemble_size where ensemble_tolerance stopped), processing_resolution, seed,
    timestep_spacing, start_noise, final_step, engine, device, dtype; tiny_vae and tiny_vae_for where one was used;
    derived_from and quantity (with what was assumed) of maps that are computed from another modality's; camera
    (`Camera.to_dict`), camera_confidence, shift and shift_source where they were estimated, panorama where the photo is one."""
    modality: str = DEPTH.name
    """Name of what the model predicts."""
    space: str | None = None
    """Of the modality's variants, the one that the model predicts; None for the modality itself."""
    camera: Camera | None = None
    """Of the upright photo, in its pixels; `camera.source` says how it is known. Predictors always state one."""
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
        quantity = modality.quantities.get(str(self.settings.get("invariance")))
        record = {**({} if quantity is None else {"quantity": quantity}), **self.settings}
        return write_prediction(
            self.maps,
            self.uncertainties,
            modality=modality,
            output_dir=folder,
            stem=stem,
            output=output,
            provenance=record,
            overwrite=overwrite,
        )

    def __repr__(self) -> str:
        maps = [f"{name} {list(values.shape)}" for name, values in {**self.maps, **self.uncertainties}.items()]
        said = ("checkpoint", "num_inference_steps", "ensemble_size", "seed")
        settings = [f"{name}={self.settings[name]!r}" for name in said if name in self.settings]
        return f"Prediction({', '.join(maps + settings)})"
