"""From the config to the training, validation and test data: which files, how much of each, and the loaders."""

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron import mpu
from megatron.common.console import print_rank_0, warn
from megatron.common.errors import ConfigError, DataError
from megatron.common.files import allow_open_files
from megatron.data.blendable_dataset import BlendableDataset
from megatron.data.helpers_build import compile_helper
from megatron.data.indexed_dataset import open_dataset
from megatron.data.loaders import make_data_loader, shift_and_wrap_data_loaders
from megatron.data.shared_batches import Readers, SharedBatches, replica_readers
from megatron.data.shares import (
    get_normalized_weights_and_num_samples,
    get_train_valid_test_split_,
    weights_by_num_docs,
)
from megatron.neox_arguments.rules.training import epoch_problems
from megatron.registry import lookup

__all__ = [
    "DataLoaders",
    "build_datasets",
    "build_the_dataset",
    "build_train_valid_test_data_loaders",
    "build_train_valid_test_datasets",
    "build_weighted_datasets",
    "compile_helper",
    "get_normalized_weights_and_num_samples",
    "get_train_valid_test_split_",
    "make_data_loader",
    "shift_and_wrap_data_loaders",
    "validate_train_epochs",
    "weights_by_num_docs",
]

SPLITS = ("train", "valid", "test")
FILES_PER_SOURCE = 8
FILES_FOR_THE_REST = 512


class DataLoaders(dict):
    """{"train", "valid", "test": loader or None}, and on every rank, reading data or not, what the run has to do.

    Attributes: do_train, do_valid, do_test.
    """

    do_train = do_valid = do_test = False


@dataclass(frozen=True)
class Source:
    """Prefixes of one data set of a split and of its labels, and its weight."""

    text: str
    label: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Amount:
    """How much of a split is needed: samples, or passes over the data."""

    samples: int | None
    epochs: int | None


def build_train_valid_test_data_loaders(neox_args) -> DataLoaders:
    """The loaders of the run, on ranks of the first and the last pipeline stage; the others read no data.

    Every such rank reads for itself: its data-parallel part, the same on all ranks of a tensor-parallel group.
    Raises: ConfigError for data options that contradict each other; DataError for data that is missing, damaged, empty
    or too little for one batch.
    """
    loaders = DataLoaders.fromkeys(SPLITS)
    readers = replica_readers() if neox_args.dataset_impl == "online" else None
    stage, stages = mpu.get_pipe_parallel_rank(), mpu.get_pipe_parallel_world_size()
    if stage in (0, stages - 1):
        for name, dataset in build_datasets(neox_args, readers).items():
            loaders[name] = make_data_loader(dataset, neox_args, name)
    flags = [loaders[name] is not None for name in SPLITS]
    if stages > 2 and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(flags, src=0)
    loaders.do_train, loaders.do_valid, loaders.do_test = flags
    return loaders


def build_datasets(neox_args, readers: Readers | None = None) -> dict:
    """The data set of each split of the run, None for one without data, and what is read of each source on rank 0.

    This is all that takes time, and it leaves index maps behind that every later start only opens.
    Args: readers: the ranks that get the same live samples as this one, if there are any.
    """
    amounts = needed_amounts(neox_args)
    if neox_args.dataset_impl == "online":
        return _online_datasets(neox_args, amounts, readers)
    datasets = dict(zip(SPLITS, _datasets(neox_args, amounts), strict=True))
    for name, dataset in datasets.items():
        if dataset is not None:
            _report(name, dataset, amounts[name], neox_args.seq_length)
    return datasets


def _online_datasets(neox_args, amounts: dict[str, Amount], readers: Readers | None) -> dict:
    """Live samples for each split that the run reads; one rank of each replica asks for them."""
    datasets: dict = dict.fromkeys(SPLITS)
    for name, amount in amounts.items():
        if not amount.samples:
            continue
        dataset = lookup("dataset", "online")(
            amount.samples,
            neox_args.seq_length,
            neox_args.reinforce_leave_one_out,
            name,
            neox_args.online_dataserver_ips,
            neox_args.online_dataserver_ports,
            neox_args.online_dataserver_timeout,
        )
        datasets[name] = dataset if readers is None else SharedBatches(dataset, readers)
        print_rank_0(
            f"{name} data: {amount.samples:,} samples of the server at {dataset.host}:{dataset.port}"
        )
    return datasets


