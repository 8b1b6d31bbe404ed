"""Dropout masks: their rate, their values and their independence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gpt1.model.dropout import dropout, dropped_matrix, keep_mask


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.1, 0.5, 0.9, 1 - 1e-9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mask_has_the_rate_and_the_value(p: float, dtype: torch.dtype):
    torch.manual_seed(0)
    mask = keep_mask((1001, 203), p, torch.zeros((), dtype=dtype))
    assert mask.shape == (1001, 203)
    assert mask.dtype == dtype
    kept = (mask != 0).double().mean().item()
    assert abs(kept - (1 - p)) < 5 * (p * (1 - p) / mask.numel()) ** 0.5 + 2**-15
    value = torch.tensor(1 / (1 - p), dtype=dtype)
    assert ((mask == 0) | (mask == value)).all()


def test_elements_of_a_mask_are_independent():
    """Four elements share one 64-bit word, but neighbours must not agree more often than others."""
    torch.manual_seed(1)
    mask = (keep_mask((400_000,), 0.5, torch.zeros(())) != 0).double() - 0.5
    for distance in (1, 2, 3, 4, 5):
        correlation = (mask[distance:] * mask[:-distance]).mean() * 4
        assert abs(correlation) < 5 / 400_000**0.5
    for lane in range(4):  # Each of the four parts of a word has the rate.
        assert abs(mask[lane::4].mean()) < 5 * 0.5 / 100_000**0.5


def test_seed_decides_the_mask():
    masks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        masks.append(keep_mask((50,), 0.3, torch.zeros(())))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_no_dropout_leaves_the_tensor_itself():
    x = torch.randn(5)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    assert dropped_matrix(x, 0.5, training=False) is x
    assert dropped_matrix(x, 0.0, training=True) is x


def test_matrix_and_its_gradient_go_through_the_same_mask():
    w = torch.randn(40, 30, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    dropped = dropped_matrix(w, 0.25, training=True)
    mask = dropped.detach() / w.detach()
    direction = torch.randn_like(dropped)
    (dropped * direction).sum().backward()
    torch.testing.assert_close(w.grad, direction * mask)
    torch.manual_seed(5)
    torch.testing.assert_close(mask, keep_mask(w.shape, 0.25, w))


class Elsewhere(str):
    """A device that is the CPU for torch, but is not recognised as the CPU by gpt1."""

    type = "elsewhere"


def test_mask_on_other_devices_than_a_cpu_has_the_rate_and_the_value():
    torch.manual_seed(0)
    like = SimpleNamespace(dtype=torch.float64, device=Elsewhere("cpu"))
    mask = keep_mask((100, 100), 0.25, like)
    assert ((mask == 0) | (mask == 1 / 0.75)).all()
    assert abs((mask != 0).double().mean() - 0.75) < 5 * (0.25 * 0.75 / 10_000) ** 0.5
