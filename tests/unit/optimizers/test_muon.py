"""Muon against torch's and against singular value decompositions, and what it counts as a matrix."""

import math

import pytest
import torch

from megatron.mpu.parameters import ParameterSpec, zeros_
from megatron.optimizers import Muon
from megatron.optimizers.muon import COEFFICIENTS, join_matrices, orthogonalize, split_matrices


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
def test_the_iteration_acts_on_singular_values_alone(shape):
    given = matrix(*shape).double()
    u, s, vh = torch.linalg.svd(given, full_matrices=False)
    s = s / given.norm()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonalize(given, 5), u @ torch.diag(s) @ vh, rtol=1e-9, atol=1e-9)
    assert 0.6 < s.min() and s.max() < 1.3


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon to compare with")
@pytest.mark.parametrize("kind", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_matrices_move_as_torchs_muon_moves_them(kind, nesterov):
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov, "adjust_lr_fn": kind}
    own, other = (torch.nn.Parameter(matrix(12, 6)) for _ in range(2))
    optimizer, reference = Muon([own], **settings), torch.optim.Muon([other], **settings)
    for step in range(4):
        own.grad = other.grad = matrix(12, 6, seed=step + 1)
        optimizer.step(), reference.step()
    # torch iterates in bfloat16.
    torch.testing.assert_close(own, other, rtol=0, atol=0.02 * 4 * 0.2 * math.sqrt(12) * 0.02)


def test_everything_but_hidden_matrices_goes_to_adamw():
    def parameters():
        table, vector, kernel = matrix(6, 4), matrix(5), matrix(3, 1, 4)
        found = [torch.nn.Parameter(value) for value in (table, vector, kernel, matrix(1, 4), matrix(4, 4))]
        found[0].is_table = True
        found[4]._no_weight_decay = True
        return found

    own, other = parameters(), parameters()
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizer, reference = Muon(own, **settings), torch.optim.AdamW(other, **settings)
    for step in range(3):
        for number, (mine, theirs) in enumerate(zip(own, other, strict=True)):
            mine.grad = theirs.grad = matrix(*mine.shape, seed=10 * step + number)
        optimizer.step(), reference.step()
    for mine, theirs in zip(own, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_heads_of_q_k_and_v_are_gathered_into_three_matrices():
    parameter = torch.nn.Parameter(matrix(2 * 3 * 5, 4))
    parameter.fused_matrices = (2, 3)
    parts = split_matrices(parameter.detach(), parameter)
    assert [part.shape for part in parts] == [(10, 4)] * 3
    by_head = parameter.detach().view(2, 3, 5, 4)
    assert torch.equal(parts[1], torch.cat([by_head[0, 1], by_head[1, 1]]))
    assert torch.equal(join_matrices(parts, parameter), parameter)


def test_blocks_of_rows_are_matrices_and_blocks_of_columns_are_not():
    rows, columns = (torch.nn.Parameter(matrix(6, 6)) for _ in range(2))
    rows.spec = ParameterSpec((6, 6), zeros_, shard_dim=0, blocks=(4, 2))
    columns.spec = ParameterSpec((6, 6), zeros_, shard_dim=1, blocks=(3, 3))
    assert [part.shape for part in split_matrices(rows, rows)] == [(4, 6), (2, 6)]
    assert torch.equal(join_matrices(split_matrices(rows, rows), rows), rows)
    assert [part.shape for part in split_matrices(columns, columns)] == [(6, 6)]


def test_each_fused_matrix_is_orthogonal_and_scaled_by_its_own_shape():
    parameter = torch.nn.Parameter(torch.zeros(24, 4))
    parameter.fused_matrices = (2, 3)
    optimizer = Muon([parameter], lr=1.0, weight_decay=0.0, adjust_lr_fn="original")
    parameter.grad = matrix(24, 4)
    optimizer.step()
    for part in split_matrices(parameter.detach(), parameter):
        values = torch.linalg.svdvals(part) / math.sqrt(2)
        assert 0.6 < values.min() and values.max() < 1.3
