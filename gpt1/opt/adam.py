"""Adam as the original fine-tunes with it: the warm-up schedules and :class:`OpenAIAdam`.

At update t = 1, 2, ... of t_total, for gradients g already clipped by their global norm::

    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    lr_t = lr * schedule(t / t_total) * sqrt(1 - b2^t) / (1 - b1^t)
    p = p - lr_t * (m / (sqrt(v) + e) + l2 * p)

Nothing here knows the model.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

# ------------------------------------------------------------------------------- schedules


def warmup_linear(x: float, warmup: float = 0.002) -> float:
    """Factor of the learning rate: up to ``warmup``, then down to 0 (the paper's section 4.1).

    The whole of it is scaled by ``1 - x``, the ramp too, as in the original's function of this
    name; so the peak is ``1 - warmup``, not 1.

    Args:
        x: share of all updates that are done, 0 to 1. Beyond 1 the factor stays 0; the original
            has no such limit and would go on to negative learning rates.
        warmup: share of all updates that the ramp takes; 0 for none (the original divides by it).
    """
    ramp = x / warmup if warmup > 0 and x <= warmup else 1.0
    return ramp * max(1.0 - x, 0.0)


def warmup_cosine(x: float, warmup: float = 0.002) -> float:
    """As :func:`warmup_linear`, but up to 1, then along half a cosine down to 0.

    The cosine starts at x = 0, not at the end of the ramp: there is a step between the two.
    Beyond x = 1 the factor stays 0 (in the original it would rise again).
    """
    if warmup > 0 and x <= warmup:
        return x / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min(x, 1.0)))


def warmup_constant(x: float, warmup: float = 0.002) -> float:
    """As :func:`warmup_linear`, but up to 1 and then 1 for good."""
    return x / warmup if warmup > 0 and x <= warmup else 1.0


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "warmup_linear": warmup_linear,
    "warmup_cosine": warmup_cosine,
    "warmup_constant": warmup_constant,
}

# ------------------------------------------------------------------------------- optimizer

# Where torch's fused AdamW is used, and where it heeds `grad_scale`: on Apple's GPUs many
# releases of torch, 2.6 among them, ignore that argument without a word.
_FUSED_DEVICES = ("cpu", "cuda", "mps")
_SCALING_DEVICES = ("cpu", "cuda")

_ROW = 4096  # elements summed at a time, see `_norm_pieces`


class OpenAIAdam(Optimizer):
    """The original's ``adam``: bias-corrected decay, e outside the correction, global clipping.

    One update works on every parameter that has a gradient:

    - All gradients, of all groups together, are scaled by ``c / max(norm, c)``, ``norm`` being
      their global norm and c ``max_grad_norm``. With clipping on, ``p.grad`` holds the *clipped*
      gradient after ``step``, as it does after ``clip_grad_norm_``; with clipping off it is left
      alone.
    - Decay is decoupled from the gradient, but gets the bias-corrected learning rate too, and is
      taken from the parameter as it was before the update.
    - A group has one counter t, which every ``step`` advances, as the original's single one. A
      parameter without a gradient is left wholly alone (no decay, no change of its moments) and
      does not count in the norm; when it gets one, it meets the group's t.

    torch's own fused AdamW does the work. It divides e and the decay otherwise, so it is given
    ``l2 * sqrt(1 - b2^t) / (1 - b1^t)`` as its decay and ``e / sqrt(1 - b2^t)`` as its epsilon;
    and it divides the gradients itself, so that clipping costs one pass over them (the norm)
    and, on a GPU, no wait for the result. What the fused kernel does not take (float64, memory
    that is not contiguous, other devices) goes through torch's ``foreach`` form.

    Each argument but ``params`` and ``max_grad_norm`` may differ from group to group. A learning
    rate scheduler of ``torch.optim.lr_scheduler`` may change a group's ``lr``; the factor of
    ``schedule`` comes on top. ``maximize`` and ``amsgrad`` do not exist here.

    Args:
        params: parameters or parameter groups, float32 or float64.
        lr: learning rate, the peak before ``schedule``.
        schedule: a name in :data:`SCHEDULES`, or the function; kept as its name.
        warmup: share of ``t_total`` that the ramp takes, 0 to 1.
        t_total: number of updates of the whole run; further ones are possible, see the schedule.
        b1: share of m kept by an update, 0 to below 1.
        b2: share of v kept by an update, 0 to below 1.
        e: added to the root of v; above 0, since a gradient that is always 0 would give 0/0.
        l2: weight decay, of parameters with more than one dimension.
        vector_l2: decay the others (biases, gains) too.
        max_grad_norm: largest global norm; 0 or less means no clipping.

    Raises:
        ValueError: an argument is out of range (the message names it), a parameter is not
            float32 or float64, or a loaded state is not one of this class.
        RuntimeError: from ``step``: a gradient is sparse. Nothing has changed then.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        schedule: str | Callable[[float, float], float],
        warmup: float,
        t_total: int,
        b1: float = 0.9,
        b2: float = 0.999,
        e: float = 1e-8,
        l2: float = 0,
        vector_l2: bool = False,
        max_grad_norm: float = -1,
    ) -> None:
        defaults = {
            "lr": lr,
            "schedule": schedule,
            "warmup": warmup,
            "t_total": t_total,
            "b1": b1,
            "b2": b2,
            "e": e,
            "l2": l2,
            "vector_l2": vector_l2,
            "max_grad_norm": max_grad_norm,
            "t": 0,
        }
        super().__init__(params, _checked_options(defaults))
        self._norm = torch.tensor(math.nan)
        self._measured = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over loaded or unpickled groups, refusing those of another optimizer."""
        for group in state["param_groups"]:
            group.update(_checked_options(group))
        super().__setstate__(state)
        self.__dict__.setdefault("_norm", torch.tensor(math.nan))
        self.__dict__.setdefault("_measured", False)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with settings of their own if wanted; they count t from 1.

        Raises:
            ValueError: as the class, or ``max_grad_norm`` differs from the other groups'.
        """
        param_group.update(_checked_options({**self.defaults, **param_group}))
        clip = self.param_groups[0]["max_grad_norm"] if self.param_groups else None
        if clip is not None and param_group["max_grad_norm"] != clip:
            raise ValueError(
                f"max_grad_norm must be the same in all groups, since the norm is taken over "
                f"all of them; got {param_group['max_grad_norm']} after {clip}"
            )
        super().add_param_group(param_group)
        for p in param_group["params"]:
            if p.dtype not in (torch.float32, torch.float64):
                self.param_groups.pop()
                raise ValueError(
                    f"params must be float32 or float64, got {p.dtype}; for speed in lower "
                    "precision keep the parameters float32 and run the model under autocast"
                )

    def current_lr(self, group: int = 0) -> float:
        """``lr * schedule(t / t_total)`` of a group's last update, without the bias correction.

        Args:
            group: index into ``param_groups``.
        """
        options = self.param_groups[group]
        schedule = SCHEDULES[options["schedule"]]
        return float(options["lr"] * schedule(options["t"] / options["t_total"], options["warmup"]))

    @property
    def grad_norm(self) -> Tensor:
        """The global norm of the gradients before clipping, for logs.

        A tensor without dimensions on the first gradient's device; only ``item()`` waits for a
        GPU. With clipping on it is what the last ``step`` found (NaN before the first, and in a
        copy). With clipping off ``step`` has no use for it and saves the time: it is worked out
        when asked for, from the gradients as they are then, so ask before ``zero_grad``.
        """
        if self.param_groups[0]["max_grad_norm"] > 0:
            return self._norm
        return _global_norm(self._gradients())

    def measure(self) -> Tensor:
        """Work out :attr:`grad_norm` now, to look at it before ``step``, which then uses it.

        The gradients must stay as they are in between.
        """
        self._norm = _global_norm(self._gradients())
        self._measured = True
        return self._norm

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one update; see the class.

        Args:
            closure: computes the loss and its gradients anew; its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self._measured = False
        grads = self._gradients()
        clip = self.param_groups[0]["max_grad_norm"]
        divisor = None
        if clip > 0:
            if not self._measured:
                self._norm = _global_norm(grads)
            divisor = self._norm.clamp(min=clip) / clip
        self._measured = False
        for index, group in enumerate(self.param_groups):
            group["t"] += 1
            self._update(group, self.current_lr(index), divisor)
        return loss

    def _gradients(self) -> list[Tensor]:
        """The gradients there are, of all groups."""
        params = (p for group in self.param_groups for p in group["params"])
        grads = [p.grad for p in params if p.grad is not None]
        if any(grad.layout != torch.strided for grad in grads):
            raise RuntimeError(
                "OpenAIAdam does not take sparse gradients; make the layer that gives them dense "
                "(for torch.nn.Embedding: sparse=False)"
            )
        return grads

    def _update(self, group: dict[str, Any], lr: float, divisor: Tensor | None) -> None:
        """Apply the update that `group["t"]` counts to a group's parameters."""
        t, b1, b2 = group["t"], group["b1"], group["b2"]
        correction = math.sqrt(1 - b2**t)
        for (device, fused, decayed), params in _kernel_calls(group).items():
            grads = [p.grad for p in params if p.grad is not None]
            scaling = fused and device.type in _SCALING_DEVICES
            if divisor is not None and not scaling:
                torch._foreach_div_(grads, divisor.to(device))
            # The kernel adds 1 to each of these. Made anew from the group's counter, they cannot
            # disagree with it, whatever was skipped, loaded or moved before.
            counters = torch.full(
                (len(params),), t - 1.0, dtype=torch.float32, device=device if fused else "cpu"
            )
            adamw(
                params,
                grads,
                [self._moment(p, "m") for p in params],
                [self._moment(p, "v") for p in params],
                [],
                list(counters.unbind()),
                fused=fused,
                foreach=not fused,
                grad_scale=divisor.float() if divisor is not None and scaling else None,
                amsgrad=False,
                beta1=b1,
                beta2=b2,
                lr=lr,
                weight_decay=group["l2"] * correction / (1 - b1**t) if decayed else 0.0,
                eps=group["e"] / correction,
                maximize=False,
            )

    def _moment(self, p: Tensor, name: str) -> Tensor:
        """The running mean of a parameter's gradients (``m``) or of their squares (``v``)."""
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        moment: Tensor = state[name]
        return moment


