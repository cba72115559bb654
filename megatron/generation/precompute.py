"""Log-probabilities of data sets under a model, kept beside them: the reference of objectives that compare with one.

Beside PREFIX stands PREFIX_NAME, an indexed data set of float32 with one item of seq_length numbers per document:
number t is the log-probability of token t + 1 given the tokens up to t; 0 where there is no such token.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from megatron import mpu
from megatron.common.console import Progress, info
from megatron.common.errors import ConfigError, DataError
from megatron.data.indexed_dataset import (
    IndexedDatasetReader,
    MMapIndexedDatasetBuilder,
    data_file_path,
    files_exist,
    index_file_path,
    open_dataset,
)
from megatron.engine.batches import to_device
from megatron.engine.exchange import broadcast_json
from megatron.engine.inference import InferenceModel
from megatron.generation.records import is_writer

SPLITS = ("train", "test", "valid")
KINDS = ("", "pos_", "neg_")


def precompute_logits(neox_args, model: InferenceModel) -> list[str]:
    """Write the log-probabilities of all data sets of the config that have none yet. Collective over all ranks.

    Returns: the prefixes of what there is now.
    Raises: ConfigError without data; DataError for data that cannot be read, what cannot be written, and an older
    result of other data or another seq_length.
    """
    sources = data_prefixes(neox_args)
    if not sources:
        raise ConfigError("text_gen_type=precompute needs data: set data_path, or train_data_paths")
    model.inference_mode(use_cache=False)
    name = output_name(neox_args)
    return [_precompute(neox_args, model, source, f"{source}_{name}") for source in sources]


def data_prefixes(neox_args) -> list[str]:
    """All data sets that the config names, each once."""
    listed = [getattr(neox_args, f"{kind}{split}_data_paths") for kind in KINDS for split in SPLITS]
    found = [neox_args.data_path, *(prefix for paths in listed for prefix in paths or ())]
    return [str(prefix) for prefix in dict.fromkeys(found) if prefix]


def output_name(neox_args) -> str:
    """What is put behind a prefix: precompute_model_name, or else the checkpoint's folder and iteration."""
    return neox_args.precompute_model_name or f"{Path(neox_args.load).name}_step{neox_args.iteration}"


def _precompute(neox_args, model: InferenceModel, source: str, target: str) -> str:
    documents = open_dataset(source, neox_args.data_impl)
    exists, problem = broadcast_json(_older(target, documents, neox_args.seq_length))
    if problem:
        raise DataError(problem)
    if exists:
        info(f"{target} is there already: skipped")
        return target
    scored = _scores(neox_args, model, documents)
    if not is_writer():
        for _ in scored:
            pass
        return target
    with (
        MMapIndexedDatasetBuilder(data_file_path(target), dtype=np.float32) as builder,
        Progress(len(documents), "documents", f"scoring {source}") as progress,
    ):
        for rows in scored:
            for row in rows:
                builder.add_item(row)
                builder.end_document()
            progress.update(len(rows))
        builder.finalize(index_file_path(target))
    info(f"log-probabilities of {len(documents)} documents written to {target}")
    return target


def _older(target: str, documents: IndexedDatasetReader, seq_length: int) -> tuple[bool, str]:
    """Whether there is a result already, and what is wrong with it."""
    if not files_exist(target):
        return False, ""
    older = open_dataset(target)
    if len(older) == len(documents) and (older.sizes == seq_length).all():
        return True, ""
    return True, (
        f"{target} is there already, but not with {len(documents)} documents of seq_length={seq_length} numbers: "
        "delete its .bin and .idx, or choose another precompute_model_name"
    )


def _scores(neox_args, model: InferenceModel, documents: IndexedDatasetReader) -> Iterator[np.ndarray]:
    """float32 [some documents, seq_length] in the order of the documents, on all ranks.

    A round is one micro-batch on every data-parallel replica.
    """
    replicas, replica = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
    rows, length = max(1, neox_args.train_micro_batch_size_per_gpu or 1), neox_args.seq_length
    for first in range(0, len(documents), rows * replicas):
        begin = first + replica * rows
        numbers = range(begin, min(begin + rows, len(documents)))
        tokens = [documents.get(number)[: length + 1] for number in numbers]
        found = torch.zeros(rows, length, device=model.device)
        _fill(found, model, tokens, neox_args.padded_vocab_size)
        model.share(found)
        everyone = [found]
        if replicas > 1:
            everyone = [torch.empty_like(found) for _ in range(replicas)]
            dist.all_gather(everyone, found, group=mpu.get_data_parallel_group())
        yield torch.cat(everyone)[: len(documents) - first].cpu().numpy()


def _fill(found: torch.Tensor, model: InferenceModel, documents: list[np.ndarray], vocabulary: int) -> None:
    """Set the first numbers of the rows of `found`, on the last stage. Collective over the replica."""
    predicted = [max(0, len(document) - 1) for document in documents]
    if not any(predicted):
        return
    width = max(predicted)
    texts = torch.zeros(len(documents), width + 1, dtype=torch.int64)
    for text, document in zip(texts, documents, strict=True):
        text[: len(document)] = torch.from_numpy(document.astype(np.int64))
    texts = to_device({"text": texts}, vocabulary)["text"]
    positions = torch.arange(width, device=model.device)
    wanted = positions < torch.tensor(predicted, device=model.device)[:, None]
    places = wanted.nonzero(as_tuple=True)
    inputs, targets = texts[:, :-1].contiguous(), texts[:, 1:]
    logits = model.logits_at(inputs, positions.expand_as(inputs).contiguous(), *places)
    if logits is not None:
        found[places] = -mpu.vocab_parallel_cross_entropy(logits, targets[places])
