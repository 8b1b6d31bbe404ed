"""The optimizer against the running original and a transcription; the contract of torch."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    EPS32,
    OPTIMIZER_DEVIATIONS,
    Array,
    Case,
    Gradients,
    assert_within,
    factor,
    norm,
    transcribe,
)

from gpt1.opt.adam import (
    SCHEDULES,
    OpenAIAdam,
    warmup_constant,
    warmup_cosine,
    warmup_linear,
    warmup_then_cosine,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

SETTINGS: dict[str, Any] = {
    "lr": 0.1,
    "schedule": "warmup_linear",
    "warmup": 0.34,
    "t_total": 12,
    "b1": 0.9,
    "b2": 0.999,
    "e": 1e-8,
    "l2": 0.01,
    "vector_l2": False,
    "max_grad_norm": 1.0,
}
SHAPES = [(1, 7, 12), (12,), (33, 5), (3,), (1,), (2, 3, 4), (), (70, 70)]

# --------------------------------------------------------------- ours, and random gradients


def make_optimizer(params: list[torch.Tensor], settings: dict[str, Any]) -> OpenAIAdam:
    return OpenAIAdam(params, **settings)


def feed(
    optimizer: OpenAIAdam, params: list[torch.Tensor], update: list[Array | None]
) -> OpenAIAdam:
    """Make one update with the given gradients."""
    for p, g in zip(params, update, strict=True):
        p.grad = None if g is None else torch.tensor(g, dtype=p.dtype, device=p.device)
    optimizer.step()
    return optimizer


def run(
    start: list[Array],
    gradients: Gradients,
    settings: dict[str, Any],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[Array]:
    """Return the parameters after updates by OpenAIAdam."""
    params = [torch.tensor(p, dtype=dtype, device=device, requires_grad=True) for p in start]
    optimizer = make_optimizer(params, settings)
    for update in gradients:
        feed(optimizer, params, update)
    return [p.detach().cpu().numpy() for p in params]


def random_case(
    seed: int, updates: int, exponents: tuple[float, float] = (0, 0), zeros: bool = False
) -> tuple[list[Array], Gradients]:
    """Draw parameters, and gradients of sizes 10^a to 10^b, of which some may be zero."""
    draw = np.random.default_rng(seed)
    start = [np.asarray(draw.normal(size=shape), np.float32) for shape in SHAPES]
    gradients: Gradients = []
    for _ in range(updates):
        sizes = 10 ** draw.uniform(*exponents, len(SHAPES))
        update = [draw.normal(size=s) * size for s, size in zip(SHAPES, sizes, strict=True)]
        keep = [draw.random(size=s) < 0.7 if zeros else np.ones(s) for s in SHAPES]
        gradients.append([np.asarray(g * k, np.float32) for g, k in zip(update, keep, strict=True)])
    return start, gradients


def allowed(start: list[Array], updates: int, lr: float) -> float:
    """Return the error that rounding to float32 may cause: of the parameter and of its step.

    Every update rounds the parameter once or twice. A step is at most 2 lr here. The terms of m may
    cancel, and v may be as small as 0.001 of its largest term, so that the error of the step is
    some tens of roundings.
    """
    largest = max(float(np.abs(p).max()) for p in start)
    return updates * EPS32 * (largest + 32 * lr)


def distance(a: list[Array], b: list[Array]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("schedule", "x", "warmup", "expected"),
    [
        (warmup_linear, 0.0, 0.002, 0.0),
        (warmup_linear, 0.001, 0.002, 0.5 * 0.999),
        (warmup_linear, 0.002, 0.002, 0.998),
        (warmup_linear, 0.25, 0.5, 0.375),
        (warmup_linear, 0.75, 0.5, 0.25),
        (warmup_linear, 1.0, 0.002, 0.0),
        (warmup_linear, 1.5, 0.002, 0.0),
        (warmup_cosine, 0.001, 0.002, 0.5),
        (warmup_cosine, 0.5, 0.5, 1.0),
        (warmup_cosine, 0.25, 0.002, 0.5 + 0.25 * math.sqrt(2)),
        (warmup_cosine, 0.5, 0.002, 0.5),
        (warmup_cosine, 1.0, 0.002, 0.0),
        (warmup_cosine, 1.5, 0.002, 0.0),
        (warmup_then_cosine, 0.25, 0.5, 0.5),
        (warmup_then_cosine, 0.5, 0.5, 1.0),
        (warmup_then_cosine, 0.75, 0.5, 0.5),
        (warmup_then_cosine, 0.25, 0.0, 0.5 + 0.25 * math.sqrt(2)),
        (warmup_then_cosine, 1.0, 0.5, 0.0),
        (warmup_then_cosine, 1.5, 0.5, 0.0),
        (warmup_constant, 0.001, 0.002, 0.5),
        (warmup_constant, 0.002, 0.002, 1.0),
        (warmup_constant, 1.5, 0.002, 1.0),
    ],
)
def test_schedule_values(
    schedule: Callable[[float, float], float], x: float, warmup: float, expected: float
) -> None:
    assert schedule(x, warmup) == pytest.approx(expected, rel=1e-15, abs=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES.values())
def test_schedule_default_warmup_is_two_thousandths(
    schedule: Callable[..., float],
) -> None:
    for x in (0.0, 0.001, 0.002, 0.003, 0.5):
        assert schedule(x) == schedule(x, 0.002)


@pytest.mark.parametrize("schedule", SCHEDULES.values())
def test_schedule_without_warmup_starts_at_the_peak(
    schedule: Callable[[float, float], float],
) -> None:
    assert schedule(0.0, 0.0) == 1.0
    assert schedule(1e-9, 0.0) == pytest.approx(1.0, abs=1e-8)


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    x=st.floats(0, 3),
    warmup=st.floats(0, 1),
)
def test_schedule_stays_between_0_and_1(name: str, x: float, warmup: float) -> None:
    assert 0.0 <= SCHEDULES[name](x, warmup) <= 1.0


@given(name=st.sampled_from(sorted(SCHEDULES)), x=st.floats(0, 1), warmup=st.floats(1e-6, 1))
def test_schedule_is_the_formula(name: str, x: float, warmup: float) -> None:
    assert SCHEDULES[name](x, warmup) == pytest.approx(factor(name, x, warmup), abs=1e-15)


# ------------------------------------------------------------------------- the original


@pytest.mark.golden
def test_first_update_of_the_running_original(golden_dir: Path) -> None:
    case = Case(golden_dir, "base")
    start, expected = case.values("init"), case.after_one_update()
    grads = [g.numpy() for g in case.values("grad0").values()]
    assert norm(grads) > 1.5 * case.cfg["max_grad_norm"]  # clipping is at work
    after = run([p.numpy() for p in start.values()], [grads], case.optimizer())
    tolerance = case.one_update_tolerance()
    for name, ours in zip(start, after, strict=True):
        assert_within(ours, expected[name], tolerance[name], name)


# ---------------------------------------------------------------- the float64 transcription


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.05, -1.0, 0.0])
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize(("l2", "vector_l2"), [(0.0, False), (0.1, False), (0.1, True)])
def test_many_updates_are_the_rule(
    schedule: str, l2: float, vector_l2: bool, max_grad_norm: float, device: str
) -> None:
    updates = 60
    settings = {
        **SETTINGS,
        "lr": 0.01,
        "schedule": schedule,
        "t_total": updates,
        "l2": l2,
        "vector_l2": vector_l2,
        "max_grad_norm": max_grad_norm,
    }
    start, gradients = random_case(1, updates)
    off = distance(run(start, gradients, settings, device), transcribe(start, gradients, settings))
    assert off < allowed(start, updates, settings["lr"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("max_grad_norm", [1.0, -1.0])
@pytest.mark.parametrize(
    "exponents", [(-20, 10), (10, 10), (-20, -20), (-9, -7)], ids=["wild", "huge", "tiny", "near e"]
)
def test_gradients_of_any_size_and_zeros(
    exponents: tuple[float, float], max_grad_norm: float, device: str
) -> None:
    updates = 40
    settings = {
        **SETTINGS,
        "lr": 0.01,
        "t_total": updates,
        "max_grad_norm": max_grad_norm,
    }
    start, gradients = random_case(2, updates, exponents, zeros=True)
    off = distance(run(start, gradients, settings, device), transcribe(start, gradients, settings))
    assert off < allowed(start, updates, settings["lr"])


@pytest.mark.parametrize("max_grad_norm", [1.0, -1.0])
@pytest.mark.parametrize("e", [1e-8, 1e-3])
def test_the_kernels_terms_are_the_rule_in_exact_algebra(e: float, max_grad_norm: float) -> None:
    """In float64 rounding is negligible, and the algebra of the kernel's arguments remains."""
    settings = {**SETTINGS, "e": e, "l2": 0.5, "max_grad_norm": max_grad_norm}
    start, gradients = random_case(3, 12, (-9, 1))
    off = distance(
        run(start, gradients, settings, dtype=torch.float64),
        transcribe(start, gradients, settings),
    )
    assert off < 1e-13


