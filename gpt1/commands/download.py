"""Fetch the released vocabulary, merges and weights: ``gpt1 download``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt1.commands.running import note, run_command
from gpt1.runtime.errors import InputError
from gpt1.settings.command import Command, Values
from gpt1.settings.fields import at_least, between, setting


@dataclass(frozen=True, kw_only=True)
class DownloadSettings:
    """Source and target."""

    model_dir: str = setting("model", "where they go [model/]", metavar="DIR")
    base_url: str | None = setting(None, "directory with the files [GitHub]", metavar="URL")
    force: bool = setting(False, "fetch again, and replace, what is there")
    timeout: float = setting(
        30.0,
        "give a silent connection up after this time",
        between(0.1, 86400),
        metavar="SECONDS",
    )
    retries: int = setting(
        5, "further tries, while they bring nothing new, before giving up", at_least(0)
    )


COMMAND = Command(
    name="download",
    summary="Fetch OpenAI's released vocabulary, merges and weights, 466 MB, checked. An "
    "interrupted download goes on where it stopped.",
    groups=(DownloadSettings,),
    examples="""\
  # into model/, where the other programs look for them
  gpt1 download

  # from a mirror, to another place
  gpt1 download --base_url https://example.org/gpt1/ --model_dir /data/gpt1""",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status, 1 if the network or the disk fails."""
    return run_command(COMMAND, _download, argv)


def _download(values: Values) -> None:
    from gpt1.weights import fetching
    from gpt1.weights.locate import CONFIG_FILE, RELEASED_N_HEAD, read_n_head

    given = values[DownloadSettings]
    model_dir, files = Path(given.model_dir), fetching.RELEASED_FILES
    if read_n_head(model_dir) not in (None, RELEASED_N_HEAD):
        raise InputError(
            f"{model_dir / CONFIG_FILE}: belongs to another checkpoint, the released one has "
            f"{RELEASED_N_HEAD} heads; remove it, or name another directory with --model_dir."
        )
    try:
        fetched = fetching.download(
            files,
            fetching.RELEASED_URL if given.base_url is None else given.base_url,
            model_dir,
            force=given.force,
            timeout=given.timeout,
            retries=given.retries,
        )
    except KeyboardInterrupt:
        note(COMMAND.program, "what has arrived is kept: the same command goes on from there")
        raise
    kept = len(files) - len(fetched)
    print(f"{model_dir}: the released files, {len(fetched)} fetched, {kept} already there")
