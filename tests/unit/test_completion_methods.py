# SPDX-License-Identifier: Apache-2.0
"""Methods of completion on scenes whose depth and whose error of the model are known."""

import builtins
import subprocess
import sys

import numpy as np
import pytest

from openmarigold.camera import Camera
from openmarigold.completion import field
from openmarigold.completion.evidence import RelativeDepth, SparsePoints
from openmarigold.completion.interpolation import least_squares, linear, nearest
from openmarigold.completion.leave_out import is_alone, left_out_errors
from openmarigold.completion.methods import METHODS, Options, compare, complete
from openmarigold.errors import InvalidValueError, MissingExtraError

SIZE = (48, 64)
CAMERA = Camera.assumed(SIZE)


def _scene():
    """A slanted floor and a box before it: planar depth [m]."""
    rows, columns = np.indices(SIZE)
    depth = 6.0 - 3.5 * rows / SIZE[0] + 0.4 * columns / SIZE[1]
    depth[15:35, 20:40] = 1.5
    return depth


def _relative(depth, invariance="scale"):
    return RelativeDepth(depth=depth.astype(np.float32), invariance=invariance, camera=CAMERA)


def _points(depth, count=60, *, wrong=0, seed=0):
    rng = np.random.default_rng(seed)
    pixels = np.stack([rng.integers(SIZE[1], size=count), rng.integers(SIZE[0], size=count)], axis=-1)
    meters = depth[pixels[:, 1], pixels[:, 0]].copy()
    meters[:wrong] *= rng.uniform(1.3, 2, size=wrong)
    return SparsePoints(pixels=pixels.astype(float), depth=meters)


def _erring(depth):
    """The scene as a model may see it: floor and box off by opposite shares that vary slowly."""
    columns = np.indices(SIZE)[1]
    error = 0.1 * np.sin(columns / 20)
    return depth * np.exp(np.where(depth < 2, -error - 0.1, error))


@pytest.mark.parametrize("name", ["fit", "field"])
@pytest.mark.parametrize("invariance", ["affine", "scale"])
def test_a_perfect_model_gives_exact_meters(name, invariance):
    depth = _scene()
    relative = (depth - 1) / 6 if invariance == "affine" else depth / 7
    completed = complete(_relative(relative, invariance), _points(depth, wrong=8), method=name)
    np.testing.assert_allclose(completed.depth, depth, rtol=1e-4)
    wanted = (6, 1) if invariance == "affine" else (7, 0)
    assert (completed.scale, completed.shift) == pytest.approx(wanted, abs=1e-3)
    assert completed.depth.dtype == np.float32


def test_the_field_follows_what_the_fit_leaves_over():
    depth = _scene()
    relative, points = _relative(_erring(depth)), _points(depth, 100)
    error = {name: np.abs(complete(relative, points, method=name).depth - depth).mean() for name in METHODS}
    assert error["field"] < 0.25 * min(error["fit"], error["least_squares"])
    assert error["field"] < 0.25 * min(error["linear"], error["nearest"])
    assert complete(relative, points).method == "field"


def test_an_edge_of_depth_stops_the_field():
    depth = _scene()
    relative = _relative(_erring(depth))
    points = _points(depth, 150)
    one_side = points.depth > 2
    points = SparsePoints(pixels=points.pixels[one_side], depth=points.depth[one_side])  # none on the box
    completed = complete(relative, points, method="field")
    fit = complete(relative, points, method="fit")
    inside, outside = depth < 2, depth > 2
    moved = np.abs(np.log(completed.depth / fit.depth))
    assert moved[inside].mean() < 0.7 * moved[outside].mean()


def test_the_map_is_what_the_method_answers_at_its_pixels():
    depth = _scene()
    fitted = METHODS["field"].run(_relative(_erring(depth)), _points(depth, 100, wrong=5), Options())
    rows, columns = np.indices(SIZE)
    answers = fitted.at(np.stack([columns.ravel(), rows.ravel()], axis=-1).astype(float)).reshape(SIZE)
    np.testing.assert_allclose(fitted.map(), answers, rtol=0.01)
    assert np.abs(fitted.map() / answers - 1).mean() < 0.001


