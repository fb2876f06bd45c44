"""What a page asked, checked: strings from outside become numbers and words that are known here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from memlens.errors import UsageError

__all__ = ["Parameters", "Refusal"]

_NUMBER = re.compile(r"[0-9]{1,18}")
MOST_TEXT = 300
MOST_SHOWN = 40


class Refusal(UsageError):
    """A question that is not answered.

    Args:
        text: why, in one sentence.
        status: as HTTP counts: 400 for a wrong question, 404 for something that is not there, 422 for
            a capture that can not be read.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Parameters:
    """The parameters of one question.

    Args:
        given: as they came.
        known: the names that the question has; any other is refused, so that a slip is seen.
    """

    def __init__(self, given: Mapping[str, str], known: Sequence[str]) -> None:
        for name in given:
            if name not in known:
                raise Refusal(f"there is no parameter {name!r:.{MOST_SHOWN}} here")
        self._given = given

    def whole(self, name: str, default: int, most: int | None = None) -> int:
        """A whole number that is not negative; a larger one than `most` counts as that."""
        value = self.whole_or_none(name)
        if value is None:
            return default
        return value if most is None else min(value, most)

    def whole_or_none(self, name: str) -> int | None:
        """The same, or None when it is not given."""
        text = self._given.get(name)
        if text is None:
            return None
        if not _NUMBER.fullmatch(text):
            raise Refusal(
                f"{name} is {text!r:.{MOST_SHOWN}}, and has to be a whole number, 0 or more"
            )
        return int(text)

    def needed(self, name: str) -> str:
        """A text that has to be there."""
        text = self._given.get(name)
        if text is None:
            raise Refusal(f"the parameter {name} is missing")
        return text

    def needed_whole(self, name: str) -> int:
        """A number that has to be there."""
        self.needed(name)
        return self.whole(name, 0)

    def choice(self, name: str, choices: Sequence[str], default: str | None) -> str | None:
        """One of some words."""
        text = self._given.get(name, default)
        if text is not None and text not in choices:
            raise Refusal(
                f"{name} is {text!r:.{MOST_SHOWN}}, and has to be one of {', '.join(choices)}"
            )
        return text

    def flag(self, name: str, default: bool) -> bool:
        """0 or 1."""
        return self.choice(name, ("0", "1"), "1" if default else "0") == "1"

    def text(self, name: str) -> str:
        """Any text, but not a long one; empty if it is not given."""
        text = self._given.get(name, "")
        if len(text) > MOST_TEXT:
            raise Refusal(f"{name} has {len(text)} characters, more than {MOST_TEXT}")
        return text

    def words(self, name: str, most: int) -> list[str]:
        """Texts with commas between them; none when they are not given."""
        parts = list(dict.fromkeys(part for part in self.text(name).split(",") if part))
        if len(parts) > most:
            raise Refusal(f"{name} names {len(parts)}, more than {most}")
        return parts

    def window(self, first: int, last: int) -> tuple[int, int]:
        """`from` and `to` within what there is; the whole of it when they are not given."""
        low = min(self.whole("from", first), last)
        high = min(self.whole("to", last), last)
        if high < low:
            raise Refusal(f"to is {high}, before from, which is {low}")
        return low, high
