"""The one trainer: transformers.Trainer, with the loss of an objective and one global token count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from fenchel.losses import reduce

Objective = Callable[[torch.nn.Module, dict[str, Tensor]], Tensor]
"""(model, batch) -> the losses of the tokens that count, shape (n,), in float32."""


class FenchelTrainer(transformers.Trainer):
    """`transformers.Trainer` whose loss is the mean of an objective over all tokens of the global batch.

    The denominator counts the tokens under loss over all processes and accumulation steps, so loss and
    gradient do not depend on how the global batch was split.

    Args:
        objective: called with the model and a batch of the `Collator`; returns per-token losses.
        options: everything that `transformers.Trainer` takes.
    """

    # What `objective` returns is divided by the count of the whole accumulated batch here.
    loss_is_scaled_for_ga = True
    objective: Objective

    def __init__(self, *, objective: Objective, **options: Any) -> None:
        super().__init__(**options)
        self.objective = objective
        self.model_accepts_loss_kwargs = True  # makes the parent count `num_items_in_batch`
        self._loss_shifts_labels = True  # and leave out each row's first label, which none predicts

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        losses = self.objective(model, inputs)
        loss = reduce(losses, count=num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return (loss, {}) if return_outputs else loss
