# SPDX-License-Identifier: Apache-2.0
"""One Predictor in many threads, and in other processes: the bytes are those alone, and no other thread is silenced."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.engines import open_engine
from openmarigold.errors import ImageError, InvalidValueError, MissingExtraError, NumericalError
from openmarigold.files import write_atomically
from openmarigold.images import quiet
from openmarigold.images.exr import write_exr
from openmarigold.images.photo import read_rgb
from openmarigold.networks import conversion
from openmarigold.networks.backbone import save_checkpoint
from openmarigold.predictor import Predictor
from tiny import make_photo, make_vae

pytestmark = pytest.mark.usefixtures("shared_cache")

NUM_THREADS = 6


@pytest.fixture
def elsewhere() -> Any:
    """A thread that does what it is given, and is waited for."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda *call: pool.submit(*call).result(timeout=30)


def damaged_tiff(path: Path) -> Path:
    """A file on which libtiff remarks."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    content[60:200] = bytes(140)
    path.write_bytes(content)
    return path


def damaged_exr(path: Path) -> Path:
    """A file on which OpenEXR remarks, on Python's stdout and on the process's stderr."""
    noise = np.random.default_rng(0).random((40, 56), dtype=np.float32)
    write_exr(path, dict.fromkeys("RGB", noise), {})
    path.write_bytes(path.read_bytes()[:-900])
    return path


def mixed_photos(folder: Path) -> list[Any]:
    """Sizes and formats, whole and damaged."""
    photos: list[Any] = [make_photo(40, 24), make_photo(9, 70)]
    for number, suffix in enumerate(("png", "jpg", "tif", "webp")):
        photos.append(folder / f"whole.{suffix}")
        Image.fromarray(make_photo(24 + 16 * number, 40, seed=number)).save(photos[-1])
    photos.append(folder / "whole.exr")
    write_exr(photos[-1], dict(zip("RGB", np.moveaxis(make_photo(32, 24) / np.float32(255), -1, 0), strict=True)), {})
    (folder / "damaged.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:700])
    return [*photos, folder / "damaged.jpg", damaged_tiff(folder / "damaged.tif"), damaged_exr(folder / "damaged.exr")]


def outcome(predictor: Predictor, photo: Any, **settings: Any) -> str:
    try:
        return hashlib.sha256(predictor(photo, **settings).depth.tobytes()).hexdigest()
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize(
    ("fixture", "engine", "by_size"),
    [
        ("onnx_checkpoint", "onnx", False),
        ("onnx_checkpoint", "openvino", False),
        ("kl_onnx_checkpoint", "openvino", True),
        ("kl_checkpoint", "torch", False),
    ],
)
def test_threads_get_the_bytes_of_one(
    request: pytest.FixtureRequest,
    fixture: str,
    engine: Any,
    by_size: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if by_size:  # as large checkpoints have their autoencoders compiled
        monkeypatch.setattr("openmarigold.engines.openvino.LARGE_BYTES", 0)
        monkeypatch.setattr("openmarigold.engines.openvino._KEPT_SHAPES", 2)
    predictor = Predictor.load(request.getfixturevalue(fixture), engine=engine, device="cpu")
    photos = mixed_photos(tmp_path) if not by_size else [make_photo(size, 24) for size in (16, 24, 32)]
    alone = [outcome(predictor, photo, ensemble_size=2, batch_size=2) for photo in photos]
    assert sum("damaged" in found for found in alone) == (0 if by_size else 3)
    start = threading.Barrier(NUM_THREADS)

    def work(number: int) -> list[str]:
        start.wait()
        order = [(place + number) % len(photos) for place in range(len(photos))]
        found = {place: outcome(predictor, photos[place], ensemble_size=2, batch_size=2) for place in order}
        return [found[place] for place in range(len(photos))]

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for found in pool.map(work, range(NUM_THREADS)):
            assert found == alone


class LateAnswers:
    """An engine whose encoder fails on black photos, whose answers come late as from a GPU, and which calls back."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.before_denoising: Callable[[bool], object] = lambda broken: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def encode(self, rgb: np.ndarray) -> np.ndarray:
        latent = self._engine.encode(rgb)
        return np.full_like(latent, np.nan) if (rgb == -1).all() else latent

    def denoise(self, rgb_latent: np.ndarray, noisy_latent: np.ndarray, *, timestep: int) -> np.ndarray:
        self.before_denoising(bool(np.isnan(rgb_latent).any()))
        return self._engine.denoise(rgb_latent, noisy_latent, timestep=timestep)

    def is_finite(self, latent: np.ndarray) -> np.bool_:
        return np.isfinite(latent).all()


