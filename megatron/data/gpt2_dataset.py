"""Samples of seq_length + 1 tokens out of an indexed data set, each a pure function of (seed, sample number)."""

import hashlib
from pathlib import Path

import numpy as np

from megatron.common.errors import DataError
from megatron.data.indexed_dataset import IndexedDatasetReader
from megatron.data.map_cache import StoredMaps, load_or_build
from megatron.data.packing import IGNORED_LABEL, IndexMaps, PackingRequest
from megatron.data.packing import build_shuffle_idx as _build_shuffle_idx
from megatron.data.packing.packed import build_doc_idx as _build_doc_idx
from megatron.data.packing.packed import build_sample_idx as _build_sample_idx
from megatron.data.packing.packed import num_epochs as _num_epochs
from megatron.data.packing.packed import num_tokens as _num_tokens
from megatron.registry import capabilities, lookup, register

__all__ = [
    "GPT2Dataset",
    "_build_doc_idx",
    "_build_index_mappings",
    "_build_sample_idx",
    "_build_shuffle_idx",
    "_num_epochs",
    "_num_tokens",
]

PADDING_TOKEN = 0


@register("dataset", "gpt2")
class GPT2Dataset:
    """A map-style data set for language models.

    Args: name: "train", "valid_0", ..., part of the index map's name; data_prefix: prefix of the data, beside which the
    maps are kept; documents: numbers of the documents of this split (range or int array); num_samples or num_epochs:
    how much is needed; pack_impl: a registered packing; allow_chopped: cut documents that are longer than a sample
    instead of leaving them out; build_index_mappings: False only opens the data; use_shared_fs: False when each machine
    keeps its own maps; label_dataset: labels, same shape as the text, -100 where nothing is to be learnt;
    reward_dataset: one float32 per document, ref_dataset: float32 per token (both only with pack_impl "unpacked").

    Item: dict of arrays of seq_length + 1 elements: text int64; label int64 (with label data, and always where whole
    documents are padded: padding is -100 in it and 0 in the text); reward and ref float32, 0 on padding.
    Raises: DataError if the data cannot give such samples; IndexError for an item outside [-len, len).
    """

    def __init__(
        self,
        name: str,
        data_prefix,
        documents: range | np.ndarray,
        indexed_dataset: IndexedDatasetReader,
        num_samples: int | None,
        num_epochs: int | None,
        seq_length: int,
        seed: int,
        pack_impl: str = "packed",
        allow_chopped: bool = True,
        build_index_mappings: bool = True,
        use_shared_fs: bool = True,
        label_dataset: IndexedDatasetReader | None = None,
        reward_dataset: IndexedDatasetReader | None = None,
        ref_dataset: IndexedDatasetReader | None = None,
    ):
        self.name, self.data_prefix, self.seq_length = name, str(data_prefix), seq_length
        self.documents = documents
        self.indexed_dataset, self.label_dataset = indexed_dataset, label_dataset
        self.reward_dataset, self.ref_dataset = reward_dataset, ref_dataset
        self.whole_documents = capabilities("packing", pack_impl).whole_documents
        self._check(pack_impl)
        self._maps = None
        if build_index_mappings:
            self._maps = _build_index_mappings(
                name,
                data_prefix,
                documents,
                indexed_dataset,
                label_dataset,
                num_samples,
                num_epochs,
                seq_length,
                seed,
                pack_impl,
                use_shared_fs,
                allow_chopped,
            )
            self._attach()

    def _check(self, pack_impl: str) -> None:
        count = len(self.indexed_dataset)
        documents = self.documents
        if len(documents) == 0:
            raise DataError(f"{self.name} split of {self.data_prefix}: it has no documents")
        assert min(documents[0], documents[-1]) >= 0 and max(documents[0], documents[-1]) < count
        labels = self.label_dataset
        if labels is not None and not np.array_equal(labels.sizes, self.indexed_dataset.sizes):
            raise DataError(
                f"labels {labels.path} do not belong to {self.data_prefix}: their documents differ in length"
            )
        for extra, meaning in (
            (self.reward_dataset, "rewards"),
            (self.ref_dataset, "reference log-probabilities"),
        ):
            if extra is not None and pack_impl != "unpacked":
                raise DataError(
                    f"{meaning} {extra.path} need pack_impl unpacked: they belong to whole documents"
                )
            if extra is not None and len(extra) != count:
                raise DataError(
                    f"{meaning} {extra.path} have {len(extra)} documents, {self.data_prefix} has {count}"
                )

    def _attach(self) -> None:
        arrays = self._maps.arrays
        self.doc_idx, self.sample_idx = arrays["doc_idx"], arrays["sample_idx"]
        self.shuffle_idx = arrays["shuffle_idx"]
        self._rows = self.sample_idx.reshape(-1)

    def __getstate__(self) -> dict:
        views = ("doc_idx", "sample_idx", "shuffle_idx", "_rows")
        return {name: value for name, value in self.__dict__.items() if name not in views}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self._maps is not None:
            self._attach()

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens that one pass over the split's documents trains on."""
        return self._maps.facts["tokens_per_epoch"]

    def epochs_of(self, num_samples: int) -> float:
        """Passes over the documents that so many samples make, on average."""
        return num_samples / max(1, len(self)) * self._maps.facts["epochs"]

    def __len__(self) -> int:
        return len(self.shuffle_idx)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = 2 * self.shuffle_idx.item(index)
        first, start, last, end = self._rows[row : row + 4].tolist()
        if self.whole_documents:
            return self._padded_sample(self.doc_idx[first:last].tolist())
        documents = self.doc_idx[first : last + 1].tolist()
        sample = {"text": self.indexed_dataset.join(documents, start, end)}
        if self.label_dataset is not None:
            sample["label"] = self.label_dataset.join(documents, start, end)
        return sample

    def _padded_sample(self, documents: list[int]) -> dict[str, np.ndarray]:
        length = self.seq_length + 1
        text = np.full(length, PADDING_TOKEN, dtype=np.int64)
        label = np.full(length, IGNORED_LABEL, dtype=np.int64)
        labels = self.label_dataset or self.indexed_dataset
        filled = 0
        for document in documents:
            count = min(int(self.indexed_dataset.sizes[document]), length - filled)
            text[filled : filled + count] = self.indexed_dataset.get(document, 0, count)
            label[filled : filled + count] = labels.get(document, 0, count)
            filled += count
        sample = {"text": text, "label": label}
        if self.reward_dataset is not None:
            sample["reward"] = np.zeros(length, dtype=np.float32)
            sample["reward"][:filled] = self.reward_dataset.get(documents[0], 0, 1)
        if self.ref_dataset is not None:
            reference = self.ref_dataset.get(documents[0])[:length]
            sample["ref"] = np.zeros(length, dtype=np.float32)
            sample["ref"][: len(reference)] = reference
        return sample


