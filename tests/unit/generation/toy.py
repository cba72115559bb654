"""A model of one line: after token t comes t + 1. And a tokenizer of one letter per token."""

from types import SimpleNamespace

import torch

from megatron.engine.inference import InferenceModel

VOCABULARY = 32
EOD = 31


class LetterTokenizer:
    """a..z are 0..25; 26..30 have no text; 31 is the end of document."""

    vocab_size = VOCABULARY
    eod = EOD

    def tokenize(self, text):
        return [ord(letter) - ord("a") for letter in text if letter.isalpha()]

    def detokenize(self, ids):
        return "".join("abcdefghijklmnopqrstuvwxyz"[token] if token < 26 else {}[token] for token in ids)


class SuccessorModel(InferenceModel):
    """Logit 10 for (last token + 1) mod 32, and the sum of all tokens seen for token 30, times a small number.

    With a cache it sees only the new tokens, and keeps the sum.
    """

    def __init__(self):
        self.device = torch.device("cpu")
        self.calls = []
        self._stages, self._stage = (0,), 0
        self._past = 0
        self._use_cache = True

    def inference_mode(self, use_cache=True):
        self._use_cache = use_cache
        self.clear_cache()

    def clear_cache(self):
        self._past = 0

    def forward(self, tokens, position_ids, last_only=False):
        self.calls.append(position_ids[0].tolist())
        total = tokens.sum(-1) + self._past
        if self._use_cache:
            self._past = total
        logits = torch.zeros(*tokens.shape, VOCABULARY)
        logits.scatter_(-1, ((tokens + 1) % VOCABULARY).unsqueeze(-1), 10.0)
        logits[:, -1, 30] += total / 1000
        return logits[:, -1:] if last_only else logits

    __call__ = forward


def toy_args(**changes):
    values = {
        "seq_length": 16,
        "padded_vocab_size": VOCABULARY,
        "seed": 1,
        "train_micro_batch_size_per_gpu": 2,
    }
    return SimpleNamespace(tokenizer=LetterTokenizer(), **(values | changes))
