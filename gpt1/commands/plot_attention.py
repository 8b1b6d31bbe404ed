"""Pictures and tables of attention: ``gpt1 plot attention`` and ``gpt1 plot attention-average``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt1.commands.running import find_data_dir, note, note_written, open_model
from gpt1.runtime.errors import InputError
from gpt1.runtime.files import check_writable
from gpt1.settings.command import Command, Values
from gpt1.settings.fields import at_least, setting
from gpt1.settings.groups import OpenSettings

if TYPE_CHECKING:
    from gpt1.inference.attention import AttentionShares, EncodedSentences
    from gpt1.inference.opened import OpenedModel

PROGRAM = "gpt1 plot"
_PICTURE = "the picture: .png, .svg or .pdf"


@dataclass(frozen=True, kw_only=True)
class MapsSettings:
    """Story and picture."""

    story: str = setting(MISSING, "the story")
    ending: str = setting(MISSING, "how it ends")
    layer: int | None = setting(None, "one layer, large, with words [all]", at_least(0))
    head: int | None = setting(None, "one head of --layer [all]", at_least(0))
    out: str = setting(MISSING, _PICTURE, metavar="FILE")

    def contradictions(self) -> Iterator[str]:
        """Find out whether a head is given without a layer."""
        if self.head is not None and self.layer is None:
            yield "--head: needs a layer; give --layer N too"


@dataclass(frozen=True, kw_only=True)
class AverageSettings:
    """Stories and picture."""

    data_dir: str | None = setting(
        None, "where the ROCStories test CSV is [data/, or data/demo]", metavar="DIR"
    )
    n_stories: int = setting(100, "the first N stories of it", at_least(1))
    out: str | None = setting(None, f"{_PICTURE} [none]", metavar="FILE")


ATTENTION = Command(
    name="plot attention",
    summary="Draw attention maps of one story.",
    groups=(MapsSettings, OpenSettings),
    examples="""\
  # what a fine-tuned model looks at, in all layers and heads
  gpt1 plot attention --params save/rocstories/best_params.jl \\
      --story "Ben lost his kite." --ending "Ben was sad." \\
      --out out/maps.png

  # the same in one head, large enough to read the words
  gpt1 plot attention --params save/rocstories/best_params.jl \\
      --story "Ben lost his kite." --ending "Ben was sad." --layer 3 --head 0 \\
      --out out/map.png""",
)
AVERAGE = Command(
    name="plot attention-average",
    summary="Average over stories how attention splits over sentences, special tokens and ending.",
    groups=(AverageSettings, OpenSettings),
    examples="""\
  # what a fine-tuned model looks at in many stories
  gpt1 plot attention-average --params save/rocstories/best_params.jl \\
      --out out/split.png""",
)


def draw_maps(values: Values) -> None:
    """Draw the maps of a model on one story with one ending."""
    from gpt1.inference import attention
    from gpt1.reports import attention_figures, figures

    given = values[MapsSettings]
    figures.check_picture(given.out)
    model = _open(values)
    _check_number("--layer", given.layer, "layers", model.module.config.n_layer)
    _check_number("--head", given.head, "heads", model.module.config.n_head)

    ids = _choice(given.story, given.ending, model)
    maps = attention.attention_maps(model.module, ids).cpu().numpy()
    source, hint = figures.shortened(model.source, 40), ""
    if given.layer is None:
        title = f"Attention of {source}, {len(ids)} tokens"
        delimiter = ids.index(model.special.delimiter)
        figure = attention_figures.map_grid(maps, title, delimiter)
        hint = "--layer N draws one layer large, with the words"
    else:
        heads = range(maps.shape[1]) if given.head is None else [given.head]
        tokens = attention.token_labels(ids, model.text_encoder, model.special)
        title = f"Attention of {source}, layer {given.layer}"
        chosen = maps[given.layer, list(heads)]
        figure = attention_figures.layer_maps(chosen, heads, tokens, title)
    figures.save(figure, given.out)
    note_written(PROGRAM, given.out, hint)


def draw_average(values: Values) -> None:
    """Print and draw the shares of attention that the parts get, averaged over many stories."""
    from gpt1.datasets.story_cloze import ROCSTORIES, TEST_CSV
    from gpt1.inference import attention
    from gpt1.reports import attention_figures, figures

    given = values[AverageSettings]
    if given.out is not None:
        figures.check_picture(given.out)
        check_writable(Path(given.out).parent)
    path = find_data_dir(given.data_dir, PROGRAM, ROCSTORIES) / TEST_CSV
    if not path.exists():
        raise InputError(f"{path}: no such file; name the test CSV's directory with --data_dir")
    stories = attention.read_story_sentences(path)[: given.n_stories]
    model = _open(values)
    source = figures.shortened(model.source)
    usable = _usable(attention.encode_sentences(stories, model.text_encoder), model, path)
    split = attention.average_shares(model.module, _with_bar(usable), model.special)
    print(_split_table(split))
    if given.out is not None:
        title = (
            f"Attention of {source}, mean of {split.n_stories} stories with their right endings\n"
            "Red parts get more than the even share, which equal weights on all visible tokens "
            "would give; blue parts get less"
        )
        figure = attention_figures.attention_split(split, attention.PARTS, title)
        figures.save(figure, given.out)
        note_written(PROGRAM, given.out)


def _open(values: Values) -> OpenedModel:
    """Open the model; warn if it was never fine-tuned, since its special tokens are untrained."""
    model = open_model(values[OpenSettings], PROGRAM)
    if not model.module.config.n_layer:
        raise InputError(f"{model.source}: a model without layers has no attention")
    if not model.has_choice_head:
        note(
            PROGRAM,
            f"{model.source} is not fine-tuned: the rows of its special tokens are random "
            "numbers; name a fine-tuned model with --params",
        )
    return model


def _check_number(flag: str, value: int | None, what: str, n: int) -> None:
    if value is not None and value >= n:
        raise InputError(f"{flag} {value}: the model has {n} {what}, 0 to {n - 1}")


def _choice(story: str, ending: str, model: OpenedModel) -> list[int]:
    """Return the token ids of a story with one ending; refuse more tokens than the model takes."""
    from gpt1.tasks.layouts import pair

    story_ids, ending_ids = model.text_encoder.encode([story, ending], verbose=False)
    for flag, part in (("--story", story_ids), ("--ending", ending_ids)):
        if not part:
            raise InputError(f"{flag}: expected a text with at least one word")
    ids = pair(story_ids, ending_ids, model.special)
    n_ctx = model.module.config.n_ctx
    if len(ids) > n_ctx:
        raise InputError(
            f"--story, --ending: {len(ids)} tokens with the three special ones, but "
            f"{model.source} has positions for {n_ctx}; shorten the story"
        )
    return ids


def _usable(
    stories: Sequence[EncodedSentences | None], model: OpenedModel, path: Path
) -> list[EncodedSentences]:
    """Return the stories that can be averaged over; print how many were left out, and why."""
    n_ctx = model.module.config.n_ctx
    apart = [story for story in stories if story is not None]
    short = [story for story in apart if len(story.parts()) <= n_ctx]
    reasons = {
        "whose tokens cannot be assigned to sentences": len(stories) - len(apart),
        f"longer than the model's {n_ctx} positions": len(apart) - len(short),
    }
    why = " and ".join(f"{n} {reason}" for reason, n in reasons.items() if n)
    if not short:
        raise InputError(f"{path}: no story can be used: {why}; name other stories")
    if why:
        note(PROGRAM, f"{path}: of {len(stories)} stories, left out {why}")
    return short


def _with_bar(stories: list[EncodedSentences]) -> Sequence[EncodedSentences]:
    from tqdm import tqdm

    bar: Sequence[EncodedSentences] = tqdm(
        stories, "stories", leave=False, disable=not sys.stderr.isatty()
    )
    return bar


def _split_table(split: AttentionShares) -> str:
    """Return both averages in percent as tables: one row per layer, one column per part."""
    from gpt1.inference.attention import PARTS
    from gpt1.reports.runs import align

    parts = [part.replace("sentence", "sent") for part in PARTS]
    blocks = []
    for source, shares, even in (
        ("_classify_", split.classify, split.even_classify),
        ("the ending's tokens", split.ending, split.even_ending),
    ):
        layers = shares.mean(1)
        rows = [(str(i), layer) for i, layer in enumerate(layers)]
        rows += [("all", layers.mean(0)), ("even", even)]
        cells = [[name, *(f"{share * 100:.1f}" for share in row.tolist())] for name, row in rows]
        table = align([["layer", *parts], *cells], rules=(0, len(layers)))
        blocks.append(f"Attention of {source}, in percent:\n\n{table}")
    heading = (
        f"Mean of {split.n_stories} stories with their right endings, and of all heads.\n"
        "sent 1 to sent 4: the sentences of a story.\n"
        "even: the share of a part if all visible tokens had equal weights."
    )
    return "\n\n".join([heading, *blocks])
