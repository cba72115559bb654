"""Every norm computes its formula, in every place that a norm can stand in."""

import sys
from types import ModuleType

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from megatron import registry
from megatron.common.errors import MissingPackageError
from megatron.model import get_params_for_weight_decay_optimization
from megatron.model.fused_layer_norm import MixedFusedLayerNorm, MixedFusedRMSNorm
from megatron.model.norms import LayerNorm, NonParametricLayernorm, RMSNorm, ScaleNorm, get_norm, norm_classes
from megatron.model.sequential import build_sequential
from megatron.neox_arguments.features import refusals
from tests.common.models import inputs_and_targets, model_args, randomize

INSTALLED = [name for name in registry.names("norm") if not registry.entry("norm", name).needs]
X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def transformer_engine(monkeypatch):
    """A package of that name with torch's norms."""
    package, pytorch = ModuleType("transformer_engine"), ModuleType("transformer_engine.pytorch")
    pytorch.LayerNorm, pytorch.RMSNorm = torch.nn.LayerNorm, torch.nn.RMSNorm
    package.pytorch = pytorch
    monkeypatch.setitem(sys.modules, "transformer_engine", package)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", pytorch)


def test_rmsnorm_is_that_of_transformers():
    norm, reference = RMSNorm(16, eps=1e-3), LlamaRMSNorm(16, eps=1e-3)
    torch.nn.init.normal_(norm.scale)
    reference.weight.data = norm.scale.data
    torch.testing.assert_close(norm(X), reference(X))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rmsnorm_computes_in_fp32_and_keeps_the_dtype(dtype):
    norm = RMSNorm(16, eps=1e-6).to(dtype)
    torch.nn.init.normal_(norm.scale)
    x = (X * 200).to(dtype)  # squares beyond the range of fp16
    in_full = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.scale.double()
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x), in_full.to(dtype))


def test_partial_rmsnorm_measures_the_first_features():
    norm = RMSNorm(16, p=0.25, eps=1e-8, bias=True)
    torch.nn.init.normal_(norm.offset)
    expected = X / X[..., :4].square().mean(-1, keepdim=True).sqrt() + norm.offset
    torch.testing.assert_close(norm(X), expected)


def test_scalenorm_gives_every_vector_the_length_g():
    norm = ScaleNorm(16, eps=1e-8)
    torch.nn.init.constant_(norm.g, 3.0)
    torch.testing.assert_close(norm(X).norm(dim=-1), torch.full((3, 5), 3.0))
    torch.testing.assert_close(norm(X), 3 * X / X.norm(dim=-1, keepdim=True))


def test_scalenorm_divides_by_no_less_than_its_epsilon():
    torch.testing.assert_close(ScaleNorm(16, eps=100.0)(X), X / 100)
    halved = (X * 300).half()
    assert torch.isfinite(ScaleNorm(16)(halved)).all()  # the squares are beyond fp16


def test_a_norm_without_parameters_has_none():
    norm = NonParametricLayernorm(16, eps=1e-5)
    assert list(norm.parameters()) == []
    torch.testing.assert_close(norm(X), torch.nn.LayerNorm(16, elementwise_affine=False)(X))


@pytest.mark.parametrize(
    "name, key",
    [
        ("layernorm", "layernorm_epsilon"),
        ("rmsnorm", "rms_norm_epsilon"),
        ("scalenorm", "scalenorm_epsilon"),
        ("non_parametric_layernorm", "layernorm_epsilon"),
        ("te_layernorm", "layernorm_epsilon"),
        ("te_rmsnorm", "rms_norm_epsilon"),
    ],
)
def test_each_norm_has_its_epsilon(name, key):
    assert get_norm(model_args(norm=name, **{key: 0.125}))[1] == 0.125


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("qk", [True, False])
def test_a_norm_serves_blocks_heads_and_the_end_and_does_not_decay(name, qk):
    args = model_args(norm=name, use_qk_layernorm=qk, weight_decay=0.1)
    model = build_sequential(args)
    randomize(model)
    inputs, _ = inputs_and_targets()
    logits = model(inputs)
    logits.float().square().mean().backward()
    kind = registry.lookup("norm", name)
    found = [module for module in model.modules() if isinstance(module, kind)]
    assert len(found) == 2 * 2 + 1 + (4 if qk else 0)
    of_norms = {id(parameter) for module in found for parameter in module.parameters()}
    assert all(p.grad.norm() > 0 for p in model.parameters() if id(p) in of_norms)
    decayed, undecayed = get_params_for_weight_decay_optimization(model, args)
    assert of_norms.isdisjoint(map(id, decayed["params"]))
    assert of_norms <= set(map(id, undecayed["params"]))


def test_every_registered_norm_is_known_to_decay_and_sequence_parallelism():
    assert set(norm_classes()) == {registry.lookup("norm", name) for name in registry.names("norm")}
    assert LayerNorm in norm_classes()


@pytest.mark.parametrize("name", ["te_layernorm", "te_rmsnorm"])
def test_without_its_package_a_norm_says_what_to_install(name):
    norm, eps = get_norm(model_args(norm=name))
    with pytest.raises(MissingPackageError, match="transformer_engine.*requirements-transformerengine.txt"):
        norm(16, eps=eps)


@pytest.mark.parametrize(
    "name, twin, parameters",
    [("te_layernorm", LayerNorm, ["norm.weight", "norm.bias"]), ("te_rmsnorm", RMSNorm, ["norm.weight"])],
)
def test_norms_of_transformer_engine_equal_our_own(name, twin, parameters, transformer_engine):
    make, _ = get_norm(model_args(norm=name))
    norm = make(16, eps=1e-3)
    assert [found for found, _ in norm.named_parameters()] == parameters
    assert all(parameter.spec.logical_shape == (16,) for parameter in norm.parameters())
    torch.testing.assert_close(norm(X), twin(16, eps=1e-3)(X))
    model = build_sequential(model_args(norm=name, weight_decay=0.1))
    decayed, _ = get_params_for_weight_decay_optimization(model, model_args(weight_decay=0.1))
    assert all(parameter.dim() == 2 for parameter in decayed["params"])


def test_a_bias_that_te_layernorm_cannot_leave_out_is_refused():
    (line,) = refusals(model_args(norm="te_layernorm", use_bias_in_norms=False))
    assert "use_bias_in_norms: false" in line and "norm: te_layernorm" in line


def test_fused_norms_under_their_old_names():
    torch.testing.assert_close(MixedFusedLayerNorm(16)(X), LayerNorm(16)(X))
    torch.testing.assert_close(MixedFusedRMSNorm(16)(X), RMSNorm(16, eps=1e-5)(X))
    from_one = MixedFusedLayerNorm(16, apply_layernorm_1p=True, sequence_parallel=True)
    assert torch.equal(from_one.weight, torch.zeros(16)) and from_one.weight.sequence_parallel
    torch.testing.assert_close(from_one(X), LayerNorm(16)(X))
    from_one = MixedFusedRMSNorm(16, apply_rmsnorm_1p=True)
    assert torch.equal(from_one.scale, torch.zeros(16))
    torch.testing.assert_close(from_one(X), RMSNorm(16, eps=1e-5)(X))
