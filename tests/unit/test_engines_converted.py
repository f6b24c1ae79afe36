# SPDX-License-Identifier: Apache-2.0
"""What is converted and kept, exported networks, and tiny autoencoders, in every engine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.checkpoints.configured import read_tiny_vae
from openmarigold.config import PredictConfig
from openmarigold.errors import CheckpointError
from openmarigold.evaluation.specs import predictor_spec
from openmarigold.networks import conversion
from openmarigold.networks.backbone import save_checkpoint
from openmarigold.networks.conversion import export_checkpoint
from openmarigold.predictor import Predictor
from openmarigold.predictor.run import predict_files
from openmarigold.results.provenance import read_provenance
from tiny import make_photo, make_vae

pytestmark = pytest.mark.usefixtures("shared_cache")

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "photos" / "hotel-room.jpg"


@pytest.fixture
def tiny_vae_dir(tmp_path: Path) -> Path:
    """An autoencoder with the latent space of `tiny_checkpoint` and other weights."""
    with torch.random.fork_rng():
        torch.manual_seed(21)
        save_checkpoint(tmp_path / "other-vae", vae=make_vae("tiny"))
    return tmp_path / "other-vae"


@pytest.mark.parametrize("large", [False, True])
def test_converted_networks_are_kept_and_made_again_when_damaged(
    tiny_checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr("openmarigold.engines.openvino.LARGE_BYTES", 0)
    rgb = make_photo(40, 48)
    first = Predictor.load(tiny_checkpoint, engine="openvino")(rgb).depth
    folders = sorted((cache / "converted").iterdir())
    assert [folder.name.rsplit("-", 1)[0] for folder in folders] == [
        "openvino-unet",
        "openvino-vae_decoder",
        "openvino-vae_encoder",
    ]
    made = converted_from_now_on(monkeypatch)
    np.testing.assert_array_equal(Predictor.load(tiny_checkpoint, engine="openvino")(rgb).depth, first)
    assert made == []
    (folders[0] / "model.bin").write_bytes((folders[0] / "model.bin").read_bytes()[:-5])  # cut
    np.testing.assert_array_equal(Predictor.load(tiny_checkpoint, engine="openvino")(rgb).depth, first)
    assert made == ["unet"]


@pytest.mark.slow
def test_a_converted_network_that_is_none_is_made_again(
    tiny_checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = make_photo(40, 48)
    first = Predictor.load(tiny_checkpoint, engine="openvino")(rgb).depth
    folders = sorted((cache / "converted").iterdir())
    made = converted_from_now_on(monkeypatch)
    size = (folders[1] / "model.xml").stat().st_size
    (folders[1] / "model.xml").write_bytes(b"?" * size)  # of the same size, but no network
    np.testing.assert_array_equal(Predictor.load(tiny_checkpoint, engine="openvino")(rgb).depth, first)
    assert made == ["vae_encoder", "unet", "vae_decoder"]


def converted_from_now_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the networks that are converted."""
    made: list[str] = []
    write = conversion.write_network

    def noting(source: Any, name: str, folder: Path, **settings: Any) -> None:
        made.append(name)
        write(source, name, folder, **settings)

    monkeypatch.setattr(conversion, "write_network", noting)
    return made


def test_a_damaged_compile_cache_is_removed(onnx_checkpoint: Path, cache: Path) -> None:
    rgb = make_photo(40, 48)
    first = Predictor.load(onnx_checkpoint, engine="openvino")(rgb).depth
    blobs = list((cache / "openvino").rglob("*.blob"))
    assert len(blobs) == 3
    for blob in blobs:
        blob.chmod(0o644)
        blob.write_bytes(blob.read_bytes()[:100] + b"\0" * 50)
    np.testing.assert_array_equal(Predictor.load(onnx_checkpoint, engine="openvino")(rgb).depth, first)


@pytest.mark.parametrize("kind", ["depth", pytest.param("normals", marks=pytest.mark.slow)])
def test_bfloat16_after_float32_and_before_it(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's cache took a network that was compiled for float32 also for bfloat16, and ended the process."""
    if not pytest.importorskip("openmarigold.engines.openvino").computes_in_bfloat16():
        pytest.skip("this CPU has no bfloat16")
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for order in [("float32", "bfloat16"), ("bfloat16", "float32")]:
        monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / order[0]))
        for dtype in order:
            found[order[0], dtype] = maps_by_another_process(kind, dtype, tmp_path)
    for first in ("float32", "bfloat16"):
        for exact, same, rounded in zip(
            found["float32", "float32"], found[first, "float32"], found[first, "bfloat16"], strict=True
        ):
            np.testing.assert_array_equal(same, exact)
            assert 0 < np.abs(rounded - exact).mean() < 0.02 * np.abs(exact).mean()


