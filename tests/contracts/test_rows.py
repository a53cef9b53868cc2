"""What every public function of rows must satisfy: one table, one test a property.

Families of f-divergences have contracts of their own (test_operators.py, test_losses.py). Here are the
operators and losses beyond the softmax head, each as a function of rows of numbers.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fenchel
from fenchel import InputError

N = 6


@dataclass(frozen=True)
class Case:
    """A public function as a function of rows, (..., N) → (...) or (..., anything).

    `label` tells apart several cases of a function; `lacks` names properties that its docstring excludes.
    """

    name: str
    call: Callable[[Tensor], Tensor]
    label: str = ""
    lacks: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name + (f" {self.label}" if self.label else "")


def proportions(x: Tensor) -> Tensor:
    """The same for every row, with a zero."""
    return torch.tensor([0.5, 0.0, 0.1, 0.2, 0.05, 0.15], dtype=x.dtype).expand_as(x)


def label_of(x: Tensor) -> Tensor:
    return torch.full(x.shape[:-1], 2)


def distances(x: Tensor) -> Tensor:
    """Costs between the points of a row and fixed ones."""
    fixed = torch.linspace(-1, 1, 4, dtype=x.dtype)
    return (x.unsqueeze(-1) - fixed).square()


def points(x: Tensor) -> Tensor:
    return x.unflatten(-1, (3, 2))


def table() -> list[Case]:
    """Every case; a new public function of rows gets its line here."""
    f, found = fenchel, []

    def case(name: str, *arguments: object, label: str = "", lacks: str = "", **options: object) -> None:
        function = getattr(f, name)
        call = lambda x: function(x, *arguments, **options)  # noqa: E731
        found.append(Case(name, call, label, frozenset(lacks.split())))

    def made(name: str, call: Callable[[Tensor], Tensor], label: str = "", lacks: str = "") -> None:
        found.append(Case(name, call, label, frozenset(lacks.split())))

    case("isotonic_regression")
    case("isotonic_regression", increasing=False, solver="dykstra", label="dykstra")
    case("project_simplex")
    case("project_capped_simplex", 2.5)
    case("project_permutahedron")
    for kind in ("quadratic", "entropic"):
        case("soft_sort", kind=kind, label=kind, regularization=0.7)
        case("soft_rank", kind=kind, label=kind, regularization=0.7)
    for p in (2.0, 4 / 3, 1.5):
        case("topk_mask", 2, regularization=1.5, p=p, label=f"p={p:.3g}")
        case("topk_magnitude", 2, regularization=0.8, p=p, label=f"p={p:.3g}")
    for solver in ("pav", "dykstra"):
        case("topk_mask", 2, regularization=1.5, solver=solver, label=solver)
        case("topk_magnitude", 2, regularization=0.8, p=2.0, solver=solver, label=solver)
    case("entropic_topk_mask", 2, temperature=0.7)

    def perturbed(x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return f.perturbed_topk_mask(x, 2, sigma=0.5, samples=50, generator=generator)

    # Its derivatives are those of an expectation, and its noise is of the whole batch.
    made("perturbed_topk_mask", perturbed, lacks="gradient hessian rows vmap compile float32")

    def transport(name: str, part: str, x: Tensor, **options: float) -> Tensor:
        tolerance = 1e-12 if x.dtype == torch.float64 else 1e-6
        return getattr(getattr(f, name)(distances(x), tolerance=tolerance, **options), part)

    for part in ("plan", "value"):
        for name, options, lacks in (
            ("entropic_transport", {"regularization": 3.0, "iterations": 80}, ""),
            ("quadratic_transport", {"regularization": 3.0}, "compile"),
            ("sparse_transport", {"regularization": 3.0, "k": 4}, "compile"),
        ):
            made(name, partial(transport, name, part, **options), part, lacks)

    def clouds(x: Tensor) -> Tensor:
        options = {"regularization": 3.0, "iterations": 60, "reduction": "none"}
        tolerance = 1e-12 if x.dtype == torch.float64 else 1e-6
        return f.sinkhorn_divergence(points(x), points(3 * proportions(x)), tolerance=tolerance, **options)

    made("sinkhorn_divergence", clouds, lacks="hessian vmap")  # torch.cdist has first derivatives only

    for name in ("fitzpatrick_logistic_loss", "fitzpatrick_sparsemax_loss"):
        loss = getattr(f, name)
        made(name, lambda x, loss=loss: loss(x, label_of(x), reduction="none"), "labels")
        made(name, lambda x, loss=loss: loss(x, proportions(x), reduction="none"), "proportions")
    for name in ("binary_fitzpatrick_logistic_loss", "binary_fitzpatrick_sparsemax_loss"):
        loss = getattr(f, name)
        made(name, lambda x, loss=loss: loss(x, 2 * proportions(x), reduction="none"))
    made(
        "linear_fitzpatrick_logistic_loss",
        lambda x: f.linear_fitzpatrick_logistic_loss(
            x, torch.linspace(-1, 1, 5 * N).reshape(5, N).to(x.dtype), label_of(x), reduction="none"
        ),
        lacks="dtype compile vmap",  # its losses are float32 at least
    )
    for name in ("joint_partition_loss", "exact_partition_loss"):
        loss = getattr(f, name)
        more = (lambda x: (x[..., -1],)) if name.startswith("joint") else (lambda x: ())
        made(
            name,
            lambda x, loss=loss, more=more: loss(x[..., 0], x[..., 1:-1], *more(x), reduction="none"),
            lacks="magnitudes",  # e^1e4
        )
    for name in ("load_balance_loss", "router_z_loss"):
        loss = getattr(f, name)
        made(name, lambda x, loss=loss: loss(points(x), reduction="none").to(x.dtype))
    made("importance_loss", lambda x: f.importance_loss(points(x).square(), reduction="none"))
    return found


CASES = table()


def having(*properties: str) -> list[Case]:
    return [case for case in CASES if not case.lacks & set(properties)]


def rows(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Points at which nothing is on a border: found by trying, and fixed by the seed."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*shape, N, generator=generator, dtype=torch.float64).to(dtype)


# Where contracts of older methods are, beside this folder.
ELSEWHERE = (
    "decoding/test_matching.py",
    "losses/test_early_learning.py",
    "losses/test_linear.py",
    "losses/test_pairs.py",
    "losses/test_progressive.py",
    "losses/test_truncated.py",
    "operators/sharded_job.py",
    "operators/test_peers.py",
)


def test_every_public_method_has_a_contract() -> None:
    """By name, in the table here or in a file of contracts of its kind."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("test_*.py")), *(here.parent / name for name in ELSEWHERE)]
    used = {
        node.attr
        if isinstance(node, ast.Attribute)
        else node.id
        if isinstance(node, ast.Name)
        else node.value
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute | ast.Name | ast.Constant)
    }
    packages = ("operators", "losses", "nn", "decoding")
    public = [name for name in fenchel.__all__ if callable(getattr(fenchel, name))]
    methods = [name for name in public if getattr(fenchel, name).__module__.split(".")[1] in packages]
    missing = [name for name in methods if name not in used]
    assert len(methods) > 50 and not missing, missing


