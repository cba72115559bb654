"""However a run is continued, it reads on where it stopped: exactly the remaining samples, none twice (P2)."""

import torch

from tests.common.distributed import run_distributed
from tests.common.neox.data import packed_samples, random_documents, write_mmap
from tests.distributed.test_foreign_checkpoints import SEED, settings, spy, start

TOTAL = 400


def read_on(config: dict, world_size: int, steps: int) -> tuple[int, torch.Tensor]:
    """Go on with the newest checkpoint and save. Returns: the data-parallel rank, and what it has read."""
    from megatron import mpu
    from megatron.checkpointing import save_checkpoint
    from megatron.common.timers import Timers
    from megatron.data.data_utils import build_train_valid_test_data_loaders, shift_and_wrap_data_loaders
    from megatron.training import train_step

    neox_args, engine = start(config, world_size)
    loaders = build_train_valid_test_data_loaders(neox_args)
    train, *_ = shift_and_wrap_data_loaders(
        neox_args, loaders, iteration=engine.loaded_iteration, samples=engine.samples_before
    )
    fed: list[torch.Tensor] = []
    for _ in range(steps):
        train_step(neox_args, Timers(), spy(train, fed), engine, None, None)
    assert save_checkpoint(neox_args, engine.loaded_iteration + steps, engine)
    return mpu.get_data_parallel_rank(), torch.stack(fed)


def test_other_data_parallel_and_batch_sizes_go_on_with_the_next_sample(tmp_path):
    documents = random_documents(150, 512)
    prefix = write_mmap(tmp_path / "text_document", documents)
    place = str(tmp_path / "run")
    read = []
    for world_size, batch_size, steps, changes in (
        (1, 8, 3, {}),
        (2, 8, 2, {"zero_optimization": {"stage": 1}}),
        (1, 4, 3, {}),
        (2, 16, 2, {"no_load_optim": True}),
    ):
        config = settings(place, prefix, save=place, train_iters=TOTAL // batch_size, split="1,0,0")
        config |= {"train_batch_size": batch_size, "checkpoint_factor": 1000, **changes}
        parts = run_distributed(read_on, world_size, config, world_size, steps)
        # [micro-batches, replicas, samples of one, s+1]
        rows = torch.stack([text for _, text in sorted(parts, key=lambda part: part[0])], 1)
        read.append(rows.flatten(0, 2))
        assert len(read[-1]) == batch_size * steps
    expected = torch.from_numpy(packed_samples(documents, TOTAL, 16, SEED))
    assert torch.equal(torch.cat(read), expected[: sum(map(len, read))])
