"""The config key soft_prompt_tuning: a learned prompt in front of every text, and nothing else that is trained."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron.neox_arguments.curriculum import shortest_length
from megatron.neox_arguments.suggestions import nearest

_DEFAULTS = {"enabled": False, "n_tokens": 10, "init_string": "", "init_range": 0.5}
_ALIASES = {"num_tokens": "n_tokens"}


@dataclass(frozen=True)
class SoftPrompt:
    """n_tokens: length of the prompt; init_string: text whose word embeddings it starts from; init_range: without a
    text it starts from the uniform distribution between -init_range and init_range."""

    n_tokens: int
    init_string: str
    init_range: float

    @classmethod
    def from_config(cls, args: Any) -> "SoftPrompt | None":
        """What a config asks for."""
        settings = _settings(args.soft_prompt_tuning or {})
        enabled = settings.pop("enabled")
        return cls(**settings) if enabled else None


def _settings(given: dict) -> dict:
    return _DEFAULTS | {_ALIASES.get(key, key): value for key, value in given.items()}


def soft_prompt_problems(args: Any) -> Iterator[str]:
    """What is wrong with the key, one line each."""
    given = args.soft_prompt_tuning or {}
    known = [*_DEFAULTS, *_ALIASES]
    unknown = [key for key in given if key not in known]
    for key in unknown:
        close = nearest(str(key), known)
        hint = f"; did you mean {close!r}?" if close else ""
        yield f"soft_prompt_tuning: unknown key {key!r}: choose among {', '.join(known)}{hint}"
    if unknown or not given:
        return
    if "enabled" not in given:
        yield "soft_prompt_tuning needs enabled: true or false"
    if "num_tokens" in given and "n_tokens" in given:
        yield "soft_prompt_tuning: num_tokens and n_tokens are the same; keep one"
    yield from _bad_values(args, _settings(given))


def _bad_values(args: Any, settings: dict) -> Iterator[str]:
    count, spread = settings["n_tokens"], settings["init_range"]
    if not isinstance(settings["enabled"], bool):
        yield f"soft_prompt_tuning.enabled={settings['enabled']!r} must be true or false"
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        yield f"soft_prompt_tuning.n_tokens={count!r} must be a whole number of at least 1"
    elif args.seq_length and count >= args.seq_length:
        yield f"soft_prompt_tuning.n_tokens={count} leaves no room for text in seq_length={args.seq_length}"
    elif settings["enabled"] and (shortest := shortest_length(args)) is not None and count >= shortest:
        yield (
            f"soft_prompt_tuning.n_tokens={count} leaves no room for text in the shortest samples of "
            f"curriculum_learning, {shortest} tokens"
        )
    if not isinstance(spread, (int, float)) or isinstance(spread, bool) or not 0 < spread < math.inf:
        yield f"soft_prompt_tuning.init_range={spread!r} must be above 0"
    if not isinstance(settings["init_string"], str):
        yield f"soft_prompt_tuning.init_string={settings['init_string']!r} must be a text"
    if settings["init_string"] and args.embedding_size not in (None, args.hidden_size):
        yield "soft_prompt_tuning.init_string needs word embeddings of hidden_size; remove it or embedding_size"
    if settings["enabled"] is True and args.isolate_documents:
        yield (
            "soft_prompt_tuning cannot be combined with isolate_documents: the prompt stands before the first document "
            "only, and the others would not see it"
        )
