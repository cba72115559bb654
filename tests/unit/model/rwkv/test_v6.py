"""The block against its formulas, written down once more in plain torch."""

import pytest
import torch
import torch.nn.functional as F

from megatron.model.layers import block_spec
from tests.common.models import model_args, random_tokens, randomize
from tests.unit.model.rwkv.test_recurrence import token_by_token

RWKV = {"attention_config": [[["rwkv"], "all"]], "hidden_size": 32, "num_attention_heads": 4}


def block(number: int = 1, **overrides) -> torch.nn.Module:
    module = block_spec(model_args(**RWKV, **overrides), number).build()
    module.logical_named_parameters = module.named_parameters
    randomize(module)
    return module.eval()


def plain_block(p: dict[str, torch.Tensor], x: torch.Tensor, heads: int, twice: bool) -> torch.Tensor:
    """numerics of RWKV v6 on [b, s, h]."""
    if twice:
        x = F.layer_norm(x, x.shape[-1:], p["ln1.weight"], p["ln1.bias"])
    x = x + plain_time_mix(p, F.layer_norm(x, x.shape[-1:], p["ln1.weight"], p["ln1.bias"]), heads)
    normed = F.layer_norm(x, x.shape[-1:], p["ln2.weight"], p["ln2.bias"])
    xx = previous(normed) - normed
    k = torch.relu((normed + xx * p["ffn.time_maa_k"]) @ p["ffn.key.weight"].T) ** 2
    r = torch.sigmoid((normed + xx * p["ffn.time_maa_r"]) @ p["ffn.receptance.weight"].T)
    return x + r * (k @ p["ffn.value.weight"].T)


def previous(x: torch.Tensor) -> torch.Tensor:
    return torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)


def plain_time_mix(p: dict[str, torch.Tensor], x: torch.Tensor, heads: int) -> torch.Tensor:
    xx = previous(x) - x
    low = torch.tanh((x + xx * p["att.time_maa_x"]) @ p["att.time_maa_w1"])
    mixed = {
        name: x + xx * (p[f"att.time_maa_{name}"] + low[..., 32 * i : 32 * (i + 1)] @ p["att.time_maa_w2"][i])
        for i, name in enumerate("wkvrg")
    }
    names = {"r": "receptance", "k": "key", "v": "value", "g": "gate"}
    r, k, v, g = (mixed[short] @ p[f"att.{name}.weight"].T for short, name in names.items())
    w = p["att.time_decay"] + torch.tanh(mixed["w"] @ p["att.time_decay_w1"]) @ p["att.time_decay_w2"]
    r, k, v, w = (tensor.unflatten(-1, (heads, -1)) for tensor in (r, k, v, -torch.exp(w)))
    y = token_by_token(r, k, v, w, p["att.time_faaaa"])[0]
    shape = y.shape
    y = F.group_norm(
        y.reshape(-1, shape[2] * shape[3]), heads, p["att.ln_x.weight"], p["att.ln_x.bias"], eps=64e-5
    )
    return (y.view(*shape[:2], -1) * F.silu(g)) @ p["att.output.weight"].T


@pytest.mark.parametrize("number", [0, 1])
def test_the_block_computes_its_formulas(number):
    module = block(number)
    x = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = module(x.transpose(0, 1)).transpose(0, 1)
        expected = plain_block(dict(module.named_parameters()), x, heads=4, twice=number == 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_parameters_have_the_names_and_shapes_of_gpt_neox():
    shapes = {name: tuple(parameter.shape) for name, parameter in block(dim_att=64).named_parameters()}
    vectors = {f"att.time_maa_{name}": (1, 1, 32) for name in "xwkvrg"}
    norms = {f"ln{number}.{kind}": (32,) for number in (1, 2) for kind in ("weight", "bias")}
    assert shapes == vectors | norms | {
        "att.time_maa_w1": (32, 160),
        "att.time_maa_w2": (5, 32, 32),
        "att.time_decay": (1, 1, 64),
        "att.time_decay_w1": (32, 64),
        "att.time_decay_w2": (64, 64),
        "att.time_faaaa": (4, 16),
        **{f"att.{name}.weight": (64, 32) for name in ("receptance", "key", "value", "gate")},
        "att.output.weight": (32, 64),
        "att.ln_x.weight": (64,),
        "att.ln_x.bias": (64,),
        "ffn.time_maa_k": (1, 1, 32),
        "ffn.time_maa_r": (1, 1, 32),
        "ffn.key.weight": (96, 32),
        "ffn.receptance.weight": (32, 32),
        "ffn.value.weight": (32, 96),
    }


def test_initial_decay_and_mixing_follow_the_depth_of_the_layer():
    first, last = (block_spec(model_args(**RWKV), number).build() for number in (0, 1))
    ends = torch.tensor([-6.0, -1.0])
    for layer in (first, last):
        torch.testing.assert_close(layer.att.time_decay[0, 0, [0, -1]], ends)
        assert layer.att.time_maa_w1.abs().max() <= 1e-4
    torch.testing.assert_close(first.att.time_maa_v, first.att.time_maa_k)
    torch.testing.assert_close(last.att.time_maa_k - last.att.time_maa_v, torch.full((1, 1, 32), 0.3))
    torch.testing.assert_close(first.att.time_faaaa.flatten()[:3], torch.tensor([0.0, 0.1, -0.1]))


def test_dropout_acts_after_each_half():
    for key in ("attention_dropout", "hidden_dropout"):
        module = block(**{key: 0.5}).train()
        x = torch.randn(12, 2, 32, generator=torch.Generator().manual_seed(3))
        torch.manual_seed(0)
        dropped = module(x)
        assert not torch.allclose(dropped, module.eval()(x))
        assert (dropped == 0).any() == (key == "hidden_dropout")


def test_weight_decay_leaves_vectors_alone():
    from megatron.model import get_params_for_weight_decay_optimization

    module = block()
    decayed, fixed = get_params_for_weight_decay_optimization(module, model_args(**RWKV, weight_decay=0.1))
    assert all(parameter.dim() > 1 and max(parameter.shape[:2]) > 1 for parameter in decayed["params"])
    assert module.att.time_decay in set(fixed["params"])


def test_tokens_do_not_see_later_tokens():
    module = block()
    x = torch.randn(12, 1, 32, generator=torch.Generator().manual_seed(4))
    changed = x.clone()
    changed[7:] += random_tokens(1, 1).item() + 1.0
    with torch.no_grad():
        torch.testing.assert_close(module(changed)[:7], module(x)[:7])


def test_documents_of_a_sample_do_not_see_each_other():
    module = block(0)
    x = torch.randn(12, 1, 32, generator=torch.Generator().manual_seed(5))
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    with torch.no_grad():
        together, _ = module((x, positions))
        torch.testing.assert_close(together, torch.cat((module(x[:5]), module(x[5:]))))
