"""Checks of the sharded operator, loss and head, all in one process of a group; the test starts them.

python sharded_job.py RANK WORLD STORE RESULT writes {check: "" or what failed here} to RESULT.RANK.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from catalogue import NAMES, STEEP
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from fenchel import (
    InputError,
    f_softargmax,
    fenchel_young_loss,
    sharded_f_softargmax,
    sharded_fenchel_young_loss,
    sharded_linear_fenchel_young_loss,
)

CLASSES, WIDTH = 11, 4
# Sizes of the slices, by the number of processes: uneven ones, and empty ones at either end and between.
SIZES = {2: [(7, 4), (0, 11), (11, 0)], 4: [(3, 1, 2, 5), (0, 6, 0, 5), (4, 4, 3, 0)]}
IGNORED = -100


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same on every process."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def measure(*shape: int) -> Tensor:
    return 10 ** random(*shape, seed=9).clamp(-2, 2)


def batch() -> tuple[Tensor, Tensor]:
    """Scores of 2 x 4 rows with masked classes, one row masked in the first 7 classes; targets present."""
    x = random(2, 4, CLASSES) * 2
    x[0, 1, 2] = x[0, 2, 8] = -math.inf
    x[1, 0, :7] = -math.inf
    x[0, 3] = 0  # ties, over processes
    target = torch.tensor([[0, 10, IGNORED, 3], [9, IGNORED, 6, 7]])
    return x, target


def near(received: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(received, expected, rtol=1e-10, atol=1e-13)


def here(full: Tensor, sizes: tuple[int, ...], dim: int = -1) -> Tensor:
    return full.split(sizes, dim)[dist.get_rank()].clone()


def same_everywhere(x: Tensor) -> None:
    every = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(every, x.detach())
    assert all(torch.equal(each, x) for each in every), every


def gradients(y: Tensor, *leaves: Tensor, seed: int = 5) -> tuple[Tensor, ...]:
    """Those of a weighted sum: a gradient that were added up over processes would be a multiple."""
    return torch.autograd.grad((y * random(*y.shape, seed=seed).to(y.dtype)).sum(), leaves)


def check_operator(name: str) -> None:
    for sizes in SIZES[dist.get_world_size()]:
        for q, temperature in ((None, 1.0), (measure(CLASSES), 0.7), (measure(2, 4, CLASSES), 1.0)):
            x, _ = batch()
            x.requires_grad_()
            own = here(x.detach(), sizes).requires_grad_()
            given = 1.0 if q is None else q
            mine = 1.0 if q is None else here(q, sizes)
            p = f_softargmax(x, name, reference=given, temperature=temperature)
            ours = sharded_f_softargmax(own, name, reference=mine, temperature=temperature)
            near(ours, here(p.detach(), sizes))
            cotangent = random(*x.shape, seed=3)
            (expected,) = torch.autograd.grad((p * cotangent).sum(), x)
            (received,) = torch.autograd.grad((ours * here(cotangent, sizes)).sum(), own)
            near(received, here(expected, sizes))


def check_loss(name: str) -> None:
    q = measure(CLASSES)
    cases = [(None, 0.0, "none"), (q, 0.0, "mean"), (None, 0.1, "sum"), (q, 0.1, "none"), (None, 0.1, "mean")]
    for sizes in SIZES[dist.get_world_size()]:
        for q, smoothing, reduction in cases:
            x, target = batch()
            x.requires_grad_()
            own = here(x.detach(), sizes).requires_grad_()
            options = {"label_smoothing": smoothing, "reduction": reduction, "temperature": 0.7}
            given = 1.0 if q is None else q
            whole = fenchel_young_loss(x, target, name, reference=given, **options)
            mine = 1.0 if q is None else here(q, sizes)
            ours = sharded_fenchel_young_loss(own, target, name, reference=mine, **options)
            near(ours, whole)
            same_everywhere(ours)
            (expected,) = gradients(whole, x)
            (received,) = gradients(ours, own)
            near(received, here(expected, sizes))


def check_head(name: str) -> None:
    _, target = batch()
    for sizes in SIZES[dist.get_world_size()]:
        for number, (q, reduction) in enumerate(
            [(None, "none"), (measure(CLASSES), "mean"), (None, "sum"), (measure(CLASSES), "none")]
        ):
            h, w, b = random(2, 4, WIDTH), random(CLASSES, WIDTH, seed=1), random(CLASSES, seed=2)
            b[2] = -math.inf
            leaves = [each.requires_grad_() for each in (h, w, b)]
            own = [h.detach().clone(), here(w.detach(), sizes, 0), here(b.detach(), sizes)]
            for each in own:
                each.requires_grad_()
            options = {"label_smoothing": 0.1 * (number % 2), "temperature": 0.7, "reduction": reduction}
            given = 1.0 if q is None else q
            whole = fenchel_young_loss(h @ w.T + b, target, name, reference=given, **options)
            mine = 1.0 if q is None else here(q, sizes)
            ours = sharded_linear_fenchel_young_loss(
                own[0],
                own[1],
                target,
                name,
                bias=own[2],
                reference=mine,
                chunk=(3, 8, None)[number % 3],
                **options,
            )
            near(ours, whole)
            same_everywhere(ours)
            expected, received = gradients(whole, *leaves), gradients(ours, *own)
            near(received[0], expected[0])
            same_everywhere(received[0])
            near(received[1], here(expected[1], sizes, 0))
            near(received[2], here(expected[2], sizes))


def check_single_precision(name: str) -> None:
    """Errors against float64 no more than twice those of one process in float32, over many rows."""
    rows, classes = 64, 400
    sizes = torch.tensor_split(torch.arange(classes), dist.get_world_size())
    edges = tuple(len(each) for each in sizes)
    for scale, q in ((1e-3, torch.full((classes,), 1 / classes)), (1.0, None), (30.0, None)):
        x = (random(rows, classes) * scale).float()
        q = torch.ones(classes) if q is None else q
        target = torch.arange(rows)
        found = []
        for scores, reference in ((x.double(), q.double()), (x, q)):
            scores = scores.clone().requires_grad_()
            p = f_softargmax(scores, name, reference=reference, impl="eager")
            options = {"reference": reference, "reduction": "none"}
            losses = fenchel_young_loss(scores, target, name, impl="eager", **options)
            found.append([here(p.detach(), edges), losses, here(gradients(losses, scores)[0], edges)])
        own = here(x, edges).requires_grad_()
        p = sharded_f_softargmax(own, name, reference=here(q, edges))
        losses = sharded_fenchel_young_loss(own, target, name, reference=here(q, edges), reduction="none")
        assert p.dtype == losses.dtype == torch.float32
        for exact, plain, ours in zip(*found, (p, losses, *gradients(losses, own)), strict=True):
            worst = torch.stack([(plain - exact).abs().max(), (ours - exact).abs().max(), exact.abs().max()])
            dist.all_reduce(worst, op=dist.ReduceOp.MAX)
            one, several, size = worst.tolist()
            assert several <= 2 * one + torch.finfo(torch.float32).eps * size, (scale, one, several, size)


@contextmanager
def collectives() -> Iterator[list[int]]:
    """The elements of each all-reduce inside."""
    seen: list[int] = []
    real = dist.all_reduce

    def counting(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(x.numel())
        return real(x, *args, **kwargs)

    dist.all_reduce = counting
    try:
        yield seen
    finally:
        dist.all_reduce = real


def check_collectives(name: str) -> None:
    rows, world, closed = 6, dist.get_world_size(), name in ("kl", "generalized-kl")
    # Top; ends of the bracket; steps; what is left of 1 - S; the value. A closed form takes top and sum.
    most = 2 if closed else 20
    x = random(rows, 40 * world)
    own = here(x, (40,) * world).requires_grad_()
    with collectives() as seen:
        p = sharded_f_softargmax(own, name)
    assert len(seen) == 2 if closed else len(seen) <= most, seen
    assert max(seen) <= 2 * rows + world, seen
    with collectives() as seen:
        gradients(p, own)
    assert seen == [2 * rows], seen
    with collectives() as seen:
        loss = sharded_fenchel_young_loss(own, torch.arange(rows), name, label_smoothing=0.1)
    assert len(seen) == 3 if closed else len(seen) <= most + 1, seen
    assert max(seen) <= 3 * rows + world, seen
    with collectives() as seen:
        gradients(loss, own)
    assert not seen, seen
    h, w = random(rows, WIDTH).requires_grad_(), random(40, WIDTH, seed=dist.get_rank()).requires_grad_()
    with collectives() as seen:
        loss = sharded_linear_fenchel_young_loss(h, w, torch.arange(rows), name, chunk=2)
    assert len(seen) <= (9 if closed else 3 * (most + 1)) and max(seen) <= 2 * 2 + world, seen
    with collectives() as seen:
        gradients(loss, h, w)
    assert seen == [rows * WIDTH], seen


def check_large_vocabulary() -> None:
    """In float64, records with kinks take the iteration where one process would sort."""
    # Beyond the top class, kinks so close to the threshold that the steps are tiny while classes drop out.
    bumps = torch.tensor([1.0] + [0.3] * 3 + [0.001] * 19, dtype=torch.float64)
    x = torch.cat([torch.zeros(1), 1e-8 * bumps - 1]).unsqueeze(0)
    sizes = (24 // dist.get_world_size(),) * dist.get_world_size()
    near(sharded_f_softargmax(here(x, sizes), "alpha:2"), here(f_softargmax(x, "alpha:2"), sizes))
    world = dist.get_world_size()
    for name in ("alpha:2", "alpha:1.5", "js"):
        for scale in (1e-4, 1e-2, 1.0):
            x = random(4, 2**15, seed=11) * scale
            own = sharded_f_softargmax(here(x, (2**15 // world,) * world), name)
            near(own, here(f_softargmax(x, name), (2**15 // world,) * world))


def check_nothing_counts() -> None:
    sizes = SIZES[dist.get_world_size()][0]
    x, target = batch()
    own = here(x.fill_(math.nan), sizes).requires_grad_()
    nothing = torch.full_like(target, IGNORED)
    for reduction in ("mean", "sum", "none"):
        loss = sharded_fenchel_young_loss(own, nothing, "js", reduction=reduction, label_smoothing=0.1)
        assert (loss == 0).all()
        (gradient,) = gradients(loss, own)
        assert (gradient == 0).all() and gradient.shape == own.shape
    h, w = random(0, WIDTH).requires_grad_(), here(random(CLASSES, WIDTH), sizes, 0).requires_grad_()
    loss = sharded_linear_fenchel_young_loss(h, w, nothing[0, :0], "js")
    assert loss == 0 and all((each == 0).all() for each in gradients(loss, h, w))
    assert sharded_f_softargmax(own[:0].detach(), "js").shape == own[:0].shape


def check_half_types() -> None:
    sizes = SIZES[dist.get_world_size()][0]
    x, target = batch()
    own = here(x.bfloat16(), sizes).requires_grad_()
    whole = x.bfloat16().requires_grad_()
    p = sharded_f_softargmax(own, "alpha:1.5")
    assert p.dtype == torch.bfloat16
    torch.testing.assert_close(p, here(f_softargmax(whole, "alpha:1.5").detach(), sizes))
    loss = sharded_fenchel_young_loss(own, target, "alpha:1.5")
    expected = fenchel_young_loss(whole, target, "alpha:1.5")
    assert loss.dtype == torch.bfloat16 and torch.equal(loss, expected)
    torch.testing.assert_close(gradients(loss, own)[0], here(gradients(expected, whole)[0], sizes))
    for autocast in (False, True):
        h, w = (
            random(2, 4, WIDTH).float().requires_grad_(),
            here(random(CLASSES, WIDTH, seed=1).float(), sizes, 0),
        )
        w.requires_grad_()
        if not autocast:
            h, w = (each.detach().bfloat16().requires_grad_() for each in (h, w))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            ours = sharded_linear_fenchel_young_loss(h, w, target, "alpha:1.5", chunk=3)
        full = random(CLASSES, WIDTH, seed=1).bfloat16().requires_grad_()
        states = random(2, 4, WIDTH).bfloat16().requires_grad_()
        whole_loss = fenchel_young_loss((states @ full.T).float(), target, "alpha:1.5")
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, whole_loss)
        expected_h, expected_w = torch.autograd.grad(whole_loss, (states, full))
        received_h, received_w = torch.autograd.grad(ours, (h, w))
        assert received_h.dtype == h.dtype and received_w.dtype == w.dtype
        torch.testing.assert_close(received_h.bfloat16(), expected_h, rtol=2e-2, atol=2e-3)
        torch.testing.assert_close(received_w.bfloat16(), here(expected_w, sizes, 0), rtol=2e-2, atol=2e-3)


def check_dtensors() -> None:
    world = dist.get_world_size()
    meshes = [(init_device_mesh("cpu", (world,)), [Shard(2)])]
    if world == 4:  # rows over one dimension of the mesh, classes over the other
        meshes += [(init_device_mesh("cpu", (2, 2)), [Shard(1), Shard(2)])]
        meshes += [(init_device_mesh("cpu", (2, 2)), [Shard(2), Replicate()])]
    for mesh, placements in meshes:
        for classes in (CLASSES, world + 1 if world > 2 else 1):  # fewer than would give one to each
            x = random(2, 4, classes).requires_grad_()
            sharded = distribute_tensor(x.detach(), mesh, placements).requires_grad_()
            q = measure(classes)
            split = [
                p if p == Replicate() else Shard(0) if p == Shard(2) else Replicate() for p in placements
            ]
            for reference in (1.0, distribute_tensor(q, mesh, split)):
                p = sharded_f_softargmax(sharded, "js", reference=reference)
                assert isinstance(p, DTensor) and p.placements == sharded.placements and p.shape == x.shape
                whole = f_softargmax(x, "js", reference=1.0 if isinstance(reference, float) else q)
                near(p.full_tensor(), whole)
            weight = random(*x.shape, seed=5)
            (expected,) = torch.autograd.grad((whole * weight).sum(), x)
            (p * distribute_tensor(weight, mesh, placements)).sum().backward()
            near(sharded.grad.full_tensor(), expected)
            sharded.grad = None
            target = torch.arange(8).view(2, 4) % classes
            rows = [Replicate() if p == Shard(2) else p for p in placements]
            rows_here = distribute_tensor(target, mesh, rows)
            loss = sharded_fenchel_young_loss(sharded, rows_here, "js", reduction="none")
            whole = fenchel_young_loss(x, target, "js", reduction="none")
            near(DTensor.from_local(loss, mesh, rows).full_tensor(), whole)
            loss.sum().backward()
            near(sharded.grad.full_tensor(), torch.autograd.grad(whole.sum(), x)[0])
    mesh = meshes[0][0]
    h, w, b = random(8, WIDTH), random(CLASSES, WIDTH, seed=1), random(CLASSES, seed=2)
    own = [
        distribute_tensor(h, mesh, [Replicate()]),
        *(distribute_tensor(e, mesh, [Shard(0)]) for e in (w, b)),
    ]
    target = torch.arange(8)
    for each in (h, w, b, *own):
        each.requires_grad_()
    ours = sharded_linear_fenchel_young_loss(own[0], own[1], target, "js", bias=own[2], chunk=3)
    whole = fenchel_young_loss(h @ w.T + b, target, "js")
    near(ours, whole)
    for mine, theirs in zip(
        torch.autograd.grad(ours, own), torch.autograd.grad(whole, (h, w, b)), strict=True
    ):
        near(mine.full_tensor(), theirs)


def check_groups() -> None:
    """Each half of the processes has a problem of its own; who is not in a group is told so."""
    rank, world = dist.get_rank(), dist.get_world_size()
    half = max(world // 2, 1)
    groups = [dist.new_group(list(range(start, start + half))) for start in range(0, world, half)]
    mine = rank // half
    x = random(3, CLASSES, seed=mine).requires_grad_()
    slices = [CLASSES] if half == 1 else [4, 7]
    own = x.detach().split(slices, -1)[rank % half].clone().requires_grad_()
    loss = sharded_fenchel_young_loss(own, torch.tensor([0, 5, 10]), "jeffreys", group=groups[mine])
    whole = fenchel_young_loss(x, torch.tensor([0, 5, 10]), "jeffreys")
    near(loss, whole)
    near(gradients(loss, own)[0], gradients(whole, x)[0].split(slices, -1)[rank % half])
    expect("is not in the group", lambda: sharded_f_softargmax(own, group=groups[1 - mine]))


def expect(words: str, call: Callable[[], Any], kind: type[Exception] = InputError) -> str:
    try:
        call()
    except kind as error:
        assert words in str(error), f"expected {words!r}, received {error!s}"
        return str(error)
    raise AssertionError(f"no error; expected {words!r}")


def agreed(message: str) -> None:
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, message)
    assert len(set(every)) == 1, every


def check_errors() -> None:
    rank = dist.get_rank()
    sizes = SIZES[dist.get_world_size()][0]
    x, target = batch()
    own = here(x, sizes)
    loss, head = sharded_fenchel_young_loss, sharded_linear_fenchel_young_loss
    for value, words in ((-math.inf, "every class of every rank is masked"), (math.nan, "NaN or inf")):
        bad = x.clone()
        bad[1, 2] = value if value < 0 else bad[1, 2]
        bad[1, 2, 8] = value
        for call in (lambda y: sharded_f_softargmax(y), lambda y: loss(y, target, "js")):
            agreed(expect(words, lambda: call(here(bad, sizes))))  # noqa: B023
    for wrong in (11, -1):
        changed = target.clone()
        changed[0, 3] = wrong
        agreed(expect(f"target {wrong} is not a class: the slices", lambda: loss(own, changed)))  # noqa: B023
    states, weight = random(2, 4, WIDTH), here(random(CLASSES, WIDTH), sizes, 0)
    changed = torch.full_like(target, CLASSES)
    agreed(expect("have 11 in all", lambda: head(states, weight, changed, chunk=2)))
    last = rank == dist.get_world_size() - 1
    q = torch.full((own.shape[-1],), -1.0 if last else 1.0)
    words = "received -1.0" if last else "of the group received an argument that is wrong"
    for call in (
        lambda: sharded_f_softargmax(own, reference=q),
        lambda: loss(own, target, reference=q),
        lambda: head(states, weight, target, reference=q),
        lambda: head(states, weight, target, reference=q, chunk=2),
    ):
        expect(words, call)
    bias = torch.zeros(len(weight) + last)
    words = "the bias must be" if last else "an argument that is wrong"
    expect(words, lambda: head(states, weight, target, bias=bias))
    expect("has no gradient", lambda: sharded_f_softargmax(own, reference=torch.ones(1, requires_grad=True)))
    expect("temperature must be a number", lambda: sharded_f_softargmax(own, temperature=torch.ones(())))
    expect("received 0", lambda: sharded_f_softargmax(own, temperature=0))
    expect("label_smoothing must be in [0, 1)", lambda: loss(own, target, label_smoothing=1.0))
    expect("rows (2, 4), received", lambda: loss(own, target[:1]))
    expect("torch.float64", lambda: loss(own, own))
    expect("received torch.int64", lambda: sharded_f_softargmax(target))
    expect("(2, 4, 4) and (3,", lambda: head(states, weight.new_zeros(3, 5), target))
    expect("chunk must be at least 1", lambda: head(states, weight, target, chunk=0))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = distribute_tensor(x, mesh, [Shard(0)])
    expect("must be sharded along its classes, Shard(2)", lambda: sharded_f_softargmax(rows))
    classes = distribute_tensor(x, mesh, [Shard(2)])
    expect("leave out group", lambda: sharded_f_softargmax(classes, group=dist.group.WORLD))


def check_second_derivatives() -> None:
    sizes = SIZES[dist.get_world_size()][0]
    x, target = batch()
    own = here(x, sizes).requires_grad_()
    states, weight = (
        random(2, 4, WIDTH).requires_grad_(),
        here(random(CLASSES, WIDTH), sizes, 0).requires_grad_(),
    )
    for y, leaf in (
        (sharded_f_softargmax(own, "js").square().sum(), own),
        (sharded_fenchel_young_loss(own, target, "js"), own),
        (sharded_linear_fenchel_young_loss(states, weight, target, "js"), states),
        (sharded_linear_fenchel_young_loss(states, weight, target, "js"), weight),
    ):
        (first,) = torch.autograd.grad(y, leaf, create_graph=True)
        # What a penalty on the gradient does, whatever else is in the sum.
        total = first.square().sum() + leaf.square().sum().nan_to_num(neginf=0, posinf=0)
        expect("first derivatives only", lambda: torch.autograd.grad(total, leaf), InputError)  # noqa: B023


def check_memory() -> None:
    """Nothing that is kept for the backward pass, and nothing that is made, is as large as the logits."""
    rows, classes = 256, 128
    h, w = random(rows, WIDTH).requires_grad_(), random(classes, WIDTH, seed=1).requires_grad_()
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            if isinstance(found, Tensor):
                largest.append(found.untyped_storage().nbytes() // found.element_size())
            return found

    with Watch():
        loss = sharded_linear_fenchel_young_loss(
            h, w, torch.arange(rows) % classes, "js", chunk=8, label_smoothing=0.1, reference=2.0
        )
        loss.backward()
    assert 8 * classes <= max(largest) <= 2 * 8 * classes, max(largest)


def checks() -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {}
    for name in [*NAMES, *STEEP]:
        for function in (check_operator, check_loss, check_head, check_single_precision, check_collectives):
            if name in STEEP and function is check_collectives:
                continue  # every second step bisects
            found[f"{function.__name__[6:]} {name}"] = partial(function, name)
    for function in (
        check_large_vocabulary,
        check_nothing_counts,
        check_half_types,
        check_dtensors,
        check_groups,
        check_errors,
        check_second_derivatives,
        check_memory,
    ):
        found[function.__name__[6:]] = function
    return found


def main(rank: str, world: str, store: str, result: str, *only: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, int(world)),
        rank=int(rank),
        world_size=int(world),
        timeout=timedelta(seconds=60),
    )
    found = {}
    for name, check in checks().items():
        if only and not any(part in name for part in only):
            continue
        failure = ""
        try:
            check()
        except Exception:
            failure = traceback.format_exc()
        found[name] = failure
        # One process fails alone: the others must not go on to what it would answer with another check.
        failed: list[Any] = [None] * int(world)
        try:
            dist.all_gather_object(failed, failure)
        except Exception:
            found[name] = failure or traceback.format_exc()
            break
    Path(f"{result}.{rank}").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # gloo's threads may meet the end of the interpreter


if __name__ == "__main__":
    main(*sys.argv[1:])