@pytest.mark.parametrize("broken_first", [True, False])
def test_late_answers_belong_to_their_own_call(onnx_checkpoint: Path, elsewhere: Any, broken_first: bool) -> None:
    predictor = Predictor.load(onnx_checkpoint)
    engine: Any = LateAnswers(predictor.engine)
    predictor.engine = engine
    whole, black = make_photo(24, 32), np.zeros((24, 32, 3), np.uint8)
    expected = predictor(whole).depth
    inner: list[Any] = []

    def call_the_other(broken: bool) -> None:
        if broken is broken_first and not inner:
            inner.append(None)
            inner[0] = elsewhere(failing if not broken_first else predictor, whole if broken_first else black)

    def failing(photo: np.ndarray) -> None:
        with pytest.raises(NumericalError, match="the VAE encoder"):
            predictor(photo)

    engine.before_denoising = call_the_other
    if broken_first:
        failing(black)
        np.testing.assert_array_equal(inner[0].depth, expected)
    else:
        np.testing.assert_array_equal(predictor(whole).depth, expected)
    assert inner


def test_tiles_are_for_one_thread(tiny_checkpoint: Path) -> None:
    engine: Any = open_engine(read_checkpoint(tiny_checkpoint), engine="torch", device="cpu")
    engine._vaes["decode"].tile_latent_min_size = engine._vaes["decode"].tile_sample_min_size = 8
    latents = torch.randn(2, 8, 24, 24, generator=torch.Generator().manual_seed(0))
    expected = engine.decode(latents[1:])
    entered, plain, decode = threading.Event(), engine._networks["decode"], engine._decode

    def too_large(latent: torch.Tensor) -> torch.Tensor:
        if torch.equal(latent, latents[:1]):
            raise RuntimeError("DefaultCPUAllocator: alloc_cpu: not enough memory")
        return plain(latent)

    def in_tiles(latent: torch.Tensor) -> torch.Tensor:
        entered.set()
        second.join(timeout=0.2)  # it may come in between, or wait
        return decode(latent)

    found: list[np.ndarray] = []
    second = threading.Thread(target=lambda: entered.wait(30) and found.append(engine.decode(latents[1:])))
    engine._networks["decode"], engine._decode = too_large, in_tiles
    second.start()
    tiled = engine.decode(latents[:1])
    second.join()
    np.testing.assert_array_equal(found[0], expected)
    assert not np.array_equal(tiled, plain(latents[:1]).detach().numpy())


def test_networks_are_converted_once(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "cache"))
    written, write_network = [], conversion.write_network

    def noting(source: Any, name: str, *rest: Any, **named: Any) -> None:
        written.append(name)
        write_network(source, name, *rest, **named)

    monkeypatch.setattr(conversion, "write_network", noting)
    with ThreadPoolExecutor(3) as pool:
        opened = [pool.submit(Predictor.load, tiny_checkpoint, engine="onnx") for _ in range(3)]
        depths = [future.result()(make_photo(24, 32)).depth for future in opened]
    assert sorted(written) == ["unet", "vae_decoder", "vae_encoder"]
    for depth in depths[1:]:
        np.testing.assert_array_equal(depth, depths[0])