@pytest.mark.parametrize("deviation", OPTIMIZER_DEVIATIONS)
def test_trap(deviation: str) -> None:
    """Each mistake exceeds the tolerance of float32 by far; OpenAIAdam is within the tolerance."""
    settings = {**SETTINGS, "e": 1e-3, "l2": 0.5}
    start, gradients = random_case(4, 6)
    ours = run(start, gradients, settings)
    tolerance = allowed(start, 6, settings["lr"])
    assert distance(ours, transcribe(start, gradients, settings)) < tolerance
    assert distance(ours, transcribe(start, gradients, settings, deviation)) > 20 * tolerance


def test_bias_correction_in_float32_is_off_by_a_hundred_thousandth() -> None:
    """OpenAIAdam computes ``1 - b2^t`` in float64; the original loses digits in float32."""
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = OpenAIAdam([p], lr=1.0, schedule="warmup_constant", warmup=0.0, t_total=1)
    errors = []
    for t in range(1, 201):
        p.grad = torch.ones_like(p)  # so that m = 1 - b1^t and v = 1 - b2^t
        before = p.item()
        optimizer.step()
        exact = math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        step = exact * (1 - 0.9**t) / (math.sqrt(1 - 0.999**t) + 1e-8)
        assert before - p.item() == pytest.approx(step, rel=1e-11, abs=0)
        one, *powers = (np.float32(float(np.float32(b)) ** t) for b in (1, 0.9, 0.999))
        below_1 = [one - power for power in powers]  # in float32, as all that follows
        errors.append(abs(float(np.sqrt(below_1[1]) / below_1[0]) / exact - 1))
    assert 5e-6 < max(errors[:3]) == max(errors) < 2e-5