def maps_by_another_process(kind: str, dtype: str, folder: Path) -> list[np.ndarray]:
    """What the embedded model predicts with OpenVINO for a real photo and images of several sizes, odd ones too."""
    sizes = [(256, 256), (384, 256), (800, 256), (321, 481), (64, 64), (97, 333)]
    with Image.open(PHOTO) as photo:
        photos = [np.asarray(photo.convert("RGB")), *(make_photo(height, width) for height, width in sizes)]
    code = (
        "import sys\nimport numpy as np\nfrom openmarigold.checkpoints.checkpoint import EMBEDDED_DIRS\n"
        "from openmarigold.predictor import Predictor\nkind, dtype, source, target = sys.argv[1:]\n"
        "predictor = Predictor.load(EMBEDDED_DIRS[kind], engine='openvino', dtype=dtype)\n"
        "with np.load(source) as photos:\n"
        "    np.savez(target, *[predictor(photos[name]).maps[kind] for name in photos.files])\n"
    )
    np.savez(folder / "photos.npz", *photos)
    line = [sys.executable, "-c", code, kind, dtype, str(folder / "photos.npz"), str(folder / "maps.npz")]
    result = subprocess.run(line, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{dtype}: {result.stderr}"
    with np.load(folder / "maps.npz") as maps:
        found = [maps[name].astype(np.float64) for name in maps.files]
    assert [each.shape[:2] for each in found] == [photo.shape[:2] for photo in photos]
    return found


@pytest.mark.slow
def test_other_weights_are_converted_anew(tiny_checkpoint: Path, tmp_path: Path, cache: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(tiny_checkpoint, copied)
    rgb = make_photo(40, 48)
    first = Predictor.load(tiny_checkpoint, engine="onnx")(rgb).depth
    np.testing.assert_array_equal(Predictor.load(copied, engine="onnx")(rgb).depth, first)
    assert len(list((cache / "converted").iterdir())) == 3
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.weight"] *= 2
    save_file(weights, path, metadata={"format": "pt"})
    assert np.abs(Predictor.load(copied, engine="onnx")(rgb).depth - first).max() > 1e-3
    assert len(list((cache / "converted").iterdir())) == 4  # a U-Net more; the autoencoder is the same


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=pytest.mark.slow), "openvino"])
def test_exported_checkpoint_predicts_without_torch(tiny_checkpoint: Path, tmp_path: Path, format: Any) -> None:
    directory = tmp_path / "exported"
    export_checkpoint(read_checkpoint(tiny_checkpoint), directory, format=format, dtype="float32")
    assert read_checkpoint(directory).weights == format
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\nfrom openmarigold.predictor import Predictor\n"
        f"rgb = np.load({str(tmp_path / 'rgb.npy')!r})\n"
        f"np.save({str(tmp_path / 'depth.npy')!r}, Predictor.load({str(directory)!r})(rgb).depth)"
    )
    rgb = make_photo(50, 70)
    np.save(tmp_path / "rgb.npy", rgb)
    subprocess.run([sys.executable, "-c", code], check=True)
    expected = Predictor.load(tiny_checkpoint, engine="torch", device="cpu")(rgb).depth
    np.testing.assert_allclose(np.load(tmp_path / "depth.npy"), expected, rtol=0, atol=1e-3)
    with pytest.raises(CheckpointError, match="networks already; copy the folder"):
        export_checkpoint(read_checkpoint(directory), tmp_path / "again", format=format)


