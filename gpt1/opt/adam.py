"""The optimizer of the original: schedules of the learning rate and :class:`OpenAIAdam`.

At update t = 1, 2, ... of t_total, for gradients g already clipped by their global norm::

    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    lr_t = lr * schedule(t / t_total) * sqrt(1 - b2^t) / (1 - b1^t)
    p = p - lr_t * (m / (sqrt(v) + e) + l2 * p)

This module does not depend on the model.
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
    """Return the factor of the learning rate: a linear ramp, then a linear decrease to 0.

    The ramp too is multiplied by ``1 - x``, as in the original's function of this name. Therefore
    the peak is ``1 - warmup`` and not 1. Source: the paper, section 4.1.

    Args:
        x: share of all updates that are done, 0 to 1. Beyond 1 the factor stays 0; the original
            has no such limit, and its learning rate would become negative.
        warmup: share of all updates that the ramp takes; 0 for no ramp (the original would divide
            by 0).
    """
    ramp = x / warmup if warmup > 0 and x <= warmup else 1.0
    return ramp * max(1.0 - x, 0.0)


def warmup_cosine(x: float, warmup: float = 0.002) -> float:
    """Return the factor of the learning rate: a linear ramp to 1, then half a cosine down to 0.

    The cosine starts at x = 0 and not at the end of the ramp, so that the factor jumps there, as in
    the original. Beyond x = 1 the factor stays 0 (in the original it would rise again). The
    arguments are those of :func:`warmup_linear`.
    """
    if warmup > 0 and x <= warmup:
        return x / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min(x, 1.0)))


def warmup_then_cosine(x: float, warmup: float = 0.002) -> float:
    """Return the factor of the learning rate: a linear ramp to 1, then half a cosine from 1 to 0.

    The cosine starts at the end of the ramp, so that the factor never jumps, which is how the paper
    describes pretraining (section 4.1). In :func:`warmup_cosine` it starts at x = 0. The arguments
    are those of :func:`warmup_linear`.
    """
    if warmup > 0 and x <= warmup:
        return x / warmup
    rest = 1.0 - warmup
    return 0.5 * (1.0 + math.cos(math.pi * min((x - warmup) / rest, 1.0))) if rest > 0 else 0.0


def warmup_constant(x: float, warmup: float = 0.002) -> float:
    """Return the factor of the learning rate: a linear ramp to 1, then 1.

    The arguments are those of :func:`warmup_linear`.
    """
    return x / warmup if warmup > 0 and x <= warmup else 1.0


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "warmup_linear": warmup_linear,
    "warmup_cosine": warmup_cosine,
    "warmup_constant": warmup_constant,
    "warmup_then_cosine": warmup_then_cosine,
}

# ------------------------------------------------------------------------------- optimizer

# The devices for which torch's fused AdamW is used, and those on which it applies `grad_scale`. On
# Apple's GPUs many releases of torch, 2.6 among them, silently ignore that argument.
_FUSED_DEVICES = ("cpu", "cuda", "mps")
_SCALING_DEVICES = ("cpu", "cuda")

_ROW = 4096  # elements that are summed at a time, see `_norm_parts`


class OpenAIAdam(Optimizer):
    """Adam with decoupled weight decay and clipping by the global norm (the original's ``adam``).

    An update changes every parameter that has a gradient:

    - All gradients, of all groups together, are multiplied by ``c / max(norm, c)``, where ``norm``
      is their global norm and c is ``max_grad_norm``. With clipping, ``p.grad`` holds the *clipped*
      gradient after ``step``, as after ``clip_grad_norm_``. Without clipping, ``step`` does not
      change ``p.grad``.
    - The weight decay is decoupled from the gradient, but it is multiplied by the bias-corrected
      learning rate. It is computed from the parameter before the update.
    - ``e`` is added outside the bias correction.
    - A group has one counter t, which every ``step`` increases; the original has a single counter.
      A parameter without a gradient is not changed (no decay, no change of its moments) and does
      not count in the norm. When it gets a gradient later, it is updated with the group's t.

    torch's fused AdamW does the arithmetic. Its formula places e and the decay differently, so it
    is given ``l2 * sqrt(1 - b2^t) / (1 - b1^t)`` as its decay and ``e / sqrt(1 - b2^t)`` as its
    epsilon. The fused kernel also divides the gradients, so that clipping costs a single pass over
    them (for the norm), and on a GPU the program need not wait for the norm. Tensors that the fused
    kernel does not support (float64, memory that is not contiguous, other devices) are updated by
    torch's ``foreach`` implementation.

    Each argument except ``params`` and ``max_grad_norm`` may differ from group to group. A
    scheduler of ``torch.optim.lr_scheduler`` may change a group's ``lr``; it is then still
    multiplied by the factor of ``schedule``. There is no ``maximize`` and no ``amsgrad``.

    Args:
        params: parameters or parameter groups, float32 or float64.
        lr: learning rate, the peak before ``schedule``.
        schedule: a name in :data:`SCHEDULES`, or one of its functions; the state has the name.
        warmup: share of ``t_total`` that the ramp takes, 0 to 1.
        t_total: number of updates of the whole run. More updates are possible; see the schedule.
        b1: share of m that each update keeps, from 0 to below 1.
        b2: share of v that each update keeps, from 0 to below 1.
        e: added to the root of v; above 0, because a gradient that is always 0 would give 0/0.
        l2: weight decay of parameters with more than one dimension.
        vector_l2: apply the weight decay to all other parameters (biases, gains) too.
        max_grad_norm: largest global norm; 0 or less means no clipping.

    Raises:
        ValueError: an argument is out of range (the message names it), a parameter is not
            float32 or float64, or a loaded state is not one of this class.
        RuntimeError: raised by ``step``: a gradient is sparse. No parameter has changed then.
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
        """Set the state to a loaded or unpickled one; refuse the state of another optimizer."""
        for group in state["param_groups"]:
            group.update(_checked_options(group))
        super().__setstate__(state)
        self.__dict__.setdefault("_norm", torch.tensor(math.nan))
        self.__dict__.setdefault("_measured", False)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, whose counter t starts at 0.

        Args:
            param_group: the parameters (``"params"``), and the settings that differ from the
                defaults.

        Raises:
            ValueError: for the reasons that the class names, or because ``max_grad_norm`` differs
                from that of the other groups.
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
        """Return ``lr * schedule(t / t_total)`` of a group's last update, without bias correction.

        Args:
            group: index into ``param_groups``.
        """
        options = self.param_groups[group]
        schedule = SCHEDULES[options["schedule"]]
        return float(options["lr"] * schedule(options["t"] / options["t_total"], options["warmup"]))

    @property
    def grad_norm(self) -> Tensor:
        """The global norm of the gradients before clipping, for logs.

        It is a tensor without dimensions on the device of the first gradient, and reading its
        number (``item()``) waits for a GPU. With clipping, it is the norm that the last ``step``
        computed (NaN before the first ``step``, and in a copy). Without clipping, ``step`` does
        not compute the norm; this property then computes it from the present gradients, so it must
        be read before ``zero_grad``.
        """
        if self.param_groups[0]["max_grad_norm"] > 0:
            return self._norm
        return _global_norm(self._gradients())

    def measure(self) -> Tensor:
        """Compute and return :attr:`grad_norm` before ``step``, which will then use it.

        The gradients must not change between the two calls.
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
        """Make one update of all parameters, as the class describes.

        Args:
            closure: computes the loss and its gradients again, and returns the loss.

        Returns:
            The loss that ``closure`` returned, or None.

        Raises:
            RuntimeError: a gradient is sparse.
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
        """Return the gradients of all parameters that have one."""
        params = (p for group in self.param_groups for p in group["params"])
        grads = [p.grad for p in params if p.grad is not None]
        if any(grad.layout != torch.strided for grad in grads):
            raise RuntimeError(
                "OpenAIAdam does not take sparse gradients; make the layer that gives them dense "
                "(for torch.nn.Embedding: sparse=False)"
            )
        return grads

    def _update(self, group: dict[str, Any], lr: float, divisor: Tensor | None) -> None:
        """Apply update number `group["t"]` to the parameters of a group.

        Args:
            group: the group.
            lr: the learning rate, without bias correction.
            divisor: the number that divides all gradients, or None.
        """
        t, b1, b2 = group["t"], group["b1"], group["b2"]
        correction = math.sqrt(1 - b2**t)
        for (device, fused, decayed), params in _kernel_calls(group).items():
            grads = [p.grad for p in params if p.grad is not None]
            scaling = fused and device.type in _SCALING_DEVICES
            if divisor is not None and not scaling:
                torch._foreach_div_(grads, divisor.to(device))
            # The kernel adds 1 to each of these counters. Made from the group's counter for each
            # call, they always agree with it.
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
        """Return the running mean of the gradients (``m``) or of their squares (``v``)."""
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        moment: Tensor = state[name]
        return moment


def _kernel_calls(group: dict[str, Any]) -> dict[tuple[torch.device, bool, bool], list[Tensor]]:
    """Group the parameters that have gradients by the kernel call that can update them together.

    The fused kernel ignores the strides of a tensor. Of a tensor that is not contiguous it would
    read wrong elements, and it would overwrite those of other tensors.

    Returns:
        Parameters by device, whether the fused kernel is used, and whether there is weight decay.
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
    """Return the Euclidean norm of all gradients together, on the device of the first one."""
    return get_total_norm([part for grad in grads for part in _norm_parts(grad)])


def _norm_parts(grad: Tensor) -> list[Tensor]:
    """Return tensors that together have the norm of `grad`.

    On a CPU torch adds the squares of a whole tensor in a few float32 sums. Over the 31 million
    elements of GPT-1's embedding, the norm would be 0.2 % too small. Computed row by row, which
    takes the same time, it is right to seven digits. GPUs add numbers in blocks in any case.
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
    """Check the options of a group and return them as plain Python values.

    A saved state can then be loaded without classes of NumPy or torch.

    Raises:
        ValueError: an option is missing or out of range.
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
    """Return an option as a plain Python value; raise a ValueError if it breaks its rule."""
    kind, allowed, expected = rule
    abstract = {float: Real, int: Integral, bool: bool}[kind]
    right_kind = isinstance(value, abstract) and (kind is bool or not isinstance(value, bool))
    if not right_kind or not math.isfinite(value) or not allowed(value):
        raise ValueError(f"{name} must be {expected}; got {value!r}")
    return kind(value)


def _schedule_name(schedule: Any) -> str:
    """Return the name of a schedule that is given by its name or as its function."""
    for name, function in SCHEDULES.items():
        if schedule is function or schedule == name:
            return name
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
