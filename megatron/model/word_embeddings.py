"""From token ids to vectors."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from megatron import mpu
from megatron.common.errors import ConfigError
from megatron.model.decoding_state import DecodingState
from megatron.model.documents import LayerInput
from megatron.model.mup import embedding_scale
from megatron.model.norms import get_norm
from megatron.model.projection import Projection, embedding_width
from megatron.model.vocabulary import init_logical_rows, logical_vocab_size
from megatron.mpu.parameters import InitMethod, ParameterSpec, make_parameter
from megatron.neox_arguments.soft_prompt import SoftPrompt
from megatron.registry import lookup


class SoftEmbedding(DecodingState):
    """A prompt of learned vectors in front of the embedded text (arXiv 2104.08691).

    Args: wte: maps token ids to embeddings [..., h]; init_range, init_string: see SoftPrompt.
    Parameter: soft_embedding_weight [n_tokens, h], whole on every rank.
    Attributes: generating: the text keeps its length, and only the first piece of a cached one gets the prompt; in
    training and evaluation the end of the text makes room for the prompt.
    """

    def __init__(
        self,
        neox_args,
        wte: Callable[[torch.Tensor], torch.Tensor],
        n_tokens: int = 10,
        init_range: float = 0.5,
        init_string: str = "",
    ):
        super().__init__()
        self.n_tokens = n_tokens
        self.generating = False

        def uniform_(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
            return tensor.uniform_(-init_range, init_range, generator=generator)

        self.soft_embedding_weight = make_parameter(
            ParameterSpec((n_tokens, neox_args.hidden_size), uniform_)
        )
        self.soft_embedding_weight.is_table = True
        # What gives it its first value once the word embeddings have theirs, be it initial or loaded.
        self.soft_embedding_weight.start = None
        if init_string:
            words = neox_args.tokenizer.tokenize(init_string)
            if not words:
                raise ConfigError(
                    f"soft_prompt_tuning.init_string={init_string!r} has no tokens to start from"
                )
            repeated = (words * -(-n_tokens // len(words)))[:n_tokens]
            self.soft_embedding_weight.start = lambda: self.start_from(wte, repeated)

    @torch.no_grad()
    def start_from(self, wte: Callable[[torch.Tensor], torch.Tensor], tokens: list[int]) -> None:
        """Begin with the embeddings of n_tokens tokens."""
        self.soft_embedding_weight.copy_(wte(torch.tensor(tokens, device=self.soft_embedding_weight.device)))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """[b, s, h] -> [b, s, h], or [b, n_tokens + s, h] when generating."""
        if self.generating and self.use_cache and self.begun:
            return embeddings
        self.begun = True
        prompt = self.soft_embedding_weight.expand(embeddings.shape[0], -1, -1)
        text = embeddings if self.generating else embeddings[:, : embeddings.shape[1] - self.n_tokens]
        return torch.cat([prompt, text], 1)

    def clear_cache(self) -> None:
        """The next piece is the first one of a text."""
        self.begun = False


class Embedding(torch.nn.Module):
    """Word embeddings (normalised if the config says so, projected to hidden_size if they are of another width), plus
    positions where the scheme acts here, plus token types; then dropout.

    Args:
        max_sequence_length: rows of a learned position table.
        num_tokentypes: rows of a token type table; 0 for none.
        use_pos_emb: False leaves positions out whatever the config says.
    """

    def __init__(
        self,
        neox_args,
        hidden_size: int,
        vocab_size: int,
        max_sequence_length: int,
        embedding_dropout_prob: float,
        init_method: InitMethod,
        num_tokentypes: int = 0,
        use_pos_emb: bool = True,
    ):
        super().__init__()
        self.hidden_size = hidden_size
        self.dropout = embedding_dropout_prob
        self.sequence_parallel = neox_args.sequence_parallel
        self.multiplier = embedding_scale(neox_args)
        self.position_multiplier = neox_args.mup_rp_embedding_mult
        row_init = init_logical_rows(init_method, logical_vocab_size(neox_args))
        width = embedding_width(neox_args)
        self.word_embeddings = mpu.VocabParallelEmbedding(neox_args, vocab_size, width, row_init)
        self.norm = self.project_in = None
        if neox_args.embedding_layernorm:
            norm, eps = get_norm(neox_args)
            self.norm = norm(width, eps=eps)
            self.norm.sees_all = True
        if width != hidden_size:
            self.project_in = Projection(width, hidden_size, init_method)
        self.position_embeddings = None
        if use_pos_emb:
            scheme = lookup("positional embedding", neox_args.pos_emb)
            self.position_embeddings = scheme.at_embedding(
                neox_args, hidden_size, max_sequence_length, init_method
            )
        self.tokentype_embeddings = None
        if num_tokentypes > 0:
            self.tokentype_embeddings = make_parameter(
                ParameterSpec((num_tokentypes, hidden_size), init_method)
            )
            self.tokentype_embeddings.is_table = True
        self.soft_prompt = None
        if (prompt := SoftPrompt.from_config(neox_args)) is not None:
            self.soft_prompt = SoftEmbedding(
                neox_args, self.embed_words, prompt.n_tokens, prompt.init_range, prompt.init_string
            )

    @property
    def word_embeddings_weight(self) -> torch.nn.Parameter:
        """The weight that a tied output shares, [V/tp, embedding width]."""
        return self.word_embeddings.weight

    def embed_words(self, input_ids: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> [..., h]."""
        words = self.word_embeddings(input_ids)
        if self.norm is not None:
            words = self.norm(words)
        return words if self.project_in is None else self.project_in(words)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        tokentype_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """int64 [b, s] each -> [b, s, h]; [b, s/tp, h] with sequence parallelism."""
        embeddings = self.embed_words(input_ids)
        if self.position_embeddings is not None:
            positions = self.position_embeddings(position_ids)
            if self.position_multiplier != 1.0:
                positions = positions * self.position_multiplier
            embeddings = embeddings + positions
        if tokentype_ids is not None:
            embeddings = embeddings + F.embedding(tokentype_ids, self.tokentype_embeddings)
        if self.training and self.dropout > 0.0:
            embeddings = F.dropout(embeddings, self.dropout)
        if self.multiplier != 1.0:
            embeddings = embeddings * self.multiplier
        if self.soft_prompt is not None:
            embeddings = self.soft_prompt(embeddings)
        if self.sequence_parallel:
            embeddings = mpu.scatter_to_sequence_parallel_region(embeddings, seq_dim=1)
        return embeddings


class EmbeddingPipe(Embedding):
    """Embedding of one argument, as a pipeline passes it.

    Attributes: generating: the whole text is one document.
    """

    def __init__(self, neox_args, *args, **kwargs):
        super().__init__(neox_args, *args, **kwargs)
        self.isolate_documents = neox_args.isolate_documents
        self.generating = False

    def forward(self, inputs: tuple[torch.Tensor, ...]) -> LayerInput:
        """(tokens, position_ids), each int64 [b, s] -> [b, s, h], and position_ids if documents are isolated."""
        hidden = super().forward(*inputs)
        return (hidden, inputs[1]) if self.isolate_documents and not self.generating else hidden
