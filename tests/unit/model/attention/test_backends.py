"""Every back-end computes every pattern as the definition does: outputs, gradients, documents and decoding."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron.model.attention import blockwise
from megatron.model.attention.backend import Demands, make_backend
from megatron.model.attention.blockwise import BlockwiseAttention
from megatron.model.attention.pattern import Pattern
from megatron.registry import lookup, names
from tests.unit.model.attention.reference import (
    PATTERNS,
    dense_attention,
    random_layout,
    some_documents,
    tensors,
)

SCALE = 0.3
patterns = pytest.mark.parametrize("name", PATTERNS)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Short sequences then consist of several blocks of queries."""
    monkeypatch.setattr(blockwise, "BLOCK", 8)


def assert_computes(attend, pattern, query, key, value, positions=None):
    output = attend(query, key, value, scale=SCALE, dropout=0.0, positions=positions)
    expected = dense_attention(pattern, query, key, value, SCALE, positions)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-6)


@patterns
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("length", [1, 3, 8, 21, 40])
def test_blockwise_equals_the_definition(name, kv_heads, length):
    pattern = PATTERNS[name]()
    assert_computes(BlockwiseAttention(pattern), pattern, *tensors(2, kv_heads, length))


@patterns
@pytest.mark.parametrize("queries", [1, 2, 9])
def test_blockwise_continues_a_sequence(name, queries):
    pattern = PATTERNS[name]()
    assert_computes(BlockwiseAttention(pattern), pattern, *tensors(2, 2, 23, queries=queries))


@patterns
@pytest.mark.parametrize("queries", [23, 9, 1])
def test_blockwise_isolates_documents(name, queries):
    pattern = PATTERNS[name]()
    query, key, value = tensors(2, 2, 23, queries=queries)
    assert_computes(BlockwiseAttention(pattern), pattern, query, key, value, some_documents(23))


@patterns
def test_a_document_among_others_is_what_it_is_alone(name):
    query, key, value = tensors(2, 2, 23)
    attend = BlockwiseAttention(PATTERNS[name]())
    packed = attend(query, key, value, scale=SCALE, dropout=0.0, positions=some_documents(23))
    alone = attend(*(t[:1, :, 8:] for t in (query, key, value)), scale=SCALE, dropout=0.0)
    torch.testing.assert_close(packed[:1, :, 8:], alone)


@patterns
@pytest.mark.parametrize("isolated", [False, True])
def test_blockwise_gradients_equal_the_definitions(name, isolated):
    positions = some_documents(21) if isolated else None
    found = []
    for reference in (False, True):
        pattern = PATTERNS[name]()
        inputs = [tensor.requires_grad_() for tensor in tensors(2, 2, 21)]
        if reference:
            output = dense_attention(pattern, *inputs, SCALE, positions)
        else:
            attend = BlockwiseAttention(pattern)
            output = attend(*inputs, scale=SCALE, dropout=0.0, positions=positions)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
        (output * weights).sum().backward()
        learned = [parameter.grad for parameter in getattr(pattern.bias, "parameters", list)()]
        found.append([tensor.grad for tensor in inputs] + learned)
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@patterns
def test_blockwise_takes_16_bit_tensors(name, dtype):
    pattern = PATTERNS[name]()
    query, key, value = (tensor.to(dtype) for tensor in tensors(2, 2, 21))
    output = BlockwiseAttention(pattern)(query, key, value, scale=SCALE, dropout=0.0)
    assert output.dtype == dtype
    expected = dense_attention(pattern, query, key, value, SCALE)
    torch.testing.assert_close(output.double(), expected, rtol=2e-2, atol=2e-2)


def test_a_bias_of_16_bit_runs_is_not_rounded():
    # 0.0039 * 1000 needs more bits than bfloat16 has; the weights of the two ends tell
    pattern = Pattern(bias=lambda distance: (distance * 0.00390625 + 256.0).expand(4, *distance.shape))
    query, key, value = (tensor.bfloat16() for tensor in tensors(1, 4, 40))
    output = BlockwiseAttention(pattern)(query * 0, key, value, scale=SCALE, dropout=0.0)
    expected = dense_attention(pattern, query * 0, key, value, SCALE).bfloat16()
    torch.testing.assert_close(output, expected)


