"""How long a run is: samples, tokens, epochs of the data, checkpoints."""

from dataclasses import dataclass
from typing import Any

from megatron.checkpointing.schedule import is_save_iter
from megatron.common.errors import NeoXError
from megatron.data.indexed_dataset import files_exist, open_dataset
from megatron.data.shares import get_train_valid_test_split_


@dataclass(frozen=True)
class Source:
    """A training data set. tokens, documents: of the part that is trained on; None where the files are not here.
    wanted: tokens the run takes from it; None where the run is measured in epochs."""

    prefix: str
    tokens: int | None
    documents: int | None
    wanted: float | None
    note: str = ""

    @property
    def epochs(self) -> float | None:
        """Passes over it."""
        return self.wanted / self.tokens if self.tokens and self.wanted is not None else None


def iterations(neox_args: Any, sources: list[Source]) -> int | None:
    """Optimizer steps, None where they follow from data that is not here."""
    if neox_args.train_iters is not None:
        return neox_args.train_iters
    sizes = [source.tokens for source in sources]
    if neox_args.train_epochs is None or not sizes or None in sizes:
        return None
    samples = sum((size - 1) // neox_args.seq_length for size in sizes if size)
    return samples // neox_args.train_batch_size * neox_args.train_epochs


def tokens_per_step(neox_args: Any) -> int:
    """Tokens of one optimizer step."""
    return neox_args.train_batch_size * neox_args.seq_length


def save_iterations(neox_args: Any, steps: int) -> list[int]:
    """Iterations after which a checkpoint is written, the end of the run included."""
    if neox_args.save is None:
        return []
    found = [step for step in range(steps + 1) if is_save_iter(neox_args, step)]
    return found if steps in found else [*found, steps]


def training_sources(neox_args: Any) -> list[Source]:
    """The training data sets of a configuration; a sample server is none."""
    if neox_args.dataset_impl == "online":
        return []
    wanted = None
    if neox_args.train_iters is not None:
        wanted = float(neox_args.train_iters * tokens_per_step(neox_args))
    if neox_args.data_path:
        return [_source(neox_args, neox_args.data_path, wanted, neox_args.split)]
    paths, weights = neox_args.train_data_paths or [], neox_args.train_data_weights or []
    shares = [weight / sum(weights) for weight in weights]
    if neox_args.weight_by_num_documents and len(paths) > 1:
        return [_source(neox_args, path, None, None) for path in paths]
    return [
        _source(neox_args, path, None if wanted is None else wanted * share, None)
        for path, share in zip(paths, shares, strict=True)
    ]


def _source(neox_args: Any, prefix: str, wanted: float | None, split: str | None) -> Source:
    if not files_exist(prefix):
        return Source(prefix, None, None, wanted, "not here")
    try:
        sizes = open_dataset(prefix, neox_args.data_impl, skip_warmup=True).sizes
    except NeoXError as error:
        return Source(prefix, None, None, wanted, str(error))
    if split is not None:
        sizes = sizes[: get_train_valid_test_split_(split, len(sizes))[1]]
    return Source(prefix, int(sizes.sum(dtype="int64")), len(sizes), wanted)
