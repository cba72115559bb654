"""Every shipped model config trains: the same keys, at a width that fits a laptop."""

import pytest

from tests.common.distributed import run_distributed
from tests.common.paths import ROOT
from tests.distributed.layouts import VOCABULARY, batches

SMALL = {
    "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 32, "max_position_embeddings": 32,
    "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, "train_batch_size": None, "train_iters": 20,
    "lr_decay_iters": 20, "pipe_parallel_size": 1, "model_parallel_size": 1, "global_num_gpus": 1, "hostfile": None,
    "tokenizer_type": "CharLevelTokenizer", "attention_config": None, "save": None, "load": None, "data_path": "none",
    "train_data_paths": None, "valid_data_paths": None, "test_data_paths": None, "log_dir": None,
    "tensorboard_dir": None, "num_gpus": None, "launcher": "pdsh", "deepspeed_slurm": False, "vocab_file": None,
    "checkpoint_factor": None, "extra_save_iters": None, "finetune": False,
}  # fmt: skip
STEPS = 6


def models() -> list[str]:
    """Names of the config files that describe a model."""
    folders = [ROOT / "configs", ROOT / "configs/pythia"]
    files = [path for folder in folders for path in sorted(folder.glob("*.yml"))]
    return [
        str(path.relative_to(ROOT)) for path in files if "num_layers" in path.read_text().replace("-", "_")
    ]


def losses_of(names: list[str]) -> dict[str, list[float]]:
    """Losses of a few steps of every config, one after another in one process."""
    from megatron.common.timers import Timers
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import setup_model_and_optimizer, train_step

    found = {}
    for name in names:
        neox_args = NeoXArgs.from_ymls([str(ROOT / name)], overwrite_values=SMALL)
        neox_args.configure_distributed_args()
        neox_args.build_tokenizer()
        neox_args.padded_vocab_size = VOCABULARY
        initialize_megatron(neox_args)
        engine, optimizer, scheduler, _ = setup_model_and_optimizer(neox_args)
        engine.train()
        iterator, timers = batches(neox_args), Timers()
        steps = [train_step(neox_args, timers, iterator, engine, optimizer, scheduler) for _ in range(STEPS)]
        found[name] = [float(losses["lm_loss"]) for losses, _ in steps]
    return found


@pytest.mark.parametrize("part", range(2))
def test_every_model_config_trains_at_reduced_width(part):
    names = models()[part::2]
    assert len(names) > 8
    results = run_distributed(losses_of, 1, names, timeout=400)[0]
    for name, losses in results.items():
        assert max(losses) < 6.0, (name, losses)
        assert losses[-1] < losses[0] + 0.1, (name, losses)
