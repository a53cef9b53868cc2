from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fenchel import f_threshold
from fenchel.errors import InputError
from fenchel.nn import (
    AssignmentEnergy,
    BilinearEnergy,
    Energy,
    JointEnergy,
    OneHot,
    PairwiseEnergy,
    PartitionNetwork,
    Permutations,
    Subsets,
    UnaryEnergy,
)
from fenchel.nn.energies import mlp

D = 3


def all_energies() -> list[Energy]:
    torch.manual_seed(1)
    found: list[Energy] = []
    for space in (Subsets(4), Permutations(4), OneHot(4)):
        found += [
            UnaryEnergy(nn.Linear(D, 4), space),
            UnaryEnergy(mlp(D, [5], 4), space),
            PairwiseEnergy(mlp(D, [5], 4), space),
            PairwiseEnergy(nn.Linear(D, 4), space, couplings=nn.Linear(D, 2), rank=2),
            BilinearEnergy(nn.Linear(D, 2), mlp(4, [5], 2), space),
            JointEnergy(mlp(D + 4, [5], 1), space),
        ]
    found.append(AssignmentEnergy(mlp(D, [5], 16), Permutations(4)))
    for energy in found:
        energy.double()
        for weight in energy.parameters():
            nn.init.normal_(weight, std=0.7)
    return found


ENERGIES = all_energies()
NAMES = [f"{type(each).__name__}-{type(each.space).__name__}-{i}" for i, each in enumerate(ENERGIES)]
every_energy = pytest.mark.parametrize("energy", ENERGIES, ids=NAMES)


@every_energy
def test_one_configuration_several_and_shared_ones_agree(energy: Energy) -> None:
    x, y = torch.randn(2, 5, D).double(), energy.space.sample((2, 5, 6), dtype=torch.float64)
    several = energy(x, y)
    assert several.shape == (2, 5, 6)
    torch.testing.assert_close(energy(x, y[..., 3, :]), several[..., 3])
    shared = y[:1, :1]
    torch.testing.assert_close(energy(x, shared), energy(x, shared.expand(2, 5, 6, 4)))
    torch.testing.assert_close(energy(x[0, 0], y[0, 0]), several[0, 0])
    assert energy(x[:0], y[:0]).shape == (0, 5, 6)


@every_energy
def test_gradients(energy: Energy) -> None:
    x = torch.randn(2, D, dtype=torch.float64, requires_grad=True)
    y = energy.space.sample((2, 3), dtype=torch.float64)
    names, weights = zip(*energy.named_parameters(), strict=True)

    def value(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(energy, dict(zip(names, values, strict=True)), (x, y))

    inputs = (x, *(weight.detach().requires_grad_() for weight in weights))
    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs)


@every_energy
def test_under_vmap_and_compile(energy: Energy) -> None:
    x, y = torch.randn(4, D).double(), energy.space.sample((4, 3), dtype=torch.float64)
    expected = energy(x, y)
    torch.testing.assert_close(torch.func.vmap(energy)(x, y), expected)
    compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), expected)


# -- What each of them says.


def test_unary_energies_of_subsets_are_independent_logistic_labels() -> None:
    x = torch.randn(5, D).double()
    energy = UnaryEnergy(nn.Linear(D, 4), Subsets(4)).double()
    logits = energy.network(x)
    every = energy.space.enumerate(dtype=torch.float64)
    log_p = energy(x, every.unsqueeze(0)).log_softmax(-1)
    expected = -nn.functional.binary_cross_entropy_with_logits(
        logits.unsqueeze(1).expand(-1, 16, -1), every.expand(5, -1, -1), reduction="none"
    ).sum(-1)
    torch.testing.assert_close(log_p, expected)
    torch.testing.assert_close(
        energy.log_partition(x),
        f_threshold(energy(x, every.unsqueeze(0)), "generalized-kl", reference=1 / 16),
    )


def test_unary_energies_of_single_labels_are_softmax() -> None:
    x = torch.randn(5, D).double()
    energy = UnaryEnergy(nn.Linear(D, 4), OneHot(4)).double()
    every = energy.space.enumerate(dtype=torch.float64)
    torch.testing.assert_close(
        energy(x, every.unsqueeze(0)).log_softmax(-1), energy.network(x).log_softmax(-1)
    )


def test_pairwise_energies_are_a_quadratic_form_of_spins() -> None:
    energy = PairwiseEnergy(nn.Linear(D, 4), Subsets(4), couplings=nn.Linear(D, 2), rank=2).double()
    for weight in energy.parameters():
        nn.init.normal_(weight)
    x, y = torch.randn(6, D).double(), energy.space.sample((6,), dtype=torch.float64)
    assert energy.couplings is not None and energy.spread is not None
    for i in range(6):
        couplings = energy.constant + energy.couplings(x[i]) @ energy.spread
        matrix = torch.zeros(4, 4).double()
        matrix[tuple(torch.triu_indices(4, 4, 1))] = couplings
        spins = 2 * y[i] - 1
        expected = energy.network(x[i]) @ (y[i] - 0.5) + spins @ matrix @ spins
        torch.testing.assert_close(energy(x, y)[i], expected)


def test_pairwise_energies_of_rankings_count_pairs_in_order() -> None:
    energy = PairwiseEnergy(nn.Linear(D, 3), Permutations(3))
    with torch.no_grad():
        energy.constant.copy_(torch.tensor([1.0, 10.0, 100.0]))  # pairs (0, 1), (0, 2), (1, 2)
        energy.network.weight.zero_(), energy.network.bias.zero_()
    y = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 3.0, 1.0]]])
    assert energy(torch.zeros(1, D), y).tolist() == [[111.0, -111.0, 1.0 - 10.0 - 100.0]]