@pytest.mark.parametrize("case", having("dtype"), ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept_and_half_types_are_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    x = rows(3, dtype=dtype)
    before = x.clone()
    out = case.call(x)
    assert out.dtype == dtype and torch.equal(x, before) and torch.isfinite(out).all()
    if dtype.itemsize == 2:
        expected = case.call(x.float())
        # Costs of transport are squares made here, in the half type.
        torch.testing.assert_close(out, expected.to(dtype), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("case", having("float32"), ids=str)
def test_float32_has_the_digits_of_float32(case: Case) -> None:
    x = rows(20, dtype=torch.float32)
    torch.testing.assert_close(case.call(x).double(), case.call(x.double()), rtol=2e-5, atol=5e-5)


@pytest.mark.parametrize("case", having("rows"), ids=str)
def test_rows_are_independent_and_layout_does_not_matter(case: Case) -> None:
    x = rows(2, 3)
    out = case.call(x)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(out[i, j], case.call(x[i, j]), rtol=1e-9, atol=1e-11)
    scattered = torch.stack([x, x], -1)[..., 0]
    assert not scattered.is_contiguous()
    torch.testing.assert_close(case.call(scattered), out, rtol=1e-12, atol=1e-13)
    assert case.call(x[:0]).shape == out[:0].shape


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nan_is_named(case: Case) -> None:
    x = rows(2)
    x[1, 3] = math.nan
    with pytest.raises(InputError, match=r"nan|NaN"):
        case.call(x)


@pytest.mark.parametrize("case", having("gradient"), ids=str)
def test_gradients_are_exact(case: Case) -> None:
    assert torch.autograd.gradcheck(case.call, (rows(2).requires_grad_(),), atol=1e-6)


@pytest.mark.parametrize("case", having("gradient", "hessian"), ids=str)
def test_second_derivatives_are_exact(case: Case) -> None:
    assert torch.autograd.gradgradcheck(case.call, (rows(2).requires_grad_(),), atol=1e-5)


@pytest.mark.parametrize("case", having("vmap"), ids=str)
def test_transformations(case: Case) -> None:
    x = rows(3)
    torch.testing.assert_close(torch.func.vmap(case.call)(x), case.call(x), rtol=1e-9, atol=1e-11)
    one = x[0]
    forward, reverse = torch.func.jacfwd(case.call)(one), torch.func.jacrev(case.call)(one)
    torch.testing.assert_close(forward, reverse, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", having("compile"), ids=str)
def test_one_graph(case: Case) -> None:
    x = rows(3)
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), case.call(x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", having("magnitudes"), ids=str)
def test_large_magnitudes_are_no_trouble_in_float32(case: Case) -> None:
    x = (1e4 * rows(4, dtype=torch.float32)).requires_grad_()
    out = case.call(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.isfinite(out).all() and torch.isfinite(gradient).all()