@pytest.mark.parametrize("name", list(METHODS))
def test_a_factor_of_the_points_is_one_of_the_map(name):
    depth = _scene()
    relative, points = _relative(_erring(depth)), _points(depth, 60, wrong=6)
    scaled = SparsePoints(pixels=points.pixels, depth=37.5 * points.depth)
    plain = complete(relative, points, method=name)
    other = complete(relative, scaled, method=name)
    np.testing.assert_allclose(other.depth, 37.5 * plain.depth, rtol=2e-6)
    assert other.errors.mean_m == pytest.approx(37.5 * plain.errors.mean_m, rel=1e-6)
    assert other.errors.num_outliers == plain.errors.num_outliers


def test_exact_keeps_the_points_but_not_the_wrong_ones():
    depth = _scene()
    points = _points(depth, 60, wrong=4)
    completed = complete(_relative(_erring(depth)), points, method="field", exact=True)
    x, y = points.pixels.astype(int).T
    at_points = completed.depth[y, x]
    np.testing.assert_allclose(at_points[4:], depth[y, x][4:], rtol=1e-6)
    assert (np.abs(at_points[:4] / points.depth[:4] - 1) > 0.1).all()


def test_many_points_add_detail(monkeypatch):
    monkeypatch.setattr(field, "MOST_CENTERS", 60)
    depth = _scene()
    relative, points = _relative(_erring(depth)), _points(depth, 600, wrong=30)
    few = complete(relative, _points(depth, 60), method="field")
    many = complete(relative, points, method="field")
    assert np.abs(many.depth - depth).mean() < np.abs(few.depth - depth).mean()


def test_wrong_points_are_counted():
    depth = _scene()
    completed = complete(_relative(_erring(depth)), _points(depth, 120, wrong=12), method="field")
    assert 5 <= completed.errors.num_outliers <= 14
    assert "contradict the others" in completed.notes[-1]
    assert np.abs(completed.depth - depth).mean() < 0.1
    clean = complete(_relative(_erring(depth)), _points(depth, 120), method="field")
    assert clean.errors.num_outliers <= 2


def test_one_point_and_too_few():
    depth = _scene()
    one = _points(depth, 1)
    completed = complete(_relative(depth / 7), one)
    assert completed.method == "fit"
    assert completed.errors is None
    np.testing.assert_allclose(completed.depth, depth, rtol=1e-5)
    with pytest.raises(InvalidValueError, match="needs a shift"):
        complete(_relative((depth - 1) / 6, "affine"), one)
    completed = complete(_relative((depth - 1) / 6, "affine"), one, options=Options(shift=1 / 6))
    np.testing.assert_allclose(completed.depth, depth, rtol=1e-5)
    with pytest.raises(InvalidValueError, match="the method field needs 5 points"):
        complete(_relative(depth / 7), one, method="field")


def test_points_on_a_line_and_at_one_place():
    depth = _scene()
    pixels = np.stack([np.arange(0.0, 40, 2), np.arange(0.0, 40, 2)], axis=-1)
    meters = depth[np.arange(0, 40, 2), np.arange(0, 40, 2)]
    for name in METHODS:
        completed = complete(_relative(depth / 7), SparsePoints(pixels=pixels, depth=meters), method=name)
        assert np.isfinite(completed.depth).all()
        assert (completed.depth > 0).all()
    same = SparsePoints(pixels=np.full((6, 2), 5.0), depth=np.linspace(4.9, 5.1, 6))
    completed = complete(_relative(depth / depth[5, 5]), same)
    assert completed.depth[5, 5] == pytest.approx(5, rel=0.03)


@pytest.mark.parametrize("name", list(METHODS))
def test_unknown_depth_of_the_model_stays_unknown(name):
    depth = _scene()
    holes = _erring(depth)
    holes[:10] = np.nan
    completed = complete(_relative(holes), _points(depth, 100), method=name)
    assert "lie where the model gives no depth" in completed.notes[0]
    assert np.isfinite(completed.depth[10:]).all()
    assert np.isnan(completed.depth[:10]).all() == (name not in ("nearest", "linear"))


def test_wrong_calls():
    depth = _scene()
    relative, points = _relative(depth), _points(depth)
    with pytest.raises(InvalidValueError, match="method='best' is not known; use auto or one of nearest"):
        complete(relative, points, method="best")
    with pytest.raises(InvalidValueError, match="1 of 2 points lie outside"):
        complete(relative, SparsePoints(pixels=np.array([[1.0, 1], [64, 1]]), depth=np.ones(2)))
    with pytest.raises(InvalidValueError, match="no points"):
        complete(relative, SparsePoints(pixels=np.zeros((0, 2)), depth=np.zeros(0)))
    other = RelativeDepth(depth=relative.depth, invariance="scale", camera=Camera.assumed((10, 10)))
    with pytest.raises(InvalidValueError, match=r"48x64 and the camera's picture 10x10"):
        complete(other, points)


