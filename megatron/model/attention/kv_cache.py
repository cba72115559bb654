"""Keys and values of the positions already seen, for incremental decoding."""

import torch

MINIMUM_CAPACITY = 64  # positions


class KeyValueCache:
    """Grows as positions are appended; capacity doubles, so appending costs amortised constant time.

    `length` is the number of cached positions.
    """

    def __init__(self):
        self.length = 0
        self._key: torch.Tensor | None = None
        self._value: torch.Tensor | None = None

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add [b, kv, s, d] and return all keys and values [b, kv, length, d]; do not write into them."""
        end = self.length + key.shape[2]
        if self._key is None or end > self._key.shape[2]:
            self._key, self._value = self._grown(self._key, key, end), self._grown(self._value, value, end)
        self._key[:, :, self.length : end] = key
        self._value[:, :, self.length : end] = value
        self.length = end
        return self._key[:, :, :end], self._value[:, :, :end]

    def _grown(self, old: torch.Tensor | None, like: torch.Tensor, needed: int) -> torch.Tensor:
        batch, heads, _, size = like.shape
        new = like.new_empty(batch, heads, max(2 * needed, MINIMUM_CAPACITY), size)
        if old is not None:
            new[:, :, : self.length] = old[:, :, : self.length]
        return new
