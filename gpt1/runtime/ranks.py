"""Ranks and towers: which process computes which part of a batch, and how the parts are combined.

The original splits a batch of ``n_batch * n_gpu`` stories into ``n_gpu`` towers and averages
their gradients. Here the towers are shared equally among the processes of the run, which are
called ranks. There are one or more ranks, on one machine or several. A rank computes its towers
one after another.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from gpt1.runtime.device import choose_device
from gpt1.runtime.errors import Gpt1Error, InputError

Model = TypeVar("Model", bound=nn.Module)
Result = TypeVar("Result")

STORE_TIMEOUT = 15.0  # seconds within which the ranks' common store must answer
# Process groups are kept until the program ends. If a DistributedDataParallel, which Python may
# free at any time, held the last reference to a group, freeing it could wait forever: the group
# waits for its threads while they wait for Python's global lock.
_kept_groups: list[Any] = []


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of the run, and their communication.

    Every method that communicates must be called by all ranks in the same order. It raises
    :class:`Gpt1Error` if another rank has ended.

    Attributes:
        rank: this process's number, from 0.
        world: the number of processes.
        device: the device that this process computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the results."""
        return self.rank == 0

    def own_towers(self, n_gpu: int) -> range:
        """Return the numbers of the towers that this rank computes, in order."""
        share = n_gpu // self.world
        return range(self.rank * share, (self.rank + 1) * share)

    def own_part(self, n: int) -> slice:
        """Return this rank's contiguous part of n items; the parts of all ranks cover all items."""
        return slice(self.rank * n // self.world, (self.rank + 1) * n // self.world)

    def gather(self, part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the arrays of all ranks, concatenated in the order of the ranks, on every rank."""
        if self.world == 1:
            return part
        parts: list[Any] = [None] * self.world
        with _reporting_lost_ranks():
            dist.all_gather_object(parts, part)
        return np.concatenate(parts)

    def on_main_rank(self, body: Callable[[], Result]) -> Result:
        """Call ``body`` on rank 0 alone, and return its result on every rank.

        Raises:
            Gpt1Error: the error that ``body`` raised, on every rank; rank 0 reports it.
        """
        if self.world == 1:
            return body()
        outcome: list[Any] = [None]
        if self.is_main:
            try:
                outcome = [body()]
            except Gpt1Error as error:
                outcome = [error]
        with _reporting_lost_ranks():
            dist.broadcast_object_list(outcome, 0)
        if isinstance(outcome[0], Gpt1Error):
            outcome[0].reported_elsewhere = not self.is_main
            raise outcome[0]
        return outcome[0]  # type: ignore[no-any-return]

    def on_all_ranks(self, body: Callable[[], Result]) -> Result:
        """Call ``body`` on every rank, and return its result if it succeeds on all of them.

        Raises:
            Gpt1Error: the error that ``body`` raised on this rank, or else the first rank's that
                raised one. Of several ranks with the same message only the first reports it.
        """
        if self.world == 1:
            return body()
        own: Gpt1Error | None = None
        try:
            result = body()
        except Gpt1Error as error:
            own = error
        found: list[Gpt1Error | None] = [None] * self.world
        with _reporting_lost_ranks():
            dist.all_gather_object(found, own)
        errors = {rank: error for rank, error in enumerate(found) if error is not None}
        if not errors:
            return result
        shown = own or next(iter(errors.values()))
        reporter = next(rank for rank, error in errors.items() if str(error) == str(shown))
        shown.reported_elsewhere = self.rank != reporter
        raise shown

    def one_of_each_machine_first(self, body: Callable[[], Result]) -> Result:
        """Call ``body`` on one rank of each machine, and then on the others, as on_all_ranks does.

        The later calls find what the first one has left on the machine.

        Raises:
            Gpt1Error: as :meth:`on_all_ranks`.
        """
        is_first = self.world == 1 or os.environ.get("LOCAL_RANK", "0") == "0"
        found = self.on_all_ranks(lambda: body() if is_first else None)
        if self.world == 1:
            return found  # type: ignore[return-value]
        return self.on_all_ranks(lambda: body() if found is None else found)

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of ``tensor`` over all ranks, on every rank."""
        if self.world == 1:
            return tensor
        total = tensor.clone()
        with _reporting_lost_ranks():
            dist.all_reduce(total)
        return total / self.world

    def any_rank(self, flag: bool) -> bool:
        """Return whether ``flag`` is true on any rank; no rank continues before all have asked."""
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag))  # On a GPU, reading the result would wait for the GPU.
        with _reporting_lost_ranks():
            dist.all_reduce(flags)
        return bool(flags)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Copy the values of ``tensors`` from rank 0 to all other ranks."""
        if self.world > 1:
            with _reporting_lost_ranks():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), 0)


class Replica(Generic[Model]):
    """A model whose gradients are averaged over all towers of all ranks.

    With several ranks, DistributedDataParallel reduces buckets of gradients while the backward
    pass of each rank's last tower is still computing the other gradients.

    Args:
        model: the same on every rank, on the rank's device.
        ranks: this process among those of the run.
    """

    def __init__(self, model: Model, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self._parallel: DistributedDataParallel | None = None
        if ranks.world == 1:
            return
        # Each layer is compiled by itself, so that no compiled graph needs to be split.
        torch._dynamo.config.optimize_ddp = False
        with _reporting_lost_ranks():
            self._parallel = DistributedDataParallel(_Losses(model), gradient_as_bucket_view=True)
        # DistributedDataParallel rearranges its buckets after its first backward pass, and the
        # order of sums depends on the arrangement. If that happened in training, the results of a
        # resumed run would differ in their last bits from those of an uninterrupted one.
        for _ in range(2):
            self.backward([lambda: torch.stack([p.sum() for p in model.parameters()]).sum()])
            model.zero_grad()

    def backward(self, losses: Sequence[Callable[[], Tensor]]) -> None:
        """Add the gradient of the mean loss over all towers of all ranks to ``grad``.

        Args:
            losses: one function per tower of this rank, which computes the tower's loss. The
                number of towers is the same on every rank.
        """
        for number, loss in enumerate(losses, start=1):
            if self._parallel is None:
                (loss() / len(losses)).backward()  # type: ignore[no-untyped-call]
                continue
            last = number == len(losses)
            with _reporting_lost_ranks(), nullcontext() if last else self._parallel.no_sync():
                (self._parallel(loss) / len(losses)).backward()


class _Losses(nn.Module):
    """Compute any loss of a model in a forward pass that DistributedDataParallel can watch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        """Return the loss."""
        return loss()