def _kernel_calls(group: dict[str, Any]) -> dict[tuple[torch.device, bool, bool], list[Tensor]]:
    """The parameters with gradients, by what a call has one of: device, fused or not, decay or not.

    The fused kernel walks through memory from the first element on, whatever the strides say:
    given anything not contiguous it takes wrong elements, and writes over those of others.
    """
    calls: dict[tuple[torch.device, bool, bool], list[Tensor]] = defaultdict(list)
    for p in group["params"]:
        if p.grad is not None:
            fused = (
                p.device.type in _FUSED_DEVICES
                and p.dtype == torch.float32
                and p.is_contiguous()
                and p.grad.is_contiguous()
            )
            calls[p.device, fused, p.ndim > 1 or group["vector_l2"]].append(p)
    return calls


def _global_norm(grads: list[Tensor]) -> Tensor:
    """The Euclidean norm of all elements of all gradients, a tensor on the first one's device."""
    return get_total_norm([piece for grad in grads for piece in _norm_pieces(grad)])


def _norm_pieces(grad: Tensor) -> list[Tensor]:
    """Tensors whose norm, taken together, is that of `grad`.

    On a CPU torch adds up a whole tensor's squares in a few float32 sums: over the 31 million
    elements of GPT-1's embedding the norm comes out 0.2 % short. Row by row it costs the same
    and is right to seven digits. GPUs add up in blocks anyway.
    """
    if not grad.is_cpu or grad.numel() <= _ROW:
        return [grad]
    flat = grad.reshape(-1)
    whole = flat.numel() // _ROW * _ROW
    return [torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1), flat[whole:]]


