"""Fine-tune GPT-1: ``python -m gpt1.train --dataset rocstories --submit``.

The loop of the original, from settings to submission. Heavy modules are imported when a run
needs them, so that ``--help`` and mistakes answer at once.
"""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gpt1.datasets import story_cloze as datasets
from gpt1.runtime.errors import InputError, Stopped, report_errors
from gpt1.runtime.locks import RunLock
from gpt1.runtime.stopping import StopRequests, end_with_parent
from gpt1.settings.training import Settings, Sources, find_sources, parse
from gpt1.training.outputs import Outputs

if TYPE_CHECKING:
    import numpy as np

    from gpt1.model.transformer import DoubleHeadsModel
    from gpt1.runtime.ranks import Ranks
    from gpt1.training.prepare import Task

PROGRAM = "python -m gpt1.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status.

    That is 0, 2 for bad input, 1 for other failures, 143 or 130 if SIGTERM or SIGINT ended it.
    """
    return report_errors("gpt1 train", lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    """Train, and say how to go on if asked to end."""
    if "WORLD_SIZE" in os.environ:
        end_with_parent()
    with StopRequests() as stop:
        try:
            return _train(argv, stop)
        except Stopped as error:
            stopped = Stopped(error.request, f"{error}; to go on: {_to_go_on(argv)}")
            stopped.reported_elsewhere = os.environ.get("RANK", "0") != "0"
            raise stopped from None


def _train(argv: Sequence[str], stop: StopRequests) -> int:
    """Check the command line, then train here or in as many processes as there are GPUs."""
    with stop.held():  # imports of NumPy and torch are not made to be interrupted
        settings = parse(argv, "gpt1 train")
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
            settings = replace(settings, resume=True)  # torchrun --max-restarts started it again
        sources = find_sources(settings, (datasets.VALIDATION_CSV, datasets.TEST_CSV))
        if sources.demo:
            settings = settings.for_demo()
        from gpt1.runtime import launcher
        from gpt1.runtime.ranks import joined
    stop.check()
    n = launcher.processes_to_start(settings.device, settings.n_gpu)
    if n > 1:
        return launcher.start_processes(main, argv, n)
    with RunLock() as lock, joined(settings.device, settings.n_gpu) as ranks:
        run(settings, sources, ranks, stop, lock)
    return 0


def _to_go_on(argv: Sequence[str]) -> str:
    """The command that continues this one."""
    words = [*argv, *(["--resume"] if "--resume" not in argv else [])]
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    program = PROGRAM.replace("python", "torchrun ...") if by_torchrun else PROGRAM
    return f"{program} {shlex.join(words)}"


def run(
    settings: Settings, sources: Sources, ranks: Ranks, stop: StopRequests, lock: RunLock
) -> None:
    """A whole run: data, model, training, and with ``submit`` the submission.

    Args:
        settings: as given, or the demo's.
        sources: where to read from.
        ranks: this process among those of the run.
        stop: requests to end.
        lock: keeps other runs of this name out until the caller opens it.

    Raises:
        InputError: something of the user's is wrong; nothing has been written then.
        Gpt1Error: a result cannot be written, the run diverged, or another process ended.
        Stopped: it was asked to end, and has saved its state.
    """
    import numpy as np

    from gpt1.runtime import device
    from gpt1.training.trainer import Trainer

    if ranks.is_main and sources.demo:
        _announce_demo(settings, sources)
    if settings.fast:
        is_cuda = ranks.device.type == "cuda"
        settings = settings.made_fast(has_bf16=device.has_bf16(ranks.device), is_cuda=is_cuda)
    device.check_precision(settings.precision, ranks.device)
    device.set_matmul_precision(settings.precision)
    if ranks.device.type == "cpu":
        device.keep_freed_memory()
    if settings.deterministic and ranks.device.type != "cpu":
        device.make_deterministic()
    # torchrun may have started only some of several machines' processes "again".
    settings = replace(settings, resume=ranks.any_rank(settings.resume))
    outputs = Outputs(settings)
    ranks.on_main_rank(outputs.check)
    ranks.on_main_rank(lambda: outputs.claim(lock))
    # One stream, drawn from in the original's order: special rows, then a shuffle an epoch.
    stream = np.random.RandomState(settings.seed)
    task, settings, model = ranks.on_all_ranks(lambda: _prepare(settings, sources, ranks, stream))
    if settings.compile:
        model.compile_layers()
    trainer = Trainer(settings, sources, ranks, task, model, stop)
    trainer.train(stream)
    if settings.submit:
        stop.where = "training is over and saved, the submission is not written"
        trainer.submit()
    stop.where = "all results are written"
    if settings.analysis and ranks.is_main:
        from gpt1.reports.analysis import analyse_rocstories

        print(analyse_rocstories(sources.data_dir, outputs.submission, outputs.log))


def _prepare(
    settings: Settings, sources: Sources, ranks: Ranks, stream: np.random.RandomState
) -> tuple[Task, Settings, DoubleHeadsModel]:
    """The data, the settings with the model's sizes decided, the model on this rank's device.

    Raises:
        InputError: a file is not what it should be, or does not fit the flags.
    """
    from gpt1.training.capacity import check_memory
    from gpt1.training.prepare import build_model, load_task, notes, resolve

    task = load_task(settings, sources, verbose=ranks.is_main)
    if task.train.n_stories < settings.n_batch_train:
        raise InputError(
            f"{sources.data_dir}: {task.train.n_stories} training stories are fewer than a batch "
            f"of --n_batch {settings.n_batch} * --n_gpu {settings.n_gpu}; make the batch smaller"
        )
    used, config = resolve(settings, sources, task)
    for note in notes(settings, used, sources) if ranks.is_main else []:
        print(f"gpt1 train: {note}", file=sys.stderr)
    check_memory(config, ranks.device, settings.init_params or f"{sources.model_dir}/")
    return task, used, build_model(used, sources, config, stream).to(ranks.device)


def _announce_demo(settings: Settings, sources: Sources) -> None:
    """Say that this is not the real thing, and where that is described."""
    lines = textwrap.wrap(
        f"This is the bundled demo: self-made stories ({sources.data_dir}/) and a small model "
        f"({sources.model_dir}/), trained with --lr {settings.lr:g} --n_iter {settings.n_iter}. It "
        "runs because data/ holds no ROCStories and neither --data_dir nor --model_dir was given; "
        "README.md says how to get the real data and weights.",
        width=88,
    )
    rule = "-" * max(map(len, lines))
    print("\n".join([rule, *lines, rule]), file=sys.stderr)
