"""The fp32 masters of a 16-bit run: unrounded at a fresh start, and not drawn at all where a checkpoint has them."""

import torch

from tests.common.distributed import run_distributed
from tests.distributed.layouts import BASE, VOCABULARY


def masters(settings: dict) -> tuple[bool, bool, torch.Tensor]:
    """(whether masters differ from the rounded weights, whether initial ones were drawn, one of them); saves."""
    from deepspeed.utils import safe_get_full_fp32_param

    from megatron import training
    from megatron.checkpointing import save_checkpoint
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs

    drawn = []
    draw = training.restore_full_precision_masters
    training.restore_full_precision_masters = lambda *args: drawn.append(True) or draw(*args)
    neox_args = NeoXArgs.from_dict({**BASE, "precision": "bfloat16", "global_num_gpus": 1, **settings})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    neox_args.padded_vocab_size = VOCABULARY
    initialize_megatron(neox_args)
    engine, *_ = training.setup_model_and_optimizer(neox_args)
    weight = dict(engine.module.logical_named_parameters())["2.mlp.linear1.weight"]
    master = safe_get_full_fp32_param(weight)
    if engine.loaded_from is None:
        assert save_checkpoint(neox_args, 1, engine)
    return not torch.equal(master, weight.float()), bool(drawn), master.clone()


def test_masters_are_drawn_unrounded_unless_a_checkpoint_has_them(tmp_path):
    settings = {"save": str(tmp_path), "load": str(tmp_path), "checkpoint_factor": 1000}
    unrounded, drawn, fresh = run_distributed(masters, 1, settings)[0]
    assert unrounded and drawn
    unrounded, drawn, resumed = run_distributed(masters, 1, settings)[0]
    assert unrounded and not drawn
    assert torch.equal(fresh, resumed)