# ---------------------------------------------------------------------------- clipping


@pytest.mark.parametrize("device", DEVICES)
def test_the_kernel_divides_as_if_the_gradients_were_scaled(device: str) -> None:
    settings = {**SETTINGS, "e": 1e-3}
    start, [update] = random_case(5, 1)
    size = norm([g for g in update if g is not None])
    scaled: Gradients = [[np.asarray(g / np.float32(size)) for g in update if g is not None]]
    clipped = run(start, [update], settings, device)
    by_hand = run(start, scaled, {**settings, "max_grad_norm": -1}, device)
    assert distance(clipped, by_hand) < 4 * EPS32 * max(float(np.abs(p).max()) for p in start)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", [1.0, 7.5, 1e6, -1.0])
def test_grad_holds_the_clipped_gradient_after_step(limit: float, device: str) -> None:
    start, [update] = random_case(6, 1)
    grads = [g for g in update if g is not None]
    params = [torch.tensor(p, device=device) for p in start]
    feed(make_optimizer(params, {**SETTINGS, "max_grad_norm": limit}), params, update)
    scale = limit / max(norm(grads), limit) if limit > 0 else 1.0
    for p, g in zip(params, grads, strict=True):
        assert p.grad is not None
        np.testing.assert_allclose(p.grad.cpu().numpy(), g * scale, rtol=4 * EPS32)


