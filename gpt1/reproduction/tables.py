"""Write the results as Markdown: the paper's tables with our scores beside the published ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from gpt1.datasets import TASKS
from gpt1.reproduction import paper
from gpt1.reproduction.found import DEMO
from gpt1.reproduction.outcomes import Outcome
from gpt1.reproduction.summaries import (
    Summary,
    data_marks,
    layer_points,
    reported,
    updates_points,
)
from gpt1.settings.reproduction import FULL, ZEROSHOT
from gpt1.settings.words import counted

MISSING = "-"
INTRODUCTION = """\
# Results beside the paper's

All scores are in percent. The paper's scores are those of test splits. A score of ours is that of
a validation split (dev) where the labels of the test split are hidden, as they are for GLUE; it is
somewhat too good, because the validation split also chose the best epoch. `-` stands for a score
that is missing: no run is finished, or nothing is published.
"""
_COLUMNS = """\
Ours is the median over the seeds. The interval is a 95 % interval that comes from the choice of
the n examples, for the run whose score is closest to the median: Wilson's for accuracy, else by
bootstrap.
"""
_OF_MEDIAN = """\
The interval of the median is a 95 % interval that comes from the choice of the seeds; it needs
six of them.
"""
_VERSIONS = """\
There are runs on several versions of a data set. The digest of its files is in brackets.
"""
_DEMO = """\
The bundled demo has synthetic stories. Scores on it cannot be compared with the paper's.
"""
_LSTM = "without Transformer (LSTM)"


def results_page(
    outcomes: Sequence[Outcome], summaries: Sequence[Summary], figures: Mapping[str, str]
) -> str:
    """Return all results as Markdown.

    Args:
        outcomes: the results of the finished runs.
        summaries: their summaries.
        figures: the titles of the pictures by the names of their files.
    """
    shown = reported(summaries)
    parts = [INTRODUCTION]
    tuned = [each for each in outcomes if each.what != ZEROSHOT]
    configurations = list(dict.fromkeys(each.configuration for each in tuned))
    for number, configuration in enumerate(configurations, 1):
        own = [each for each in tuned if each.configuration == configuration]
        of_these = [
            each for each in shown if each.configuration == configuration and each.what != ZEROSHOT
        ]
        of = f" of configuration {number}" if len(configurations) > 1 else ""
        parts += [
            f"## Fine-tuning{of}\n",
            _description(own),
            *_fine_tuning(of_these, of),
            *_ablations(of_these, of),
            *_layers(of_these, of),
        ]
    parts += _zeroshot(shown)
    parts += [f"![{title}]({file})\n" for file, title in figures.items()]
    commands = "\n".join(each.command for each in outcomes)
    parts.append(f"## Commands\n\nEach run alone:\n\n```text\n{commands}\n```\n")
    return "\n".join(parts)


def _description(outcomes: Sequence[Outcome]) -> str:
    """Return what the runs of a configuration share: model, settings, device and versions."""
    flags = _shown_settings(outcomes[0].settings) or "none"
    facts = [
        counted(len(outcomes), "finished run"),
        f"model: {_all(outcomes, 'model')}; {_all(outcomes, 'n_layer')} layers of width "
        f"{_all(outcomes, 'n_embd')}",
        f"settings besides the defaults: {flags}",
        f"device: {_all(outcomes, 'device')}",
        f"gpt1 {_all(outcomes, 'gpt1_version')}, torch {_all(outcomes, 'torch_version')}",
    ]
    return "\n".join([*(f"- {fact}" for fact in facts), ""])


def _shown_settings(settings: Mapping[str, Any]) -> str:
    """Return settings as flags in backquotes; nothing if there are none."""
    words = [
        f"--{name}" if value is True else f"--{name} {_spelled(value)}"
        for name, value in settings.items()
    ]
    return f"`{' '.join(words)}`" if words else ""


def _all(outcomes: Iterable[Outcome], fact: str) -> str:
    """Return the different values of a fact."""
    values = dict.fromkeys(_spelled(each.facts.get(fact, MISSING)) for each in outcomes)
    return ", ".join(values)


def _spelled(value: Any) -> str:
    """Spell a value of a JSON file, in which all numbers were read as floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _fine_tuning(summaries: Sequence[Summary], of: str) -> list[str]:
    """Return the table with every score of fine-tuning, and the published scores beside it."""
    marks = data_marks(summaries)
    with_seeds = any(each.seeds_low is not None for each in summaries)
    rows = [
        [
            _title(each) + marks[each.data],
            each.metric,
            paper.TITLES[each.what],
            _published(each),
            f"{each.median:.1f}",
            f"{each.lowest:.1f} to {each.highest:.1f}",
            str(len(each.scores)),
            *([_ends(each.seeds_low, each.seeds_high)] if with_seeds else []),
            _ends(each.low, each.high),
            f"{'test' if each.is_test else 'dev'}, {each.n}",
        ]
        for each in sorted(
            (each for each in summaries if each.what in paper.TITLES), key=_place_in_table
        )
    ]
    if not rows:
        return []
    heads = ["data set", "metric", "experiment", "paper", "ours", "range", "seeds"]
    heads += ["median's 95 %"] * with_seeds
    also = [
        f"{each.split}: {each.other}.\n"
        for each in paper.FULL_RESULTS
        if each.other
        and any(row.dataset == each.dataset and not row.data.startswith(DEMO) for row in summaries)
    ]
    return [
        f"### Tables 2 to 5{of}: every experiment\n",
        _COLUMNS,
        *([_OF_MEDIAN] if with_seeds else []),
        *([_VERSIONS] if any(data in mark for data, mark in marks.items()) else []),
        *([_DEMO] if any(data.startswith(DEMO) for data in marks) else []),
        _table([*heads, "95 %", "split, n"], rows, n_texts=3),
        *also,
    ]


