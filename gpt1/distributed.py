"""Towers and processes: who computes which part of a batch, and how the parts come together.

The original splits a batch of ``n_batch * n_gpu`` stories over ``n_gpu`` towers and averages
their gradients. Here the towers are spread over the processes there are, one or many, on one
machine or several; a process takes its towers one after another.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import random
import re
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from gpt1.errors import Gpt1Error, InputError
from gpt1.stopping import end_with_parent, handled_signals

Result = TypeVar("Result")

GRACE = 15.0  # seconds that processes get to end by themselves, then once more after SIGTERM


@dataclass(frozen=True)
class Process:
    """This process among those of the run.

    Attributes:
        rank, world: its number, and how many there are.
        device: where it computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    def own_towers(self, n_gpu: int) -> range:
        """The towers that this process computes, in order."""
        share = n_gpu // self.world
        return range(self.rank * share, (self.rank + 1) * share)

    def own_part(self, n: int) -> slice:
        """A contiguous part of n things; the parts of all processes cover them in order."""
        return slice(self.rank * n // self.world, (self.rank + 1) * n // self.world)

    def gather(self, part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The parts of all processes one after another, in every process."""
        if self.world == 1:
            return part
        parts: list[Any] = [None] * self.world
        with _talking():
            dist.all_gather_object(parts, part)
        return np.concatenate(parts)

    def from_main(self, body: Callable[[], Result]) -> Result:
        """What ``body`` gives in the main process, which alone runs it, in every process.

        Raises:
            Gpt1Error: the one that it raised there, in every process; only the main one tells.
        """
        if self.world == 1:
            return body()
        outcome: list[Any] = [None]
        if self.is_main:
            try:
                outcome = [body()]
            except Gpt1Error as error:
                outcome = [error]
        with _talking():
            dist.broadcast_object_list(outcome, 0)
        if isinstance(outcome[0], Gpt1Error):
            outcome[0].told = not self.is_main
            raise outcome[0]
        return outcome[0]  # type: ignore[no-any-return]

    def together(self, body: Callable[[], Result]) -> Result:
        """What ``body`` gives in this process, if it gives something in all of them.

        Raises:
            Gpt1Error: the one that it raised here or in another process; each is told once.
        """
        if self.world == 1:
            return body()
        own: Gpt1Error | None = None
        try:
            result = body()
        except Gpt1Error as error:
            own = error
        found: list[Gpt1Error | None] = [None] * self.world
        with _talking():
            dist.all_gather_object(found, own)
        errors = {rank: error for rank, error in enumerate(found) if error is not None}
        if not errors:
            return result
        shown = own or next(iter(errors.values()))
        teller = next(rank for rank, error in errors.items() if str(error) == str(shown))
        shown.told = self.rank != teller
        raise shown

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up ``tensors`` over all processes, in place."""
        if self.world > 1:
            with _talking():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process; no process goes on before all have said."""
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag))  # on the CPU: asking a GPU would be waiting for it
        with _talking():
            dist.all_reduce(flags)
        return bool(flags)

    def has_bf16(self) -> bool:
        """Whether matrix products in bfloat16 are faster here than in float32."""
        if self.device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        if self.device.type == "cpu":
            return bool(torch.cpu._is_avx512_bf16_supported())
        return False

    def environment(self) -> dict[str, str | int]:
        """What the bits of a run depend on besides its settings, by names that a message can use.

        Sums are split among threads and processes, and each kind of processor or GPU, and each
        version of a library, may add up in another order.
        """
        is_cuda = self.device.type == "cuda"
        found = {
            "the device": torch.cuda.get_device_name(self.device) if is_cuda else self.device.type,
            "the number of processes": self.world,
            "torch's version": str(torch.__version__),
            "NumPy's version": np.__version__,
        }
        if self.device.type == "cpu":
            with_bf16 = " with bfloat16" if self.has_bf16() else ""
            instructions = torch.backends.cpu.get_cpu_capability() + with_bf16
            found |= {
                "the processor": _processor_name(),
                "the processor's instruction set": instructions,
                "the number of threads": torch.get_num_threads(),
            }
        return found

    def arithmetic(self, precision: str) -> AbstractContextManager[Any]:
        """Where matrix products run in bfloat16 if ``precision`` asks for it.

        Parameters, optimizer state and reductions stay in float32.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Give ``tensors`` the main process's values in every process."""
        if self.world > 1:
            with _talking():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), 0)

    def check_precision(self, precision: str) -> None:
        """Set what ``--precision`` needs, or say that this device cannot do it."""
        if precision == "tf32" and self.device.type != "cuda":
            raise InputError(
                f"--precision tf32: needs a CUDA device, and this run is on {self.device.type}; "
                "use fp32 or bf16"
            )
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def _processor_name() -> str:
    """The processor's name as Linux gives it, or its architecture."""
    with suppress(OSError):
        name = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if name:
            return name[1]
    return platform.machine()


