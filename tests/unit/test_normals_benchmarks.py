# SPDX-License-Identifier: Apache-2.0
"""Readers of normals on files in each format: frames, unknown pixels, folders of one's own, prepared sets."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import png
import pytest

from benchmark_data import add_folder_image, gray16, image_bytes, npy, pack, write
from openmarigold.cli import run
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.shard_writer import NewSample, ShardWriter
from openmarigold.errors import DataError
from openmarigold.evaluation import baseline_estimators, evaluate
from openmarigold.evaluation.benchmark import Benchmark
from openmarigold.evaluation.benchmarks import BENCHMARKS, open_benchmark, open_folder_benchmark
from openmarigold.modalities import DEPTH, NORMALS
from tiny import make_photo

SIZE = (24, 32)
TO_LUB, TO_OPENCV = np.array([-1, 1, 1]), np.array([1, -1, -1])


def make_normals(seed: int = 0) -> np.ndarray:
    """Unit normals (right, up, backward) that face the viewer; a few are unknown."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((*SIZE, 3))
    vectors[..., 2] = np.abs(vectors[..., 2])
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    vectors[rng.random(SIZE) < 0.1] = 0
    return vectors


def known(normals: np.ndarray) -> np.ndarray:
    return (normals != 0).any(axis=2)


def picture(normals: np.ndarray, white: int) -> bytes:
    """DSINE's pictures: (n + 1) / 2 of white, black where unknown."""
    levels = np.rint((normals + 1) / 2 * white) * known(normals)[..., None]
    if white == 255:
        return image_bytes(levels.astype(np.uint8))
    file = io.BytesIO()
    writer = png.Writer(width=SIZE[1], height=SIZE[0], greyscale=False, bitdepth=16)  # pyright: ignore
    writer.write(file, levels.astype(np.uint16).reshape(SIZE[0], -1).tolist())
    return file.getvalue()


def exr(normals: np.ndarray, folder: Path) -> bytes:
    channels: Any = {name: np.ascontiguousarray(normals[..., k], np.float32) for k, name in enumerate("RGB")}
    folder.mkdir(parents=True, exist_ok=True)
    with OpenEXR.File({"type": OpenEXR.scanlineimage}, channels) as file:
        file.write(str(folder / "written.exr"))
    return (folder / "written.exr").read_bytes()


CASES = {
    "nyuv2": ("test/000000", "png", 255, "test/000000", 0.45),
    "scannet": ("scene0532_00/000000", "png", 255, "scene0532", 0.45),
    "ibims": ("ibims/corridor_01", "exr", 1, "ibims/corridor_01", 1e-4),
    "sintel": ("alley_1/frame_0001", "exr", 1, "alley_1", 1e-4),
    "vkitti": ("Scene01/000000", "png", 65535, "Scene01", 2e-3),
}


def open_partial(name: str, root: Path) -> Benchmark:
    return open_benchmark(f"{name}-normals", root, allow_partial=True)


def angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((first * second).sum(axis=-1), -1, 1)))


@pytest.mark.parametrize("name", list(CASES))
def test_dsines_sets(name: str, tmp_path: Path) -> None:
    stem, suffix, white, place, largest = CASES[name]
    normals = make_normals()
    stored = normals * TO_LUB  # the files' frame
    content = exr(stored, tmp_path) if suffix == "exr" else picture(stored, white)
    write(tmp_path / "data" / name / f"{stem}_img.png", image_bytes(make_photo(*SIZE)))
    write(tmp_path / "data" / name / f"{stem}_normal.{suffix}", content)
    write(tmp_path / "data" / name / f"{stem}_intrins.npy", npy(np.eye(3)))
    benchmark = open_partial(name, tmp_path / "data")
    (entry,) = benchmark.entries
    assert (entry.name, entry.place) == (f"{stem}_img", place)
    sample = benchmark.sample(entry)
    np.testing.assert_array_equal(sample.valid_mask, known(normals))
    found = sample.maps["normals"][known(normals)]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    assert angles(found, normals[known(normals)]).max() < largest
    assert not sample.maps["normals"][~known(normals)].any()
    with pytest.raises(DataError, match=rf"holds 1 images .* {BENCHMARKS[f'{name}-normals'].expected_count} are"):
        open_benchmark(f"{name}-normals", tmp_path / "data")