def test_onnx_becomes_openvino(onnx_checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(read_checkpoint(onnx_checkpoint), tmp_path / "exported", format="openvino", dtype="float32")
    rgb = make_photo(50, 70)
    expected = Predictor.load(onnx_checkpoint, engine="onnx")(rgb).depth
    np.testing.assert_allclose(Predictor.load(tmp_path / "exported")(rgb).depth, expected, rtol=0, atol=1e-3)
    with pytest.raises(CheckpointError, match="holds OpenVINO networks, which engine openvino runs"):
        Predictor.load(tmp_path / "exported", engine="onnx")
    (tmp_path / "exported" / "unet" / "model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"unet/model\.bin is missing; an OpenVINO checkpoint holds"):
        read_checkpoint(tmp_path / "exported")


def test_large_onnx_networks_keep_their_weights_beside_them(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openmarigold.networks.conversion._EXTERNAL_FROM_BYTES", 1)
    export_checkpoint(read_checkpoint(tiny_checkpoint), tmp_path / "exported", format="onnx", dtype="float32")
    assert (tmp_path / "exported" / "unet" / "model.onnx.data").stat().st_size > 10_000
    rgb = make_photo(50, 70)
    expected = Predictor.load(tiny_checkpoint, engine="torch", device="cpu")(rgb).depth
    for engine in ("onnx", "openvino"):
        depth = Predictor.load(tmp_path / "exported", engine=engine)(rgb).depth
        np.testing.assert_allclose(depth, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "used_for", [pytest.param("decode", marks=pytest.mark.slow), pytest.param("encode", marks=pytest.mark.slow), "both"]
)
def test_tiny_autoencoder_is_the_same_in_every_engine(
    tiny_checkpoint: Path, onnx_checkpoint: Path, tiny_vae_dir: Path, used_for: Any
) -> None:
    rgb = make_photo(50, 70)
    settings: dict[str, Any] = {"tiny_vae": tiny_vae_dir, "tiny_vae_for": used_for, "device": "cpu"}
    expected = Predictor.load(tiny_checkpoint, engine="torch", **settings)(rgb)
    own = Predictor.load(tiny_checkpoint, engine="torch", device="cpu")(rgb)
    assert np.abs(expected.depth - own.depth).max() > 0.01
    assert (expected.settings["tiny_vae"], expected.settings["tiny_vae_for"]) == ("vae", used_for)
    assert "tiny_vae" not in own.settings
    for checkpoint, engine in ((tiny_checkpoint, "openvino"), (tiny_checkpoint, "onnx"), (onnx_checkpoint, "onnx")):
        other = Predictor.load(checkpoint, engine=engine, **settings)(rgb)
        np.testing.assert_allclose(other.depth, expected.depth, rtol=0, atol=1e-3)


def test_tiny_autoencoder_counts_in_provenance_and_evaluation(
    onnx_checkpoint: Path, tiny_vae_dir: Path, photo_dir: Path, tmp_path: Path
) -> None:
    config = PredictConfig(checkpoint=onnx_checkpoint, num_inference_steps=1)
    with_tiny = PredictConfig(checkpoint=onnx_checkpoint, num_inference_steps=1, tiny_vae=str(tiny_vae_dir))
    photo = photo_dir / "a.png"
    assert predict_files([photo], output_dir=tmp_path / "out", config=config).engine == "onnx"
    again = predict_files([photo], output_dir=tmp_path / "out", config=with_tiny)
    assert again.renewed == [photo]
    record = read_provenance(tmp_path / "out" / "a_depth.png")
    assert (record["engine"], record["tiny_vae"], record["tiny_vae_for"]) == ("onnx", "vae", "decode")
    assert len(record["tiny_vae_sha256"]) == 64
    assert predict_files([photo], output_dir=tmp_path / "out", config=with_tiny).skipped == [photo]
    settings = [predictor_spec(one).settings for one in (config, with_tiny)]
    assert settings[0]["engine"] == "onnx"
    assert "tiny_vae_sha256" not in settings[0]
    assert settings[1]["tiny_vae_sha256"] == record["tiny_vae_sha256"]


def test_unfit_tiny_autoencoders_are_refused(
    tiny_checkpoint: Path, kl_checkpoint: Path, tiny_vae_dir: Path, tmp_path: Path
) -> None:
    found = read_checkpoint(kl_checkpoint)
    for tiny_vae, message in (
        (tmp_path / "nowhere" / "else" / "x", "is not a folder; give one with config.json"),
        (kl_checkpoint / "vae", "_class_name is 'AutoencoderKL'; accepted is 'AutoencoderTiny'"),
        (tiny_vae_dir, "8 latent channels do not fit checkpoint tiny-kl, which has 4"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_tiny_vae(PredictConfig(tiny_vae=str(tiny_vae)), found)
    path = tiny_vae_dir / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is truncated"):
        read_tiny_vae(PredictConfig(tiny_vae=str(tiny_vae_dir)), read_checkpoint(tiny_checkpoint))
