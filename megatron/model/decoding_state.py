"""What a block remembers of the tokens before, so that a text can be continued without computing them again."""

import torch


class DecodingState(torch.nn.Module):
    """A module that remembers from call to call while `use_cache` is set; built with nothing to remember."""

    def __init__(self, use_cache: bool = False):
        super().__init__()
        self.use_cache = use_cache
        self.clear_cache()

    def clear_cache(self) -> None:
        """Forget the past."""
        raise NotImplementedError


def decoding_states(module: torch.nn.Module) -> list[DecodingState]:
    """All such modules inside, and the module itself if it is one."""
    return [found for found in module.modules() if isinstance(found, DecodingState)]
