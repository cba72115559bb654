"""What a task says about how its texts are to be generated."""

from typing import Any

from megatron.common.errors import ConfigError

# Names under which tasks give the number of new tokens, the first one wins.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DRAWING = ("temperature", "top_k", "top_p")
# Asked for by many tasks with the value that changes nothing.
WITHOUT_EFFECT: dict[str, Any] = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "num_return_sequences": 1,
    "use_cache": True,
}


def read_options(given: dict[str, Any], default_length: int) -> dict[str, Any]:
    """generation_kwargs of a task as fields of Continuations: until, max_gen_toks, temperature, top_k, top_p.

    Nothing is drawn unless do_sample or a temperature asks for it. do_sample alone has temperature 1 and all tokens to
    choose from.

    Raises: ConfigError for an option that would change the texts and is not supported.
    """
    rest = dict(given)
    until = rest.pop("until", None) or []
    lengths = [value for name in LENGTHS if (value := rest.pop(name, None)) is not None]
    sampled = rest.pop("do_sample", None)
    drawing = {name: rest.pop(name, None) or 0 for name in DRAWING}
    unknown = [name for name, value in rest.items() if WITHOUT_EFFECT.get(name, value is None) != value]
    if unknown:
        raise ConfigError(
            f"eval_tasks: a task sets generation_kwargs {', '.join(unknown)}, which cannot be followed here: supported "
            f"are until, {', '.join(LENGTHS)}, do_sample, {', '.join(DRAWING)}"
        )
    if sampled is False:
        drawing = dict.fromkeys(DRAWING, 0)
    elif sampled and given.get("temperature") is None:
        drawing["temperature"] = 1.0
    return {
        "until": [until] if isinstance(until, str) else list(until),
        "max_gen_toks": int(lengths[0]) if lengths else default_length,
        "temperature": float(drawing["temperature"]),
        "top_k": int(drawing["top_k"]),
        "top_p": float(drawing["top_p"]),
    }
