# SPDX-License-Identifier: Apache-2.0
"""Intrinsic images: which checkpoints, targets and their inverse, ensembles, files, and exact recomposition."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openmarigold.checkpoints import configured
from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.checkpoints.known import KNOWN, check_known
from openmarigold.cli import run
from openmarigold.config import OutputConfig
from openmarigold.errors import CheckpointError, DataError
from openmarigold.images.exr import read_exr
from openmarigold.images.pixels import encode_srgb, light_of_pixels
from openmarigold.modalities import MODALITIES, find_modality
from openmarigold.modalities.intrinsics import APPEARANCE, LIGHTING
from openmarigold.predictor import Predictor
from openmarigold.results.provenance import read_provenance
from tiny import edit_json, make_checkpoint, make_photo
from training_data import maps_of

SIZE = (40, 56)
PUBLISHED = {
    "appearance": {
        "target_names": ["albedo", "material"],
        "albedo": {"prediction_space": "srgb"},
        "material": {"prediction_space": "stack", "sub_target_names": ["roughness", "metallicity", None]},
        "roughness": {"prediction_space": "linear", "up_to_scale": False},
        "metallicity": {"prediction_space": "linear", "up_to_scale": False},
    },
    "lighting": {
        "target_names": ["albedo", "shading", "residual"],
        "albedo": {"prediction_space": "linear", "up_to_scale": False},
        "shading": {"prediction_space": "linear", "up_to_scale": True},
        "residual": {"prediction_space": "linear", "up_to_scale": True},
    },
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints that state their targets as the published ones do."""
    folder = tmp_path_factory.mktemp("intrinsics")
    return {
        name: make_checkpoint(folder / name, "tiny", modality=find_modality(name), target_properties=properties)
        for name, properties in PUBLISHED.items()
    }


