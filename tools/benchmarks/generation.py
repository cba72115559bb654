"""Greedy generation against transformers' `generate` of the same model, on one process, side by side in one run.

    python tools/benchmarks/generation.py                     two sizes, fp32 and bf16, 1 and 8 prompts at once
    python tools/benchmarks/generation.py --family llama      also gpt_neox (the default)

The peer is the model as it is exported, by the same rules as tools/ckpts/convert_neox_to_hf.py has. Both continue the
same random prompts to the same length with their caches and take turns; ratios are medians of the rounds. Both must
choose the same tokens. In bf16 they round differently, and of random weights the likeliest tokens would be near ties:
there each token has a successor that is much likelier than all others.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from megatron.common import device as door
from megatron.common.errors import run_main
from megatron.families import family_named
from megatron.neox_arguments import NeoXArgs
from tools.benchmarks.table import print_table

# name: layers, hidden, heads, vocabulary
SHAPES = {"2 layers of 256": (2, 256, 8, 4096), "12 layers of 768": (12, 768, 12, 50304)}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_neox": {"rotary_pct": 0.25, "gpt_j_residual": True},
    "llama": {
        "norm": "rmsnorm",
        "activation": "swiglu",
        "use_bias_in_attn_linear": False,
        "use_bias_in_mlp": False,
    },
}
PRECISIONS = {"fp32": torch.float32, "bfloat16": torch.bfloat16}
NO_END = -1  # no token ends a text, so that all sides work equally long


class Sides(NamedTuple):
    """Functions from prompts int64 [b, n] to new tokens int64 [b, new]."""

    ours: Callable[[torch.Tensor], torch.Tensor]
    theirs: Callable[[torch.Tensor], torch.Tensor]


def configuration(shape: tuple, family: str, precision: str, sequence: int) -> NeoXArgs:
    layers, hidden, heads, vocabulary = shape
    neox_args = NeoXArgs.from_dict(
        {
            "num_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "seq_length": sequence,
            "max_position_embeddings": sequence, "pos_emb": "rotary", "no_weight_tying": True,
            # Wide, so that the likeliest token is no near tie.
            "init_method": "normal", "output_layer_init_method": "normal", "init_method_std": 0.1,
            "precision": precision, "tokenizer_type": "CharLevelTokenizer", "data_path": "none", "train_iters": 1,
            "train_micro_batch_size_per_gpu": 1, "global_num_gpus": 1,
            "optimizer": {"type": "Adam", "params": {"lr": 1e-3}}, **FAMILIES[family],
        }
    )  # fmt: skip
    neox_args.configure_distributed_args()
    # Tokens without a text, so that all rows of the vocabulary are real ones.
    neox_args.tokenizer = SimpleNamespace(vocab_size=vocabulary, eod=0)
    neox_args.padded_vocab_size = vocabulary
    return neox_args


def build(neox_args: NeoXArgs, family: str, new: int) -> Sides:
    """Both sides with the same weights."""
    from megatron.engine.inference import InferenceModel
    from megatron.engine.setup import get_model
    from megatron.generation.decoding import stream_tokens
    from megatron.initialize import initialize_megatron

    initialize_megatron(neox_args)
    module = get_model(neox_args)
    if neox_args.precision != "fp32":
        prefer_successors(module)
    module.to(neox_args.params_dtype)
    model = InferenceModel(module, neox_args)
    peer = exported(module, neox_args, family)

    def ours(prompts: torch.Tensor) -> torch.Tensor:
        length = prompts.shape[1]
        steps = stream_tokens(
            neox_args, model, prompts.tolist(), eos_token_id=NO_END, maximum_tokens=new, return_logits=False
        )
        tokens = [*steps][-1][0]
        return tokens[:, length : length + new]

    def theirs(prompts: torch.Tensor) -> torch.Tensor:
        whole = torch.ones_like(prompts)
        texts = peer.generate(
            prompts, attention_mask=whole, max_new_tokens=new, min_new_tokens=new, do_sample=False
        )
        return texts[:, prompts.shape[1] :]

    return Sides(ours, theirs)


@torch.no_grad()
def prefer_successors(module: torch.nn.Module) -> None:
    """Give every token the output weights of the token before: what it leaves in the hidden states speaks for it."""
    weights = dict(module.logical_named_parameters())
    words = weights["0.word_embeddings.weight"].mul_(300)
    next(weight for name, weight in weights.items() if name.endswith("final_linear.weight")).copy_(
        words.roll(1, 0)
    )


def exported(module: torch.nn.Module, neox_args: NeoXArgs, family_name: str) -> Any:
    """The model as its family writes it, loaded by transformers as it loads any."""
    import transformers
    from safetensors.torch import save_file

    family = family_named(family_name)
    weights = dict(module.logical_named_parameters())
    state = {
        name: part.detach().contiguous()
        for rule in family.rules(neox_args)
        if rule.native in weights
        for name, part in zip(rule.theirs, rule.form.split(weights[rule.native]), strict=True)
    }
    values = family.to_hf(neox_args, neox_args.padded_vocab_size)
    config = transformers.AutoConfig.for_model(family.model_type, **values, eos_token_id=None)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=neox_args.params_dtype)
    return peer.to(door.current_device()).eval()


def measure(
    sides: Sides, prompts: torch.Tensor, rounds: int, clock: Callable[[], float]
) -> tuple[dict[str, list[float]], bool]:
    """(seconds of every round by side, whether the new tokens are the same); the sides take turns."""
    results = [side(prompts) for side in sides]
    times: dict[str, list[float]] = {name: [] for name in sides._fields}
    for _ in range(rounds):
        for name, side in sides._asdict().items():
            door.synchronize()
            start = clock()
            side(prompts)
            door.synchronize()
            times[name].append(clock() - start)
    return times, torch.equal(*results)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=FAMILIES, default="gpt_neox")
    parser.add_argument("--shape", choices=SHAPES, default=None, help="default: all")
    parser.add_argument("--precision", choices=PRECISIONS, default=None, help="default: both")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="prompts at once")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="new tokens")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="instead of the wall's: for a machine that others use too",
    )
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    rows = []
    for name in [options.shape] if options.shape else SHAPES:
        for precision in [options.precision] if options.precision else PRECISIONS:
            neox_args = configuration(
                SHAPES[name], options.family, precision, options.prompt + options.new + 1
            )
            sides = build(neox_args, options.family, options.new)
            for batch in options.batches:
                generator = torch.Generator().manual_seed(1)
                prompts = torch.randint(SHAPES[name][3], (batch, options.prompt), generator=generator)
                prompts = prompts.to(door.current_device())
                times, same = measure(sides, prompts, options.rounds, clock)
                assert same, "the two sides choose different tokens"
                rows.append([f"{name}, {precision}, {batch} at once", *columns(times, batch * options.new)])
    print_table(
        f"{options.family}: {options.new} new tokens after {options.prompt}, greedy, {torch.get_num_threads()} threads",
        ["model", "tokens/s", "transformers", "ratio"],
        rows,
    )


def columns(times: dict[str, list[float]], tokens: int) -> list[str]:
    ours, theirs = (tokens / statistics.median(values) for values in times.values())
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    return [f"{ours:,.0f}", f"{theirs:,.0f}", f"{ratio:.2f}"]


if __name__ == "__main__":
    run_main(main)
