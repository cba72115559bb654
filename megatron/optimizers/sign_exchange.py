"""An average over ranks for which each value travels as its sign, with error feedback (arXiv:2102.02888, section 4).

Legend: R ranks, P tensors, c_p values of tensor p that one rank averages, L = sum of c_p.
"""

import torch
import torch.distributed as dist


class SignExchange:
    """Averages lists of tensors of fixed sizes.

    Every rank averages a part of each tensor for all: it receives the signs of that part and one scale (mean absolute
    value) per tensor from each rank, and sends out the signs and scales of the average. Both roundings are remembered
    and added to what is sent next. The result is the same on all ranks, and for equal tensors whatever is exchanged
    beside them, so replicas over other groups stay equal.

    Args: sizes: number of values of each tensor.
    """

    def __init__(self, sizes: list[int], group: dist.ProcessGroup, device: torch.device):
        self.sizes, self.group = sizes, group
        self.ranks, self.rank = dist.get_world_size(group), dist.get_rank(group)
        # Whole bytes of signs for every rank.
        self.parts = [-(-size // (8 * self.ranks)) * 8 for size in sizes]
        lengths = torch.tensor(self.parts, device=device)
        starts = torch.arange(self.ranks, device=device)[:, None] * lengths
        # [R, P]: how many of a rank's values of a tensor are no padding.
        self.counts = (torch.tensor(sizes, device=device) - starts).clamp(min=0).minimum(lengths)
        self.real = torch.cat(
            [torch.arange(part, device=device) < self.counts[:, [p]] for p, part in enumerate(self.parts)],
            dim=1,
        )
        self.sent_error = torch.zeros(self.real.shape, device=device)
        self.averaged_error = torch.zeros(self.real.shape[1], device=device)

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Averages of the ranks' tensors, flat fp32."""
        wanted = self._lay_out(tensors) + self.sent_error
        message, sent = self._compress(wanted, self.counts)
        self.sent_error = (wanted - sent) * self.real
        received = torch.empty_like(message)
        dist.all_to_all_single(received, message, group=self.group)
        wanted = (self._expand(received).mean(dim=0) + self.averaged_error) * self.real[self.rank]
        message, sent = self._compress(wanted[None], self.counts[[self.rank]])
        self.averaged_error = (wanted - sent[0]) * self.real[self.rank]
        parts = [torch.empty_like(message) for _ in range(self.ranks)]
        dist.all_gather(parts, message, group=self.group)
        return self._take_apart(self._expand(torch.cat(parts)))

    def state(self) -> dict[str, torch.Tensor]:
        """What roundings have left over on this rank."""
        return {"sent_error": self.sent_error, "averaged_error": self.averaged_error}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.sent_error.copy_(state["sent_error"])
        self.averaged_error.copy_(state["averaged_error"])

    def _lay_out(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """[R, L]: in row r what rank r averages."""
        rows = []
        for tensor, part in zip(tensors, self.parts, strict=True):
            padding = part * self.ranks - tensor.numel()
            rows.append(
                torch.nn.functional.pad(tensor.reshape(-1).float(), (0, padding)).view(self.ranks, part)
            )
        return torch.cat(rows, dim=1)

    def _take_apart(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Undo _lay_out."""
        parts = rows.split(self.parts, dim=1)
        return [part.reshape(-1)[:size] for part, size in zip(parts, self.sizes, strict=True)]

    def _compress(self, rows: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bytes [rows, L/8 + 4P] of the signs and scales, and the values that they stand for."""
        sums = torch.stack([part.abs().sum(dim=1) for part in rows.split(self.parts, dim=1)], dim=1)
        scales = sums / counts.clamp(min=1)
        positive = rows >= 0
        weights = 2 ** torch.arange(8, device=rows.device, dtype=torch.uint8)
        signs = (positive.view(len(rows), -1, 8) * weights).sum(dim=-1, dtype=torch.uint8)
        return torch.cat([signs, scales.view(torch.uint8)], dim=1), self._values(positive, scales)

    def _expand(self, messages: torch.Tensor) -> torch.Tensor:
        """[rows, L]: the values that messages stand for."""
        signs, scales = messages.split([sum(self.parts) // 8, 4 * len(self.parts)], dim=1)
        shifts = torch.arange(8, device=messages.device, dtype=torch.uint8)
        positive = (signs[:, :, None] >> shifts).bitwise_and(1).bool().flatten(1)
        return self._values(positive, scales.clone().view(torch.float32))

    def _values(self, positive: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        lengths = torch.tensor(self.parts, device=scales.device)
        magnitudes = scales.repeat_interleave(lengths, dim=1)
        return torch.where(positive, magnitudes, -magnitudes)