def _build_index_mappings(
    name: str,
    data_prefix,
    documents: range | np.ndarray,
    indexed_dataset: IndexedDatasetReader,
    label_dataset: IndexedDatasetReader | None,
    num_samples: int | None,
    num_epochs: int | None,
    seq_length: int,
    seed: int,
    pack_impl: str,
    use_shared_fs: bool,
    allow_chopped: bool = True,
) -> StoredMaps:
    """The index maps of a data set, from the cache if they have been built before; arguments as of `GPT2Dataset`."""
    request = PackingRequest(
        description=f"{name} split of {data_prefix}",
        sizes=indexed_dataset.sizes,
        documents=documents,
        seq_length=seq_length,
        num_samples=None if num_epochs else num_samples,
        num_epochs=num_epochs,
        seed=seed,
        allow_chopped=allow_chopped,
        labels=label_dataset,
    )

    def build() -> tuple[dict[str, np.ndarray], dict]:
        maps: IndexMaps = lookup("packing", pack_impl)(request)
        arrays = {"doc_idx": maps.doc_idx, "sample_idx": maps.sample_idx, "shuffle_idx": maps.shuffle_idx}
        return arrays, {"tokens_per_epoch": maps.tokens_per_epoch, "epochs": maps.epochs}

    return load_or_build(
        Path(f"{data_prefix}_index_maps"),
        f"{name}_{pack_impl}_{seq_length}",
        _cache_key(request, indexed_dataset.fingerprint(), pack_impl),
        build,
        use_shared_fs,
    )


def _cache_key(request: PackingRequest, data_fingerprint, pack_impl: str) -> dict:
    """All that the maps depend on."""
    key = {
        "data": data_fingerprint,
        "documents": _describe(request.documents),
        "seq_length": request.seq_length,
        "num_samples": request.num_samples,
        "num_epochs": request.num_epochs,
        "seed": request.seed,
        "packing": pack_impl,
        "allow_chopped": None,
        "labels": None,
    }
    # What only whole documents depend on must not make packed maps be built twice.
    if capabilities("packing", pack_impl).whole_documents:
        key["allow_chopped"] = request.allow_chopped
        if request.labels is not None:
            key["labels"] = request.labels.fingerprint(values=True)
    return key


def _describe(documents: range | np.ndarray) -> list:
    """What goes into the key for a choice of documents: bounds of a contiguous range, else a digest."""
    if isinstance(documents, range):
        return [documents.start, documents.stop]
    documents = np.asarray(documents, dtype=np.int64)
    if (np.diff(documents) == 1).all():
        return [int(documents[0]), int(documents[-1]) + 1]
    return [len(documents), hashlib.sha256(documents.tobytes()).hexdigest()]