@pytest.mark.parametrize("name", ["nyuv2", "scannet", "ibims"])
def test_marigolds_copies_hold_its_own_frame(name: str, tmp_path: Path) -> None:
    stem, normals = CASES[name][0], make_normals()
    extracted = tmp_path / "extracted"
    write(extracted / name / f"{stem}_img.png", image_bytes(make_photo(*SIZE)))
    write(extracted / name / f"{stem}_normal.npy", npy(normals.astype(np.float32)))
    pack(extracted / name, tmp_path / f"{name}.tar", prefix="./")
    benchmark = open_partial(name, tmp_path)
    sample = benchmark.sample(benchmark.entries[0])
    np.testing.assert_allclose(sample.maps["normals"], normals, atol=1e-6)
    np.testing.assert_array_equal(sample.valid_mask, known(normals))


def test_unknown_pixels_of_exr_are_shorter_than_half(tmp_path: Path) -> None:
    stored = np.zeros((*SIZE, 3))
    stored[0, 0, 2], stored[0, 1, 2], stored[0, 2, 2] = 0.49, 0.51, 2
    write(tmp_path / "ibims" / "ibims" / "a_img.png", image_bytes(make_photo(*SIZE)))
    write(tmp_path / "ibims" / "ibims" / "a_normal.exr", exr(stored, tmp_path))
    benchmark = open_partial("ibims", tmp_path)
    assert np.argwhere(benchmark.sample(benchmark.entries[0]).valid_mask).tolist() == [[0, 1], [0, 2]]


@pytest.mark.parametrize("content", [b"", b"none", npy(np.zeros((24, 32))), image_bytes(np.zeros((24, 32), np.uint8))])
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    write(tmp_path / "nyuv2" / "test" / "000000_img.png", image_bytes(make_photo(*SIZE)))
    write(tmp_path / "nyuv2" / "test" / "000000_normal.png", content)
    benchmark = open_partial("nyuv2", tmp_path)
    with pytest.raises(DataError, match=r"000000_normal\.png is missing or damaged"):
        benchmark.sample(benchmark.entries[0])
    (tmp_path / "nyuv2" / "test" / "000000_normal.png").unlink()
    with pytest.raises(DataError, match=r"1 files are missing, such as test/000000_normal\.png"):
        open_partial("nyuv2", tmp_path)


def test_the_command_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "where", "vkitti-normals", "--data", "ROOT"]) == 0
    printed = capsys.readouterr().out
    assert "surface normals: 16-bit PNG\n" in printed and "ROOT/vkitti/Scene01/000000_img.png" in printed
    assert run(["data", "list"]) == 0
    assert "ibims-normals" in capsys.readouterr().out
    assert run(["evaluate", "--benchmark", "nyuv2-normals", "--data", str(tmp_path)]) == 2
    assert "nyuv2 does not exist; `openmarigold data where nyuv2-normals`" in capsys.readouterr().err