def test_gradients_under_the_limit_are_not_touched() -> None:
    start, [update] = random_case(7, 1)
    clipped = run(start, [update], {**SETTINGS, "max_grad_norm": 1e6})
    free = run(start, [update], {**SETTINGS, "max_grad_norm": -1})
    assert all(np.array_equal(a, b) for a, b in zip(clipped, free, strict=True))


@pytest.mark.parametrize("limit", [1.0, -1.0])
def test_grad_norm_is_that_of_all_gradients_before_clipping(limit: float) -> None:
    start, [update] = random_case(8, 1, (-3, 3))
    update[2] = None
    params = [torch.tensor(p) for p in start]
    optimizer = OpenAIAdam(
        [{"params": params[:4]}, {"params": params[4:]}], **{**SETTINGS, "max_grad_norm": limit}
    )
    feed(optimizer, params, update)
    assert optimizer.grad_norm.shape == ()
    expected = norm([g for g in update if g is not None])
    assert optimizer.grad_norm.item() == pytest.approx(expected, rel=1e-6)


def test_grad_norm_of_a_large_tensor_has_seven_digits() -> None:
    """A single float32 sum over so many elements would be wrong in the fifth digit or earlier."""
    p = torch.zeros(3000, 3001)
    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    expected = p.grad.double().norm().item()
    optimizer = make_optimizer([p], SETTINGS)
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(expected, rel=3e-7)


def test_grad_norm_before_and_without_gradients() -> None:
    optimizer = make_optimizer([torch.ones(3)], SETTINGS)
    assert math.isnan(optimizer.grad_norm.item())
    optimizer.step()
    assert optimizer.grad_norm.item() == 0


def test_one_norm_over_all_groups() -> None:
    start, gradients = random_case(9, 6)
    params = [torch.tensor(p) for p in start]
    optimizer = OpenAIAdam([{"params": params[:3]}, {"params": params[3:]}], **SETTINGS)
    for update in gradients:
        feed(optimizer, params, update)
    together = run(start, gradients, SETTINGS)
    assert distance([p.numpy() for p in params], together) == 0


# -------------------------------------------------- what the fused kernel does not take


@pytest.mark.parametrize("limit", [1.0, -1.0])
def test_a_transposed_gradient_is_read_in_its_own_order(limit: float) -> None:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(5, 7, generator=draw)
    grad = torch.randn(7, 5, generator=draw)
    params = [start.clone(), start.clone()]
    params[0].grad, params[1].grad = grad.t(), grad.t().contiguous()
    for p in params:
        make_optimizer([p], {**SETTINGS, "max_grad_norm": limit}).step()
    assert (params[0] - params[1]).abs().max().item() < 4 * EPS32 * start.abs().max().item()


def test_a_parameter_inside_a_larger_tensor_leaves_its_surroundings_alone() -> None:
    whole = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    before = whole.clone()
    inside = whole[:, 1:4]
    inside.grad = torch.ones(5, 3)
    make_optimizer([inside], SETTINGS).step()
    changed = whole != before
    assert changed[:, 1:4].all()
    assert not changed[:, :1].any()
    assert not changed[:, 4:].any()


# ---------------------------------------------------------------- a torch.optim.Optimizer


def test_without_a_gradient_a_parameter_is_left_alone_but_time_passes() -> None:
    settings = {**SETTINGS, "l2": 0.5, "vector_l2": True}
    start, gradients = random_case(10, 8)
    for t in (0, 1, 4):
        gradients[t][0] = gradients[t][3] = None  # 0 decays by dimension, 3 by vector_l2
    ours = run(start, gradients, settings)
    assert distance(ours, transcribe(start, gradients, settings)) < allowed(start, 8, 0.1)
    untouched = run(start, gradients[:2], settings)
    assert np.array_equal(untouched[0], start[0])
    assert np.array_equal(untouched[3], start[3])


