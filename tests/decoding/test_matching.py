"""Decoding that matches training: the softmax of the logits is the f-softargmax of the scores."""

from __future__ import annotations

import pytest
import torch
from catalogue import NAMES

from fenchel import f_softargmax, matching_logits


@pytest.mark.parametrize("name", NAMES)
def test_their_softmax_is_the_operator(name: str) -> None:
    scores = 2 * torch.randn(3, 7, dtype=torch.float64)
    found = matching_logits(scores, name)
    torch.testing.assert_close(found.softmax(-1), f_softargmax(scores, name), rtol=1e-9, atol=1e-12)
