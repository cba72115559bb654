"""Small data sets for the tests of this folder."""

from types import SimpleNamespace

import numpy as np

from megatron.data import indexed_dataset
from megatron.data.gpt2_dataset import GPT2Dataset

SEED = 1234


def write_dataset(prefix, documents, impl="mmap", dtype=np.int32):
    """Write documents (lists of numbers) and return the prefix as text."""
    builder_type = {
        "mmap": indexed_dataset.MMapIndexedDatasetBuilder,
        "cached": indexed_dataset.IndexedDatasetBuilder,
    }[impl]
    with builder_type(f"{prefix}.bin", dtype=dtype) as builder:
        for document in documents:
            builder.add_item(np.array(document, dtype=dtype))
            builder.end_document()
        builder.finalize(f"{prefix}.idx")
    return str(prefix)


def numbered(sizes, step=10):
    """Token k of document d is step * d + k, as in the golden vectors."""
    return [[step * d + k for k in range(size)] for d, size in enumerate(sizes)]


def random_sizes(count, seed=0, largest=40):
    return np.random.RandomState(seed).randint(1, largest, count).tolist()


def make_gpt2(prefix, num_samples=None, seq_length=8, num_epochs=None, documents=None, **options):
    dataset = indexed_dataset.open_dataset(prefix)
    documents = range(len(dataset)) if documents is None else documents
    return GPT2Dataset(
        "train", prefix, documents, dataset, num_samples, num_epochs, seq_length, SEED, **options
    )


def texts(dataset):
    return [dataset[i]["text"].tolist() for i in range(len(dataset))]


def config(**changes):
    """The part of a config that the data loaders read."""
    values = {
        "data_path": None,
        "split": "8,1,1",
        "data_impl": "infer",
        "pack_impl": "packed",
        "dataset_impl": "gpt2",
        "allow_chopped": True,
        "use_shared_fs": True,
        "mmap_warmup": False,
        "seq_length": 8,
        "seed": SEED,
        "train_iters": 10,
        "train_epochs": None,
        "eval_iters": 2,
        "eval_interval": 5,
        "iteration": None,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 4,
        "num_workers": 0,
        "weight_by_num_documents": False,
        "weighted_sampler_alpha": 1.0,
    }
    for split in ("train", "valid", "test"):
        for key in ("data_paths", "label_data_paths", "data_weights"):
            values[f"{split}_{key}"] = None
    return SimpleNamespace(**{**values, **changes})