def _ends(low: float | None, high: float | None) -> str:
    """Return an interval in words; a dash if it is not known."""
    return MISSING if low is None or high is None else f"{low:.1f} to {high:.1f}"


def _place_in_table(summary: Summary) -> tuple[int, str, str, int, int]:
    """Return what rows are sorted by: data set, its version, split, metric and experiment."""
    metrics = [metric.title for metric in TASKS[summary.dataset].metrics]
    return (
        list(TASKS).index(summary.dataset),
        summary.data,
        summary.split,
        metrics.index(summary.metric),
        list(paper.TITLES).index(summary.what),
    )


def _title(summary: Summary) -> str:
    """Return the name of a split without the mark of a validation split."""
    return summary.split.removesuffix(".dev")


def _published(summary: Summary) -> str:
    """Return the paper's score for a summary; a dash if there is none, as for the demo."""
    if summary.data.startswith(DEMO):
        return MISSING
    if summary.what == FULL:
        for each in paper.FULL_RESULTS:
            if (each.split, each.metric) == (_title(summary), summary.metric):
                return f"{each.score:.1f}"
        return MISSING
    first = TASKS[summary.dataset].metrics[0].title
    has_one = summary.dataset in paper.ABLATION_TASKS and summary.dataset != "mnli"
    if not has_one or summary.metric != first:  # Of MNLI the paper has the mean of both splits.
        return MISSING
    row = paper.ABLATIONS[summary.what]
    return f"{row[paper.ABLATION_TASKS.index(summary.dataset)]:.1f}"


def _ablations(summaries: Sequence[Summary], of: str) -> list[str]:
    """Return table 5: the paper's rows and ours; nothing if none of its runs is finished."""
    if not any(
        each.dataset in paper.ABLATION_TASKS and each.what in paper.TITLES for each in summaries
    ):
        return []
    rows = []
    for what, title in paper.TITLES.items():
        rows.append(_paper_row(title, paper.AVERAGES[what], paper.ABLATIONS[what]))
        own = [_score_of_task(name, what, summaries) for name in paper.ABLATION_TASKS]
        numbers = [score for score, _ in own if score is not None]
        average = f"{mean(numbers):.1f}" if len(numbers) == len(own) else MISSING
        cells = [MISSING if score is None else f"{score:.1f}{mark}" for score, mark in own]
        rows.append([f"{title}: ours", average, *cells])
    rows.append(_paper_row(_LSTM, paper.AVERAGES["lstm"], paper.LSTM))
    rows.append([f"{_LSTM}: left out", *[MISSING] * (len(paper.ABLATION_TASKS) + 1)])
    heads = ["", "average", *(TASKS[name].title for name in paper.ABLATION_TASKS)]
    return [
        f"### Table 5{of}\n",
        "Ours are medians on validation splits (dev), or on a test split where a t says so. The\n"
        "metrics are those of the paper: Matthews for CoLA, F1 for MRPC and QQP, Pearson for\n"
        "STS-B, else accuracy. For MNLI it is the mean of the matched and the mismatched split.\n"
        "This project has no LSTM, so the last row of the paper is left out.\n",
        _table(heads, rows),
    ]


