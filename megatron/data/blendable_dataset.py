"""Several data sets read as one, in given proportions."""

from pathlib import Path

import numpy as np

from megatron.common.errors import DataError
from megatron.data import helpers
from megatron.data.map_cache import StoredMaps, load_or_build


class BlendableDataset:
    """Sample t comes from the member that is furthest behind its share of the first max(t, 1) samples.

    Args: datasets: any number of map-style data sets; weights: their shares, positive, normalised here; num_samples:
    how many are needed (default: as many as the members have together); cache: folder where the map is kept, None to
    build it in memory; shared: False when each machine keeps its own maps.

    The blend ends where the first member runs out, so that no sample is repeated or taken from beyond a member's end.
    Attributes: dataset_index: uint8, int16 or int32 [len], the member; dataset_sample_index: int64 [len], its sample.
    Raises: DataError for weights that are not positive or not one per data set, or a member without samples.
    """

    def __init__(
        self,
        datasets,
        weights,
        num_samples: int | None = None,
        cache: Path | None = None,
        shared: bool = True,
    ):
        self.datasets = list(datasets)
        self.weights = normalized(weights)
        self.lengths = [len(dataset) for dataset in self.datasets]
        if len(self.weights) != len(self.datasets):
            raise DataError(
                f"{len(self.datasets)} data sets are to be blended with {len(self.weights)} weights"
            )
        if 0 in self.lengths:
            raise DataError(f"data set {self.lengths.index(0)} of a blend has no samples")
        self._wanted = sum(self.lengths) if num_samples is None else min(num_samples, sum(self.lengths))
        if cache is None:
            arrays, facts = self._build()
            self._maps = StoredMaps(None, arrays, facts)
        else:
            key = {
                "weights": [weight.hex() for weight in self.weights.tolist()],
                "lengths": self.lengths,
                "samples": self._wanted,
            }
            self._maps = load_or_build(cache, "blend", key, self._build, shared)
        self._attach()

    def _attach(self) -> None:
        self.dataset_index = self._maps.arrays["dataset_index"]
        self.dataset_sample_index = self._maps.arrays["dataset_sample_index"]

    def __getstate__(self) -> dict:
        views = ("dataset_index", "dataset_sample_index")
        return {name: value for name, value in self.__dict__.items() if name not in views}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._attach()

    def _build(self) -> tuple[dict[str, np.ndarray], dict]:
        count = len(self.datasets)
        member = np.zeros(self._wanted, dtype=member_type(count))
        sample = np.zeros(self._wanted, dtype=np.int64)
        helpers.build_blending_indices(member, sample, self.weights, count, self._wanted, False)
        size = _first_beyond(member, sample, self.lengths)
        return {"dataset_index": member[:size], "dataset_sample_index": sample[:size]}, {}

    def counts(self, num_samples: int) -> list[int]:
        """How many of the first num_samples samples come from each member."""
        return np.bincount(self.dataset_index[:num_samples], minlength=len(self.datasets)).tolist()

    def __len__(self) -> int:
        return len(self.dataset_index)

    def __getitem__(self, index: int):
        return self.datasets[self.dataset_index.item(index)][self.dataset_sample_index.item(index)]


def normalized(weights) -> np.ndarray:
    """float64 weights with sum 1. Raises: DataError unless all are positive."""
    weights = np.asarray(weights, dtype=np.float64)
    if len(weights) == 0 or not np.isfinite(weights).all() or (weights <= 0).any():
        raise DataError(f"weights of blended data sets must be positive numbers, not {weights.tolist()}")
    return weights / weights.sum()


def member_type(count: int) -> type:
    """The smallest element type that can number so many members."""
    if count <= np.iinfo(np.uint8).max:
        return np.uint8
    return np.int16 if count <= np.iinfo(np.int16).max else np.int32


def _first_beyond(member: np.ndarray, sample: np.ndarray, lengths: list[int]) -> int:
    """Where a blend first asks a member for a sample that it does not have; the blend's length if it never does."""
    limits = np.asarray(lengths, dtype=np.int64)
    chunk = 1 << 22
    for start in range(0, len(member), chunk):
        beyond = sample[start : start + chunk] >= limits[member[start : start + chunk]]
        if beyond.any():
            return start + int(np.argmax(beyond))
    return len(member)