def sample(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return maps_of(name, make_photo(*SIZE, seed=seed), rng)


# Which checkpoints


def test_one_class_is_two_modalities(checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name, folder in checkpoints.items():
        found = read_checkpoint(folder)
        assert found.modality is MODALITIES[name] and found.invariance == "absolute"
        assert pickle.loads(pickle.dumps(found)).modality is MODALITIES[name]
        assert run(["checkpoint", "info", str(folder)]) == 0
        assert f"{MODALITIES[name].title}, safetensors weights" in " ".join(capsys.readouterr().out.split())
    for name, kind in (("appearance", "appearance"), ("lighting", "lighting")):
        known = check_known(f"prs-eth/marigold-iid-{name}-v1-1")
        assert known is not None and known is KNOWN[f"prs-eth/marigold-iid-{name}-v1-1"]
        assert (known.family, known.num_inference_steps, known.start_noise, known.timestep_spacing) == (
            kind,
            4,
            "gaussian",
            "trailing",
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_names": ["normal", "depth"]}, r"target_names is \['normal', 'depth'\]; known are \['albedo', 'mat"),
        ({"target_names": "albedo"}, "target_names is missing; known are"),
        ({"target_names": ["albedo", "albedo", "material"]}, "target_names is .*; known are"),
        ({"albedo": {"prediction_space": "xyz"}}, "albedo is xyz; accepted is srgb or linear"),
        ({"albedo": {"up_to_scale": True}}, "albedo is srgb, up to scale; accepted"),
        ({"albedo": {"up_to_scale": 1}}, "up_to_scale of albedo is 1; true or false"),
        ({"albedo": "srgb"}, "albedo is 'srgb'; an object is needed"),
        ({"roughness": {"prediction_space": "srgb"}}, "roughness is srgb; accepted is linear"),
        ({"material": {"sub_target_names": ["metallicity", "roughness", None]}}, "sub_target_names of material is"),
    ],
)
def test_targets_that_are_not_known_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    properties = {**PUBLISHED["appearance"], **change}
    folder = make_checkpoint(tmp_path / "odd", "tiny", modality=APPEARANCE, target_properties=properties)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(folder)
    assert str(folder / "model_index.json") in str(caught.value)


def test_other_numbers_of_channels_and_other_flags_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "x", "tiny", modality=APPEARANCE, target_properties=PUBLISHED["lighting"])
    with pytest.raises(CheckpointError, match="a checkpoint for albedo, shading and residual has 32 and 24"):
        read_checkpoint(folder)
    properties = {**PUBLISHED["lighting"], "residual": {"up_to_scale": False}}
    folder = make_checkpoint(tmp_path / "y", "tiny", modality=LIGHTING, target_properties=properties)
    with pytest.raises(CheckpointError, match="up_to_scale of shading and residual differ"):
        read_checkpoint(folder)
    edit_json(folder / "model_index.json", target_properties=PUBLISHED["lighting"], prediction_type="depth")
    with pytest.raises(CheckpointError, match="prediction_type is 'depth'"):
        read_checkpoint(folder)


def test_order_and_spaces_are_those_that_are_stated(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The same networks, whose third target is called the albedo, in sRGB: only names and spaces change."""
    names = ["shading", "residual", "albedo"]
    stated: dict[str, Any] = {"target_names": names, "albedo": {"prediction_space": "srgb"}}
    stated |= {name: {"prediction_space": "linear", "up_to_scale": False} for name in names[:2]}
    other = make_checkpoint(tmp_path / "other", "tiny", modality=LIGHTING, target_properties=stated)
    settings: dict[str, Any] = {"processing_resolution": 0, "num_inference_steps": 1}
    usual = Predictor.load(checkpoints["lighting"], device="cpu")(make_photo(*SIZE), **settings)
    found = Predictor.load(other, device="cpu")(make_photo(*SIZE), **settings)
    for ours, theirs in zip(("shading", "residual", "albedo"), usual.maps, strict=True):
        np.testing.assert_array_equal(found.maps[ours], usual.maps[theirs])
    assert found.settings["recomposition_scale"] == 1 != usual.settings["recomposition_scale"]
    found.save(tmp_path, "cat", output=OutputConfig(format=("png",)))
    record = read_provenance(tmp_path / "cat_lighting_albedo.png")
    assert record["map_spaces"] == {"albedo": "srgb", "shading": "linear", "residual": "linear"}
    assert record["content"] == "albedo, sRGB, x 65535"
    pixels = np.asarray(Image.open(tmp_path / "cat_lighting_albedo.png"))  # Pillow keeps the upper 8 bits
    np.testing.assert_allclose(pixels / 255, found.albedo, atol=1.01 / 255)


# Targets and their inverse


@pytest.mark.parametrize("name", ["appearance", "lighting"])
def test_targets_of_all_variants_come_back(name: str) -> None:
    modality = MODALITIES[name]
    for variant in (modality, *modality.variants.values()):
        maps = sample(name)
        valid = variant.valid_mask(maps, (0.0, 1.0))
        target = variant.to_target(maps, valid, "far")
        assert target.values.shape == (modality.num_targets, 3, *SIZE)
        assert target.values.min() >= -1 and target.values.max() <= 1
        found = variant.split(variant.from_decoded(target.values))
        light = {"shading", "residual"} & set(maps)
        cut = max((np.quantile(maps[key][valid], 0.98) for key in light), default=1.0)
        for key, values in maps.items():
            expected = np.minimum(values / (cut if key in light else 1.0), 1.0)
            np.testing.assert_allclose(found[key][valid], expected[valid], atol=1e-5, err_msg=f"{variant.space} {key}")


def test_the_material_is_a_picture_of_powers_and_a_black_channel() -> None:
    maps = {
        "albedo": np.full((8, 8, 3), 0.5, np.float32),
        "roughness": np.full((8, 8), 0.25, np.float32),
        "metallicity": np.ones((8, 8), np.float32),
    }
    albedo, material = APPEARANCE.to_target(maps, np.ones((8, 8), bool), "far").values
    np.testing.assert_allclose(albedo, 0, atol=1e-6)
    # 0.25 ** (1 / 2.2) = 0.5325
    np.testing.assert_allclose(material[:, 0, 0], [2 * 0.5325 - 1, 1, -1], atol=1e-3)
    assert (APPEARANCE.from_decoded(np.full((2, 3, 1, 1), -3.0)) == 0).all()
    assert (APPEARANCE.from_decoded(np.full((2, 3, 1, 1), 3.0)) == 1).all()


def test_light_is_divided_by_the_larger_of_the_two_quantiles() -> None:
    shading = np.linspace(0, 2, 101 * 100).reshape(101, 100, 1).repeat(3, axis=2)  # 98 % are below 1.96
    maps = {"albedo": np.ones((101, 100, 3)), "shading": shading, "residual": shading / 4}
    _, light, rest = LIGHTING.to_target(maps, np.ones((101, 100), bool), "far").values
    np.testing.assert_allclose((light[0] + 1) / 2, np.minimum(shading[..., 0] / 1.96, 1), atol=1e-3)
    np.testing.assert_allclose((rest[0] + 1) / 2, shading[..., 0] / 4 / 1.96, atol=1e-3)
    black = {**maps, "shading": 0 * shading, "residual": 0 * shading}
    with pytest.raises(DataError, match="shading and residual are black"):
        LIGHTING.to_target(black, np.ones((101, 100), bool), "far")


@pytest.mark.parametrize("name", ["appearance", "lighting"])
def test_black_albedos_and_numbers_that_are_none_do_not_count(name: str) -> None:
    modality, maps = MODALITIES[name], sample(name)
    last = list(maps)[-1]
    maps[last][20, 30] = np.nan
    maps["albedo"][21, 31] = [0, 0, 0.1]  # not black
    valid = modality.valid_mask(maps, (5.0, 6.0))  # a range of depth
    expected = np.ones(SIZE, bool)
    expected[:8, :8] = expected[20, 30] = False
    np.testing.assert_array_equal(valid, expected)
    for invalid, shown in (("far", -1.0), ("raw", 2 * maps["albedo"][20, 30, 0] - 1)):
        values = modality.to_target(maps, valid, invalid).values
        assert np.isfinite(values).all() and values[0, 0, 20, 30] == pytest.approx(shown)
    with pytest.raises(DataError, match="no valid pixel"):
        modality.to_target(maps, np.zeros(SIZE, bool), "far")
    mirrored = modality.mirror(maps)
    np.testing.assert_array_equal(mirrored["albedo"], maps["albedo"][:, ::-1])


def test_members_are_merged_channel_by_channel() -> None:
    members = np.zeros((3, 5, 1, 1), np.float32)
    members[:, 0, 0, 0] = [0.1, 0.2, 0.9]
    members[:, 3, 0, 0] = [0.5, 0.7, 0.4]
    merged = APPEARANCE.merge(members, "absolute", "median")
    np.testing.assert_allclose(merged.stack[:, 0, 0], [0.2, 0, 0, 0.5, 0], atol=1e-6)
    # Deviations 0.1, 0, 0.7 of one of three channels; 0, 0.2, 0.1 of the only one.
    np.testing.assert_allclose(merged.uncertainty[:, 0, 0], [0.1 / 3, 0.1, 0], atol=1e-6)
    merged = APPEARANCE.merge(members, "absolute", "mean")
    np.testing.assert_allclose(merged.stack[:, 0, 0], [0.4, 0, 0, 1.6 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(merged.uncertainty[1, 0, 0], np.std([0.5, 0.7, 0.4], ddof=1), atol=1e-6)


# Files


def test_both_modalities_stand_in_one_folder(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    Image.fromarray(make_photo(*SIZE)).save(tmp_path / "cat.png")
    words = ["predict", str(tmp_path / "cat.png"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    words += ["--ensemble-size", "2", "--num-inference-steps", "1", "--uncertainty-picture"]
    words += ["--format", "npy", "png", "npz", "exr", "--processing-resolution", "48"]
    for _ in range(2):  # the second time all are done
        for folder in checkpoints.values():
            assert run([*words, "--checkpoint", str(folder)]) == 0
    maps = ["albedo", "roughness", "metallicity", "lighting_albedo", "shading", "residual"]
    expected = {f"cat_{name}{end}" for name in maps for end in (".npy", ".png", "_uncertainty.npy", "_uncertainty.png")}
    expected |= {f"cat_{name}.{end}" for name in checkpoints for end in ("npz", "exr")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*expected, "manifest.jsonl"}
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [line["modality"] for line in lines if line["status"] == "done"] == ["appearance", "lighting"]

    out = tmp_path / "out"
    albedo, light = np.load(out / "cat_albedo.npy"), np.load(out / "cat_lighting_albedo.npy")
    assert (
        albedo.shape == light.shape == (*SIZE, 3) and albedo.dtype == np.float32 and not np.array_equal(albedo, light)
    )
    roughness = np.load(out / "cat_roughness.npy")
    np.testing.assert_array_equal(np.asarray(Image.open(out / "cat_roughness.png")), np.rint(roughness * 65535))
    assert read_provenance(out / "cat_roughness.png")["content"] == "roughness, linear, x 65535"
    assert read_provenance(out / "cat_albedo.png")["content"] == "albedo, sRGB, x 65535"
    assert read_provenance(out / "cat_lighting_albedo.png")["content"] == "albedo, encoded in sRGB, x 65535"
    with np.load(out / "cat_lighting.npz") as entries:
        np.testing.assert_array_equal(entries["albedo"], light)
    channels = read_exr(out / "cat_lighting.exr")
    np.testing.assert_array_equal(channels["albedo.G"], light[..., 1])
    np.testing.assert_array_equal(
        read_exr(out / "cat_appearance.exr")["metallicity"], np.load(out / "cat_metallicity.npy")
    )

    import png

    shading = np.load(out / "cat_shading.npy")
    width, height, rows, info = png.Reader(bytes=(out / "cat_shading.png").read_bytes()).read()
    levels = np.array(list(rows)).reshape(height, width, 3)
    assert info["bitdepth"] == 16
    np.testing.assert_allclose(levels / 65535, encode_srgb(shading / shading.max()), atol=1e-5)
    record = read_provenance(out / "cat_shading.png")
    assert record["content"] == "shading, divided by the largest size of shading, encoded in sRGB, x 65535"
    assert record["map_spaces"]["shading"] == "linear, up to scale" and 0 < record["recomposition_error"] < 1
    light, made = light_of_pixels(make_photo(*SIZE)), light * shading + np.load(out / "cat_residual.npy")
    rmse = np.sqrt(np.mean((light - record["recomposition_scale"] * made) ** 2))
    assert record["recomposition_error"] == pytest.approx(rmse, rel=1e-3)


def test_recomposing_a_prediction_makes_the_photo(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    rgb = make_photo(61, 83)
    Image.fromarray(rgb).save(tmp_path / "cat.png")
    words = ["predict", str(tmp_path / "cat.png"), "-o", str(tmp_path), "--device", "cpu", "--num-inference-steps", "1"]
    words += ["--checkpoint", str(checkpoints["lighting"]), "--processing-resolution", "48", "--format", "npy", "png"]
    assert run(words) == 0
    albedo = np.load(tmp_path / "cat_lighting_albedo.npy")
    assert not (tmp_path / "cat_residual_negative.png").exists()
    assert run([*words, "--recompose"]) == 0  # other settings: made again
    shading, residual = (np.load(tmp_path / f"cat_{name}.npy") for name in ("shading", "residual"))
    np.testing.assert_array_equal(np.load(tmp_path / "cat_lighting_albedo.npy"), albedo)
    np.testing.assert_allclose(albedo * shading + residual, light_of_pixels(rgb), rtol=0, atol=1e-6)
    assert residual.max() > 0  # whether a random network also gives negative values is a matter of rounding

    size = np.abs(residual).max()
    shown = [np.asarray(Image.open(tmp_path / f"cat_residual{end}.png")) / 255 for end in ("", "_negative")]
    for found, sign in zip(shown, (1, -1), strict=True):
        np.testing.assert_allclose(found, encode_srgb(np.clip(sign * residual / size, 0, 1)), atol=1.01 / 255)
    assert not np.logical_and(*(found > 0.1 for found in shown)).any()
    record = read_provenance(tmp_path / "cat_residual_negative.png")
    assert record["recompose"] is True and record["recomposition_error"] > 1e-3  # of the maps as they were predicted
    assert "where it is negative, its sign changed" in record["content"]

    prediction = Predictor.load(checkpoints["lighting"], device="cpu")(
        rgb, recompose=True, num_inference_steps=1, processing_resolution=48
    )
    np.testing.assert_array_equal(prediction.residual, residual)
    names = {path.name for path in prediction.save(tmp_path / "again", "cat")}
    assert "cat_residual_negative.png" in names


def test_pictures_of_a_signed_residual() -> None:
    residual = np.zeros((2, 2, 3), dtype=np.float32)
    residual[0, 0], residual[1, 1] = 0.5, -0.25
    shown = {
        picture.suffix: picture.make({"residual": residual}, OutputConfig())
        for picture in LIGHTING.pictures
        if picture.suffix.startswith("_residual") and not picture.of_uncertainty
    }
    assert set(shown) == {"_residual.png", "_residual_negative.png"}
    assert shown["_residual.png"][0, 0].tolist() == [65535] * 3 and not shown["_residual.png"][1, 1].any()
    half = 65535 * (1.055 * 0.5 ** (1 / 2.4) - 0.055)  # sRGB's curve; white is the largest size, 0.5
    np.testing.assert_allclose(shown["_residual_negative.png"][1, 1], half, atol=1)
    assert not shown["_residual_negative.png"][0, 0].any()


def test_recomposing_something_else_is_warned_about(
    checkpoints: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    configured._warn_of_no_photo.cache_clear()
    predictor = Predictor.load(checkpoints["appearance"], device="cpu")
    plain = predictor(make_photo(*SIZE), num_inference_steps=1)
    found = predictor(make_photo(*SIZE), num_inference_steps=1, recompose=True)
    np.testing.assert_array_equal(found.albedo, plain.albedo)
    assert "recompose" not in found.settings
    assert "recompose has no effect on albedo, roughness and metallicity: a photo" in caplog.text
    assert found.picture().size == (SIZE[1], SIZE[0])


def test_uncertainties_of_light_have_the_unit_of_their_maps(checkpoints: dict[str, Path]) -> None:
    predictor = Predictor.load(checkpoints["lighting"], device="cpu")
    settings: Any = {"num_inference_steps": 1, "processing_resolution": 48, "ensemble_size": 3}
    plain, recomposed = (predictor(make_photo(*SIZE), recompose=on, **settings) for on in (False, True))
    scale = recomposed.settings["recomposition_scale"]
    assert scale != pytest.approx(1.0, rel=1e-3)
    for name, factor in (("lighting_albedo", 1.0), ("shading", scale), ("residual", scale)):
        found, before = (one.uncertainties[f"{name}_uncertainty"] for one in (recomposed, plain))
        np.testing.assert_allclose(found, before * factor, rtol=1e-3)
