import torch

from megatron import mpu
from megatron.model.gpt2_model import gpt2_attention_mask_func
from megatron.model.utils import Lambda, exists, get_parallel_linear, recursive_setattr, run_layers
from tests.common.models import model_args


def test_masked_scores_get_the_lowest_finite_value():
    scores = torch.ones(2, 2, dtype=torch.float16)
    masked = gpt2_attention_mask_func(scores, torch.tensor([[False, True], [False, False]]))
    assert masked.tolist() == [[1.0, torch.finfo(torch.float16).min], [1.0, 1.0]]
    assert torch.equal(scores, torch.ones(2, 2, dtype=torch.float16))


def test_recursive_setattr_sets_what_exists():
    inner = torch.nn.Dropout(0.1)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(inner))
    recursive_setattr(model, "p", 0.5, assert_type=float)
    assert inner.p == 0.5 and not hasattr(model[0], "p")
    recursive_setattr(model, "p", 0.7, type_filter=torch.nn.Linear)
    assert inner.p == 0.5


def test_functions_are_layers():
    assert Lambda(lambda x: x + 1)(1) == 2
    assert run_layers([Lambda(lambda x: x + 1), lambda x: x * 10], 1, interval=0) == 20


def test_small_helpers():
    assert exists(0) and not exists(None)
    assert get_parallel_linear(model_args()) == (mpu.ColumnParallelLinear, mpu.RowParallelLinear)
