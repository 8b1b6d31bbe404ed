"""Make the lines of a log that tests compare with what is read."""

from __future__ import annotations

from typing import Any

from gpt1.results.log_lines import LogLine


def log_line(values: dict[str, Any]) -> LogLine:
    """Make a line of a log from its values by their names there."""
    figures = {name: x for name, x in values.items() if name[:3] in ("tr_", "va_")}
    rest = {name: x for name, x in values.items() if name not in figures}
    return LogLine(**rest, figures=figures)
