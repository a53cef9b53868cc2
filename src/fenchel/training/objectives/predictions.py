"""What every objective needs: the scores at the positions that are under loss."""

from __future__ import annotations

import inspect
import logging
import math
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.kernels.dispatch import which
from fenchel.losses.linear import Scores, chunk_rows

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100
OWN = "own"  # in a batch: which rows the student wrote

# Whether a model's logits are its last hidden state times its output embeddings, found at its first batch.
_IS_LINEAR: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def targets_of(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(mask, targets): which positions predict a token under loss, (B, T - 1), and these tokens, (n,)."""
    labels = batch["labels"][:, 1:]
    mask = labels != IGNORE_INDEX
    return mask, labels[mask]


def scores_at(model: torch.nn.Module, batch: dict[str, Tensor], mask: Tensor) -> Scores:
    """Next-token scores where `mask` holds, n rows, not yet multiplied out where the head is linear.

    The model is called as a whole, through whatever wraps it, but for the logits of one position a row.
    Before the first time, these tell whether hidden @ weight.T + bias is what the model computes (some cap
    or scale it). If not, its own logits are taken. The cache is off: with it, transformers would not keep
    packed documents apart.
    """
    inputs: dict[str, Any] = {k: v for k, v in batch.items() if k not in ("labels", OWN)}
    inner = unwrapped(model)
    if inner not in _IS_LINEAR:
        _IS_LINEAR[inner] = _may_be_linear(inner) and _agrees(model, inner, inputs)
    if not _IS_LINEAR[inner]:
        return Scores(model(**inputs, use_cache=False).logits[:, :-1][mask])
    hidden = _without_logits(model, inputs).hidden_states[-1]
    return Scores(hidden[:, :-1][mask], *_head(model, inner))


def tell_if_infinite(divergence: str) -> None:
    """Say so where the loss of hard labels leaves out an infinite constant."""
    if math.isinf(find(divergence).at_zero):
        logger.info(
            "f(0) is infinite for %s, and so is the divergence of a hard label; the loss leaves out that "
            "constant and may be negative, its gradient is the same",
            divergence,
        )


def tell_implementation(op: str, record: FDivergence, scores: Scores) -> None:
    """Log, once for each kind of head, which implementation of `op` its loss runs in, and why."""
    dtype = torch.promote_types(scores.hidden.dtype, torch.float32)
    _tell_implementation(op, record, scores.vocabulary, scores.device, dtype)


@cache
def _tell_implementation(
    op: str, record: FDivergence, vocabulary: int, device: torch.device, dtype: torch.dtype
) -> None:
    logits = torch.empty(chunk_rows(vocabulary, device), vocabulary, device=device, dtype=dtype)
    logger.info(
        "loss of %s over %d classes, fused with the head: %s in %s",
        record.name,
        vocabulary,
        op,
        which(op, logits, divergence=record),
    )


def unwrapped(model: torch.nn.Module) -> Any:
    """The language model inside whatever distribution and adapters have wrapped around it."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    get_base: Any = getattr(model, "get_base_model", None)
    return model if get_base is None else get_base()


def _may_be_linear(inner: Any) -> bool:
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if getattr(getattr(inner, "config", None), "final_logit_softcapping", None) is not None:
        return False  # small logits would not tell
    # Exactly: an adapted or quantised head computes something else.
    return type(head) is torch.nn.Linear and "logits_to_keep" in inspect.signature(inner.forward).parameters


def _head(model: torch.nn.Module, inner: Any) -> tuple[Tensor, Tensor | None]:
    unshard = getattr(model, "unshard", None)
    if unshard is not None:  # FSDP2 may have resharded the root's parameters after the forward pass
        unshard()
    head = inner.get_output_embeddings()
    return head.weight, head.bias


def _without_logits(model: torch.nn.Module, inputs: dict[str, Any]) -> Any:
    """The model's output with its hidden states, and the logits of the last position alone."""
    return model(**inputs, use_cache=False, output_hidden_states=True, logits_to_keep=1)


@torch.no_grad()
def _agrees(model: torch.nn.Module, inner: Any, inputs: dict[str, Any]) -> bool:
    """Whether the head gives the model's logits; leaves the random state as it was."""
    device = next(inner.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        output = _without_logits(model, inputs)
    logits, hidden = output.logits, output.hidden_states[-1][:, -1:]
    weight, bias = _head(model, inner)
    expected = torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias)
    if expected.shape != logits.shape:
        return False
    error = (expected.float() - logits.float()).abs().max()
    digits = 1e-4 if logits.dtype == expected.dtype == torch.float32 else 0.02
    return bool(error <= digits * expected.float().abs().max())
