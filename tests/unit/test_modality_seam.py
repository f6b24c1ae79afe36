# SPDX-License-Identifier: Apache-2.0
"""A modality is one file: the stub of tests/brightness.py goes through the rooms without touching any of them."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import openmarigold
from brightness import BRIGHTNESS, maps_of
from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.cli import run
from openmarigold.data.augmentation import random_view
from openmarigold.data.decoding import FrameDefectError
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.preparation import FrameFilter
from openmarigold.data.shard_writer import NewSample, ShardWriter
from openmarigold.data.sources import Sample
from openmarigold.diffusion import NoiseSchedule
from openmarigold.engines.converted import ConvertedEngine
from openmarigold.errors import DataError, RecipeError
from openmarigold.evaluation import evaluate
from openmarigold.modalities import MODALITIES
from openmarigold.networks.backbone import decode_targets, decode_to_image, load_unet, save_checkpoint
from openmarigold.predictor import Predictor
from openmarigold.results.provenance import read_provenance
from openmarigold.seeding import generator_for
from openmarigold.training import train
from openmarigold.training.packed import PackedRows
from openmarigold.training.recipe import DataConfig
from openmarigold.training.views import Mixture
from tiny import make_photo, make_unet, make_vae
from training_data import write_training_data

SIZE = (32, 48)
RECIPE = """
kind = "depth"
modality = "brightness"
base = "{base}"
seed = {seed}
data = {{ sources = {{ colors = 1.0 }}, size = [32, 48], min_scale = 0.8, min_depth = 0.0, num_variants = 2 }}
optimization = {{ num_steps = 5, batch_size = 2, learning_rate = 1e-3, warmup_steps = 0 }}
checkpoint = {{ name = "tiny-brightness", processing_resolution = 48 }}
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODALITIES, "brightness", BRIGHTNESS)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set with both maps, and a tiny image generator to start from."""
    folder = tmp_path_factory.mktemp("seam")
    encodings = {"bright": MapEncoding(kind="float16"), "dark": MapEncoding(kind="float32")}
    writer = ShardWriter(folder / "data" / "colors", name="colors", split="train", encodings=encodings, settings={})
    writer.begin()
    photos = [make_photo(40, 60, seed=number) for number in range(6)]
    writer.write(
        0,
        [
            NewSample(key=f"p-{number}", kind="photo", scene="s", rgb=rgb, maps=maps_of(rgb))
            for number, rgb in enumerate(photos)
        ],
    )
    writer.finish(1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        vae, unet, embedding = make_vae("kl"), make_unet(4, in_channels=4), torch.randn(1, 2, 16)
    save_checkpoint(
        folder / "generator",
        vae=vae,
        unet=unet,
        empty_prompt_embedding=embedding,
        schedule=NoiseSchedule(),
        index={"_class_name": "OpenMarigoldGenerator"},
    )
    return folder


def write_recipe(workspace: Path, name: str, *, seed: int = 1, base: str = "generator", more: str = "") -> Path:
    path = workspace / f"{name}.toml"
    path.write_text(RECIPE.format(base=workspace / base, seed=seed) + more)
    return path


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(workspace: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODALITIES, "brightness", BRIGHTNESS)
        recipe = write_recipe(workspace, "whole")
        checkpoint = train(recipe, data_dir=workspace / "data", output_dir=workspace / "whole", device="cpu")
    assert checkpoint is not None
    return checkpoint


def test_maps_of_several_channels_keep_their_places() -> None:
    stack = np.arange(36, dtype=np.float32).reshape(6, 2, 3)
    maps = BRIGHTNESS.split(stack)
    np.testing.assert_array_equal(maps["bright"], stack[:3].transpose(1, 2, 0))
    np.testing.assert_array_equal(maps["dark"], stack[3:].transpose(1, 2, 0))
    np.testing.assert_array_equal(BRIGHTNESS.stack(maps), stack)


def test_targets_of_a_batch_keep_their_places(trained: Path) -> None:
    vae, latent = make_vae("kl"), torch.arange(32, dtype=torch.float32).reshape(2, 8, 1, 2) / 32
    expected = torch.stack([decode_to_image(vae, latent[:, start : start + 4]) for start in (0, 4)], dim=1)
    ours = decode_targets(vae, latent, num_targets=2, channels=3)
    torch.testing.assert_close(ours, expected)

    def run(name: str, **inputs: np.ndarray) -> np.ndarray:
        return decode_to_image(vae, torch.from_numpy(inputs["latent"])).detach().numpy()

    engine = ConvertedEngine("onnx", read_checkpoint(trained), run, dtype="float32")
    np.testing.assert_allclose(engine.decode(latent.numpy()), expected.detach().numpy(), atol=1e-5)


def test_views_are_cut_and_mirrored_together(workspace: Path) -> None:
    config = DataConfig(sources={"colors": 1.0}, size=SIZE, min_scale=0.5, min_depth=0.0, num_variants=8)
    mixture = Mixture(config, data_dir=workspace / "data", seed=0, modality=BRIGHTNESS)
    for index in range(8):
        view = mixture.view(index)
        assert view.target is not None and view.target.values.shape == (2, 3, *SIZE) and view.valid_mask.all()
        bright, dark = view.target.values
        # Colors are resized in 8 bits, and their map in float.
        np.testing.assert_allclose(bright, view.rgb, atol=0.02)
        np.testing.assert_allclose(dark, -bright, atol=0.002)


def test_frames_are_filtered_as_the_modality_asks() -> None:
    rgb = make_photo(8, 8)
    FrameFilter().apply(rgb, maps_of(rgb), (0.0, 2.0), BRIGHTNESS)
    with pytest.raises(FrameDefectError, match="no brightness: no pixel between 0 and 0"):
        FrameFilter().apply(rgb, maps_of(rgb), (0.0, 0.0), BRIGHTNESS)
    with pytest.raises(FrameDefectError, match="wrong size: rgb is 8x8, dark 4x8"):
        FrameFilter().apply(rgb, {**maps_of(rgb), "dark": maps_of(rgb[:4])["dark"]}, (0.0, 2.0), BRIGHTNESS)


def test_a_sample_without_all_maps_is_a_photo() -> None:
    rgb = make_photo(40, 60)
    sample = Sample(rgb=rgb, maps={"bright": maps_of(rgb)["bright"]}, kind="photo")
    settings: dict[str, Any] = {"size": SIZE, "min_scale": 1.0, "aspect_jitter": 0.0, "mirrored": True}
    assert random_view(sample, generator_for(0, "x"), modality=BRIGHTNESS, **settings).maps == {}


def test_training_widens_both_ends_and_learns(workspace: Path, trained: Path) -> None:
    unet = load_unet(trained / "unet")
    assert (unet.config["in_channels"], unet.config["out_channels"]) == (12, 8)
    index = json.loads((trained / "model_index.json").read_text())
    assert (index["_class_name"], index["prediction_type"]) == ("BrightnessPipeline", "brightness")
    first = losses(workspace / "whole")
    assert len(first) == 5 and np.isfinite(first).all()
    (path,) = (workspace / "whole" / "latents").glob("*/*.rows")
    shapes = [("rgb_latent", (4, 4, 6)), ("target_latent", (8, 4, 6)), ("valid_mask", (1, 4, 6))]
    fields = [(name, bool if name == "valid_mask" else np.float16, shape) for name, shape in shapes]
    rows = PackedRows(path, np.dtype(fields), (), 12)
    kept = np.stack([rows[number] for number in range(12)])
    # The first target is the photo itself, the second another picture.
    bright, dark = (
        np.abs(kept["target_latent"][:, part] - kept["rgb_latent"]).mean() for part in (slice(4), slice(4, 8))
    )
    assert bright < 0.1 * dark
    other = write_recipe(workspace, "other", seed=2)
    train(other, data_dir=workspace / "data", output_dir=workspace / "other", device="cpu")
    assert losses(workspace / "other") != first


def test_a_stopped_run_resumes_to_the_same_weights(workspace: Path, trained: Path) -> None:
    recipe = write_recipe(workspace, "halves")
    paths = {"data_dir": workspace / "data", "output_dir": workspace / "halves", "device": "cpu"}
    assert train(recipe, stop_after_steps=2, **paths) is None
    checkpoint = train(recipe, **paths)
    assert checkpoint is not None and losses(workspace / "halves") == losses(workspace / "whole")
    ours, theirs = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (checkpoint, trained)
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_trained_model_is_a_base_and_end_to_end_compares_pixels(workspace: Path, trained: Path) -> None:
    objective = 'objective = { kind = "end_to_end", start_noise = "zeros" }\n'
    recipe = write_recipe(workspace, "pixels", base="whole/checkpoint", more=objective)
    checkpoint = train(recipe, data_dir=workspace / "data", output_dir=workspace / "pixels", device="cpu")
    assert checkpoint is not None and np.isfinite(losses(workspace / "pixels")).all()
    before, after = (load_unet(folder / "unet").conv_out.weight for folder in (trained, checkpoint))
    assert after.shape[0] == 8 and bool((after != before).flatten(1).any(dim=1).all()), "every channel is trained"


def test_what_does_not_fit_is_refused(workspace: Path, trained: Path, tmp_path: Path) -> None:
    write_training_data(tmp_path)
    config = DataConfig(sources={"synthetic": 1.0}, size=SIZE)
    with pytest.raises(DataError, match="has the maps depth, and brightness needs bright, dark"):
        Mixture(config, data_dir=tmp_path, seed=0, modality=BRIGHTNESS)
    depth = write_recipe(workspace, "depth", base="whole/checkpoint")
    depth.write_text(depth.read_text().replace('"brightness"', '"depth"').replace("colors", "synthetic"))
    with pytest.raises(RecipeError, match=r"turns 12 channels into 8.*needed are 4 to 4 .* or 8 to 4 .a depth model"):
        train(depth, data_dir=tmp_path, output_dir=tmp_path / "run", device="cpu")
    depth.write_text(depth.read_text().replace('"depth"\nbase', '"flow"\nbase'))
    with pytest.raises(RecipeError, match=r"modality='flow' is not known; use depth, .*brightness"):
        train(depth, data_dir=tmp_path, output_dir=tmp_path / "run", device="cpu")


def test_the_set_is_verified_shown_and_counted(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(workspace / "data" / "colors")
    assert run(["data", "verify", folder]) == 0
    assert run(["data", "preview", folder, "--output", str(tmp_path / "sheet.jpg")]) == 0
    capsys.readouterr()
    assert run(["data", "statistics", folder, "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    assert tables["bright"]["all"]["bright_range"][1] <= 1 and tables["dark"]["kinds"]["photo"]["num_samples"] == 6


def test_the_trained_model_predicts_and_merges(trained: Path) -> None:
    predictor, rgb = Predictor.load(trained, device="cpu"), make_photo(40, 60, seed=9)
    assert predictor.modality.name == "brightness"
    one, three = predictor(rgb), predictor(rgb, ensemble_size=3)
    for prediction in (one, three):
        assert prediction.maps.keys() == {"bright", "dark"} and prediction.bright.shape == (40, 60, 3)
        assert all(values.min() >= 0 and values.max() <= 1 for values in prediction.maps.values())
    assert one.uncertainty is None and three.uncertainties["uncertainty"].shape == (40, 60)
    assert three.latent is not None and three.latent.shape == (3, 8, 4, 6)
    # The ensemble is the median of its members, here at the size that the networks see.
    rgb, noise = make_photo(32, 48, seed=9), np.random.default_rng(1).normal(size=(3, 8, 4, 6)).astype(np.float32)
    together = predictor(rgb, latents=noise, ensemble_size=3, processing_resolution=0)
    alone = [predictor(rgb, latents=one[None], processing_resolution=0) for one in noise]
    for name, values in together.maps.items():
        np.testing.assert_array_equal(values, np.median([one.maps[name] for one in alone], axis=0))


def test_its_networks_run_converted(trained: Path, tmp_path: Path) -> None:
    rgb = make_photo(40, 60, seed=9)
    assert run(["checkpoint", "export", str(trained), "--format", "onnx", "--output-dir", str(tmp_path / "onnx")]) == 0
    torch_maps, onnx_maps = (
        Predictor.load(folder, engine=engine)(rgb).maps
        for folder, engine in ((trained, "torch"), (tmp_path / "onnx", "onnx"))
    )
    for name in ("bright", "dark"):
        np.testing.assert_allclose(onnx_maps[name], torch_maps[name], atol=5e-3)


def test_its_results_are_written_and_its_scores_are_those_of_its_protocol(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, out = tmp_path / "benchmark", tmp_path / "out"
    photos = {f"r{number}": make_photo(40, 60, seed=20 + number) for number in range(3)}
    for name, rgb in photos.items():
        (benchmark / name).mkdir(parents=True)
        Image.fromarray(rgb).save(benchmark / name / "rgb.jpg", quality=95)
        for map_name, values in maps_of(rgb).items():
            np.save(benchmark / name / f"{map_name}.npy", values)
    entries = [{"name": name, "kind": "room", "place": name} for name in photos]
    (benchmark / "manifest.json").write_text(json.dumps(entries))

    photo = str(benchmark / "r0" / "rgb.jpg")
    checkpoint = ["--checkpoint", str(trained), "--device", "cpu", "--ensemble-size", "2"]
    formats = ["--format", "npy", "png", "npz", "exr"]
    assert run(["predict", photo, "-o", str(out), *checkpoint, *formats]) == 0
    names = ["bright.npy", "bright.png", "brightness.exr", "brightness.npz", "dark.npy", "uncertainty.npy"]
    assert sorted(path.name for path in out.glob("rgb_*")) == [f"rgb_{name}" for name in names]
    assert np.load(out / "rgb_dark.npy").shape == (40, 60, 3)
    assert read_provenance(out / "rgb_bright.png")["quantity"] == "shares of white"

    capsys.readouterr()
    assert run(["evaluate", "--benchmark", str(benchmark), "--json", *checkpoint]) == 0
    (report,) = json.loads(capsys.readouterr().out).values()
    assert report["protocol"] == "mae"
    scored = evaluate(benchmark, Predictor.load(trained, device="cpu"))
    found = Predictor.load(trained, device="cpu")(photo).maps
    errors = [np.abs(found[name] - np.load(benchmark / "r0" / f"{name}.npy")).mean() for name in found]
    assert scored.images[0].metrics["mae"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_results_of_two_modalities_stand_in_one_folder(trained: Path, tmp_path: Path) -> None:
    Image.fromarray(make_photo(40, 60)).save(tmp_path / "cat.png")
    words = ["predict", str(tmp_path / "cat.png"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    for _ in range(2):
        assert run([*words, "--processing-resolution", "48"]) == 0
        assert run([*words, "--checkpoint", str(trained)]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"cat_depth.npy", "cat_depth.png", "cat_bright.npy", "cat_dark.npy"}
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [line["modality"] for line in lines if line["status"] == "done"] == ["depth", "brightness"]


def test_training_is_validated_on_its_own_maps(workspace: Path, tmp_path: Path) -> None:
    rgb = make_photo(40, 60)
    (tmp_path / "bench" / "r0").mkdir(parents=True)
    Image.fromarray(rgb).save(tmp_path / "bench" / "r0" / "rgb.jpg")
    for name, values in maps_of(rgb).items():
        np.save(tmp_path / "bench" / "r0" / f"{name}.npy", values)
    (tmp_path / "bench" / "manifest.json").write_text('[{"name": "r0", "kind": "room", "place": "p"}]')
    paths = {"data_dir": workspace / "data", "output_dir": tmp_path / "run", "benchmark_dir": tmp_path / "bench"}
    assert train(write_recipe(workspace, "validated"), device="cpu", **paths) is not None
    (line,) = (json.loads(line) for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines())
    assert 0 < line["all_mae"] < 1


# Where a name is compared and no modality could be asked: formats of before there were modalities, the task of
# transformers' pipeline, the unit that only depth has, a space in which fits are affine.
_COMPARED = {
    "completion/fits.py: space == 'depth'",
    "completion/fits.py: space not in ('auto', 'depth')",
    "completion/meters.py: found.space == 'depth'",
    "cli/data.py: name == 'depth'",
    "data/shards.py: 'depth' in found",
    "evaluation/benchmark_readers.py: files['depth'][:6] == b'\\x93NUMPY'",
    "predictor/pipeline.py: [kind.name for kind in predictor.modality.maps] != ['depth']",
    "results/manifest.py: entry.get('modality', DEPTH.name) == self.modality",
}


def test_no_other_room_branches_on_a_modality() -> None:
    source = Path(openmarigold.__file__).parent
    constants = {*(name.upper() for name in MODALITIES), "LOG_DEPTH"}
    found = set()
    for path in sorted(source.rglob("*.py")):
        if path.is_relative_to(source / "modalities"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare | ast.match_case):
                looked_at = [node.left, *node.comparators] if isinstance(node, ast.Compare) else [node.pattern]
                parts = [part for value in looked_at for part in ast.walk(value)]
                texts = {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
                names = {getattr(part, kind, None) for part in parts for kind in ("attr", "id")}
                if texts & set(MODALITIES) or names & constants:
                    text = ast.unparse(node) if isinstance(node, ast.Compare) else ast.unparse(node.pattern)
                    found.add(f"{path.relative_to(source).as_posix()}: {text}")
    assert found == _COMPARED