def test_more_updates_than_planned_do_not_climb() -> None:
    start, gradients = random_case(11, 5)
    settings = {**SETTINGS, "t_total": 3}
    assert distance(run(start, gradients, settings), run(start, gradients[:3], settings)) == 0


def test_current_lr_is_the_last_updates() -> None:
    p = torch.ones(2, 2)
    optimizer = OpenAIAdam(
        [{"params": [p]}, {"params": [torch.ones(1)], "lr": 3.0, "schedule": "warmup_constant"}],
        **SETTINGS,
    )
    optimizer.step()
    optimizer.step()
    x = 2 / 12
    assert optimizer.current_lr() == pytest.approx(0.1 * x / 0.34 * (1 - x), rel=1e-12)
    assert optimizer.current_lr(1) == pytest.approx(3.0 * x / 0.34, rel=1e-12)


def test_groups_have_settings_of_their_own() -> None:
    start, gradients = random_case(12, 6)
    other = {"lr": 0.02, "l2": 0.3, "vector_l2": True, "schedule": "warmup_cosine", "e": 1e-3}
    other |= {"b1": 0.8, "b2": 0.99, "warmup": 0.1, "t_total": 30}
    free = {**SETTINGS, "max_grad_norm": -1}
    params = [torch.tensor(p) for p in start]
    optimizer = OpenAIAdam([{"params": params[:3]}, {"params": params[3:], **other}], **free)
    for update in gradients:
        feed(optimizer, params, update)
    ours = [p.numpy() for p in params]
    first = transcribe(start[:3], [g[:3] for g in gradients], free)
    second = transcribe(start[3:], [g[3:] for g in gradients], {**free, **other})
    assert distance(ours, first + second) < allowed(start, 6, 0.1)


def test_a_group_added_later_counts_its_own_updates() -> None:
    start, gradients = random_case(13, 6)
    free = {**SETTINGS, "max_grad_norm": -1}
    params = [torch.tensor(p) for p in start]
    optimizer = make_optimizer(params[:3], free)
    for update in gradients[:2]:
        feed(optimizer, params[:3], update[:3])
    optimizer.add_param_group({"params": params[3:], "lr": 0.05})
    for update in gradients[2:]:
        feed(optimizer, params, update)
    late = transcribe(start[3:], [g[3:] for g in gradients[2:]], {**free, "lr": 0.05})
    early = transcribe(start[:3], [g[:3] for g in gradients], free)
    assert distance([p.numpy() for p in params], early + late) < allowed(start, 6, 0.1)


def through_state_dict(optimizer: OpenAIAdam, params: list[torch.Tensor]) -> OpenAIAdam:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = OpenAIAdam(params, lr=9.0, schedule="warmup_cosine", warmup=0.9, t_total=99)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def through_deepcopy(optimizer: OpenAIAdam, params: list[torch.Tensor]) -> OpenAIAdam:
    return same_state_for(copy.deepcopy(optimizer), params)


def through_pickle(optimizer: OpenAIAdam, params: list[torch.Tensor]) -> OpenAIAdam:
    return same_state_for(pickle.loads(pickle.dumps(optimizer)), params)


def same_state_for(copied: OpenAIAdam, params: list[torch.Tensor]) -> OpenAIAdam:
    """Give a copied optimizer its own parameters, which its updates change."""
    own = copied.param_groups[0]["params"]
    assert all(torch.equal(a, b) for a, b in zip(own, params, strict=True))
    params[:] = own
    return copied