def test_a_comparison_has_a_row_for_each_method():
    depth = _scene()
    rows = compare(_relative(_erring(depth)), _points(depth, 100))
    assert [row.method for row in rows] == list(METHODS)
    assert all(row.errors is not None for row in rows)
    means = {row.method: row.errors.mean_m for row in rows}
    assert means["field"] == min(means.values())
    rows = compare(_relative((depth - 1) / 6, "affine"), _points(depth, 2))
    assert next(row for row in rows if row.method == "field").note == "needs 5 points"


def test_left_out_errors_of_a_known_error():
    """A method that is off by 0.3 m everywhere, at points of which a tenth is wrong."""
    rng = np.random.default_rng(0)
    depth = _scene()
    points = _points(depth, 400, wrong=40)

    class Off:
        def at(self, pixels):
            x, y = pixels.astype(int).T
            return depth[y, x] + 0.3 * rng.choice([-1, 1], len(pixels))

    errors = left_out_errors(lambda some: Off(), points, depth.shape)
    assert errors.mean_m == pytest.approx(0.3, rel=0.25)
    assert errors.median_m == pytest.approx(0.3, rel=0.05)
    assert errors.num_points == 400


@pytest.mark.parametrize(("apart", "outliers"), [(1.0, 0), (30.0, 1)])
def test_a_point_beside_an_edge_of_the_map_is_an_error_of_the_map(apart: float, outliers: int):
    """The map turns from 2 m to 6 m at column 100; one point says 6 m left of it."""
    pixels = np.array([[float(x), float(y)] for x in range(0, 90, 9) for y in range(0, 100, 9)])
    pixels = np.concatenate([pixels, [[100.0 - apart, 50.3]]])
    meters = np.full(len(pixels), 2.0)
    meters[-1] = 6.0

    class Edge:
        def at(self, pixels):
            return np.where(pixels[:, 0] < 100, 2.0, 6.0) * (1 + 0.001 * np.sin(pixels[:, 1]))

    errors = left_out_errors(lambda some: Edge(), SparsePoints(pixels=pixels, depth=meters), (100, 200))
    assert errors.num_outliers == outliers
    assert errors.mean_m == pytest.approx(4.0 / len(pixels) if not outliers else 0.001, abs=0.003)


def test_a_point_with_support_is_not_alone():
    pixels = np.array([[float(i), 0.0] for i in range(30)])
    meters = np.full(30, 2.0)
    meters[[10, 11]] = 5.0  # a thing
    meters[20] = 5.0  # alone
    alone = is_alone(SparsePoints(pixels=pixels, depth=meters), np.arange(30))
    assert np.flatnonzero(alone).tolist() == [20]


def test_interpolation_by_hand():
    pixels, meters = np.array([[0.0, 0], [10, 0], [0, 10]]), np.array([1.0, 3, 5])
    at = np.array([[2.0, 2], [5, 5], [20, 1]])
    np.testing.assert_allclose(linear(pixels, meters, at), [1 + 0.4 + 0.8, 4, 3])
    np.testing.assert_allclose(nearest(pixels, meters, np.array([[2.0, 2], [6, 4], [20, 1]])), [1, 3, 3])
    assert least_squares(np.array([0.0, 1, 2]), np.array([1.0, 3, 8])) == pytest.approx((3.5, 0.5))


def test_without_scipy(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "scipy":
            raise ModuleNotFoundError("No module named 'scipy'", name="scipy")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    depth = _scene()
    relative, points = _relative(_erring(depth)), _points(depth)
    assert complete(relative, points).method == "field"
    assert complete(relative, points, method="nearest").depth.shape == SIZE
    with pytest.raises(MissingExtraError, match=r"scipy is not installed.*openmarigold\[metric\]"):
        complete(relative, points, method="linear")
    row = next(row for row in compare(relative, points) if row.method == "linear")
    assert "openmarigold[metric]" in row.note


def test_completion_imports_neither_torch_nor_scipy():
    code = "import sys, openmarigold.completion.methods as _; print({'torch', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
