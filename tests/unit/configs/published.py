"""How many parameters the shipped models have: as published, and as transformers builds them.

Of what is not published to the last digit, or not known by transformers, the count is written out by hand.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import transformers

NEOX_TOKENS, GPT2_TOKENS = 50277, 50257


class Model(NamedTuple):
    """tokens: ids of the tokenizer; vocabulary: rows of the embedding; parameters: published or counted by hand, None
    where transformers alone is asked; reference: config of the same model in transformers; unused: parameters that
    exist for GPT-NeoX's checkpoint format only (the second norm of blocks whose branches share the first)."""

    name: str
    tokens: int
    vocabulary: int
    parameters: int | None
    reference: transformers.PretrainedConfig | None
    unused: int = 0


def _maker(config: type, *names: str, **fixed: Any) -> Callable[..., transformers.PretrainedConfig]:
    def make(*values: int, **more: Any) -> transformers.PretrainedConfig:
        return config(**dict(zip(names, values, strict=True)), **{**fixed, **more})

    return make


_SIZES = ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
_neox = _maker(transformers.GPTNeoXConfig, *_SIZES)
_gated = (*_SIZES[:4], "num_key_value_heads", "intermediate_size")
_llama = _maker(transformers.LlamaConfig, *_gated)
_mistral = _maker(transformers.MistralConfig, *_gated, head_dim=128)
_stablelm = _maker(transformers.StableLmConfig, *_gated)
_mamba = _maker(transformers.MambaConfig, *_SIZES[:3])
_bloom = _maker(transformers.BloomConfig, "vocab_size", "n_layer", "hidden_size", "n_head")
_opt = _maker(transformers.OPTConfig, *_SIZES[:4], "ffn_dim", "word_embed_proj_dim")
_falcon = _maker(transformers.FalconConfig, *_SIZES[:4], "num_kv_heads", bias=False, parallel_attn=True)


