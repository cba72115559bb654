"""Did-you-mean for keys and choices."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, if any is close."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def unknown_key(key: str, known: Iterable[str], where: str = "") -> str:
    """Message for a key nobody knows."""
    close = nearest(key.replace("-", "_"), known)
    hint = f"; did you mean {close!r}?" if close else ""
    return f"unknown key {key!r}{where}{hint}"


def several_nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` known words that are like `word`, the most alike first."""
    return difflib.get_close_matches(word.lower(), list(known), n=count, cutoff=0.6)