def needed_amounts(neox_args) -> dict[str, Amount]:
    """How much of each split the run reads. Raises: ConfigError without a train length."""
    if neox_args.train_epochs:
        rest = Amount(None, 1) if neox_args.eval_iters else Amount(0, None)
        return {"train": Amount(None, 1), "valid": rest, "test": rest}
    if neox_args.train_iters is None:
        raise ConfigError("set train_iters or train_epochs: the data loaders must know how much to prepare")
    batch, evaluated = neox_args.train_batch_size, neox_args.eval_iters
    evaluations = neox_args.train_iters // neox_args.eval_interval + 1 if neox_args.eval_interval else 1
    return {
        "train": Amount(neox_args.train_iters * batch, None),
        "valid": Amount(evaluations * evaluated * batch, None),
        "test": Amount(evaluated * batch, None),
    }


def validate_train_epochs(neox_args) -> None:
    """Raises: ConfigError if the run cannot be measured in epochs, naming every reason."""
    if problems := list(epoch_problems(neox_args)):
        raise ConfigError(problems)


def _datasets(neox_args, amounts: dict[str, Amount]) -> list:
    """Data set or None for each split."""
    if neox_args.data_path:
        return list(
            build_train_valid_test_datasets(
                neox_args.data_path,
                neox_args.use_shared_fs,
                neox_args.data_impl,
                neox_args.pack_impl,
                neox_args.dataset_impl,
                neox_args.allow_chopped,
                neox_args.split,
                [amounts[name].samples for name in SPLITS],
                [amounts[name].epochs for name in SPLITS],
                neox_args.seq_length,
                neox_args.seed,
                not neox_args.mmap_warmup,
            )
        )
    sources = {name: _sources(neox_args, name) for name in SPLITS}
    if not sources["train"]:
        raise ConfigError("no training data: set data_path, or train_data_paths")
    allow_open_files(FILES_PER_SOURCE * sum(map(len, sources.values())) + FILES_FOR_THE_REST)
    return [_blend(neox_args, name, sources[name], amounts[name]) for name in SPLITS]


def build_train_valid_test_datasets(
    data_prefix: str,
    use_shared_fs: bool,
    data_impl: str,
    pack_impl: str,
    dataset_impl: str,
    allow_chopped: bool,
    splits_string: str,
    train_valid_test_num_samples: list[int | None],
    train_valid_test_epochs: list[int | None],
    seq_length: int,
    seed: int,
    skip_warmup: bool,
) -> tuple:
    """Divide one data set's documents and build (train, valid, test), None for a split without documents or samples."""
    indexed = open_dataset(data_prefix, data_impl, skip_warmup)
    bounds = get_train_valid_test_split_(splits_string, len(indexed))
    datasets = []
    for i, name in enumerate(SPLITS):
        documents = range(bounds[i], bounds[i + 1])
        samples, epochs = train_valid_test_num_samples[i], train_valid_test_epochs[i]
        needed = samples != 0 or epochs
        if needed and not documents:
            share = f"split {splits_string!r} of the {len(indexed)} documents of {data_prefix}"
            if name == "train":
                raise DataError(f"{share} trains on none")
            warn(f"{share} leaves none for {name}: it is left out")
        if not needed or not documents:
            datasets.append(None)
            continue
        datasets.append(
            lookup("dataset", dataset_impl)(
                name,
                data_prefix,
                documents,
                indexed,
                samples,
                epochs,
                seq_length,
                seed,
                pack_impl=pack_impl,
                allow_chopped=allow_chopped,
                use_shared_fs=use_shared_fs,
            )
        )
    return tuple(datasets)


def build_the_dataset(
    data_prefix: str,
    name: str,
    data_impl: str,
    pack_impl: str,
    dataset_impl: str,
    allow_chopped: bool,
    num_samples: int | None,
    num_epochs: int | None,
    seq_length: int,
    seed: int,
    skip_warmup: bool,
    build_index_mappings: bool = True,
    use_shared_fs: bool = True,
    label_prefix: str | None = None,
):
    """All documents of one data set, with labels if it has any.

    Raises: DataError if files are missing or damaged, or cannot give such samples.
    """
    indexed = open_dataset(data_prefix, data_impl, skip_warmup)
    labels = open_dataset(label_prefix, data_impl, skip_warmup) if label_prefix else None
    return lookup("dataset", dataset_impl)(
        name,
        data_prefix,
        range(len(indexed)),
        indexed,
        num_samples,
        num_epochs,
        seq_length,
        seed,
        pack_impl=pack_impl,
        allow_chopped=allow_chopped,
        build_index_mappings=build_index_mappings,
        use_shared_fs=use_shared_fs,
        label_dataset=labels,
    )


