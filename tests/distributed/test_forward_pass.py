"""Logits saved with a checkpoint prove on loading that the model is the same."""

import pytest
import torch

from megatron.checkpointing.forward_pass import LOGITS_FILE
from megatron.checkpointing.manifest import file_record, read_manifest, write_manifest
from tests.common.distributed import DistributedTestError, run_distributed
from tests.distributed.layouts import BASE, SEQUENCE, VOCABULARY, batches

LAYOUTS = {
    "single, bf16": {"precision": "bfloat16"},
    "pp2 1x4": {"pipe_parallel_size": 2, "train_micro_batch_size_per_gpu": 1},
    "tp2+sp": {"model_parallel_size": 2, "sequence_parallel": True},
}
STAIRS = {
    "schedule_type": "fixed_discrete",
    "schedule_config": {"difficulty": [8, 16, 32], "max_step": [2, 5]},
}


def build(settings: dict, world_size: int):
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import setup_model_and_optimizer

    options = {
        "checkpoint_validation_with_forward_pass": True,
        "checkpoint_factor": 1000,
        "hidden_dropout": 0.1,
    }
    # The length that training has reached must not matter.
    options["curriculum_learning"] = STAIRS
    neox_args = NeoXArgs.from_dict({**BASE, **options, "global_num_gpus": world_size, **settings})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    neox_args.padded_vocab_size = VOCABULARY
    initialize_megatron(neox_args)
    return neox_args, setup_model_and_optimizer(neox_args)[0]


def train_and_save(settings: dict, world_size: int) -> list[float]:
    from megatron.checkpointing import save_checkpoint
    from megatron.common.timers import Timers
    from megatron.training import train_step

    neox_args, engine = build(settings, world_size)
    data, losses = batches(neox_args), []
    for step in range(4):
        losses.append(float(train_step(neox_args, Timers(), data, engine, None, None)[0]["lm_loss"]))
        if step == 2:
            assert save_checkpoint(neox_args, 3, engine)
    return losses


def load(settings: dict, world_size: int) -> int:
    return build(settings, world_size)[1].loaded_iteration


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_model_is_accepted_and_another_is_not(layout, tmp_path):
    settings = {**LAYOUTS[layout], "save": str(tmp_path), "load": str(tmp_path)}
    world_size = 1 if "single" in layout else 2
    run_distributed(train_and_save, world_size, settings, world_size)
    assert run_distributed(load, world_size, settings, world_size) == [3] * world_size
    path = tmp_path / "global_step3" / LOGITS_FILE
    logits = torch.load(path, weights_only=True)["logits"]
    assert logits.shape == (SEQUENCE, VOCABULARY) and logits.dtype == torch.float32
    torch.save({"logits": logits + 0.1 * torch.eye(SEQUENCE, VOCABULARY)}, path)
    # A file with another sum than the manifest says would not be read at all.
    description = read_manifest(path.parent)
    files = {**description["files"], LOGITS_FILE: file_record(path)}
    write_manifest(path.parent, files, description)
    with pytest.raises(DistributedTestError) as caught:
        run_distributed(load, world_size, settings, world_size)
    assert "the loaded model's logits differ from the saved ones by 0." in next(
        iter(caught.value.exceptions.values())
    )


def test_saving_the_logits_changes_nothing(tmp_path):
    saved = {"save": str(tmp_path), "load": str(tmp_path)}
    without = {
        **saved,
        "save": str(tmp_path / "other"),
        "load": None,
        "checkpoint_validation_with_forward_pass": False,
    }
    assert run_distributed(train_and_save, 1, saved, 1) == run_distributed(train_and_save, 1, without, 1)