def test_blockwise_drops_weights_and_repeats_the_draw_for_gradients():
    query, key, value = (tensor.requires_grad_() for tensor in tensors(1, 4, 64))
    attend = BlockwiseAttention(Pattern(window=40))
    torch.manual_seed(0)
    output = attend(query * 0, key * 0, torch.ones_like(value) * value[..., :1], scale=1.0, dropout=0.5)
    assert output[0, 0, -1, 0].item() != pytest.approx(value[0, 0, -40:, 0].mean().item())
    constant = attend(query * 0, key * 0, torch.ones_like(value), scale=1.0, dropout=0.5)
    assert constant[0, :, 40:].mean().item() == pytest.approx(1.0, abs=0.1)
    # The output is linear in the values, so the gradient of its sum, times them, is that sum if the draw is the same.
    (gradient,) = torch.autograd.grad(output.sum(), value)
    assert (gradient * value).sum().item() == pytest.approx(output.sum().item(), rel=1e-4)


class Sizes(TorchDispatchMode):
    """Remembers the most elements that any operation gave."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.numel())
        return result


def test_dropout_on_a_cpu_makes_no_matrix_of_all_scores_either():
    length = 512
    inputs = [tensor.requires_grad_() for tensor in tensors(2, 4, length, size=4)]
    attend = make_backend(Pattern(), Demands(4, torch.float32, dropout=0.1))
    with Sizes() as sizes:
        attend(*inputs, scale=1.0, dropout=0.1).sum().backward()
    assert sizes.most <= 8 * 8 * length < length * length


@patterns
@pytest.mark.parametrize("isolated", [False, True])
def test_blockwise_never_makes_a_matrix_of_all_scores(name, isolated):
    length = 512
    query, key, value = (tensor.requires_grad_() for tensor in tensors(2, 1, length, size=4))
    positions = some_documents(length) if isolated else None
    with Sizes() as sizes:
        output = BlockwiseAttention(PATTERNS[name]())(
            query, key, value, scale=1.0, dropout=0.0, positions=positions
        )
        output.sum().backward()
    # A block of 8 queries of 2 x 4 heads; the tables of 4 layouts have an entry for 4 x 4 positions.
    assert sizes.most <= max(8 * 8 * length, 4 * (length // 4) ** 2) < length * length


def test_blockwise_leaves_out_the_keys_that_nobody_sees():
    def keys_seen(pattern, positions=None):
        counted = []

        class Counting(BlockwiseAttention):
            def _visible(self, rows, columns, *rest):
                counted.append(len(columns))
                return super()._visible(rows, columns, *rest)

        Counting(pattern)(*tensors(1, 4, 256), scale=1.0, dropout=0.0, positions=positions)
        return sum(counted)

    assert keys_seen(Pattern()) == sum(range(8, 257, 8))
    assert keys_seen(Pattern(window=9)) <= 32 * 16
    assert keys_seen(Pattern(layout=random_layout(1))) < 0.5 * keys_seen(Pattern())
    documents = torch.arange(16).repeat(16)[None]
    assert keys_seen(Pattern(), documents) == 16 * (8 + 16)


@pytest.mark.parametrize("queries", [17, 1, 5])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_sdpa_equals_the_definition(queries, kv_heads):
    attend = lookup("attention back-end", "sdpa")(Pattern())
    assert_computes(attend, Pattern(), *tensors(2, kv_heads, 17, queries=queries))


@patterns
def test_the_layer_gets_a_back_end_that_can_serve(name):
    pattern = PATTERNS[name]()
    for dropout in (0.0, 0.1):
        for isolated in (False, True):
            demands = Demands(16, torch.bfloat16, dropout, isolated)
            attend = make_backend(pattern, demands)
            assert attend.serves(pattern, demands)
            plain = name == "causal" and not isolated and not dropout  # of what there is on a CPU
            assert isinstance(attend, lookup("attention back-end", "sdpa" if plain else "blockwise"))


def test_back_ends_have_an_order():
    kinds = [lookup("attention back-end", name) for name in names("attention back-end")]
    assert len({kind.preference for kind in kinds}) == len(kinds)
