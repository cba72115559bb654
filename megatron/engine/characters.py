"""Characters behind the tokens of a loss: what makes perplexities of different tokenizers comparable."""

from collections.abc import Iterator

import torch

from megatron import mpu
from megatron.common import device


class CharCounter:
    """Passes batches on and counts the tokens that are predicted in them, and the characters these stand for.

    End-of-document tokens are predicted but stand for no character.

    Args: data_iterator: of batches with `text` int64 [b, s+1] and maybe `label` (see Pretrain).
    """

    def __init__(self, data_iterator: Iterator, tokenizer):
        self._iterator, self._tokenizer = data_iterator, tokenizer
        self.tokens = self.characters = 0

    def __iter__(self) -> "CharCounter":
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        batch = next(self._iterator)
        predicted = batch["text"][:, 1:]
        counts = (
            batch["label"][:, 1:] >= 0 if "label" in batch else torch.ones_like(predicted, dtype=torch.bool)
        )
        for row, counted in zip(predicted, counts, strict=True):
            tokens = row[counted].tolist()
            text = [token for token in tokens if token != self._tokenizer.eod]
            self.tokens += len(tokens)
            self.characters += len(self._tokenizer.detokenize(text))
        return batch

    def tokens_per_char(self) -> float:
        """Of what this process has seen; infinite for no characters at all."""
        return self.tokens / self.characters if self.characters else float("inf")


def tokens_per_char_of_all(counter: CharCounter | None) -> float:
    """Over the data of all replicas, the same on all ranks; stages that read no data have no counter."""
    seen = torch.zeros(2, dtype=torch.int64, device=device.current_device())
    reads_first = mpu.get_pipe_parallel_rank() == 0 and mpu.get_tensor_model_parallel_rank() == 0
    if counter is not None and reads_first:
        seen += torch.tensor([counter.tokens, counter.characters], device=seen.device)
    torch.distributed.all_reduce(seen)
    tokens, characters = seen.tolist()
    return tokens / characters if characters else float("inf")