# ------------------------------------------------------------------------------- checks

_Rule = tuple[type, Callable[[Any], bool], str]

_RULES: dict[str, _Rule] = {
    "lr": (float, lambda value: value >= 0, "a finite number, 0 or more"),
    "warmup": (float, lambda value: 0 <= value <= 1, "a share of t_total, from 0 to 1"),
    "t_total": (int, lambda value: value >= 1, "a whole number of updates, 1 or more"),
    "b1": (float, lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "b2": (float, lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "e": (float, lambda value: value > 0, "a finite number above 0"),
    "l2": (float, lambda value: value >= 0, "a finite number, 0 or more"),
    "vector_l2": (bool, lambda value: True, "True or False"),
    "max_grad_norm": (float, lambda value: True, "a finite number, 0 or less for no clipping"),
    "t": (int, lambda value: value >= 0, "a whole number of updates, 0 or more"),
}


def _checked_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a group as plain Python values, so that a saved state is plain data.

    Raises:
        ValueError: one is missing or out of range.
    """
    missing = [name for name in (*_RULES, "schedule") if name not in options]
    if missing:
        raise ValueError(
            f"not a parameter group of OpenAIAdam: {', '.join(missing)} missing; load a state "
            "that OpenAIAdam saved"
        )
    checked = {name: _checked(name, options[name], rule) for name, rule in _RULES.items()}
    return {**checked, "schedule": _schedule_name(options["schedule"])}


def _checked(name: str, value: Any, rule: _Rule) -> Any:
    kind, allowed, expected = rule
    abstract = {float: Real, int: Integral, bool: bool}[kind]
    right_kind = isinstance(value, abstract) and (kind is bool or not isinstance(value, bool))
    if not right_kind or not math.isfinite(value) or not allowed(value):
        raise ValueError(f"{name} must be {expected}; got {value!r}")
    return kind(value)


def _schedule_name(schedule: Any) -> str:
    for name, function in SCHEDULES.items():
        if schedule is function or schedule == name:
            return name
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