def test_assignment_energies_sum_the_chosen_cells() -> None:
    energy = AssignmentEnergy(nn.Identity(), Permutations(3))
    scores = torch.randn(4, 9).double()
    y = energy.space.sample((4,), dtype=torch.float64)
    cells = scores.view(4, 3, 3).gather(-1, y.long().unsqueeze(-1) - 1).sum((-1, -2))
    torch.testing.assert_close(energy(scores, y), cells - scores.sum(-1) / 3)


@pytest.mark.parametrize("energy", [e for e in ENERGIES if hasattr(e, "decode")], ids=repr)
def test_exact_decoding_is_that_of_enumeration(energy: UnaryEnergy | AssignmentEnergy) -> None:
    x = torch.randn(3, 10, D).double()
    every = energy.space.enumerate(dtype=torch.float64)
    best = every[energy(x, every[None, None]).argmax(-1)]
    torch.testing.assert_close(energy.decode(x), best)
    assert energy.decode(x[:0]).shape == (0, 10, energy.space.width)


def test_scores_that_are_no_numbers_are_not_decoded() -> None:
    for space in (Subsets(3), OneHot(3), Permutations(3)):
        with pytest.raises(InputError, match=r"scores of shape \(1, 3\) holds nan at \(0, 1\)"):
            UnaryEnergy(nn.Identity(), space).decode(torch.tensor([[1.0, math.nan, 0.0]]))
    with pytest.raises(InputError, match=r"scores of shape \(1, 4\) holds nan at \(0, 2\)"):
        AssignmentEnergy(nn.Identity(), Permutations(2)).decode(torch.tensor([[1.0, 0.0, math.nan, 0.0]]))


@every_energy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_configurations_may_be_integers(energy: Energy, dtype: torch.dtype) -> None:
    x, y = torch.randn(5, D).double(), energy.space.sample((5, 2), dtype=torch.float64)
    assert torch.equal(energy(x, y.long()), energy(x, y))
    low = copy.deepcopy(energy).to(dtype)
    found = low(x.to(dtype), y.long())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), energy(x, y), rtol=0.1, atol=0.1 + 10 * torch.finfo(dtype).eps)


def test_renaming_the_labels_renames_the_answer() -> None:
    order = torch.tensor([2, 0, 3, 1])
    for space in (Subsets(4), Permutations(4), OneHot(4)):
        energy = UnaryEnergy(nn.Linear(D, 4), space).double()
        renamed = UnaryEnergy(nn.Linear(D, 4), space).double()
        with torch.no_grad():
            renamed.network.weight.copy_(energy.network.weight[order])
            renamed.network.bias.copy_(energy.network.bias[order])
        x, y = torch.randn(5, D).double(), space.sample((5,), dtype=torch.float64)
        torch.testing.assert_close(renamed(x, y[:, order]), energy(x, y))
        torch.testing.assert_close(renamed.decode(x), energy.decode(x)[:, order])


def test_a_pairwise_energy_without_couplings_is_unary() -> None:
    network = nn.Linear(D, 4)
    x, y = torch.randn(5, D), Subsets(4).sample((5,))
    torch.testing.assert_close(
        PairwiseEnergy(network, Subsets(4))(x, y), UnaryEnergy(network, Subsets(4))(x, y)
    )


# -- The network of the log-partition.


@pytest.mark.parametrize("name", ["generalized-kl", "kl", "alpha:2", "hellinger"])
@pytest.mark.parametrize("hidden", [(), (7,)])
def test_it_starts_at_the_exact_value(name: str, hidden: tuple[int, ...]) -> None:
    network = PartitionNetwork(D, hidden, name).double()
    x = torch.randn(5, D).double()
    exact = f_threshold(torch.zeros(16).double(), name, reference=1 / 16)
    torch.testing.assert_close(network(x), exact.expand(5), rtol=0, atol=1e-9)
    sampled = torch.randn(5, 20).double()
    network.start_at(sampled)
    best = f_threshold(sampled, name, reference=1 / 20).mean()
    torch.testing.assert_close(network(x), best.expand(5))
    torch.testing.assert_close(pickle.loads(pickle.dumps(network))(x), network(x))


@pytest.mark.parametrize("space", [Subsets(3), Permutations(3)], ids=repr)
def test_what_inference_mode_or_a_fake_tensor_saw_is_not_kept(space: Subsets | Permutations) -> None:
    with torch.inference_mode():
        space.pairs(torch.ones(1, 3)), space.neighbours(torch.ones(1, 3))
    y = torch.ones(1, 3, requires_grad=True)
    (space.pairs(y).sum() + space.neighbours(y).sum()).backward()
    with FakeTensorMode():
        space.pairs(torch.ones(1, 3)), space.neighbours(torch.ones(1, 3))
    assert space.pairs(torch.ones(1, 3)).shape == (1, 3)


def test_what_is_refused() -> None:
    energy = UnaryEnergy(nn.Linear(D, 4), Subsets(4))
    for shape in ((5, 3), (5, 2, 2, 4), (4,)):
        with pytest.raises(InputError, match=r"must have shape \(5, 4\) or \(5, 'K', 4\), received"):
            energy(torch.zeros(5, D), torch.zeros(shape))
    with pytest.raises(InputError, match=r"needs Permutations, received Subsets\(width=4\)"):
        AssignmentEnergy(nn.Linear(D, 16), Subsets(4))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="couplings need a rank above 0"):
        PairwiseEnergy(nn.Linear(D, 4), Subsets(4), rank=2)
    assert math.isfinite(energy(torch.zeros(5, D), torch.zeros(5, 4)).sum().item())
