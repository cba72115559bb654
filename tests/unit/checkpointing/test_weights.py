"""Weights by logical name, out of every kind of checkpoint tree."""

import pytest
import torch

from megatron.checkpointing.weights import SavedWeights, load_weights, native_name, unflatten
from megatron.common.errors import CheckpointError
from megatron.mpu import ParameterSpec


class TwoLayers(torch.nn.Module):
    """Layer 0 an embedding of 6 rows, layer 2 a matrix."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.zeros(6, 2))
        self.embedding.spec = ParameterSpec((6, 2), None, shard_dim=0, vocabulary=True)
        self.matrix = torch.nn.Parameter(torch.zeros(2, 2))
        self.matrix.spec = ParameterSpec((2, 2), None, shard_dim=1)

    def placed_named_parameters(self):
        yield "0.word_embeddings.weight", self.embedding
        yield "2.mlp.linear1.weight", self.matrix


EMBEDDING = torch.arange(12.0).view(6, 2)
MATRIX = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def save_plain(directory, extra=None):
    module = {"sequential.0.word_embeddings.weight": EMBEDDING, "sequential.2.mlp.linear1.weight": MATRIX}
    torch.save({"module": module | (extra or {})}, directory / "mp_rank_00_model_states.pt")


def loaded(directory, vocabulary=6):
    model = TwoLayers()
    load_weights(model, directory, vocabulary)
    return model


def test_names_of_all_kinds_of_files_become_logical_names():
    assert native_name("sequential.2.attention.dense.bias") == "2.attention.dense.bias"
    assert native_name("module.sequential.4.norm.weight") == "4.norm.weight"
    assert native_name("mlp.dense_h_to_4h.weight") == "mlp.linear1.weight"
    assert native_name("mlp.dense_4h_to_h.bias") == "mlp.linear2.bias"


def test_a_state_dict_of_a_plain_model_is_read(tmp_path):
    save_plain(tmp_path)
    model = loaded(tmp_path)
    assert torch.equal(model.embedding, EMBEDDING) and torch.equal(model.matrix, MATRIX)


def test_layer_files_with_the_names_of_published_checkpoints_are_read(tmp_path):
    torch.save({"word_embeddings.weight": EMBEDDING}, tmp_path / "layer_00-model_00-model_states.pt")
    block = {"mlp.dense_h_to_4h.weight": MATRIX, "attention.rotary_emb.inv_freq": torch.ones(3)}
    torch.save(block, tmp_path / "layer_02-model_00-model_states.pt")
    torch.save({"module": None}, tmp_path / "mp_rank_00_model_states.pt")
    model = loaded(tmp_path)
    assert torch.equal(model.embedding, EMBEDDING) and torch.equal(model.matrix, MATRIX)


def test_parts_of_several_tensor_ranks_are_put_together(tmp_path):
    for rank in range(2):
        module = {
            "sequential.0.word_embeddings.weight": EMBEDDING.chunk(2)[rank],
            "sequential.2.mlp.linear1.weight": MATRIX.chunk(2, dim=1)[rank],
        }
        torch.save({"module": module}, tmp_path / f"mp_rank_0{rank}_model_states.pt")
    model = loaded(tmp_path)
    assert SavedWeights(tmp_path).tensor_size == 2
    assert torch.equal(model.embedding, EMBEDDING) and torch.equal(model.matrix, MATRIX)


def test_flat_partitions_become_tensors_again():
    tensors = {"a": torch.arange(5.0), "b": torch.arange(4.0).view(2, 2) + 10}
    # Two ranks: a is padded to 6 and cut into 3 + 3, b into 2 + 2.
    partitions = [torch.tensor([0.0, 1, 2, 10, 11]), torch.tensor([3.0, 4, 0, 12, 13])]
    result = unflatten(partitions, {name: tensor.shape for name, tensor in tensors.items()})
    assert all(torch.equal(result[name], tensor) for name, tensor in tensors.items())


def test_missing_unknown_and_misshapen_weights_are_named(tmp_path):
    save_plain(tmp_path, {"sequential.2.mlp.linear9.weight": MATRIX})
    with pytest.raises(CheckpointError, match="layer 2 .* an unknown mlp.linear9.weight"):
        loaded(tmp_path)
    torch.save(
        {"module": {"sequential.0.word_embeddings.weight": EMBEDDING}},
        tmp_path / "mp_rank_00_model_states.pt",
    )
    with pytest.raises(CheckpointError, match="layer 2 .* no mlp.linear1.weight"):
        loaded(tmp_path)
    save_plain(tmp_path, {"sequential.2.mlp.linear1.weight": torch.zeros(3, 2)})
    with pytest.raises(CheckpointError, match=r"2.mlp.linear1.weight is \(3, 2\) .* \(2, 2\)"):
        loaded(tmp_path)


def test_only_rows_of_the_vocabulary_are_filled_up_or_left_out(tmp_path):
    save_plain(tmp_path, {"sequential.0.word_embeddings.weight": EMBEDDING[:5]})
    model = loaded(tmp_path, vocabulary=5)
    assert torch.equal(model.embedding[:5], EMBEDDING[:5]) and not model.embedding[5].any()
    model = TwoLayers()
    model.embedding.spec = ParameterSpec((6, 2), None, shard_dim=0)
    with pytest.raises(CheckpointError, match=r"0.word_embeddings.weight is \(5, 2\) .* \(6, 2\)"):
        load_weights(model, tmp_path, 5)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no model weights"):
        loaded(tmp_path)
    torch.save({"module": None}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="no model in it"):
        loaded(tmp_path)


class RowParallel(torch.nn.Module):
    """A bias that every tensor rank has whole, and a norm."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(3))
        self.norm = torch.nn.Parameter(torch.zeros(3))
        for parameter in self.parameters():
            parameter.spec = ParameterSpec((3,), None)

    def placed_named_parameters(self):
        yield "2.attention.dense.bias", self.bias
        yield "2.input_layernorm.weight", self.norm


@pytest.mark.parametrize(
    ("manifest", "parallel_residual", "expected"),
    [(False, True, 3.0), (False, False, 1.0), (True, True, 1.0)],
)
def test_biases_are_summed_only_where_gpt_neox_added_them_on_every_rank(
    tmp_path, manifest, parallel_residual, expected
):
    for rank in range(2):
        layer = {"attention.dense.bias": torch.full((3,), rank + 1.0)}
        layer["input_layernorm.weight"] = torch.full((3,), rank + 5.0)
        torch.save(layer, tmp_path / f"layer_02-model_0{rank}-model_states.pt")
    if manifest:
        (tmp_path / "manifest.json").write_text("{}")
    model = RowParallel()
    load_weights(model, tmp_path, 6, parallel_residual)
    assert model.bias.tolist() == [expected] * 3
    assert model.norm.tolist() == [5.0] * 3
