"""Folders as Meta publishes LLaMA (and Mistral AI its first model): params.json and consolidated.NN.pth.

Their parts of tensors, one for each tensor-parallel rank, are put together and shown under the names of transformers'
LlamaForCausalLM. Features of rotary heads stand in pairs there and in halves elsewhere.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from megatron.checkpointing.safe_engine import load_file
from megatron.common.console import info
from megatron.common.errors import CheckpointError, ConfigError, TokenizerError
from megatron.conversion.from_hf import import_model
from megatron.conversion.tokenizers import FOLDER, copy_files
from megatron.families import family_named

_OUTSIDE = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_BLOCKS = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_CUT_ALONG_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")
_WHOLE = ("norm.weight",)
_COMPUTED = ("rope.freqs",)
# The tables of LLaMA 3.1 (arXiv 2407.21783), where params.json only says that there are any.
_SCALED = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LENGTH = 2048


def import_meta(
    root: str | Path,
    size: str,
    target: str | Path,
    tensor: int = 1,
    pipe: int = 0,
    longest: int | None = None,
) -> Path:
    """Turn the model in root/size, or in root itself, into a checkpoint with config and tokenizer.

    Args: size: `tokenizer_only` copies the tokenizer alone; tensor, pipe: layout of the files; longest:
    max_position_embeddings. Returns: the config file, or the folder of the tokenizer.
    """
    root = Path(root)
    folder = root / size if (root / size / "params.json").is_file() else root
    places = [place for place in (folder, root) if (place / "tokenizer.model").is_file()]
    if size == "tokenizer_only":
        if not places:
            raise TokenizerError(f"{root} holds no tokenizer.model")
        copy_files(places[0], Path(target, FOLDER))
        return Path(target, FOLDER)
    source = MetaFolder(folder)
    config = source.config(longest)
    family = family_named(config["model_type"])
    return import_model(family, config, source, (places or [folder])[0], target, tensor, pipe)


class MetaFolder:
    """The tensors under transformers' names.

    Attributes: params: of params.json. Raises: CheckpointError, ConfigError if files are missing or cannot be read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.params = _read_params(self.folder)
        paths = sorted(self.folder.glob("consolidated.*.pth"))
        numbers = [
            int(found[1]) for path in paths if (found := re.fullmatch(r"consolidated\.(\d+)\.pth", path.name))
        ]
        if not numbers or numbers != list(range(len(numbers))):
            raise CheckpointError(
                f"{folder} must hold consolidated.00.pth and all that follow it; found the numbers {numbers or 'none'}"
            )
        self._shards = [load_file(path, mmap=True) for path in paths]
        self._theirs = {_name_of(key): key for key in self._shards[0] if not key.endswith(_COMPUTED)}

    @property
    def names(self) -> set[str]:
        return set(self._theirs)

    def dtype(self, names: Iterable[str]) -> torch.dtype:
        """The number format that holds all of these tensors exactly."""
        return functools.reduce(
            torch.promote_types, {self._shards[0][self._theirs[name]].dtype for name in names}
        )

    def read(self, name: str) -> torch.Tensor:
        key = self._theirs[name]
        try:
            parts = [shard[key] for shard in self._shards]
        except KeyError as error:
            raise CheckpointError(f"{self.folder}: {key} is not in all consolidated files") from error
        whole = self._merged(key, parts)
        heads = {
            "q_proj": self.params["n_heads"],
            "k_proj": self.params.get("n_kv_heads") or self.params["n_heads"],
        }
        count = heads.get(name.split(".")[-2])
        return whole if count is None else halves_of_pairs(whole, count)

    def _merged(self, key: str, parts: list[torch.Tensor]) -> torch.Tensor:
        if len(parts) == 1 or key.endswith(_WHOLE):
            return parts[0]
        if key.endswith(_CUT_ALONG_COLUMNS):
            return torch.cat(parts, 1)
        # LLaMA 1 and 2 cut the features of the embedding, LLaMA 3 its rows.
        by_feature = key == "tok_embeddings.weight" and parts[0].shape[1] != self.params["dim"]
        return torch.cat(parts, 1 if by_feature else 0)

    def config(self, longest: int | None = None) -> dict[str, Any]:
        """The config that transformers would give the model.

        Args: longest: max_position_embeddings, which these folders do not tell.
        """
        from transformers import AutoConfig

        params = self.params
        window = params.get("sliding_window")
        keys = {
            "vocab_size": self.read("lm_head.weight").shape[0],
            "hidden_size": params["dim"],
            "num_hidden_layers": params["n_layers"],
            "num_attention_heads": params["n_heads"],
            "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
            "head_dim": params.get("head_dim"),
            "intermediate_size": self.read("model.layers.0.mlp.gate_proj.weight").shape[0],
            "rms_norm_eps": params["norm_eps"],
            "max_position_embeddings": longest or _length(params),
            "rope_parameters": _rotary(params),
            "tie_word_embeddings": False,
        }
        kind = "llama" if window is None else "mistral"
        if window is not None:
            keys["sliding_window"] = window
        return AutoConfig.for_model(kind, **keys).to_dict() | {"model_type": kind}


def halves_of_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[n d, h] with the features of each head as (0, 2, 4, ..., 1, 3, 5, ...): those that turn together are half a head
    apart then, and were neighbours."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(rows.shape)


def _name_of(key: str) -> str:
    """transformers' name of a tensor; what it does not know keeps its own."""
    for theirs, own in _OUTSIDE.items():
        if key == own:
            return theirs
    if found := re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", key):
        for theirs, own in _IN_BLOCKS.items():
            if found[2] == own:
                return f"model.layers.{found[1]}.{theirs}.weight"
    return key


def _read_params(folder: Path) -> Mapping[str, Any]:
    path = folder / "params.json"
    try:
        params = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} has no params.json; name the folder of a model as Meta publishes it"
        ) from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if missing := [key for key in ("dim", "n_layers", "n_heads", "norm_eps") if key not in params]:
        raise ConfigError(f"{path} lacks {', '.join(missing)}")
    if "moe" in params:
        raise ConfigError(
            f"{path}: moe cannot be had from this kind of folder; use the model's Hugging Face form"
        )
    return params


def _length(params: Mapping[str, Any]) -> int:
    length = params.get("max_seq_len")
    if length is None:
        length = _LENGTH
        info(
            f"max_position_embeddings is not told by params.json and set to {length} (--max_position_embeddings)"
        )
    return length


def _rotary(params: Mapping[str, Any]) -> dict[str, Any]:
    keys = {"rope_type": "default", "rope_theta": float(params.get("rope_theta") or 10000.0)}
    if params.get("use_scaled_rope"):
        keys |= {"rope_type": "llama3", **_SCALED}
        if params.get("rope_scaling_factor"):
            keys["factor"] = float(params["rope_scaling_factor"])
    return keys