@pytest.mark.parametrize("carry", [through_state_dict, through_deepcopy, through_pickle])
def test_a_run_goes_on_bit_by_bit(
    carry: Callable[[OpenAIAdam, list[torch.Tensor]], OpenAIAdam],
) -> None:
    start, gradients = random_case(14, 8)
    gradients[1][2] = gradients[5][2] = None
    whole = run(start, gradients, SETTINGS)
    params = [torch.tensor(p) for p in start]
    optimizer = make_optimizer(params, SETTINGS)
    for update in gradients[:4]:
        feed(optimizer, params, update)
    params = [p.detach().clone() for p in params] if carry is through_state_dict else params
    optimizer = carry(optimizer, params)
    for update in gradients[4:]:
        feed(optimizer, params, update)
    assert distance([p.numpy() for p in params], whole) == 0


def test_the_state_of_another_optimizer_is_refused() -> None:
    p = torch.ones(2, 2)
    optimizer = make_optimizer([p], SETTINGS)
    with pytest.raises(ValueError, match=r"warmup, t_total.* missing"):
        optimizer.load_state_dict(torch.optim.AdamW([p]).state_dict())
    assert optimizer.param_groups[0]["t_total"] == 12


def test_closure_and_zero_grad() -> None:
    p = torch.full((2, 2), 2.0, requires_grad=True)
    optimizer = make_optimizer([p], SETTINGS)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 16.0
    assert (p < 2.0).all()
    assert p.requires_grad
    optimizer.zero_grad()
    assert p.grad is None


def test_a_torch_scheduler_changes_the_base_rate() -> None:
    start, gradients = random_case(15, 4)
    params = [torch.tensor(p) for p in start]
    optimizer = make_optimizer(params, {**SETTINGS, "schedule": "warmup_constant"})
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    seen = []
    for update in gradients:
        feed(optimizer, params, update)
        seen.append(optimizer.current_lr())
        scheduler.step()
    ramp = [min(t / 12 / 0.34, 1.0) for t in (1, 2, 3, 4)]
    assert seen == pytest.approx([0.1 * 0.5**i * r for i, r in enumerate(ramp)], rel=1e-12)


def test_schedule_is_kept_by_name() -> None:
    p = torch.ones(1)
    optimizer = OpenAIAdam([p], 0.1, warmup_cosine, 0.1, 10)
    assert optimizer.state_dict()["param_groups"][0]["schedule"] == "warmup_cosine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", torch.tensor(0.1)),
        ("schedule", "linear"),
        ("schedule", abs),
        ("warmup", -0.1),
        ("warmup", 1.1),
        ("t_total", 0),
        ("t_total", 2.5),
        ("b1", 1.0),
        ("b2", -0.1),
        ("b2", True),
        ("e", 0.0),
        ("e", math.inf),
        ("l2", -0.01),
        ("vector_l2", 1),
        ("max_grad_norm", math.nan),
        ("max_grad_norm", None),
    ],
)
def test_a_wrong_argument_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .*; got "):
        make_optimizer([torch.ones(2)], {**SETTINGS, name: value})


def test_groups_cannot_differ_in_clipping() -> None:
    optimizer = make_optimizer([torch.ones(2)], SETTINGS)
    with pytest.raises(ValueError, match="max_grad_norm must be the same"):
        optimizer.add_param_group({"params": [torch.ones(2)], "max_grad_norm": 5.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16, torch.float16])
def test_other_number_formats_are_refused(dtype: torch.dtype) -> None:
    optimizer = make_optimizer([torch.ones(2)], SETTINGS)
    with pytest.raises(ValueError, match="float32 or float64"):
        optimizer.add_param_group({"params": [torch.ones(2, dtype=dtype)]})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused_and_nothing_has_changed() -> None:
    dense, sparse = torch.ones(2, 2), torch.ones(2, 2)
    dense.grad = torch.ones(2, 2)
    sparse.grad = torch.eye(2).to_sparse()
    optimizer = make_optimizer([dense, sparse], SETTINGS)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(2, 2))
    assert optimizer.param_groups[0]["t"] == 0


@pytest.mark.gpu
def test_a_step_does_not_wait_for_the_gpu() -> None:
    start, gradients = random_case(16, 2)
    params = [torch.tensor(p, device="cuda") for p in start]
    optimizer = make_optimizer(params, SETTINGS)
    feed(optimizer, params, gradients[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