def _paper_row(title: str, average: float, scores: Sequence[float]) -> list[str]:
    return [f"{title}: paper", *(f"{score:.1f}" for score in (average, *scores))]


def _score_of_task(
    dataset: str, what: str, summaries: Iterable[Summary]
) -> tuple[float | None, str]:
    """Return the median score of a task by its first metric, and the mark of a test split.

    It is the mean over the splits if there are several, as for MNLI; None if no run is finished, or
    if there are runs on several versions of the data set.
    """
    metric = TASKS[dataset].metrics[0].title
    found = [
        each
        for each in summaries
        if (each.dataset, each.what, each.metric) == (dataset, what, metric)
    ]
    if len({each.data for each in found}) != 1:
        return None, ""
    return mean(each.median for each in found), " t" if found[0].is_test else ""


def _layers(summaries: Sequence[Summary], of: str) -> list[str]:
    """Return the table of figure 2, left."""
    marks = data_marks(summaries)
    columns = [
        (f"{split}{marks[data]} {found[0].metric}", {each.transferred: each for each in found})
        for (_, data, split), found in layer_points(summaries).items()
    ]
    rows = [
        ["none" if n < 0 else str(n), *(_with_range(column.get(n)) for _, column in columns)]
        for n in sorted({n for _, column in columns for n in column})
    ]
    if not rows:
        return []
    return [
        f"### Figure 2, left{of}: score against layers transferred\n",
        "With 0 layers the embeddings alone are transferred, with none not even these. The range\n"
        "over the seeds is in brackets.\n",
        _table(["layers", *(title for title, _ in columns)], rows),
    ]


def _with_range(summary: Summary | None) -> str:
    if summary is None:
        return MISSING
    return f"{summary.median:.1f} ({summary.lowest:.1f} to {summary.highest:.1f})"


def _zeroshot(summaries: Sequence[Summary]) -> list[str]:
    """Return the tables of figure 2, right: one for each run of pretraining."""
    points, marks, parts = updates_points(summaries), data_marks(summaries), []
    for series in dict.fromkeys(series for series, *_ in points):
        of_series = {key: found for key, found in points.items() if key[0] == series}
        heads = [f"{split}{marks[data]} {metric}" for _, data, split, metric in of_series]
        columns = [{each.n_updates or 0: each for each in found} for found in of_series.values()]
        rows = [
            [f"{n:,}", *(_with_interval(column.get(n)) for column in columns)]
            for n in sorted({n for column in columns for n in column})
        ]
        settings = _shown_settings(next(iter(of_series.values()))[0].settings) or "none"
        parts += [
            f"## Figure 2, right: zero-shot scores during the pretraining run {series}\n",
            f"Settings besides the defaults: {settings}. An interval in brackets is a 95 %\n"
            "interval that comes from the choice of the examples.\n",
            _table(["updates", *heads], rows),
        ]
    return parts


def _with_interval(summary: Summary | None) -> str:
    if summary is None:
        return MISSING
    interval = _ends(summary.low, summary.high)
    return f"{summary.median:.1f}" + (f" ({interval})" if interval != MISSING else "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], n_texts: int = 1) -> str:
    """Return a Markdown table whose columns after the first ``n_texts`` stand to the right."""
    rules = ["---"] * n_texts + ["---:"] * (len(heads) - n_texts)
    cells = [heads, rules, *rows]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in cells), ""])
