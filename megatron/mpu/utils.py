"""Small helpers for splitting sizes and tensors."""

import torch


def ensure_divisibility(numerator: int, denominator: int) -> None:
    assert numerator % denominator == 0, f"{numerator} is not divisible by {denominator}"


def divide(numerator: int, denominator: int) -> int:
    """Exact integer division. Raises AssertionError if there is a remainder."""
    ensure_divisibility(numerator, denominator)
    return numerator // denominator


def split_tensor_along_any_dim(
    tensor: torch.Tensor, num_partitions: int, seq_dim: int, contiguous_split_chunks: bool = False
) -> tuple[torch.Tensor, ...]:
    """Equal parts of `tensor` along `seq_dim`: views, or contiguous copies if asked for."""
    size = divide(tensor.size(seq_dim), num_partitions)
    parts = torch.split(tensor, size, dim=seq_dim)
    return tuple(part.contiguous() for part in parts) if contiguous_split_chunks else parts


def split_tensor_along_last_dim(
    tensor: torch.Tensor, num_partitions: int, contiguous_split_chunks: bool = False
) -> tuple[torch.Tensor, ...]:
    """split_tensor_along_any_dim for the last dimension."""
    return split_tensor_along_any_dim(tensor, num_partitions, -1, contiguous_split_chunks)


class VocabUtility:
    """Which vocabulary rows [first, last) a tensor-parallel rank owns."""

    @staticmethod
    def vocab_range_from_per_partition_vocab_size(
        per_partition_vocab_size: int, rank: int, world_size: int
    ) -> tuple[int, int]:
        assert 0 <= rank < world_size
        first = rank * per_partition_vocab_size
        return first, first + per_partition_vocab_size

    @staticmethod
    def vocab_range_from_global_vocab_size(
        global_vocab_size: int, rank: int, world_size: int
    ) -> tuple[int, int]:
        per_partition = divide(global_vocab_size, world_size)
        return VocabUtility.vocab_range_from_per_partition_vocab_size(per_partition, rank, world_size)
