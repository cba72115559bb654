"""Matrix products of rows that are sorted by group, each group with a matrix of its own."""

import torch
import torch.nn.functional as F

# Rows of a matrix must begin at multiples of this for the grouped kernel.
KERNEL_ALIGNMENT_BYTES = 16


def has_kernel(rows: torch.Tensor, *widths: int) -> bool:
    """Whether torch's grouped kernel takes such rows and matrices of such widths (bfloat16 on a GPU, torch 2.10)."""
    if not (rows.is_cuda and rows.dtype == torch.bfloat16 and hasattr(F, "grouped_mm")):
        return False
    return all(width * rows.element_size() % KERNEL_ALIGNMENT_BYTES == 0 for width in widths)


class Groups:
    """How rows are divided: sizes[g] rows of group g, one group after the other, then rows of no group.

    Args:
        sizes: int64 [groups].
        kernel: use torch's grouped kernel, which never waits for the device; else a loop over the groups.
    """

    def __init__(self, sizes: torch.Tensor, kernel: bool):
        self.ends = sizes.cumsum(0).to(torch.int32) if kernel else None
        self.sizes = [] if kernel else sizes.tolist()

    def multiply(self, rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        """rows [N, i], matrices [groups, i, o] -> [N, o]. What rows of no group give is undefined."""
        if self.ends is not None:
            return F.grouped_mm(rows, matrices, offs=self.ends)
        parts = rows.split([*self.sizes, len(rows) - sum(self.sizes)])
        products = [part @ matrix for part, matrix in zip(parts[:-1], matrices.unbind(0), strict=True)]
        return torch.cat([*products, rows.new_zeros(len(parts[-1]), matrices.shape[-1])])
