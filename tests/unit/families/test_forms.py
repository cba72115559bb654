"""Where rows of fused projections stand, with one feature per number: 10 * head + feature, hundreds for q, k, v."""

import torch

from megatron.families.forms import fused_groups, fused_transposed, rotated_in_pairs


def rows(kind: int, heads: int, size: int) -> torch.Tensor:
    return torch.tensor(
        [100 * kind + 10 * head + feature for head in range(heads) for feature in range(size)]
    )


def test_columns_of_gpt2_become_heads():
    form = fused_transposed(2)
    theirs = torch.cat([rows(kind, 2, 2) for kind in (1, 2, 3)])
    ours = form.join([theirs.expand(3, -1)])
    assert ours[:, 0].tolist() == [100, 101, 200, 201, 300, 301, 110, 111, 210, 211, 310, 311]
    assert torch.equal(form.split(ours)[0], theirs.expand(3, -1))
    assert torch.equal(form.split(form.join([theirs]))[0], theirs)  # a bias


def test_groups_of_falcon_become_queries_keys_values():
    form = fused_groups(4, 2)
    theirs = torch.tensor([100, 101, 110, 111, 200, 201, 300, 301, 120, 121, 130, 131, 210, 211, 310, 311])
    ours = form.join([theirs])
    assert ours.tolist() == [*rows(1, 4, 2).tolist(), *rows(2, 2, 2).tolist(), *rows(3, 2, 2).tolist()]
    assert torch.equal(form.split(ours)[0], theirs)


def test_one_key_for_all_heads_is_one_group():
    theirs = torch.cat([rows(1, 3, 2), rows(2, 1, 2), rows(3, 1, 2)])
    assert torch.equal(fused_groups(3, 1).join([theirs]), theirs)


def test_rotated_pairs_become_halves_and_values_stay():
    form = rotated_in_pairs(2, 4)
    theirs = [rows(kind, 2, 6) for kind in (1, 2, 3)]
    ours = form.join(theirs).unflatten(0, (2, 3, 6))
    assert ours[0, 0].tolist() == [100, 102, 101, 103, 104, 105]
    assert ours[1, 1].tolist() == [210, 212, 211, 213, 214, 215]
    assert ours[1, 2].tolist() == [310, 311, 312, 313, 314, 315]
    assert all(map(torch.equal, form.split(ours.flatten()), theirs))
