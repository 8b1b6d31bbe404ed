"""The output of a run: on a terminal, in a pipe, and with --quiet."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import tiny

from gpt1.training.checkpoint import TrainState
from gpt1.training.console import Console
from gpt1.training.loop import Evaluation

COLUMNS = 80
LINE = r"\d+ \d+ \d+\.\d{3} \d+\.\d{3} \d+\.\d{2} \d+\.\d{2}"  # of the original


def command(task: tiny.Tiny, directory: Path, *words: str) -> list[str]:
    places = [f"--{kind}_dir={directory / kind}" for kind in ("log", "save", "submission")]
    return [
        *(sys.executable, "-m", "gpt1.train", *task.flags, *places, "--device", "cpu"),
        *("--n_gpu", "1", "--submit", *words),
    ]


def at_terminal(words: list[str]) -> str:
    """Run a command whose streams are a terminal of 80 columns; return all that it wrote."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    every_update = {"TQDM_MININTERVAL": "0", "TQDM_MINITERS": "1"}  # not only every 0.1 s
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **every_update}
    process = subprocess.Popen(words, stdin=its, stdout=its, stderr=its, env=environment)
    os.close(its)
    written = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # The other end of the terminal is closed.
            break
        if not data:
            break
        written += data
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return written.decode().replace("\r\n", "\n")


def test_a_terminal_gets_a_table_a_bar_and_a_summary(task: tiny.Tiny, tmp_path: Path) -> None:
    written = at_terminal(command(task, tmp_path, "--n_iter", "2"))
    # The final text of each line is the text after its last carriage return.
    lines = [line.rpartition("\r")[2].rstrip() for line in written.split("\n")]
    lines = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line) for line in lines]
    shown = "\n".join(line for line in lines if line)
    assert re.match(
        r"ROCStories: 32 examples to train on, 8 to validate, 24 to predict\n"
        r"2 epochs of 4 updates, each on 8 examples\n"
        r"[\d,]+ parameters from \S+/, on cpu, 1 thread, fp32\n"
        r" epoch  update  train cost  valid cost   train acc   valid acc\n"
        r"     1       4 ( +\d+\.\d{3}){2}( +\d+\.\d{2}){2}(  best)?\n"
        r"     2       8 ( +\d+\.\d{3}){2}( +\d+\.\d{2}){2}(  best)?\n"
        r"best after epoch [12]: valid accuracy \d+\.\d\d %, test accuracy \d+\.\d\d %\n"
        r"written:\n",
        shown,
    ), shown
    assert re.search(r"\r\d+/8 \|.+\| \d\d:\d\d, \d\d:\d\d left, ", written)
    assert re.search(r"loss \d+\.\d\d, lr \S+, \d+ examples/s", written)
    assert "evaluating: " in written
    without_paths = [line for line in re.split(r"[\r\n]", written) if "/pytest" not in line]
    assert max(map(len, without_paths)) <= COLUMNS


def test_a_pipe_gets_the_originals_lines_and_all_else_goes_to_stderr(
    task: tiny.Tiny, tmp_path: Path
) -> None:
    words = command(task, tmp_path, "--n_iter", "2")
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"(?:{LINE}\n){{2}}", done.stdout)
    said = done.stderr.splitlines()
    assert said[0].startswith("ROCStories: 32 examples")
    assert said[3].startswith("best after epoch ")
    results = said[said.index("written:") + 1 : -1]
    assert len(results) == 4
    assert all(Path(name.strip()).is_file() for name in results)
    assert re.fullmatch(
        r"next: gpt1 analysis \S+ROCStories\.tsv --log \S+\.jsonl --data_dir \S+", said[-1]
    )
    assert "\r" not in done.stderr


def test_quiet_leaves_the_originals_lines_alone(task: tiny.Tiny, tmp_path: Path) -> None:
    written = at_terminal(command(task, tmp_path, "--n_iter", "2", "--quiet"))
    assert re.fullmatch(rf"(?:{LINE}\n){{2}}", written)
    done = subprocess.run(
        command(task, tmp_path / "piped", "--n_iter", "1", "--quiet"),
        capture_output=True,
        text=True,
    )
    assert re.fullmatch(rf"{LINE}\n", done.stdout)
    assert done.stderr == ""


def test_the_table_has_room_for_the_name_of_any_metric(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    console = Console(8)
    console.started(
        TrainState(model=None, optimizer=None, best_score=0.0), n_updates=4, resumed=False
    )
    figures = {"tr_cost": 0.5, "va_cost": 0.25, "tr_matthews": -5.0, "va_matthews": 12.5}
    more = {"tr_acc": 1.0, "va_acc": 2.0}
    found = Evaluation(n_epochs=1, n_updates=4, figures={**figures, **more}, score=12.5)
    console.evaluated(found, is_best=True)
    console.closed()
    shown = [re.sub(r"\s{2,}", "  ", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        "epoch  update  train cost  valid cost  train matthews  valid matthews",
        "1  4  0.500  0.250  -5.00  12.50  best",
    ]
