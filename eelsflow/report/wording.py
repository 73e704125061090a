"""Values as a page words them: durations, parameters, shares, counts."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from eelsflow.report.style import format_number


def duration(seconds: Any) -> str:
    """Return a duration as people say it.

    >>> duration(3.21), duration(200), duration(7321)
    ('3.2 s', '3 min 20 s', '2 h 2 min')
    """
    if not isinstance(seconds, int | float):
        return "not recorded"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def seconds(value: Any) -> str:
    """Return seconds with two figures, as a table needs them.

    >>> seconds(0.0123), seconds(4.56), seconds(812.3), seconds(None)
    ('0.01', '4.6', '812', '')
    """
    if not isinstance(value, int | float):
        return ""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def parameters(params: Any) -> str:
    """Return best parameters as text; of a list with one for each seed, the most frequent.

    >>> parameters({"C": 1e5, "gamma": 0.1}), parameters([{"C": 1.0}, {"C": 10.0}, {"C": 1.0}])
    ('C=1e5, gamma=0.1', 'C=1 (2 of 3 seeds)')
    """
    if isinstance(params, Mapping):
        return ", ".join(f"{name}={format_number(_parameter(value))}" for name, value in params.items())
    if isinstance(params, list):
        counts = Counter(parameters(item) for item in params if item)
        if not counts:
            return ""
        text, count = counts.most_common(1)[0]
        return text if len(counts) == 1 else f"{text} ({count} of {len(params)} seeds)"
    return "" if params is None else str(params)


def _parameter(value: Any) -> float | int | str | None:
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)


def searched(searches: Any, n_seeds: Any) -> str:
    """Return on which seeds the grid was searched.

    >>> searched(10, 10), searched(1, 10), searched(0, 10), searched(None, 10)
    ('every seed', 'first of 10 seeds', 'none', '')
    """
    if not isinstance(searches, int) or not isinstance(n_seeds, int):
        return ""
    return "none" if searches == 0 else "every seed" if searches >= n_seeds else f"first of {n_seeds} seeds"


def seeds(value: Any) -> str:
    """Return how many seeds there were, of their list or their number."""
    return str(len(value)) if isinstance(value, list) else str(value if value is not None else "")


def share(part: Any, whole: Any) -> str:
    """Return a percentage.

    >>> share(1, 3), share(None, 3)
    ('33 %', 'not recorded')
    """
    if not isinstance(part, int | float) or not isinstance(whole, int | float) or not whole:
        return "not recorded"
    return f"{100 * part / whole:.0f} %"


def safe_link(target: Any) -> str | None:
    """Return a link's target if following it is harmless: a page, a file, or a path beside the report."""
    text = str(target)
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text)
    return text if scheme is None or scheme[0].lower() in ("http:", "https:", "file:") else None


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "model"), counted(3, "model")
    ('1 model', '3 models')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"
