"""Which kind of attention (or of block) each layer has."""

from megatron.common.errors import ConfigError


def expand_attention_types(attention_config: list, num_layers: int) -> list[str]:
    """One kind per layer from `[[[kind, ...], repeats], ...]`; a flat list of kinds is taken as it is.

    "all" repeats its pattern until the model is full, so it can only be the last entry.

    Raises: ConfigError if the expansion does not fill `num_layers` layers exactly.
    """
    if all(isinstance(entry, str) for entry in attention_config):
        kinds = list(attention_config)
    else:
        kinds = []
        for position, entry in enumerate(attention_config):
            kinds += _expand(entry, num_layers - len(kinds), position == len(attention_config) - 1)
    if len(kinds) != num_layers:
        raise ConfigError(f"attention_config describes {len(kinds)} layers, but num_layers={num_layers}")
    return kinds


def _expand(entry: object, remaining: int, is_last: bool) -> list[str]:
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], list) and entry[0]):
        raise ConfigError(f"attention_config: {entry!r} is not of the form [[kind, ...], repeats]")
    pattern, repeats = entry
    if repeats != "all":
        if type(repeats) is not int or repeats < 0:
            raise ConfigError(
                f'attention_config: {entry!r} repeats {repeats!r} times; use a whole number or "all"'
            )
        return pattern * repeats
    if not is_last:
        raise ConfigError(
            f'attention_config: "all" in {entry!r} fills the model, so it must be the last entry'
        )
    if remaining % len(pattern):
        raise ConfigError(
            f"attention_config: {remaining} layers cannot be filled with whole repeats of {pattern!r}"
        )
    return pattern * (remaining // len(pattern))
