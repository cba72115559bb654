"""Public helpers of GPT-NeoX."""

import torch

from megatron import utils


def test_attention_mask_hides_the_future_and_with_a_window_all_but_w_keys():
    causal = utils.get_attn_mask(4, "cpu")
    assert causal.shape == (1, 1, 4, 4)
    assert torch.equal(~causal[0, 0], torch.ones(4, 4, dtype=torch.bool).tril())
    windowed = utils.get_attn_mask(6, "cpu", sliding_window_width=3)
    assert (~windowed[0, 0]).sum(dim=1).tolist() == [1, 2, 3, 3, 3, 3]


def test_end_of_document_is_taken_out_of_the_loss_only_if_asked_for():
    tokens = torch.tensor([[5, 0, 7]])
    mask, loss_mask, positions = utils.get_ltor_masks_and_position_ids(
        tokens, eod_token=0, eod_mask_loss=True
    )
    assert loss_mask.tolist() == [[1.0, 0.0, 1.0]]
    assert positions.tolist() == [[0, 1, 2]]
    assert mask.shape == (1, 1, 3, 3)
    assert utils.get_ltor_masks_and_position_ids(tokens, eod_token=0)[1].tolist() == [[1.0, 1.0, 1.0]]


def test_natural_sort_counts_numbers():
    assert utils.natural_sort(["step10", "step9", "step100"]) == ["step9", "step10", "step100"]


def test_viewless_tensor_keeps_values_and_gradient():
    base = torch.arange(6.0, requires_grad=True)
    view = base[2:4]
    kept = utils.make_viewless_tensor(view, requires_grad=True, keep_graph=True)
    assert kept._base is None
    kept.sum().backward()
    assert base.grad.tolist() == [0, 0, 1, 1, 0, 0]
    free = utils.make_viewless_tensor(view, requires_grad=False, keep_graph=False)
    assert free._base is None and free.tolist() == [2.0, 3.0] and not free.requires_grad


def test_resource_pool_without_a_hostfile_is_this_machine(tmp_path):
    assert list(utils.obtain_resource_pool(str(tmp_path / "none"), None, None)) == ["localhost"]
    hosts = tmp_path / "hosts"
    hosts.write_text("alpha slots=2\nbeta slots=4\n")
    assert utils.obtain_resource_pool(str(hosts), "beta:1,3", None) == {"beta": [1, 3]}
