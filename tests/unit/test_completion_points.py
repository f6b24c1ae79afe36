# SPDX-License-Identifier: Apache-2.0
"""Every file of sparse points, written here by hand; and files that are wrong in every way."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from openmarigold.camera import Camera
from openmarigold.completion.evidence import SparsePoints
from openmarigold.completion.known import KnownConfig
from openmarigold.completion.point_files import read_transform
from openmarigold.completion.points import PointOptions, checked_points, read_points, see_through
from openmarigold.errors import DataError, InvalidValueError, OpenMarigoldError

CAMERA = Camera(fx=50.0, fy=50.0, cx=20.0, cy=10.0, width=40, height=20)
PIXELS = np.array([[3.0, 4.0], [30.5, 12.0], [39.0, 19.0]])
DEPTH = np.array([1.5, 2.25, 4.0])


def _is_as_given(points):
    np.testing.assert_allclose(points.pixels, PIXELS)
    np.testing.assert_allclose(points.depth, DEPTH)


@pytest.mark.parametrize(
    "text",
    [
        "3,4,1.5\n30.5,12,2.25\n39,19,4\n",
        "x,y,depth\n3,4,1.5\n30.5,12,2.25\n39,19,4\n",
        "# points\r\nZ;v;u\r\n1,5;4;3\r\n2,25;12;30,5\r\n4;19;39\r\n",
        "3 4 1.5\n30.5  12 2.25\n\n39 19 4",
        '"u"\t"v"\t"name"\t"z"\n3\t4\t\t1.5\n30.5\t12\t\t2.25\n39\t19\t\t4\n',
        "\ufeffcol,row,depth_m\n3,4,1.5\n30.5,12,2.25\n39,19,4\n",
        "# 3 points\n# depth x y\n1.5 3 4\n2.25 30.5 12\n4 39 19\n# x y depth\n",  # as of numpy.savetxt
        "#v,u,z\n4,3,1.5\n12,30.5,2.25\n19,39,4\n",
        "# y x depth\n4,3,1.5\n12,30.5,2.25\n19,39,4\n",
        "# depth x y\n# measured at noon\n3 4 1.5\n30.5 12 2.25\n39 19 4\n",
        "# depth at x y\n3 4 1.5\n30.5 12 2.25\n39 19 4\n",
        "# depth x y\nx y depth\n3 4 1.5\n30.5 12 2.25\n39 19 4\n",
    ],
)
def test_tables(tmp_path, text):
    (tmp_path / "points.csv").write_text(text, encoding="utf-8")
    points = read_points(tmp_path / "points.csv", camera=CAMERA)
    _is_as_given(points)
    assert (points.source, points.notes) == ("points.csv", ())


def test_arrays_of_points(tmp_path):
    rows = np.column_stack([PIXELS, DEPTH])
    np.save(tmp_path / "p.npy", rows)
    np.savez(tmp_path / "p.npz", points=rows, other=np.zeros(2))
    _is_as_given(read_points(tmp_path / "p.npy", camera=CAMERA))
    _is_as_given(read_points(tmp_path / "p.npz", camera=CAMERA))


def _map():
    values = np.zeros((20, 40), dtype=np.float32)
    values[4, 3], values[12, 30], values[19, 39] = 1.5, 2.25, 4.0
    return values


def test_maps(tmp_path):
    values = _map()
    values[0, 0] = np.nan
    np.save(tmp_path / "m.npy", values)
    points = read_points(tmp_path / "m.npy", camera=CAMERA)
    np.testing.assert_allclose(points.pixels, [[3, 4], [30, 12], [39, 19]])
    np.testing.assert_allclose(points.depth, DEPTH)
    assert points.notes == ()  # a pixel without depth is not a point


def test_a_map_of_another_size_is_scaled(tmp_path):
    np.save(tmp_path / "m.npy", _map())
    points = read_points(tmp_path / "m.npy", camera=CAMERA.resized((40, 80)))
    np.testing.assert_allclose(points.pixels, [[6.5, 8.5], [60.5, 24.5], [78.5, 38.5]])  # middles of 2x2 pixels
    assert "40x20 and the photo 80x40 (width x height)" in points.notes[0]
    with pytest.raises(DataError, match="must have the photo's shape"):
        read_points(tmp_path / "m.npy", camera=CAMERA.resized((40, 40)))


def test_exr(tmp_path):
    exr = pytest.importorskip("openmarigold.images.exr")
    exr.write_exr(tmp_path / "m.exr", {"Z": _map()}, {})
    np.testing.assert_allclose(read_points(tmp_path / "m.exr", camera=CAMERA).depth, DEPTH)


def test_png(tmp_path):
    levels = np.rint(_map() * 256).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "m.png")
    with pytest.raises(InvalidValueError, match=r"give depth_scale, usually 1000 \(ScanNet"):
        read_points(tmp_path / "m.png", camera=CAMERA)
    points = read_points(tmp_path / "m.png", camera=CAMERA, options=PointOptions(depth_scale=256.0))
    np.testing.assert_allclose(points.depth, DEPTH)
    info = PngInfo()
    info.add_text("depth_scale", "256")
    Image.fromarray(levels).save(tmp_path / "stated.png", pnginfo=info)
    np.testing.assert_allclose(read_points(tmp_path / "stated.png", camera=CAMERA).depth, DEPTH)
    for options in (PointOptions(depth_scale=256.0, unit="mm"), PointOptions(unit="mm")):
        with pytest.raises(
            InvalidValueError, match=r"leave the unit out, and give depth_scale, such as 1000 for levels"
        ):
            read_points(tmp_path / "stated.png", camera=CAMERA, options=options)
    read_points(tmp_path / "stated.png", camera=CAMERA, options=PointOptions(unit="m"))
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "8.png")
    with pytest.raises(DataError, match="8 bits"):
        read_points(tmp_path / "8.png", camera=CAMERA, options=PointOptions(depth_scale=256.0))


PLACES = CAMERA.unproject_at(PIXELS, DEPTH)


def _ply(kind):
    head = f"ply\nformat {kind} 1.0\ncomment x\nelement vertex 3\nproperty uchar red\nproperty float x\n"
    head += "property double y\nproperty float z\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
    if kind == "ascii":
        rows = "".join(f"7 {x} {y} {z}\n" for x, y, z in PLACES.tolist())
        return (head + rows + "3 0 1 2\n").encode()
    order = "<" if "little" in kind else ">"
    return head.encode() + b"".join(struct.pack(order + "Bfdf", 7, *place) for place in PLACES) + b"\3"


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply(tmp_path, kind):
    (tmp_path / "c.ply").write_bytes(_ply(kind))
    points = read_points(tmp_path / "c.ply", camera=CAMERA)
    np.testing.assert_allclose(points.pixels, PIXELS, rtol=1e-5)
    np.testing.assert_allclose(points.depth, DEPTH, rtol=1e-6)


def test_xyz_leaves_out_what_is_behind(tmp_path):
    np.savetxt(tmp_path / "c.xyz", np.vstack([PLACES, [0, 0, -3]]))
    points = read_points(tmp_path / "c.xyz", camera=CAMERA)
    np.testing.assert_allclose(points.depth, DEPTH)
    assert points.notes == ("1 of 4 points lie behind the camera and were left out",)


@pytest.mark.parametrize("named", [False, True])
def test_lidar_with_a_transform(tmp_path, named):
    turn = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])  # x forward, y left, z up to the camera's axes
    move = np.array([0.1, -0.2, 0.3])
    cloud = (PLACES - move) @ turn
    np.column_stack([cloud, np.ones(3)]).astype("<f4").tofile(tmp_path / "0.bin")
    matrix = np.column_stack([turn, move])
    if named:
        text = f"calib_time: now\nR: {' '.join(map(str, turn.ravel()))}\nT: {' '.join(map(str, move))}\n"
        (tmp_path / "calibration.txt").write_text(text)
    else:
        np.savetxt(tmp_path / "calibration.txt", np.vstack([matrix, [0, 0, 0, 1]]))
    options = PointOptions(transform=tmp_path / "calibration.txt")
    points = read_points(tmp_path / "0.bin", camera=CAMERA, options=options)
    np.testing.assert_allclose(points.pixels, PIXELS, atol=1e-3)
    np.testing.assert_allclose(points.depth, DEPTH, rtol=1e-5)
    with pytest.raises(InvalidValueError, match="the axes of its LiDAR"):
        read_points(tmp_path / "0.bin", camera=CAMERA)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("1 2 3", "no 3x4 or 4x4"),
        ("2 0 0 0\n0 2 0 0\n0 0 2 0", "not a rotation"),
        ("P0: 1 2", "no 3x4"),
        ("a b", "no 3x4"),
    ],
)
def test_transforms_that_are_none(tmp_path, text, match):
    np.zeros((2, 4), dtype="<f4").tofile(tmp_path / "0.bin")
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(DataError, match=match):
        read_points(tmp_path / "0.bin", camera=CAMERA, options=PointOptions(transform=tmp_path / "t.txt"))


def _write_colmap(folder, *, binary, size=(40, 20)):
    """Two images; the second one, turned by a quarter about z and moved, observes three points and a pixel of none."""
    turn, move = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), np.array([0.5, 0.25, 1.0])
    world = (PLACES - move) @ turn
    half = float(np.sqrt(0.5))
    seen = [*((x + 0.5, y + 0.5, 10 + i) for i, (x, y) in enumerate(PIXELS)), (1.0, 1.0, -1)]
    images = [
        (1, (1.0, 0, 0, 0), (0.0, 0, 0), "a/0.jpg", [(2.0, 2.0, 10)]),
        (2, (half, 0, 0, half), move, "a/1.jpg", seen),
    ]
    if binary:
        (folder / "cameras.bin").write_bytes(struct.pack("<QIiQQ4d", 1, 7, 1, *size, 50, 50, 20.5, 10.5))
        out = struct.pack("<Q", 2)
        for number, turned, moved, name, rows in images:
            out += (
                struct.pack("<I7dI", number, *turned, *moved, 7) + name.encode() + b"\0" + struct.pack("<Q", len(rows))
            )
            out += b"".join(struct.pack("<ddQ", x, y, point % 2**64) for x, y, point in rows)
        (folder / "images.bin").write_bytes(out)
        out = struct.pack("<Q", 3)
        for i, place in enumerate(world):
            out += struct.pack("<Q3d3BdQ", 10 + i, *place, 1, 2, 3, 0.5, 2) + struct.pack("<4I", 1, 0, 2, i)
        (folder / "points3D.bin").write_bytes(out)
        return
    (folder / "cameras.txt").write_text(f"# cameras\n7 PINHOLE {size[0]} {size[1]} 50 50 20.5 10.5\n")
    lines = ["# images"]
    for number, turned, moved, name, rows in images:
        lines.append(" ".join(map(str, [number, *turned, *moved, 7, name])))
        lines.append(" ".join(f"{x} {y} {point}" for x, y, point in rows))
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    rows = [f"{10 + i} {x} {y} {z} 1 2 3 0.5 1 0 2 {i}" for i, (x, y, z) in enumerate(world.tolist())]
    (folder / "points3D.txt").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("binary", [False, True])
def test_colmap(tmp_path, binary):
    _write_colmap(tmp_path, binary=binary)
    for name in ("1.jpg", "a/1.jpg", "photos/a/1.jpg"):
        points = read_points(tmp_path, camera=CAMERA, options=PointOptions(image=name))
        np.testing.assert_allclose(points.pixels, PIXELS)
        np.testing.assert_allclose(points.depth, DEPTH)
    assert "COLMAP's own unit" in points.notes[0]
    with pytest.raises(DataError, match=r"it holds 2 images; give the name of one of them: a/0\.jpg, a/1\.jpg"):
        read_points(tmp_path, camera=CAMERA)
    with pytest.raises(DataError, match=r"0 images are called 2\.jpg"):
        read_points(tmp_path, camera=CAMERA, options=PointOptions(image="2.jpg"))


def test_colmap_of_another_size(tmp_path):
    _write_colmap(tmp_path, binary=True)
    points = read_points(tmp_path, camera=CAMERA.resized((40, 80)), options=PointOptions(image="1.jpg"))
    np.testing.assert_allclose(points.pixels, (PIXELS + 0.5) * 2 - 0.5)
    np.testing.assert_allclose(points.depth, DEPTH)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", ["images", "cameras", "points3D"])
def test_colmap_that_is_cut_or_missing(tmp_path, binary, name):
    _write_colmap(tmp_path, binary=binary)
    path = tmp_path / f"{name}{'.bin' if binary else '.txt'}"
    content = path.read_bytes()
    for end in sorted({*range(0, len(content), 7), len(content) - 1}):
        path.write_bytes(content[:end])
        try:  # a text that is cut may still be one
            read_points(tmp_path, camera=CAMERA, options=PointOptions(image="1.jpg"))
        except DataError as error:
            assert "\n" not in str(error)
    path.unlink()
    with pytest.raises(DataError, match=name):
        read_points(tmp_path, camera=CAMERA, options=PointOptions(image="1.jpg"))


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.csv", b"", "holds no points"),
        ("a.csv", b"x,y,depth\n", "holds no points"),
        ("a.csv", b"x,y,depth\n1,2,near\n", "line 2: 'near' is not a number"),
        ("a.csv", b"1,2,3\n1,2\n", "line 2: 2 columns, and 3 in the first"),
        ("a.csv", b"x,y,color\n1,2,3\n", "columns x or u, y or v, depth or z are needed"),
        ("a.csv", b"1,2\n", "2 columns; x, y and depth"),
        ("a.csv", bytes(range(256)), "is not text"),
        ("a.npy", b"\x93NUMPY", "damaged or no array"),
        ("a.npz", b"PK\3\4 garbage", "damaged or no archive"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "damaged or no depth map"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 9\n", "no header"),
        ("a.ply", b"ply\nelement vertex 1\nend_header\n", "states no format"),
        ("a.ply", _ply("binary_little_endian")[:-20], "vertices announced"),
        ("a.bin", b"12345", "5 bytes"),
        ("a.obj", b"v 1 2 3", r"points are read from \.csv"),
    ],
)
def test_files_that_are_wrong(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match) as caught:
        read_points(tmp_path / name, camera=CAMERA)
    assert "\n" not in str(caught.value)


def test_missing_file_and_bad_options(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_points(tmp_path / "none.csv", camera=CAMERA)
    with pytest.raises(DataError, match=r"images\.bin or images\.txt"):
        read_points(tmp_path, camera=CAMERA)
    with pytest.raises(InvalidValueError, match="depth_scale=0"):
        read_points(tmp_path, camera=CAMERA, options=PointOptions(depth_scale=0.0))


def test_an_array_that_announces_too_much(tmp_path):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 3)})
    (tmp_path / "a.npy").write_bytes(content.getvalue())
    with pytest.raises(DataError, match="truncated"):
        read_points(tmp_path / "a.npy", camera=CAMERA)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content.getvalue())
    with pytest.raises(DataError, match="truncated"):
        read_points(tmp_path / "a.npz", camera=CAMERA)


def _points(rows):
    rows = np.array(rows, dtype=float).reshape(-1, 3)
    return SparsePoints(pixels=rows[:, :2], depth=rows[:, 2], source="p.csv")


def test_points_that_cannot_be_are_counted():
    rows = [[1, 1, 2], [2, 5, np.nan], [3, 7, 0], [4, 2, -1], [99, 1, 2], [1, -0.6, 2], [-0.4, 19.4, 3], [np.nan, 1, 2]]
    points = checked_points(_points(rows), camera=CAMERA)
    np.testing.assert_allclose(points.depth, [2, 3])
    assert points.notes == (
        "2 of 8 points are not finite and were left out",
        "2 of 8 points have depth 0 or less and were left out",
        "2 of 8 points lie outside of the picture of 40x20 and were left out",
    )


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "holds no points"),
        ([[50, 1, 2], [1, 50, 2]], r"none of 2 points .* outside of the picture"),
        ([[1, 1, 0]], r"none of 1 points .* depth 0 or less"),
        ([[1, 2, 1500], [2, 2, 2000], [3, 5, 3100]], "whole numbers, which looks like millimeters; give the unit mm"),
    ],
)
def test_points_that_are_all_useless(rows, match):
    with pytest.raises(DataError, match=match):
        checked_points(_points(rows), camera=CAMERA)


def test_units(tmp_path):
    (tmp_path / "p.csv").write_text("1,2,1500\n2,2,2000\n3,5,3100\n")
    for unit, factor in (("mm", 0.001), ("cm", 0.01), ("m", 1.0)):
        points = read_points(tmp_path / "p.csv", camera=CAMERA, options=PointOptions(unit=unit))
        np.testing.assert_allclose(points.depth, np.array([1500, 2000, 3100]) * factor)
    (tmp_path / "p.csv").write_text("1,2,150\n2,2,170\n3,5,190\n")
    assert "if they are centimeters" in read_points(tmp_path / "p.csv", camera=CAMERA).notes[0]


def test_degenerate_geometry_is_said():
    line = checked_points(_points([[i, 2 * i, 3] for i in range(5)]), camera=CAMERA)
    assert line.notes == ("all points are on one line of the picture: away from it, depth comes from the model alone",)
    place = checked_points(_points([[5, 5, 3 + i] for i in range(5)]), camera=CAMERA)
    assert "all 5 points are at one pixel" in place.notes[0]


def test_distance_along_the_ray(tmp_path):
    lengths = np.linalg.norm(PLACES, axis=1)
    np.save(tmp_path / "p.npy", np.column_stack([PIXELS, lengths]))
    _is_as_given(read_points(tmp_path / "p.npy", camera=CAMERA, options=PointOptions(along_ray=True)))


def test_see_through():
    rows = [[10, 10, 2], [13, 7, 3.6], [14, 14, 9], [10, 12, 3.4], [30, 10, 9]]
    # 3.6 m is 1.6 m behind and 3 pixels away; 9 m is 4 pixels away; 3.4 m is 1.4 m behind.
    assert see_through(_points(rows)).tolist() == [False, True, False, False, False]
    assert see_through(_points([[10, 10, 2], [13, 10, 9]])).tolist() == [False, True]


@settings(max_examples=60)
@given(content=st.binary(max_size=300), suffix=st.sampled_from(["csv", "npy", "npz", "png", "ply", "xyz", "bin"]))
def test_any_bytes_give_points_or_one_error(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("hostile") / f"a.{suffix}"
    path.write_bytes(content)
    try:
        read_points(path, camera=CAMERA)
    except OpenMarigoldError as error:
        assert "\n" not in str(error)


def test_a_unit_beside_a_png_is_of_the_other_values():
    depth, png = ("3,4=250",), Path("d.png")
    for known, expected in (
        (KnownConfig(known_depth=depth, points=png, unit="cm", depth_scale=1000.0), True),
        (KnownConfig(points=Path("d.csv"), metric_map=png, unit="mm", depth_scale=1000.0), True),
        (KnownConfig(points=png, unit="mm", depth_scale=1000.0), False),
    ):
        assert known.has_other_than_pngs is expected


def test_colmap_in_another_unit_and_behind_other_points(tmp_path):
    _write_colmap(tmp_path, binary=True)
    points = read_points(tmp_path, camera=CAMERA, options=PointOptions(image="1.jpg", unit="cm"))
    np.testing.assert_allclose(points.depth, DEPTH / 100)
    places = PLACES.copy()
    places[1] = places[0] * 3  # behind the first one, in the same pixel
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "PLACES", places)
        patch.setitem(globals(), "PIXELS", np.stack([PIXELS[0], PIXELS[0], PIXELS[2]]))
        _write_colmap(tmp_path, binary=True)
    for remove in (False, True):
        seen = read_points(tmp_path, camera=CAMERA, options=PointOptions(image="1.jpg", remove_see_through=remove))
        np.testing.assert_allclose(seen.depth, places[[0, 2] if remove else [0, 1, 2], 2])


def test_colmap_of_a_photo_that_was_turned(tmp_path):
    _write_colmap(tmp_path, binary=True)
    turned = Camera.from_fov((40, 20), 60.0)
    with pytest.raises(DataError, match=r"is 40x20 and the photo 20x40 .* EXIF orientation: save them upright"):
        read_points(tmp_path, camera=turned, options=PointOptions(image="1.jpg"))


def test_a_newer_camera_model_is_no_damage(tmp_path):
    _write_colmap(tmp_path, binary=True)
    (tmp_path / "cameras.bin").write_bytes(struct.pack("<QIiQQ4d", 1, 7, 12, 40, 20, 50, 50, 20.5, 10.5))
    with pytest.raises(DataError, match=r"a camera of model 12, .*export the model as text"):
        read_points(tmp_path, camera=CAMERA, options=PointOptions(image="1.jpg"))


def test_an_array_of_four_columns_is_no_map(tmp_path):
    np.save(tmp_path / "p.npy", np.full((2, 4), 3.0))
    with pytest.raises(DataError, match=r"shape \[2, 4\]; points are \[n 3\]"):
        read_points(tmp_path / "p.npy", camera=Camera.from_fov((20, 40), 60.0))


def test_lines_that_end_as_on_windows_empty_ones_and_accents(tmp_path):
    (tmp_path / "calibration.txt").write_bytes(b"P0: 1 2\r\nTr: 1 0 0 0 0 1 0 0 0 0 1 0\r\n")
    np.testing.assert_array_equal(read_transform(tmp_path / "calibration.txt"), np.eye(4)[:3])
    head, rows = _ply("ascii").split(b"end_header\n")
    head = head.replace(b"comment x", "comment caf\u00e9".encode())
    (tmp_path / "c.ply").write_bytes(head + b"end_header\n" + rows.replace(b"\n", b"\n\n", 1))
    np.testing.assert_allclose(read_points(tmp_path / "c.ply", camera=CAMERA).depth, DEPTH, rtol=1e-6)
