"""Write the report on a reproduction: ``results.md``, ``results.json`` and the pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from gpt1.reports.figures import save
from gpt1.reproduction import paper
from gpt1.reproduction.outcomes import Outcome, Place
from gpt1.reproduction.pictures import LAYERS_TITLE, ZEROSHOT_TITLE, draw_layers, draw_zeroshot
from gpt1.reproduction.summaries import Summary, reported, summarize
from gpt1.reproduction.tables import INTRODUCTION, results_page
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import atomic_write, read_text

_PICTURES = {
    "layers.png": (LAYERS_TITLE, draw_layers),
    "zeroshot.png": (ZEROSHOT_TITLE, draw_zeroshot),
}
PAGE, DATA = "results.md", "results.json"


def check_own(place: Place) -> None:
    """Check that the report replaces no file that no report was written into.

    Raises:
        InputError: ``--out`` is a file, or holds another file of the report's name.
    """
    directory = place.directory
    if directory.exists() and not directory.is_dir():
        raise InputError(f"--out {directory}: is a file; name a directory")
    for name, begins in ((PAGE, INTRODUCTION.splitlines()[0]), (DATA, '{\n "published": {')):
        path = directory / name
        if path.exists() and not read_text(path, "the report").startswith(begins):
            raise InputError(
                f"--out {directory}: holds a file {name} that is no report of gpt1 reproduce; name "
                "another directory"
            )


def write_tables(place: Place) -> list[Path]:
    """Write the tables of what is finished; return the paths of the files.

    Raises:
        InputError: no run is finished, or a result is damaged.
        Gpt1Error: a file cannot be written.
    """
    outcomes = _finished(place)
    there = {
        name: title for name, (title, _) in _PICTURES.items() if (place.directory / name).exists()
    }
    return _write(place, outcomes, summarize(outcomes), there)


def _finished(place: Place) -> list[Outcome]:
    outcomes = place.outcomes()
    if not outcomes:
        raise InputError(
            f"{place.directory}: there is no result of a finished run; start the runs without "
            "--report, or name the directory of other results with --out"
        )
    return outcomes


def _write(
    place: Place,
    outcomes: Sequence[Outcome],
    summaries: Sequence[Summary],
    figures: Mapping[str, str],
) -> list[Path]:
    """Write the page and the data; ``figures`` has a title for each picture's file."""
    page, data = place.directory / PAGE, place.directory / DATA
    with atomic_write(page, "w") as file:
        file.write(results_page(outcomes, summaries, figures))
    with atomic_write(data, "w") as file:
        json.dump(_as_json(outcomes, summaries), file, indent=1)
        file.write("\n")
    return [page, data]


def write_report(place: Place, say: Callable[[str], None]) -> list[Path]:
    """Write tables and pictures of what is finished; return the paths of the files.

    Without matplotlib there are no pictures, and ``say`` gets a note on how to install it.

    Raises:
        InputError: no run is finished, or a result is damaged.
        Gpt1Error: a file cannot be written.
    """
    outcomes = _finished(place)
    summaries = summarize(outcomes)
    figures: dict[str, str] = {}
    for name, (title, draw) in _PICTURES.items():
        try:
            figure = draw(reported(summaries))
        except InputError as error:
            say(f"no pictures: {error}")
            break
        if figure is not None:
            save(figure, place.directory / name)
            figures[name] = title
    paths = _write(place, outcomes, summaries, figures)
    return [*paths, *(place.directory / name for name in figures)]


def _as_json(outcomes: Sequence[Outcome], summaries: Sequence[Summary]) -> dict[str, object]:
    """Return the published scores, ours, and every run, for programs to read."""
    return {
        "published": {
            "full": [asdict(each) for each in paper.FULL_RESULTS],
            "table_5": {
                what: dict(zip(paper.ABLATION_TASKS, row, strict=True))
                for what, row in {**paper.ABLATIONS, "lstm": paper.LSTM}.items()
            },
            "averages": dict(paper.AVERAGES),
        },
        "ours": [
            {
                **asdict(each),
                "median": each.median,
                "lowest": each.lowest,
                "highest": each.highest,
            }
            for each in summaries
        ],
        "runs": [asdict(each) for each in outcomes],
    }
