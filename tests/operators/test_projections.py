"""Projections against enumerated active sets and vertices; derivatives; what projections must satisfy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fenchel import (
    InputError,
    isotonic_regression,
    project_capped_simplex,
    project_permutahedron,
    project_simplex,
    sparsemax,
)

optimize = pytest.importorskip("scipy.optimize")

numbers = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 2))
rows = st.lists(numbers, min_size=1, max_size=6)


def enumerated(x: np.ndarray, total: float, upper: float) -> np.ndarray:
    """The best feasible point over all ways to hold entries at 0 or `upper`: the QP by brute force."""
    best, found = math.inf, np.zeros_like(x)
    for state in itertools.product((0, 1, 2), repeat=len(x)):
        kind = np.array(state)
        y = np.where(kind == 1, upper, 0.0)
        free, rest = kind == 2, total - y.sum()
        if free.any():
            y[free] = x[free] + (rest - x[free].sum()) / free.sum()
        elif abs(rest) > 1e-12 * (1 + total):
            continue
        distance = ((x - y) ** 2).sum()
        if (y >= -1e-12).all() and (y <= upper + 1e-12).all() and distance < best:
            best, found = distance, y
    return found


# --- simplex ---------------------------------------------------------------------------------------


@given(rows, st.floats(0.01, 100))
def test_simplex_by_brute_force(row: list[float], radius: float) -> None:
    x = np.array(row)
    expected = enumerated(x, radius, math.inf) if len(x) <= 4 else None
    y = project_simplex(torch.tensor(x), radius=radius).numpy()
    assert y.min() >= 0 and y.sum() == pytest.approx(radius, rel=1e-12)
    if expected is not None:
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-10)
    level = (x - y)[y > 0]  # KKT: x - y is the same on the support, and no less than x off it
    assert np.ptp(level) <= 1e-10 and (x[y == 0] <= level[0] + 1e-10).all()


def test_simplex_of_radius_one_is_sparsemax() -> None:
    x = torch.randn(5, 40, dtype=torch.float64)
    torch.testing.assert_close(project_simplex(x), sparsemax(x), rtol=0, atol=0)
    masked = torch.tensor([1.0, -math.inf, 0.5])
    torch.testing.assert_close(project_simplex(masked, radius=2.0), torch.tensor([1.25, 0.0, 0.75]))


def test_a_radius_for_each_row() -> None:
    x, radius = torch.randn(4, 9, dtype=torch.float64), torch.tensor([0.1, 1.0, 3.0, 20.0]).double()
    y = project_simplex(x, radius=radius)
    for i in range(4):
        torch.testing.assert_close(y[i], project_simplex(x[i], radius=float(radius[i])))
    torch.testing.assert_close(project_simplex(x.T, radius=radius, dim=0), y.T)


# --- capped simplex --------------------------------------------------------------------------------


@given(rows, st.floats(0.1, 10), st.floats(0, 1))
def test_capped_simplex_by_brute_force(row: list[float], upper: float, share: float) -> None:
    x = np.array(row)
    for total in (share * len(x) * upper, round(share * len(x)) * upper):  # the second is often a vertex
        y = project_capped_simplex(torch.tensor(x), total, upper=upper).numpy()
        np.testing.assert_allclose(y, enumerated(x, total, upper), rtol=0, atol=1e-10)
        assert y.min() >= 0 and y.max() <= upper


@pytest.mark.parametrize("form", ["random", "ties", "large", "spread"])
def test_capped_simplex_of_long_rows(form: str) -> None:
    """KKT with 2000 entries: x - y is τ between the bounds, at most τ at 0, at least τ at the upper one."""
    x = torch.randn(3, 2000, dtype=torch.float64)
    x = {"random": x, "ties": x.round(), "large": x * 1e6, "spread": x.sinh() * x.cosh() ** 3}[form]
    for total in (0.5, 3.0, 100.0, 1000.5, 1999.0, 2000.0):
        y = project_capped_simplex(x, total)
        slack = 1e-13 * (1 + float(x.abs().max()))
        torch.testing.assert_close(y.sum(-1), torch.full((3,), total).double(), rtol=1e-12, atol=100 * slack)
        for each, score in zip(y, x, strict=True):
            level = score - each
            free, lowest = (each > 0) & (each < 1), float(level[each > 0].min())
            assert free.sum() == 0 or level[free].max() - level[free].min() <= 2 * slack
            assert total == 2000 or float(level[each < 1].max()) <= lowest + 2 * slack


def test_capped_simplex_without_a_binding_cap_is_the_simplex() -> None:
    x = torch.randn(6, 50, dtype=torch.float64)
    expected = project_simplex(x, radius=2.5)
    torch.testing.assert_close(project_capped_simplex(x, 2.5, upper=100.0), expected, rtol=0, atol=1e-12)


def test_both_ends_of_the_total_are_exact() -> None:
    x = torch.randn(4, 7) * 100
    assert (project_capped_simplex(x, 0) == 0).all()
    assert (project_capped_simplex(x, 7) == 1).all()
    each = project_capped_simplex(x, torch.tensor([0, 2, 5, 7]))
    torch.testing.assert_close(each.sum(-1), torch.tensor([0.0, 2.0, 5.0, 7.0]))
    torch.testing.assert_close(each[1], project_capped_simplex(x[1], 2), rtol=0, atol=0)


def test_a_vertex_is_a_constant() -> None:
    """With a gap of `upper` or more the k largest are chosen whole, and nothing moves with x."""
    x = torch.tensor([3.0, 1.0, -1.0, 5.0], dtype=torch.float64, requires_grad=True)
    y = project_capped_simplex(x, 2)
    assert y.tolist() == [1.0, 0.0, 0.0, 1.0]
    (gradient,) = torch.autograd.grad((y * torch.arange(4)).sum(), x)
    assert (gradient == 0).all()


# --- permutahedron ---------------------------------------------------------------------------------


@given(rows, st.data())
@pytest.mark.parametrize("impl", ["eager", "auto"])
def test_permutahedron_against_all_vertices(impl: str, row: list[float], data: st.DataObject) -> None:
    """y is inside (majorised by w) and <x - y, z - y> <= 0 for every vertex z: it is the projection."""
    x = np.array(row)
    w = np.array(data.draw(st.lists(numbers, min_size=len(x), max_size=len(x))))
    y = project_permutahedron(torch.tensor(x), torch.tensor(w), impl=impl).numpy()
    sums, bound = np.cumsum(np.sort(y)[::-1]), np.cumsum(np.sort(w)[::-1])
    assert (sums <= bound + 1e-10).all() and sums[-1] == pytest.approx(bound[-1], abs=1e-10)
    vertices = np.array(list(itertools.permutations(w)))
    assert ((vertices - y) @ (x - y)).max() <= 1e-10 * (1 + np.abs(x).max() + np.abs(w).max()) ** 2


def test_permutahedron_by_a_general_solver() -> None:
    """The QP over the majorisation inequalities, all 2^n of them."""
    rng = np.random.default_rng(0)
    n = 5
    subsets = np.array([s for s in itertools.product((0, 1), repeat=n) if 0 < sum(s) < n])
    for _ in range(5):
        x, w = rng.standard_normal(n) * 2, np.sort(rng.standard_normal(n))[::-1]
        bounds = np.array([w[: int(s.sum())].sum() for s in subsets])
        solution = optimize.minimize(
            lambda y, x=x: (0.5 * ((y - x) ** 2).sum(), y - x),
            np.full(n, w.mean()),
            jac=True,
            method="SLSQP",
            constraints=[
                {"type": "eq", "fun": lambda y, w=w: y.sum() - w.sum()},
                {"type": "ineq", "fun": lambda y, b=bounds: b - subsets @ y, "jac": lambda y: -subsets},
            ],
            options={"ftol": 1e-15, "maxiter": 500},
        )
        y = project_permutahedron(torch.tensor(x), torch.tensor(w.copy()))
        np.testing.assert_allclose(y.numpy(), solution.x, rtol=0, atol=1e-7)
        assert 0.5 * float(((y.numpy() - x) ** 2).sum()) <= solution.fun + 1e-10


def test_permutahedra_that_are_known() -> None:
    """The capped simplex for k ones and zeros, the simplex for a unit vector, a point for equal entries."""
    x = torch.randn(4, 6, dtype=torch.float64)
    for k in range(7):
        w = (torch.arange(6) < k).double()
        expected = project_capped_simplex(x, k)
        torch.testing.assert_close(project_permutahedron(x, w), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(project_permutahedron(x, torch.eye(6).double()[2]), project_simplex(x))
    assert (project_permutahedron(x, torch.full((6,), 2.0).double()) == 2).all()


def test_solvers_agree_and_vertices_are_exact() -> None:
    x = torch.randn(3, 30) * 2
    expected = project_permutahedron(x.double())
    for solver in ("pav", "dykstra"):
        y = project_permutahedron(x, solver=solver, iterations=2000)
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-4)
    far = torch.randperm(30).float() * 1000  # entries alone in their blocks are w to the last digit
    assert torch.equal(project_permutahedron(far), far / 1000 + 1)


# --- all of them -----------------------------------------------------------------------------------

PROJECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "simplex": lambda x: project_simplex(x, radius=1.5),
    "capped simplex": lambda x: project_capped_simplex(x, 1.7, upper=0.8),
    "permutahedron": lambda x: project_permutahedron(x, torch.linspace(0, 1, x.shape[-1]).to(x)),
}
each = pytest.mark.parametrize("project", PROJECTIONS.values(), ids=PROJECTIONS)


@each
@given(
    st.lists(numbers, min_size=6, max_size=6),
    st.lists(numbers, min_size=6, max_size=6),
    numbers,
    st.permutations(range(6)),
)
def test_projections(
    project: Callable[[Tensor], Tensor],
    first: list[float],
    second: list[float],
    shift: float,
    order: list[int],
) -> None:
    """Firmly nonexpansive and idempotent; blind to a shift of x, since Σ y is fixed, and to its order."""
    x, z = torch.tensor([first, second], dtype=torch.float64)
    px, pz = project(torch.stack([x, z]))
    slack = 1e-11 * (1 + x.abs().max() + z.abs().max()) ** 2
    assert (px - pz).square().sum() <= ((px - pz) * (x - z)).sum() + slack
    torch.testing.assert_close(project(px), px, rtol=0, atol=1e-12)
    torch.testing.assert_close(project(x + shift), px, rtol=0, atol=1e-11)
    torch.testing.assert_close(project(x[order]), px[order], rtol=0, atol=1e-12)


@each
def test_gradients_to_second_order(project: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(project, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(project, x, check_batched_grad=True)


def test_gradients_in_radius_total_and_w() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    size = torch.tensor([0.6, 1.3, 2.2], dtype=torch.float64, requires_grad=True)
    w = torch.randn(5, dtype=torch.float64, requires_grad=True)
    check = torch.autograd.gradcheck
    assert check(lambda x, size: project_simplex(x, radius=size), (x, size), check_forward_ad=True)
    assert check(lambda x, size: project_capped_simplex(x, size), (x, size), check_forward_ad=True)
    assert check(project_permutahedron, (x, w), check_forward_ad=True)


def test_an_entry_left_out_does_not_hide_the_derivative_in_the_radius() -> None:
    x = torch.tensor([1.0, -math.inf, 0.5, -3.0], dtype=torch.float64)
    radius = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda r: project_simplex(x, radius=r), radius)
    torch.autograd.gradgradcheck(lambda r: project_simplex(x, radius=r).square(), radius)


@each
def test_moreau(project: Callable[[Tensor], Tensor]) -> None:
    """∇ of ½||x||² - ½||x - Px||² is Px: a convex function whose gradient is the projection."""
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    envelope = 0.5 * x.square().sum() - 0.5 * (x - project(x)).square().sum()
    (gradient,) = torch.autograd.grad(envelope, x)
    torch.testing.assert_close(gradient, project(x), rtol=0, atol=1e-13)
    jacobian = torch.autograd.functional.jacobian(project, x)
    torch.testing.assert_close(jacobian, jacobian.T)
    torch.testing.assert_close(jacobian @ jacobian, jacobian)  # onto the face that x projects to


@each
def test_torch_func_and_compile(project: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(project)(x), project(x))

    def value(row: Tensor) -> Tensor:
        return project(row).square().sum()

    gradients = torch.func.vmap(torch.func.grad(value))(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(gradients, torch.autograd.grad(value(leaf), leaf)[0])
    jacobian = torch.func.jacfwd(project)(x[0])
    torch.testing.assert_close(jacobian, torch.func.jacrev(project)(x[0]))
    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf), leaf)[0], gradients)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_short_types(project: Callable[[Tensor], Tensor], dtype: torch.dtype, shift: float) -> None:
    """The digits of a large x survive: only differences count."""
    x = (torch.randn(5, 40) * 2 + shift).to(dtype)
    received = project(x)
    assert received.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    if shift and project is PROJECTIONS["permutahedron"]:
        tolerance += 2e-3  # blocks take the mean of numbers that float32 holds to 1e-3
    torch.testing.assert_close(received.double(), project(x.double()), rtol=0, atol=tolerance)


@each
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (2, 3, 4)])
def test_batches(project: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    y = project(x)
    assert y.shape == shape
    for received, row in zip(y.reshape(-1, 4), x.reshape(-1, 4), strict=True):
        torch.testing.assert_close(received, project(row), rtol=0, atol=1e-14)


def test_the_axis() -> None:
    x = torch.randn(3, 5, 2, dtype=torch.float64)
    capped = partial(project_capped_simplex, total=2)
    for function in (project_simplex, capped, project_permutahedron):
        expected = function(x.movedim(1, -1)).movedim(-1, 1)
        torch.testing.assert_close(function(x, dim=1), expected, rtol=0, atol=0)


def test_one_entry() -> None:
    x = torch.tensor([[3.0], [-5.0]])
    assert project_simplex(x, radius=2.0).tolist() == [[2.0], [2.0]]
    assert project_capped_simplex(x, 0.3).flatten().tolist() == pytest.approx([0.3, 0.3])
    assert project_permutahedron(x).tolist() == [[1.0], [1.0]]
    assert isotonic_regression(x).tolist() == x.tolist()


@pytest.mark.parametrize(
    "function, arguments, words",
    [
        (project_simplex, {"radius": 0.0}, "radius must be positive and finite, received 0.0"),
        (project_simplex, {"radius": math.inf}, "received inf"),
        (project_simplex, {"radius": torch.tensor([1.0, -2.0])}, "received -2.0"),
        (
            project_simplex,
            {"radius": torch.ones(3)},
            r"radius must broadcast to the rows \(2,\), received .*\(3,\)",
        ),
        (
            project_simplex,
            {"x": torch.tensor([math.nan, 0.0])},
            r"x of shape \(2,\): row \(\) along dim=-1 holds nan",
        ),
        (project_simplex, {"x": torch.full((2,), -math.inf)}, "is all -inf"),
        (project_simplex, {"x": torch.zeros(2, 0)}, "have no classes"),
        (project_capped_simplex, {"total": -0.1}, r"\[0, n \* upper\] = \[0, 3.0\] for n = 3, received -0.1"),
        (project_capped_simplex, {"total": 3.5}, "received 3.5"),
        (project_capped_simplex, {"total": 1.6, "upper": 0.5}, r"\[0, 1.5\] for n = 3, received 1.6"),
        (project_capped_simplex, {"total": math.nan}, "received nan"),
        (project_capped_simplex, {"total": torch.tensor([1.0, 4.0])}, "received 4.0"),
        (project_capped_simplex, {"total": torch.ones(3)}, r"total must broadcast to the rows \(2,\)"),
        (
            project_capped_simplex,
            {"total": 1, "upper": 0.0},
            "upper must be positive and finite, received 0.0",
        ),
        (project_capped_simplex, {"total": 1, "x": torch.tensor([0.0, -math.inf])}, r"holds -inf at \(1,\)"),
        (
            project_permutahedron,
            {"w": torch.ones(4)},
            r"w must have shape \(3,\) for x \(2, 3\), received \(4,\)",
        ),
        (project_permutahedron, {"w": torch.ones(2, 3)}, r"received \(2, 3\)"),
        (
            project_permutahedron,
            {"w": torch.tensor([1.0, math.nan, 0.0])},
            r"w of shape \(3,\) must be finite",
        ),
        (project_permutahedron, {"x": torch.tensor([math.nan, 0.0])}, r"holds nan at \(0,\)"),
        (project_permutahedron, {"solver": "sort"}, "unknown solver 'sort'"),
    ],
)
def test_errors_quote_what_was_received(function: Callable[..., Tensor], arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        function(**{"x": torch.zeros(2, 3), **arguments})
