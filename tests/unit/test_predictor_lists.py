# SPDX-License-Identifier: Apache-2.0
"""Lists of photos: which of them go through the networks together, and what is held in memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openmarigold import predictor as predictor_module
from openmarigold.errors import ImageError, NumericalError
from openmarigold.images.exif import Photo
from openmarigold.predictor import Predictor
from tiny import make_photo, varied


@pytest.fixture(scope="module")
def predictor(onnx_checkpoint: Path) -> Predictor:
    return Predictor.load(onnx_checkpoint)


class Watched:
    """An engine that says how many images each call took, and batches as it is told."""

    def __init__(self, engine: Any, *, fitting: int = 1, max_batch_size: int | None = None) -> None:
        self._engine, self._fitting, self.max_batch_size = engine, fitting, max_batch_size
        self.calls: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def fitting_batch_size(self, height: int, width: int) -> int:
        return self._fitting

    def encode(self, rgb: np.ndarray) -> Any:
        self.calls.append(("encode", len(rgb)))
        return self._engine.encode(rgb)

    def denoise(self, rgb_latent: Any, noisy_latent: Any, *, timestep: int) -> Any:
        self.calls.append(("denoise", len(noisy_latent)))
        return self._engine.denoise(rgb_latent, noisy_latent, timestep=timestep)

    def decode(self, depth_latent: Any) -> np.ndarray:
        self.calls.append(("decode", len(depth_latent)))
        return self._engine.decode(depth_latent)


# The networks see A, C and D as 48x64: the first as it is, the second made smaller, the third padded. B is 64x48.
A, B, C, D = (48, 64), (64, 48), (96, 128), (46, 64)


@pytest.mark.parametrize(
    ("fixture", "limits"),
    [
        ("tiny_checkpoint", {"fitting": 4}),
        ("tiny_checkpoint", {"fitting": 16, "max_batch_size": 3}),
        ("onnx_checkpoint", {"fitting": 3}),
        ("lcm", {"fitting": 5}),
    ],
)
@pytest.mark.parametrize("ensemble_size", [1, 3])
def test_photos_that_go_together_have_their_own_depth(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, limits: dict[str, int], ensemble_size: int
) -> None:
    if fixture == "lcm":  # new noise in each step
        lcm = {"_class_name": "LCMScheduler", "rescale_betas_zero_snr": False}
        checkpoint = varied(request.getfixturevalue("tiny_checkpoint"), tmp_path / "lcm", scheduler=lcm)
    else:
        checkpoint = request.getfixturevalue(fixture)
    predictor = Predictor.load(checkpoint, device="cpu")
    photos = [make_photo(*size, seed=seed) for seed, size in enumerate((A, D, B, C, A, D, B, A))]
    settings: dict[str, Any] = {"ensemble_size": ensemble_size, "num_inference_steps": 2}
    alone = [predictor(photo, **settings) for photo in photos]
    predictor.engine = watched = Watched(predictor.engine, **limits)
    together = predictor(photos, **settings)
    assert 1 < max(size for _, size in watched.calls) <= min(limits.values())
    for photo, one, other in zip(photos, alone, together, strict=True):
        assert other.depth.shape == photo.shape[:2]
        assert other.settings == one.settings
        # Networks round otherwise in a batch; whole photos differ by a thousand times as much, see below.
        np.testing.assert_allclose(other.depth, one.depth, rtol=0, atol=1e-5)
        if ensemble_size > 1:
            np.testing.assert_allclose(other.uncertainty, one.uncertainty, rtol=0, atol=1e-5)
    assert min(np.abs(a.depth - b.depth).mean() for a, b in itertools.combinations(together[::4], 2)) > 0.01


def test_neighbors_fill_batches(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    own = predictor.engine
    photos = [make_photo(*size, seed=seed) for seed, size in enumerate((A, A, B, A, C, D, B))]

    def calls(**settings: Any) -> list[tuple[str, int]]:
        monkeypatch.setattr(predictor, "engine", Watched(own, fitting=4))
        predictor(photos, num_inference_steps=1, **settings)
        return predictor.engine.calls  # pyright: ignore[reportAttributeAccessIssue]

    def group(num_photos: int, *batches: int) -> list[tuple[str, int]]:
        return [("encode", num_photos), *((name, size) for size in batches for name in ("denoise", "decode"))]

    # A, A, A and C; at the end of the list B and B, and D.
    assert calls() == group(4, 4) + group(2, 2) + group(1, 1)
    assert calls(ensemble_size=3) == group(4, 4, 4, 4) + group(2, 4, 2) + group(1, 3)
    assert calls(ensemble_size=3, batch_size=2) == [
        *group(2, 2, 2, 2),  # the first two A
        *group(2, 2, 2, 2),  # A and C
        *group(2, 2, 2, 2),  # B
        *group(1, 2, 1),  # D
    ]
    assert calls(ensemble_size=3, batch_size=1) == group(1, 1, 1, 1) * 7
    # With a tolerance photos go alone.
    assert calls(ensemble_size=3, ensemble_tolerance=1e-9) == group(1, 3) * 7


def test_on_a_cpu_photos_go_one_by_one(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [make_photo(*size, seed=seed) for seed, size in enumerate((A, A, B, C))]
    alone = [predictor(photo, ensemble_size=2) for photo in photos]
    watched = Watched(predictor.engine, fitting=64, max_batch_size=predictor.engine.max_batch_size)
    read_photo = predictor_module.read_photo

    def read(one: Any, **options: Any) -> Photo:
        watched.calls.append(("read", 1))
        return read_photo(one, **options)

    monkeypatch.setattr(predictor_module, "read_photo", read)
    monkeypatch.setattr(predictor, "engine", watched)
    together = predictor(photos, ensemble_size=2, batch_size=64)
    member = ["denoise", "denoise", "decode"]
    assert watched.calls == [(name, 1) for name in ["read", "encode", *member, *member] * 4]
    for one, other in zip(alone, together, strict=True):
        assert one.depth.tobytes() == other.depth.tobytes()
        assert one.uncertainty.tobytes() == other.uncertainty.tobytes()  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("num_shapes", [1, 2, 5])
def test_a_long_list_is_not_held_in_memory(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_shapes: int
) -> None:
    paths = [tmp_path / f"{number:02}.png" for number in range(20)]
    for number, path in enumerate(paths):
        Image.fromarray(make_photo(64, 64 - 8 * (number % num_shapes), seed=number)).save(path)
    watched = Watched(predictor.engine, fitting=3)
    photos: list[np.ndarray] = []
    read_photo = predictor_module.read_photo

    def read(path: Any, **options: Any) -> Photo:
        prepared = len(photos) - sum(size for name, size in watched.calls if name == "encode")
        assert prepared < (3 if num_shapes == 1 else 6)
        photo = read_photo(path)
        photos.append(photo.rgb)
        return photo

    monkeypatch.setattr(predictor_module, "read_photo", read)
    monkeypatch.setattr(predictor, "engine", watched)
    predictions = predictor(paths, num_inference_steps=1)
    assert [prediction.depth.shape[1] for prediction in predictions] == [64 - 8 * (n % num_shapes) for n in range(20)]
    encoded = [size for name, size in watched.calls if name == "encode"]
    assert sum(encoded) == len(photos) == 20
    assert all(prediction.rgb is rgb for prediction, rgb in zip(predictions, photos, strict=True))  # no copies
    assert max(encoded) == (2 if num_shapes == 5 else 3)


def test_one_bad_photo_among_those_that_go_together(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [make_photo(*A, seed=seed) for seed in range(3)]
    watched = Watched(predictor.engine, fitting=4)
    monkeypatch.setattr(predictor, "engine", watched)
    with pytest.raises(ImageError, match="does not exist"):
        predictor([*photos, tmp_path / "missing.png"])
    decode = watched.decode

    def broken(depth_latent: Any) -> np.ndarray:
        depth = decode(depth_latent)
        depth[-1, 0, 0] = np.nan
        return depth

    monkeypatch.setattr(watched, "decode", broken)
    with pytest.raises(NumericalError, match="the VAE decoder of checkpoint tiny-8-onnx"):
        predictor(photos)
