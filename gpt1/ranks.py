"""Ranks and towers: which process computes which part of a batch, and how the parts are joined.

The original splits a batch of ``n_batch * n_gpu`` stories into ``n_gpu`` towers and averages
their gradients. Here the towers are shared equally among the processes of the run (the ranks),
of which there are one or many, on one machine or several. A rank computes its towers one after
another.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from gpt1.device import choose_device
from gpt1.errors import Gpt1Error, InputError

Result = TypeVar("Result")

STORE_TIMEOUT = 15.0  # seconds within which torchrun's store must answer


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of the run, and what they do together.

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
        """Return this rank's contiguous part of n things; the parts of all ranks cover them."""
        return slice(self.rank * n // self.world, (self.rank + 1) * n // self.world)

    def gather(self, part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the parts of all ranks concatenated in the order of the ranks, on every rank."""
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

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up each of ``tensors`` over all ranks, in place."""
        if self.world > 1:
            with _reporting_lost_ranks():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def any_rank(self, flag: bool) -> bool:
        """Return whether ``flag`` is true on any rank; no rank continues before all have asked."""
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag))  # on the CPU: reading it from a GPU would wait for the GPU
        with _reporting_lost_ranks():
            dist.all_reduce(flags)
        return bool(flags)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Give ``tensors`` the values of rank 0 on every rank."""
        if self.world > 1:
            with _reporting_lost_ranks():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), 0)


@contextmanager
def _reporting_lost_ranks() -> Iterator[None]:
    """Report a failed collective as the loss of another rank."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise Gpt1Error(
            "another process of this run has ended or cannot be reached; its own message says why "
            f"({reason}). Start the run again with --resume."
        ) from error


@contextmanager
def joined(device_name: str | None, n_gpu: int) -> Iterator[Ranks]:
    """Join the process group that the environment describes (torchrun's variables), if any.

    Raises:
        InputError: the ranks cannot share ``n_gpu`` towers equally.
        Gpt1Error: torchrun or another rank has ended.
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
    _check_torchrun()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _reporting_lost_ranks():
        store, _, _ = next(rendezvous("env://"))
        store = _unused_part(store, rank, world)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    try:
        yield Ranks(rank, world, device)
    finally:
        dist.destroy_process_group()


def _check_torchrun() -> None:
    """Fail fast if torchrun's store does not answer; torch itself would wait 30 minutes.

    torchrun's store listens before torchrun starts any process.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection(place, timeout=STORE_TIMEOUT).close()
    except OSError as error:
        raise Gpt1Error(
            f"torchrun does not answer at {place[0]}:{place[1]} ({error}): it has ended. Start the "
            "run again with --resume."
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


def tower_seed(seed: int, update: int, tower: int) -> int:
    """Return the seed of one tower's dropout in one update.

    The seed depends on nothing else. So dropout is the same for any number of ranks, and a
    resumed run draws the same masks as an uninterrupted one.
    """
    words = np.random.SeedSequence([seed, update, tower]).generate_state(2, np.uint32)
    return int(words[0]) | int(words[1]) << 32