@contextmanager
def _talking() -> Iterator[None]:
    """Where processes exchange something: a failure there is the other one's."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise Gpt1Error(
            "another process of this run has ended or cannot be reached; its own message says why "
            f"({reason}). Start the run again with --resume."
        ) from error


def choose_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The device a flag names, or the default: CUDA if there is one, else the CPU.

    Raises:
        InputError: no such device, or it is not on this machine.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name}: cannot be used on this machine: {reason}") from error
    if device.type == "meta":
        raise InputError("--device meta: holds no numbers; use cpu, cuda or mps")
    return device


def processes_to_start(device_name: str | None, n_gpu: int) -> int:
    """How many processes the program should start itself: 1 except on several GPUs.

    As many as there are GPUs, at most one a tower, and a divisor of ``n_gpu``, so that each
    process has as many towers as any other. Under torchrun the processes are there already.
    """
    if "WORLD_SIZE" in os.environ or device_name not in (None, "cuda"):
        return 1
    if not torch.cuda.is_available():
        return 1
    available = min(torch.cuda.device_count(), n_gpu)
    return max(n for n in range(1, available + 1) if n_gpu % n == 0)


@contextmanager
def joined(device_name: str | None, n_gpu: int) -> Iterator[Process]:
    """Join the process group that the environment describes (torchrun's variables), if any.

    Raises:
        InputError: the processes cannot share ``n_gpu`` towers equally.
        Gpt1Error: torchrun or another process has ended.
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
        yield Process(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _check_torchrun()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _talking():
        store, _, _ = next(rendezvous("env://"))
        store = _unused_part(store, rank, world)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    try:
        yield Process(rank, world, device)
    finally:
        dist.destroy_process_group()


def _check_torchrun() -> None:
    """See that torchrun lives, which listens before it starts us; torch would wait half an hour."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection(place, timeout=GRACE).close()
    except OSError as error:
        raise Gpt1Error(
            f"torchrun does not answer at {place[0]}:{place[1]} ({error}): it has ended. Start the "
            "run again with --resume."
        ) from error


def _unused_part(store: Store, rank: int, world: int) -> Store:
    """A part of the processes' common store that holds nothing of an earlier attempt.

    torchrun --max-restarts keeps the store, and torch would find the addresses of dead processes
    in it. So the main process invents a name for this attempt, and answers all others under it;
    whoever has read an older name gets no answer and reads again.
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


def start_processes(body: Callable[[Sequence[str]], int], argv: Sequence[str], n: int) -> int:
    """Run ``body(argv)`` in n processes of this machine, joined in a group; the exit status.

    SIGTERM and SIGINT are handed on to them as SIGTERM, unless this process ignores them. When one
    of them ends badly the others are ended, too, within twice ``GRACE`` seconds, and its status is
    returned. When this process is killed they end as by SIGTERM.

    Raises:
        Gpt1Error: a signal that nobody sent from here ended one of them.
    """
    context = multiprocessing.get_context("spawn")
    port = free_port()
    processes = [
        context.Process(target=_process_main, args=(rank, body, list(argv), n, port))
        for rank in range(n)
    ]
    request: int | None = None

    def hand_on(number: int, frame: object) -> None:
        nonlocal request
        request = request or number
        for process in processes:
            if process.pid is not None:
                process.terminate()

    previous = {number: signal.signal(number, hand_on) for number in handled_signals()}
    try:
        for process in processes:
            process.start()
            if request is not None:  # it came before this one could be told
                process.terminate()
        status = _wait_for_all(processes)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if request is not None and status in (128 + signal.SIGTERM, -signal.SIGTERM):
        return 128 + request
    if status < 0:
        raise Gpt1Error(
            f"one of the {n} processes was ended by {signal.Signals(-status).name}, as Linux does "
            "when memory runs out. Start the run again with --resume."
        )
    return status


def _wait_for_all(processes: Sequence[BaseProcess]) -> int:
    """Wait until all have ended; the first bad exit status, negative for a signal, or 0."""
    while True:
        # Asked once a turn: nobody waits for a process that ended between two questions.
        running = [process for process in processes if process.exitcode is None]
        bad = [code for process in processes if (code := process.exitcode)]
        if bad:
            _end_all(processes)
            return min(bad)  # of two at once a signal is the cause, not the consequence
        if not running:
            return 0
        wait([process.sentinel for process in running])


def _end_all(processes: Sequence[BaseProcess]) -> None:
    """Let the others notice by themselves, then ask them to end, then end them."""
    for step in (lambda process: None, BaseProcess.terminate, BaseProcess.kill):
        deadline = time.monotonic() + GRACE
        for process in processes:
            if process.exitcode is None:
                step(process)
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))


def _process_main(
    rank: int, body: Callable[[Sequence[str]], int], argv: list[str], world: int, port: int
) -> None:
    """One started process: torchrun's variables, then the program."""
    end_with_parent()
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():  # it is dead already
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which hands it on
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    sys.exit(body(argv))


def free_port() -> int:
    """Return a port of this machine on which no program listens.

    It lies below the range from which systems give out ports by themselves, 32768 and more on
    Linux: from there another program could be given the same port before this one uses it.

    Raises:
        Gpt1Error: none of the ports that were tried is free.
    """
    for port in random.SystemRandom().sample(range(10_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise Gpt1Error("no free port was found on this machine for the processes to meet at")


def keep_freed_memory() -> None:
    """Ask glibc, where it is the C library, to reuse large freed blocks.

    Its default gives every block above 32 MiB back to the system at once, and a training step on
    the CPU then spends much time in page faults, on the same tensors each time.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_max, never = -1, -4, -1
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, never)
    except (OSError, AttributeError):
        pass  # another C library: slower, not wrong


def make_deterministic() -> None:
    """Ask torch for kernels that give the same bits every time; on a CPU they all do."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # we read none
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_flash_sdp(False)  # their backward passes add up in any order
    torch.backends.cuda.enable_mem_efficient_sdp(False)


def tower_seed(seed: int, update: int, tower: int) -> int:
    """The seed of one tower's dropout in one update.

    It depends on nothing else, so that dropout is the same however many processes share the
    towers, and a resumed run draws what it would have drawn.
    """
    words = np.random.SeedSequence([seed, update, tower]).generate_state(2, np.uint32)
    return int(words[0]) | int(words[1]) << 32