@pytest.mark.parametrize("kind", ["tiff", "exr"])
def test_reading_silences_no_other_thread(
    kind: str, tmp_path: Path, elsewhere: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def speak() -> None:
        print("printed", flush=True)
        os.write(1, b"written to 1\n")
        os.write(2, b"written to 2\n")

    def while_spoken(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            elsewhere(speak)
            return call(*arguments, **named)

        return called

    if kind == "tiff":
        path = damaged_tiff(tmp_path / "damaged.tif")
        monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", while_spoken(TiffImagePlugin.TiffImageFile.load))
    else:
        openexr = pytest.importorskip("OpenEXR")
        path = damaged_exr(tmp_path / "damaged.exr")
        monkeypatch.setattr(openexr, "File", while_spoken(openexr.File))
    before = sys.stdout
    with pytest.raises(ImageError, match="is damaged"):
        read_rgb(path)
    captured = capfd.readouterr()
    assert set(captured.out.splitlines()) == {"printed", "written to 1"}, "and no remarks of a library"
    assert "written to 2" in captured.err.splitlines()
    assert sys.stdout is before


def test_messages_of_libtiff_are_dropped_in_one_thread(
    tmp_path: Path, elsewhere: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    path = damaged_tiff(tmp_path / "damaged.tif")

    def load() -> None:
        with Image.open(path) as image, pytest.raises(OSError, match="decoder error"):
            image.load()

    with quiet.quiet():
        if not quiet._libtiff:
            pytest.skip("libtiff is built into this Pillow")
        load()
        assert capfd.readouterr().err == ""
        elsewhere(load)
        assert "LZWDecode" in capfd.readouterr().err
    load()
    assert "LZWDecode" in capfd.readouterr().err


def test_warnings_are_dropped_in_one_thread(elsewhere: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet.quiet():
            warnings.warn("mine", stacklevel=1)
            elsewhere(warnings.warn, "of another thread")
        warnings.warn("mine, later", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["of another thread", "mine, later"]


def test_readers_that_overlap_leave_warnings_on(tmp_path: Path, elsewhere: Any) -> None:
    frames = [Image.fromarray(make_photo(8, 8, seed=seed)) for seed in (0, 1)]
    path = tmp_path / "frames.tif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    inside, ended = threading.Event(), threading.Event()

    def later(_: str) -> None:
        inside.set()
        assert ended.wait(30)

    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("always")

        def first(_: str) -> None:  # the second one begins inside the first, and ends after it
            waiting.append(pool.submit(lambda: read_rgb(path, note=later)))
            assert inside.wait(30)

        waiting: list[Any] = []
        read_rgb(path, note=first)
        ended.set()
        waiting[0].result()
        warnings.warn("still heard", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["still heard"]


def test_stdout_of_another_redirection_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with quiet.unprinted():
        print("dropped")
        outer = sys.stdout
        sys.stdout = before  # as when a redirection of another thread ends here
        with quiet.unprinted():
            print("dropped, too")
        sys.stdout = outer
    assert sys.stdout is before
    print("printed")
    assert capsys.readouterr().out == "printed\n"


def test_a_plugin_that_another_thread_loads_is_not_passed_over(tmp_path: Path) -> None:
    Image.fromarray(make_photo(8, 8)).save(tmp_path / "photo.webp")
    (tmp_path / "photo.webp").rename(tmp_path / "photo")  # without a suffix all plugins are asked
    code = f"""
from pathlib import Path
from PIL import Image
from openmarigold.images.photo import read_rgb

class Formats(list):
    def copy(self):  # here Pillow looks which formats it has tried, and here another thread ends loading the others
        Image.init()
        return super().copy()

Image.ID = Formats(Image.ID)
print(read_rgb(Path({str(tmp_path / "photo")!r})).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(8, 8, 3)\n", done.stderr


def test_two_threads_write_one_file(tmp_path: Path, elsewhere: Any) -> None:
    path = tmp_path / "entry.json"

    def write(temporary: Path) -> None:
        temporary.write_text("first")
        elsewhere(write_atomically, path, lambda other: other.write_text("second"))
        assert path.read_text() == "second"

    write_atomically(path, write)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_with_control_characters_reaches_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = damaged_exr(tmp_path / "light.exr").rename(tmp_path / "a\x1b[31m\nb\udcff.exr")
    with pytest.raises(ImageError, match="is damaged"):
        read_rgb(path)
    assert "\x1b" not in capfd.readouterr().err
    write_exr(tmp_path / "light.exr", dict.fromkeys("RGB", np.ones((4, 6), np.float32)), {})
    (tmp_path / "light.exr").replace(path)
    assert read_rgb(path).shape == (4, 6, 3)


def test_a_spawned_process_gives_the_same_bytes(onnx_checkpoint: Path) -> None:
    predictor = Predictor.load(onnx_checkpoint)
    photo = make_photo(24, 32)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(predictor, photo).result(timeout=120)
    expected = predictor(photo)
    assert found.depth.tobytes() == expected.depth.tobytes()
    assert found.settings == expected.settings


@pytest.mark.parametrize(
    ("fixture", "settings"),
    [
        ("onnx_checkpoint", {"engine": "openvino"}),
        ("tiny_checkpoint", {"engine": "torch", "dtype": "bfloat16"}),
        ("tiny_checkpoint", {"engine": "torch", "tiny_vae_for": "both"}),
    ],
)
def test_a_pickle_holds_settings_only(
    request: pytest.FixtureRequest,
    fixture: str,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = request.getfixturevalue(fixture)
    if "tiny_vae_for" in settings:
        with torch.random.fork_rng():
            torch.manual_seed(21)
            save_checkpoint(tmp_path / "other-vae", vae=make_vae("tiny"))
        settings = {**settings, "tiny_vae": tmp_path / "other-vae"}
    monkeypatch.chdir(checkpoint.parent)
    predictor = Predictor.load(checkpoint.name, device="cpu", **settings)
    predictor.checkpoint = replace(predictor.checkpoint, default_num_inference_steps=1)
    stored = pickle.dumps(predictor)
    assert len(stored) < 5000
    monkeypatch.chdir(tmp_path)
    found, expected = pickle.loads(stored)(make_photo(24, 32)), predictor(make_photo(24, 32))
    assert found.depth.tobytes() == expected.depth.tobytes()
    assert found.settings == expected.settings
    assert found.settings["num_inference_steps"] == 1


def test_an_engine_in_memory_cannot_be_pickled(onnx_checkpoint: Path) -> None:
    loaded = Predictor.load(onnx_checkpoint)
    predictor = Predictor(loaded.engine, replace(loaded.checkpoint, name="in memory"))
    with pytest.raises(InvalidValueError, match=r"in memory was made from an engine in memory .* use Predictor\.load"):
        pickle.dumps(predictor)


def test_errors_of_worker_processes_arrive() -> None:
    error = pickle.loads(pickle.dumps(MissingExtraError("OpenEXR", "exr")))
    assert isinstance(error, MissingExtraError)
    assert str(error) == str(MissingExtraError("OpenEXR", "exr"))