@contextmanager
def _reporting_lost_ranks() -> Iterator[None]:
    """Report a failed collective as the loss of another rank."""
    try:
        yield
    except RuntimeError as error:
        # gloo's errors have no class of their own, but name the file of gloo that raised them.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise Gpt1Error(
            "another process of this run has ended or cannot be reached; its own message says why "
            f"({reason}). Start the run again with --resume."
        ) from error


@contextmanager
def joined(device_name: str | None, n_gpu: int) -> Iterator[Ranks]:
    """Join the process group that torchrun's environment variables describe, if there is one.

    Args:
        device_name: the value of ``--device``, or None.
        n_gpu: the number of towers.

    Yields:
        This process's place in the group; the only rank if there is no group.

    Raises:
        InputError: the ranks cannot share ``n_gpu`` towers equally.
        Gpt1Error: the process that started this one, or another rank, has ended.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if n_gpu % world:
        raise InputError(
            f"--n_gpu {n_gpu}: {world} processes cannot share {n_gpu} towers equally; start a "
            "number of processes that divides it, or change --n_gpu"
        )
    device = choose_device(device_name, int(os.environ.get("LOCAL_RANK", "0")))
    if world == 1:
        yield Ranks(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _check_store()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _reporting_lost_ranks():
        store, _, _ = next(rendezvous("env://"))
        store = _unused_part(store, rank, world)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    _kept_groups.append(dist.group.WORLD)
    try:
        yield Ranks(rank, world, device)
    finally:
        dist.destroy_process_group()


def _check_store() -> None:
    """Fail fast if the process that started this one has ended; torch would wait 30 minutes.

    torchrun and :mod:`gpt1.runtime.launcher` serve the ranks' common store before they start
    any rank.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection(place, timeout=STORE_TIMEOUT).close()
    except OSError as error:
        raise Gpt1Error(
            f"the process that started this one does not answer at {place[0]}:{place[1]} "
            f"({error}): it has ended. Start the run again with --resume."
        ) from error


def _unused_part(store: Store, rank: int, world: int) -> Store:
    """Return a part of the ranks' common store that holds nothing of an earlier attempt.

    torchrun --max-restarts keeps one store for all attempts, and torch would find the addresses
    of dead processes in it. The number of the attempt (TORCHELASTIC_RESTART_COUNT) cannot tell
    attempts apart, because torchrun does not count alike on all machines. So rank 0 invents a
    name for this attempt, and confirms it to every other rank. A rank that has read the name of
    an earlier attempt gets no confirmation and reads again.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("gpt1/attempt", own)
        others = [store.get(f"gpt1/{own}/{other}").decode() for other in range(1, world)]
        for other in others:
            store.set(f"gpt1/{own}/{other}", "welcome")
        return PrefixStore(own, store)
    while True:
        attempt = store.get("gpt1/attempt").decode()
        store.set(f"gpt1/{attempt}/{rank}", own)
        with suppress(dist.DistStoreError):
            store.wait([f"gpt1/{attempt}/{own}"], timedelta(seconds=1))
            return PrefixStore(attempt, store)