def build_weighted_datasets(
    neox_args,
    train_num_samples,
    valid_num_samples,
    test_num_samples,
    train_epochs,
    valid_epochs,
    test_epochs,
    build_index_mappings: bool = True,
) -> tuple[list, list, list]:
    """The members of each split's blend, in the order of *_data_paths.

    Args: *_num_samples: samples needed of each member, or None; *_epochs: passes over each member, or None.
    """
    counts, epochs = (
        (train_num_samples, valid_num_samples, test_num_samples),
        (train_epochs, valid_epochs, test_epochs),
    )
    return tuple(
        _members(neox_args, name, _sources(neox_args, name), counts[i], epochs[i], build_index_mappings)
        for i, name in enumerate(SPLITS)
    )


def _sources(neox_args, split: str) -> list[Source]:
    """The data sets of a split."""
    texts = getattr(neox_args, f"{split}_data_paths") or []
    labels = getattr(neox_args, f"{split}_label_data_paths") or [None] * len(texts)
    weights = getattr(neox_args, f"{split}_data_weights") or [1.0] * len(texts)
    return [Source(*fields) for fields in zip(texts, labels, weights, strict=True)]


def _members(neox_args, split: str, sources: list[Source], counts, epochs, build_index_mappings=True) -> list:
    return [
        build_the_dataset(
            source.text,
            f"{split}_{i}",
            neox_args.data_impl,
            neox_args.pack_impl,
            neox_args.dataset_impl,
            neox_args.allow_chopped,
            counts[i] if counts else None,
            epochs,
            neox_args.seq_length,
            neox_args.seed,
            not neox_args.mmap_warmup,
            build_index_mappings=build_index_mappings,
            use_shared_fs=neox_args.use_shared_fs,
            label_prefix=source.label,
        )
        for i, source in enumerate(sources)
    ]


def _blend(neox_args, split: str, sources: list[Source], amount: Amount):
    """One data set out of a split's sources: a blend by weight, or, for epochs, all of each once per epoch."""
    sources = [source for source in sources if source.weight != 0]
    if not sources or (amount.samples == 0 and not amount.epochs):
        return None
    weights = [source.weight for source in sources]
    if amount.epochs:
        members = _members(neox_args, split, sources, None, amount.epochs)
        weights, wanted = [float(len(member)) for member in members], None
    else:
        if neox_args.weight_by_num_documents:
            opened = _members(neox_args, split, sources, None, None, build_index_mappings=False)
            weights = weights_by_num_docs(
                [len(member.documents) for member in opened], neox_args.weighted_sampler_alpha
            )
        weights, counts = get_normalized_weights_and_num_samples(weights, amount.samples)
        members, wanted = _members(neox_args, split, sources, counts, None), amount.samples
    if len(members) == 1:
        return members[0]
    cache = Path(f"{sources[0].text}_index_maps")
    return BlendableDataset(members, weights, wanted, cache, neox_args.use_shared_fs)


def _report(split: str, dataset, amount: Amount, seq_length: int) -> None:
    """Print what the run will read of each source: tokens and passes."""
    samples = len(dataset) if amount.samples is None else min(amount.samples, len(dataset))
    if isinstance(dataset, BlendableDataset):
        members, counts = dataset.datasets, dataset.counts(samples)
    else:
        members, counts = [dataset], [samples]
    length = "per epoch" if amount.epochs else "in this run"
    print_rank_0(f"{split} data {length}: {samples:,} samples of {seq_length:,} tokens")
    for member, count in zip(members, counts, strict=True):
        share = f"{100 * count / samples:.1f} % of the samples, " if len(members) > 1 else ""
        passes = member.epochs_of(count)
        print_rank_0(
            f"  {member.data_prefix}: {share}{passes * member.tokens_per_epoch:,.0f} tokens, {passes:.3g} passes over"
            f" {len(member.documents):,} documents with {member.tokens_per_epoch:,} tokens"
        )