def _gpt_neo(layers: int, hidden: int, heads: int) -> transformers.PretrainedConfig:
    return transformers.GPTNeoConfig(
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        attention_types=[[["global", "local"], layers // 2]],
    )


def _neox_family(name: str, vocabulary: int, parameters: int | None, layers: int, hidden: int, heads: int):
    reference = _neox(vocabulary, layers, hidden, heads, 4 * hidden)
    return Model(name, NEOX_TOKENS, vocabulary, parameters, reference)


def _opt_family(name: str, parameters: int | None, layers: int, hidden: int, heads: int, embedding: int = 0):
    width = embedding or hidden
    reference = _opt(50272, layers, hidden, heads, 4 * hidden, width, do_layer_norm_before=width == hidden)
    return Model(name, 50265, 50272, parameters, reference)


def _bloom_family(name: str, parameters: int, layers: int, hidden: int, heads: int):
    return Model(name, 250_680, 250_880, parameters, _bloom(250_880, layers, hidden, heads))


def _mamba_family(name: str, parameters: int, layers: int, hidden: int):
    return Model(name, NEOX_TOKENS, 50_280, parameters, _mamba(50_280, layers, hidden))


def _llama_family(name: str, vocabulary: int, parameters: int, *sizes: int):
    return Model(name, vocabulary, vocabulary, parameters, _llama(vocabulary, *sizes))


def _mlp(hidden: int) -> int:
    """An MLP four times as wide as the model, with biases."""
    return 8 * hidden * hidden + 5 * hidden


def _experts(hidden: int, experts: int) -> int:
    """As many such MLPs without biases, and a router."""
    return experts * 8 * hidden * hidden + experts * hidden


def _gmlp(vocabulary: int, layers: int, hidden: int, length: int) -> int:
    """Two tables, blocks, a norm. In a block: norm; to 8h; norm of a half; places; back from 4h."""
    to, back = hidden * 8 * hidden + 8 * hidden, 4 * hidden * hidden + hidden
    block = 2 * hidden + to + 2 * 4 * hidden + length * length + length + back
    return 2 * vocabulary * hidden + layers * block + 2 * hidden


def _rwkv(vocabulary: int, layers: int, hidden: int, feed_forward: int) -> int:
    """Two tables, blocks, an RMSNorm. Time mixing: 6 mixtures and what makes 5 of them depend on the input (rank 32),
    decay (rank 64) and bonus, 5 matrices, a norm of heads; channel mixing: 2 mixtures, 3 matrices; 2 norms."""
    low_rank = 2 * 5 * 32 * hidden + 2 * 64 * hidden
    time = 6 * hidden + low_rank + 2 * hidden + 5 * hidden * hidden + 2 * hidden
    channel = 2 * hidden + 2 * hidden * feed_forward + hidden * hidden
    return 2 * vocabulary * hidden + layers * (time + channel + 4 * hidden) + hidden


def _palm(layers: int, hidden: int, heads: int) -> int:
    """A table for both ends; in a block one norm without bias, queries and output, one key and value, a gated MLP."""
    block = hidden + 2 * hidden * heads * 256 + 2 * hidden * 256 + 3 * hidden * 4 * hidden
    return 256_000 * hidden + layers * block + hidden


_GPT_125M = 162_322_944
MODELS = [
    # One tokenizer, one shape: what is said of Pythia's sizes holds here too, as the order of branches has no weights.
    *(
        _neox_family(f"{name}.yml", 50304, _GPT_125M, 12, 768, 12)
        for name in ("125M", "125M-json", "bf16_125M", "bnb_125M", "slurm_125M")
    ),
    _neox_family("19M.yml", 50304, 70_426_624, 6, 512, 8),
    _neox_family("49M.yml", 50304, None, 10, 640, 10),
    _neox_family("350M.yml", 50304, 405_334_016, 24, 1024, 16),
    _neox_family("760M.yml", 50304, None, 24, 1536, 16),
    _neox_family("800M.yml", 50304, 1_011_781_632, 16, 2048, 8),
    _neox_family("1-3B.yml", 50304, 1_414_647_808, 24, 2048, 16),
    _neox_family("2-7B.yml", 50304, 2_775_208_960, 32, 2560, 32),
    _neox_family("6-7B.yml", 50304, None, 32, 4096, 32),
    _neox_family("13B.yml", 50304, None, 40, 5120, 40),
    _neox_family("175B.yml", 50304, None, 96, 12288, 96),
    _neox_family("20B.yml", 50432, 20_554_567_680, 44, 6144, 64),
    _neox_family("pythia/14M.yml", 50304, 14_067_712, 6, 128, 4),
    _neox_family("pythia/31M.yml", 50304, 30_494_720, 6, 256, 8),
    _neox_family("pythia/70M.yml", 50304, 70_426_624, 6, 512, 8),
    _neox_family("pythia/160M.yml", 50304, 162_322_944, 12, 768, 12),
    _neox_family("pythia/410M.yml", 50304, 405_334_016, 24, 1024, 16),
    _neox_family("pythia/1B.yml", 50304, 1_011_781_632, 16, 2048, 8),
    _neox_family("pythia/1-4B.yml", 50304, 1_414_647_808, 24, 2048, 16),
    _neox_family("pythia/2-8B.yml", 50304, 2_775_208_960, 32, 2560, 32),
    _neox_family("pythia/6-9B.yml", 50432, 6_857_302_016, 32, 4096, 32),
    _neox_family("pythia/12B.yml", 50688, 11_846_072_320, 36, 5120, 40),
    _neox_family("finetuning_configs/6-9B.yml", 50432, 6_857_302_016, 32, 4096, 32),
    _neox_family("stablelm/3B-alpha.yml", 50688, None, 16, 4096, 32),
    _neox_family("stablelm/7B-alpha.yml", 50432, None, 16, 6144, 48),
    Model(
        "125M-dmoe.yml", GPT2_TOKENS, 50304, _GPT_125M + 12 * (_experts(768, 8) - _mlp(768)), reference=None
    ),
    Model("gmlp_small.yml", GPT2_TOKENS, 50304, _gmlp(50304, 12, 768, 2048), reference=None),
    Model("rwkv/170M.yml", NEOX_TOKENS, 50304, _rwkv(50304, 12, 768, 2688), reference=None),
    _llama_family("llama/7B.yml", 32000, 6_738_415_616, 32, 4096, 32, 32, 11008),
    _llama_family("llama/13B.yml", 32000, 13_015_864_320, 40, 5120, 40, 40, 13824),
    _llama_family("llama/30B.yml", 32000, 32_528_943_616, 60, 6656, 52, 52, 17920),
    _llama_family("llama/65B.yml", 32000, 65_285_660_672, 80, 8192, 64, 64, 22016),
    _llama_family("llama2/7B.yml", 32000, 6_738_415_616, 32, 4096, 32, 32, 11008),
    _llama_family("llama2/13B.yml", 32000, 13_015_864_320, 40, 5120, 40, 40, 13824),
    _llama_family("llama2/70B.yml", 32000, 68_976_648_192, 80, 8192, 64, 8, 28672),
    _llama_family("llama2/codellama_7B.yml", 32016, 6_738_546_688, 32, 4096, 32, 32, 11008),
    _llama_family("llama2/codellama_13B.yml", 32016, 13_016_028_160, 40, 5120, 40, 40, 13824),
    _llama_family("llama2/codellama_34B.yml", 32000, 33_743_970_304, 48, 8192, 64, 8, 22016),
    _llama_family("llama3/8B.yml", 128_256, 8_030_261_248, 32, 4096, 32, 8, 14336),
    _llama_family("llama3/3-1-8B.yml", 128_256, 8_030_261_248, 32, 4096, 32, 8, 14336),
    _llama_family("llama3/70B.yml", 128_256, 70_553_706_496, 80, 8192, 64, 8, 28672),
    _llama_family("llemma/7B.yml", 32016, 6_738_546_688, 32, 4096, 32, 32, 11008),
    _llama_family("llemma/34B.yml", 32000, 33_743_970_304, 48, 8192, 64, 8, 22016),
    Model("mistral/7B.yml", 32000, 32000, 7_241_732_096, _mistral(32000, 32, 4096, 32, 8, 14336)),
    Model(
        "mistral/nemo-12B.yml",
        tokens=131_072,
        vocabulary=131_072,
        parameters=12_247_782_400,
        reference=_mistral(131_072, 40, 5120, 32, 8, 14336),
    ),
    Model(
        "mistral/8x7B.yml",
        tokens=32000,
        vocabulary=32000,
        parameters=46_702_792_704,
        reference=_maker(transformers.MixtralConfig, *_gated)(32000, 32, 4096, 32, 8, 14336),
    ),
    _mamba_family("mamba/mamba-130M.yml", 129_135_360, 24, 768),
    _mamba_family("mamba/mamba-370M.yml", 371_516_416, 48, 1024),
    _mamba_family("mamba/mamba-790M.yml", 793_204_224, 48, 1536),
    _mamba_family("mamba/mamba-1.4B.yml", 1_372_178_432, 48, 2048),
    _mamba_family("mamba/mamba-2.8B.yml", 2_768_345_600, 64, 2560),
    Model(
        "gpt-j/6B.yml",
        tokens=GPT2_TOKENS,
        vocabulary=50400,
        parameters=6_050_882_784,
        reference=transformers.GPTJConfig(),
        unused=28 * 2 * 4096,
    ),
    Model("gpt-neo/125M.yml", GPT2_TOKENS, GPT2_TOKENS, 125_198_592, _gpt_neo(12, 768, 12)),
    Model("gpt-neo/1-3B.yml", GPT2_TOKENS, GPT2_TOKENS, 1_315_575_808, _gpt_neo(24, 2048, 16)),
    Model("gpt-neo/2-7B.yml", GPT2_TOKENS, GPT2_TOKENS, 2_651_307_520, _gpt_neo(32, 2560, 20)),
    _opt_family("opt/125M.yml", 125_239_296, 12, 768, 12),
    _opt_family("opt/350M.yml", 331_196_416, 24, 1024, 16, embedding=512),
    _opt_family("opt/1-3B.yml", 1_315_758_080, 24, 2048, 32),
    _opt_family("opt/2-7B.yml", 2_651_596_800, 32, 2560, 32),
    _opt_family("opt/6-7B.yml", 6_658_473_984, 32, 4096, 32),
    _opt_family("opt/13B.yml", 12_853_473_280, 40, 5120, 40),
    _opt_family("opt/30B.yml", 29_974_540_288, 48, 7168, 56),
    _opt_family("opt/66B.yml", None, 64, 9216, 72),
    _opt_family("opt/175B.yml", None, 96, 12288, 96),
    _bloom_family("bloom/560M.yml", 559_214_592, 24, 1024, 16),
    _bloom_family("bloom/1-1B.yml", 1_065_314_304, 24, 1536, 16),
    _bloom_family("bloom/1-7B.yml", 1_722_408_960, 24, 2048, 16),
    _bloom_family("bloom/3B.yml", 3_002_557_440, 30, 2560, 32),
    _bloom_family("bloom/7-1B.yml", 7_069_016_064, 30, 4096, 32),
    _bloom_family("bloom/176B.yml", 176_247_271_424, 70, 14336, 112),
    Model(
        "falcon/7B.yml",
        tokens=65024,
        vocabulary=65024,
        parameters=6_921_720_704,
        reference=_falcon(65024, 32, 4544, 71, 1, multi_query=True),
        unused=32 * 2 * 4544,
    ),
    Model(
        "falcon/40B.yml",
        tokens=65024,
        vocabulary=65024,
        parameters=41_303_293_952,
        reference=_falcon(65024, 60, 8192, 128, 8, new_decoder_architecture=True),
    ),
    Model("palm/8B.yml", 256_000, 256_000, _palm(32, 4096, 16), reference=None, unused=32 * 4096),
    Model("palm/62B.yml", 256_000, 256_000, _palm(64, 8192, 32), reference=None, unused=64 * 8192),
    Model("palm/540B.yml", 256_000, 256_000, _palm(118, 18432, 48), reference=None, unused=118 * 18432),
    Model(
        "stablelm/3B-4e1t.yml",
        tokens=NEOX_TOKENS,
        vocabulary=50304,
        parameters=2_795_443_200,
        reference=_stablelm(50304, 32, 2560, 32, 32, 6912),
    ),
    Model(
        "stablelm/2-1-6B.yml",
        tokens=100_289,
        vocabulary=100_352,
        parameters=None,
        reference=_stablelm(100_352, 24, 2048, 32, 32, 5632, use_qkv_bias=True),
    ),
]
# Not published to the digit, in billions: the paper's table of sizes.
PALM_BILLIONS = {"palm/8B.yml": 8.63, "palm/62B.yml": 62.50, "palm/540B.yml": 540.35}
