"""Errors that a user can act on.

One exception for everything a user may get wrong: its message is one sentence that says what is wrong, where, and what
to do. It is a `ValueError`, so callers who know nothing of AgriCLIP can still catch it. `problems` carries the rows of
a table when one file has several faults, so that all of them are shown at once instead of one per run.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple


class Problem(NamedTuple):
    """One fault in a user's file.

    Attributes:
        where: Place in the file, e.g. `predictors[0].variables[2].unit`.
        problem: What is wrong there.
        hint: What to do about it; may be empty.
    """

    where: str
    problem: str
    hint: str = ""


class AgriClipError(ValueError):
    """A fault in the user's input, told in one sentence.

    Args:
        message: One sentence: what is wrong, where, and what to do.
        problems: The single faults when there are several.
    """

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.problems: list[Problem] = list(problems)


def nearest(name: object, choices: Iterable[object]) -> str:
    """Return `"did you mean 'x'?"` for the nearest choice, or the choices themselves when none is near.

    Args:
        name: What the user wrote.
        choices: What would have been accepted.
    """
    texts = list(dict.fromkeys(str(choice) for choice in choices))
    by_folded = {text.lower(): text for text in reversed(texts)}
    near = difflib.get_close_matches(str(name).lower(), list(by_folded), n=1, cutoff=0.5)
    if near:
        return f"did you mean '{by_folded[near[0]]}'?"
    if not texts:
        return "nothing is available there"
    shown = ", ".join(texts[:12]) + (", ..." if len(texts) > 12 else "")
    return f"use one of: {shown}"


def named(ids: Iterable[object], most: int = 5) -> str:
    """Return `a, b, c and 7 more`: at most `most` names, then a count."""
    texts = [str(item) for item in ids]
    if len(texts) <= most:
        return ", ".join(texts)
    return f"{', '.join(texts[:most])} and {len(texts) - most} more"
