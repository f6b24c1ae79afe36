# SPDX-License-Identifier: Apache-2.0
"""The results of one model in a run over photos: its settings, its lines in the manifest, its files."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from openmarigold import __version__
from openmarigold.checkpoints.calibration import Interval, choose_interval
from openmarigold.checkpoints.checkpoint import Checkpoint, loaded_variant
from openmarigold.checkpoints.configured import TinyVae, read_configured, read_tiny_vae, resolve_settings
from openmarigold.checkpoints.hashes import checkpoint_sha256, tiny_vae_sha256
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.engines import choose_engine
from openmarigold.engines.converted import LARGE_BYTES, ConvertedEngine, weight_bytes
from openmarigold.images.exif import Photo
from openmarigold.modalities import Modality
from openmarigold.predictor import Predictor
from openmarigold.predictor.cameras import camera_facts
from openmarigold.predictor.maker import Finisher, Maker
from openmarigold.results.manifest import file_size
from openmarigold.results.prediction import Prediction
from openmarigold.results.surfaces import check_is_plane, check_uncertainty, space_facts
from openmarigold.results.writers import check_output, needs_photo, prediction_writers, result_paths, write_results

_MOST_AT_ONCE = 4  # photos that a run predicts at the same time
_MOST_RESOLUTION = 384  # of photos predicted at the same time [px], since each takes memory
# Settings without effect on the results: where the model is and how it runs. The checkpoint counts by its hash.
_WITHOUT_EFFECT = frozenset(
    {
        "checkpoint",
        "revision",
        "local_files_only",
        "engine",
        "device",
        "compile",
        "batch_size",
        "tiny_vae",
        "tiny_vae_for",
        "modality",
        "ensemble_reduction",  # the facts of a call hold this and the next ones, if they matter
        "recompose",
        "ensemble_mirror",
        "tiles",
        "interval",
        "fov",  # the facts of the camera hold these
        "focal_px",
        "camera_file",
        "estimate_camera",
        "normals_checkpoint",
    }
)


def notes_on(prediction: Prediction, path: Path | str) -> list[str]:
    """Notes on the prediction of the photo at `path`, and on changes to a camera that was read from a file."""
    notes = [f"{path}: {note}" for note in prediction.settings.get("notes", ())]
    camera = prediction.camera
    if camera is not None and camera.source == "file" and camera.note:
        notes.append(f"{path}: camera of the file: {camera.note}")
    return notes


class ModelRun(Maker):
    """One model of a run: loaded for the first photo that needs it."""

    def __init__(
        self, config: PredictConfig, output: OutputConfig, output_dir: Path, finisher: Finisher | None = None
    ) -> None:
        super().__init__(output_dir)
        self.config = config
        self.finisher = finisher
        self.output = output
        self._predictor: Predictor | None = None

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that the settings name."""
        return read_configured(self.config)

    @property
    def writes(self) -> Modality:
        """The modality in the files."""
        return self.checkpoint.predicts if self.finisher is None else self.finisher.modality

    @property
    def modality_name(self) -> str:
        """Name of the modality in the files."""
        return self.writes.name

    @cached_property
    def tiny_vae(self) -> TinyVae | None:
        """The small autoencoder, if the settings name one."""
        return read_tiny_vae(self.config, self.checkpoint)

    @cached_property
    def checkpoint_sha256(self) -> str:
        """Hash of the files that loading reads."""
        return checkpoint_sha256(self.checkpoint)

    @cached_property
    def request(self) -> dict[str, Any]:
        """Every setting that affects the results, with the checkpoint's defaults filled in."""
        resolved = resolve_settings(self.config, self.checkpoint)
        names = [setting.name for setting in fields(resolved) if setting.name not in _WITHOUT_EFFECT]
        return {
            "checkpoint_sha256": self.checkpoint_sha256,
            "invariance": self.checkpoint.invariance,
            "processing_side": self.checkpoint.processing_side,
            **self.checkpoint.facts_of_index,
            **{name: getattr(resolved, name) for name in names},
            "variant": loaded_variant(self.checkpoint),
            "color_map": self.output.color_map,
            **self.writes.output_facts(self.output),
            **space_facts(self.output, self.writes),
            **self.checkpoint.facts_of_call(self.config),
            **camera_facts(self.config),
            **self._tiny_vae_settings,
            **({} if self.interval is None else self.interval.facts),
            **({} if self.finisher is None else self.finisher.settings),
        }

    def request_of(self, photo: Path, result: str) -> dict[str, Any]:
        """`request`, and the settings that affect this photo alone.

        Raises:
            DataError: data that this photo needs are missing.
        """
        return self.request if self.finisher is None else {**self.request, **self.finisher.facts_of(photo, result)}

    @cached_property
    def interval(self) -> Interval | None:
        """The calibrated interval for bounds, if the settings ask for them."""
        resolved = resolve_settings(self.config, self.checkpoint)
        return choose_interval(self.checkpoint, resolved, has_tiny_vae=self.tiny_vae is not None)

    @cached_property
    def _tiny_vae_settings(self) -> dict[str, str]:
        """The entries of `request` about a small autoencoder, if there is one."""
        if self.tiny_vae is None:
            return {}
        return {"tiny_vae_sha256": tiny_vae_sha256(self.tiny_vae), "tiny_vae_for": self.tiny_vae.used_for}

    @property
    def engine(self) -> str | None:
        """Name of the engine that runs the networks; None until a photo needs them."""
        return None if self._predictor is None else self._predictor.engine.name

    def check(self) -> None:
        """Check the settings before any photo is read."""
        if self.finisher is not None:
            self.finisher.check(self.checkpoint)
        _ = self.request
        check_output(self.output, self.writes)
        check_uncertainty(self.output, has_uncertainty=self.config.ensemble_size > 1)

    def load(self, others: Sequence[ModelRun] = ()) -> Predictor:
        """The loaded model; it shares the networks of a loaded one among `others` that has the same checkpoint."""
        if self._predictor is None:
            started = time.perf_counter()
            same = (other._predictor for other in others if other._shares_networks(self))
            twin = next((predictor for predictor in same if predictor is not None), None)
            if twin is None:
                self._predictor = Predictor.from_config(
                    self.config, found=self.checkpoint, tiny_vae=self.tiny_vae, at_once=self.at_once
                )
            else:
                self._predictor = Predictor(twin.engine, self.checkpoint, tiny_vae=self.tiny_vae)
            self.load_s = time.perf_counter() - started
        return self._predictor

    def sibling(self, config: PredictConfig, output: OutputConfig, output_dir: Path) -> ModelRun:
        """The same model with other call settings and other files; nothing is read or loaded again.

        `config` must name the same model.
        """
        other = ModelRun(config, output, output_dir, self.finisher)
        for name in ("checkpoint", "tiny_vae", "checkpoint_sha256"):
            vars(other)[name] = getattr(self, name)
        other._predictor = self.load()
        return other

    def _shares_networks(self, other: ModelRun) -> bool:
        return self is not other and self.checkpoint.directory == other.checkpoint.directory

    def paths(self, result: str) -> list[Path]:
        """The files of a result (its path in the output folder, without suffixes)."""
        path = self.output_dir / result
        return result_paths(
            path.parent,
            path.name,
            uncertainty=self.config.ensemble_size > 1,
            bounds=() if self.interval is None else self.interval.band.names,
            output=self.output,
            modality=self.writes,
            settings=self.request,
        )

    def share_cores(self, num_photos: int) -> int:
        """Several with small networks in ONNX Runtime: a photo per core is faster than one photo on all cores."""
        at_once = min(os.cpu_count() or 1, _MOST_AT_ONCE)
        resolution = resolve_settings(self.config, self.checkpoint).processing_resolution
        is_low = resolution is not None and 0 < resolution <= _MOST_RESOLUTION
        if self._predictor is None and self.finisher is None and is_low and num_photos >= 2 * at_once:
            settings: Any = {name: getattr(self.config, name) for name in ("engine", "device", "dtype", "compile")}
            is_small = weight_bytes(self.checkpoint) < LARGE_BYTES
            if is_small and choose_engine(self.checkpoint, **settings) == "onnx":
                return at_once
        return 1

    def stop(self) -> None:
        """Ends the predictions of other threads with their next network."""
        engine = None if self._predictor is None else self._predictor.engine
        if self.at_once > 1 and isinstance(engine, ConvertedEngine):
            engine.stop()

    def prepare(self, makers: Sequence[Maker]) -> None:
        """Loads the model."""
        self.load([other for other in makers if isinstance(other, ModelRun)])

    def predict(self, photo: Photo, path: Path, result: str) -> tuple[Prediction, list[str]]:
        """The prediction for the photo at `path`, without its pixels if no file needs them; and notes."""
        if needs_photo(self.output):
            check_is_plane(photo.metadata.panorama)
        predictor = self.load()
        prediction = predictor(photo, **self.config.call_options)
        if self.finisher is not None:
            prediction = self.finisher.finish(prediction, path, result, predictor)
        kept = prediction if needs_photo(self.output) else replace(prediction, rgb=None)
        return kept, notes_on(prediction, path)

    def write(
        self,
        prediction: Prediction,
        result: str,
        photo: Path,
        paths: Sequence[Path],
        input_sha256: str | None,
        request: Mapping[str, Any],
    ) -> tuple[dict[str, Any], dict[str, int | None], bool]:
        """Writes the results of a photo; returns provenance, valid files with sizes, whether others were removed.

        Raises:
            OutputError: a file cannot be written or removed.
        """
        modality, invariance = self.checkpoint.predicts, self.checkpoint.invariance
        if self.finisher is not None:
            modality, invariance = self.finisher.modality, self.finisher.invariance
        record = {
            "software": f"openmarigold {__version__}",
            "quantity": modality.quantities.get(invariance),  # a prediction of derived maps overrides it
            "input_sha256": input_sha256,
            "checkpoint": None,  # sets the place of its name, which the prediction's settings hold
            **request,
            **prediction.settings,
        }
        of_suffix = prediction_writers(
            prediction.maps,
            prediction.uncertainties,
            prediction.bounds,
            modality=self.writes,
            output=self.output,
            provenance=record,
            camera=prediction.camera,
            rgb=prediction.rgb,
        )  # first: files of an earlier run stay where these are refused
        kept = self.files.make_room(result, photo, paths, input_sha256, request=request)
        write_results(paths, Path(result).name, of_suffix, self.files.leftovers)
        return record, {**(kept or {}), **{path.name: file_size(path) for path in paths}}, kept is None