def test_the_command_derives_what_a_known_benchmark_measures(
    tmp_path: Path, onnx_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "nyuv2" / "test" / "000000_img.png", image_bytes(make_photo(*SIZE)))
    write(tmp_path / "nyuv2" / "test" / "000000_normal.npy", npy(make_normals()))
    arguments = ["--checkpoint", str(onnx_checkpoint), "--num-inference-steps", "1", "--allow-partial"]
    assert run(["evaluate", "--benchmark", "nyuv2-normals", "--data", str(tmp_path), *arguments, "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out).values()
    assert (report["modality"], report["settings"]["derived_from"]) == ("normals", "depth")


# --- Folders of one's own


def make_folder(folder: Path, normals: np.ndarray) -> Path:
    write(folder / "a" / "rgb.jpg", image_bytes(make_photo(*SIZE), "JPEG"))
    (folder / "manifest.json").write_text(json.dumps([{"name": "a", "kind": "room", "place": "p"}]))
    return folder


@pytest.mark.parametrize(("suffix", "largest"), [("npy", 1e-4), ("exr", 1e-4), ("png", 0.45), ("16.png", 2e-3)])
@pytest.mark.parametrize(("frame", "signs"), [("rub", 1), ("lub", TO_LUB), ("opencv", TO_OPENCV)])
def test_generic_layout(suffix: str, largest: float, frame: str, signs: Any, tmp_path: Path) -> None:
    normals = make_normals()
    stored = normals * signs
    folder = make_folder(tmp_path / "own", normals)
    pictures = {"png": picture(stored, 255), "16.png": picture(stored, 65535)}
    content = npy(stored) if suffix == "npy" else exr(stored, tmp_path) if suffix == "exr" else pictures[suffix]
    write(folder / "a" / f"normals.{suffix.rpartition('.')[2]}", content)
    if frame != "rub":
        write(folder / "a" / "meta.json", json.dumps({"normal_frame": frame}).encode())
    benchmark = open_folder_benchmark(folder, NORMALS)
    sample = benchmark.sample(benchmark.entries[0])
    seen = known(normals)
    found = sample.maps["normals"] / np.maximum(np.linalg.norm(sample.maps["normals"], axis=2, keepdims=True), 1e-9)
    assert angles(found[seen], normals[seen]).max() < largest
    np.testing.assert_array_equal(sample.valid_mask, seen)


def test_a_frame_that_is_not_known(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "own", make_normals())
    write(folder / "a" / "normals.npy", npy(make_normals()))
    write(folder / "a" / "meta.json", b'{"normal_frame": "xyz"}')
    benchmark = open_folder_benchmark(folder, NORMALS)
    with pytest.raises(DataError, match=r"meta\.json has normal_frame 'xyz'; accepted are rub, lub, opencv"):
        benchmark.sample(benchmark.entries[0])


def test_photos_with_maps_next_to_them(tmp_path: Path) -> None:
    folder, normals = tmp_path / "photos", make_normals()
    for number, suffix in enumerate(("npy", "exr", "png")):
        content = {"npy": npy(normals), "exr": exr(normals, tmp_path), "png": picture(normals, 65535)}[suffix]
        write(folder / f"{number}.jpg", image_bytes(make_photo(*SIZE), "JPEG"))
        write(folder / f"{number}_normals.{suffix}", content)
        write(folder / f"{number}_normals_colored.png", image_bytes(make_photo(*SIZE)))
    write(folder / "alone.jpg", image_bytes(make_photo(*SIZE), "JPEG"))
    report = evaluate(folder, baseline_estimators(NORMALS)["facing the camera"])
    assert [image.name for image in report.images] == ["0", "1", "2"]
    tilts = np.degrees(np.arccos(normals[known(normals)][:, 2]))
    assert report.kinds["all"].metrics["mean_angle"] == pytest.approx(tilts.mean(), abs=0.01)
    with pytest.raises(DataError, match=r"manifest\.json cannot be read"):
        open_folder_benchmark(tmp_path / "none", NORMALS)


def plane_depth(tilt: float) -> np.ndarray:
    """Depth [m] of a plane, 2 m away in the middle, that rises to the right by `tilt` degrees; focal length 40 px."""
    x = (np.arange(SIZE[1]) - 15.5) / 40
    depth = 2 / (1 + np.tan(np.radians(tilt)) * x)
    return np.broadcast_to(depth, SIZE)


def test_measured_depth_with_intrinsics_gives_normals(tmp_path: Path) -> None:
    folder = tmp_path / "depth"
    for name in ("a", "b"):
        add_folder_image(folder, name, "room", name, plane_depth(30), scale=5000)
    path = folder / "a" / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intrinsics_px": [40, 40, 16, 12]}))  # the middle
    benchmark = open_folder_benchmark(folder, NORMALS)
    sample = benchmark.sample(benchmark.entries[0])
    # Depth falls to the right: the surface turns to the left, as seen from the camera.
    expected = np.array([-np.sin(np.radians(30)), 0, np.cos(np.radians(30))])
    assert sample.valid_mask.mean() > 0.9
    assert (
        angles(sample.maps["normals"][sample.valid_mask], expected).max() < 0.1
    )  # 0.19 with the middle half a pixel aside
    with pytest.raises(DataError, match=r"b/meta\.json has no intrinsics_px \[fx, fy, cx, cy\]"):
        benchmark.sample(benchmark.entries[1])
    # Where less than half of a window was measured, lines of pixels would fit planes of any tilt.
    lines = np.where(np.arange(SIZE[0])[:, None] % 4 == 0, plane_depth(30), 0)
    write(folder / "a" / "depth.png", gray16(lines, 5000))
    with pytest.raises(DataError, match="has no valid pixel"):
        benchmark.sample(benchmark.entries[0])
    # The same folder is still one of depth.
    assert open_folder_benchmark(folder, DEPTH).sample(benchmark.entries[0]).maps["depth"].shape == SIZE


def make_set(folder: Path, normals: list[np.ndarray]) -> Path:
    encodings = {"depth": MapEncoding(kind="float32"), "normals": MapEncoding(kind="float16")}
    writer = ShardWriter(folder, name="set", split="test", encodings=encodings, settings={})
    writer.begin()
    depth = plane_depth(30).astype(np.float32)
    samples = [
        NewSample(
            key=f"s{number}",
            kind="rooms",
            scene=f"scene-{number // 2}",
            rgb=make_photo(*SIZE, seed=number),
            maps={"depth": depth, "normals": values.astype(np.float32)},
        )
        for number, values in enumerate(normals)
    ]
    samples.append(NewSample(key="deep", kind="rooms", scene="x", rgb=make_photo(*SIZE), maps={"depth": depth}))
    writer.write(0, samples)
    writer.finish(1)
    return folder


def test_prepared_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    normals = [make_normals(seed) for seed in range(3)]
    folder = make_set(tmp_path / "set", normals)
    benchmark = open_folder_benchmark(folder, NORMALS)
    assert [(entry.name, entry.kind, entry.place) for entry in benchmark.entries] == [
        ("s0", "rooms", "scene-0"),
        ("s1", "rooms", "scene-0"),
        ("s2", "rooms", "scene-1"),
    ]
    sample = benchmark.sample(benchmark.entries[2])
    np.testing.assert_allclose(sample.maps["normals"], normals[2], atol=1e-3)
    np.testing.assert_array_equal(sample.valid_mask, known(normals[2]))
    depth = open_folder_benchmark(folder, DEPTH)
    assert len(depth.entries) == 4
    np.testing.assert_array_equal(depth.sample(depth.entries[0]).maps["depth"], plane_depth(30).astype(np.float32))

    arguments = ["evaluate", "--benchmark", str(folder), "--modality", "normals", "--predictions", str(tmp_path / "p")]
    for number, values in enumerate(normals):
        write(tmp_path / "p" / f"s{number}_normals.npy", npy(values))
    assert run([*arguments, "--protocol", "dsine", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out).values()
    assert report["kinds"]["all"]["mean_angle"] < 0.1 and report["kinds"]["all"]["num_places"] == 2
    tar = folder / "shard-00000.tar"
    content = bytearray(tar.read_bytes())
    content[content.index(b"NUMPY") + 2000] ^= 1  # in the first depth map
    tar.write_bytes(content)
    with pytest.raises(DataError, match="sample s0 is damaged"):
        evaluate(folder, baseline_estimators(DEPTH)["constant"])


def test_prepared_sets_without_the_map(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "set", name="set", split="test", encodings={"depth": MapEncoding(kind="float32")},
                         settings={})  # fmt: skip
    writer.begin()
    maps = {"depth": plane_depth(0).astype(np.float32)}
    writer.write(0, [NewSample(key="a", kind="k", scene="s", rgb=make_photo(*SIZE), maps=maps)])
    writer.finish(1)
    with pytest.raises(DataError, match="holds the maps depth, not normals; give a set with surface normals"):
        open_folder_benchmark(tmp_path / "set", NORMALS)
