"""The learned log-partition next to enumeration, of as many configurations as are enumerated in training."""

from __future__ import annotations

import numpy as np
import pytest

from fenchel.sklearn import LabelRanker, MultilabelEnergyClassifier

LONG = {
    "hidden_layer_sizes": (16,),
    "partition_layer_sizes": (32, 32),
    "alpha": 1e-2,
    "samples": 100,
    "max_epochs": 40,
    "partition_epochs": 300,
    "random_state": 0,
}


def inputs(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(400, 6))


def sets() -> MultilabelEnergyClassifier:
    """2^12 of them, with two labels that always come together."""
    rng = np.random.default_rng(2)
    y = (inputs(0) @ rng.normal(size=(6, 12)) / 2 + rng.normal(size=(400, 12)) > 0).astype(int)
    y[:, 1] = y[:, 0]
    return MultilabelEnergyClassifier("pairwise", **LONG).fit(inputs(0), y)


def rankings(energy: str) -> LabelRanker:
    rng = np.random.default_rng(2)
    scores = inputs(0) @ rng.normal(size=(6, 6)) + rng.normal(size=(400, 6))
    return LabelRanker(energy, **LONG).fit(inputs(0), scores.argsort(1).argsort(1) + 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sets", "mlp", "assignment"])
def test_it_is_within_one_per_cent_and_holds_on_inputs_that_were_never_seen(kind: str) -> None:
    model = sets() if kind == "sets" else rankings(kind)
    errors = []
    for seed in (0, 1):
        exact, learned = (f(inputs(seed)) for f in (model.exact_log_partition, model.log_partition))
        assert exact.std() > 0.5  # it is a function, not a constant
        errors.append(float(np.mean(np.abs(learned - exact) / (exact + model.space_.log_size))))
    seen, unseen = errors
    assert seen < 0.01 and unseen < 0.02, errors
