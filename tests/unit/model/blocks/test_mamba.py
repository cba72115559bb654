"""The Mamba block against transformers' and against its own definition."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from megatron import mpu
from megatron.common import device
from megatron.common.errors import ConfigError, MissingPackageError
from megatron.model import build_sequential, get_params_for_weight_decay_optimization
from megatron.model.blocks import mamba_kernels
from megatron.model.blocks.mamba import ParallelMambaBlock
from megatron.model.init_functions import get_init_methods
from megatron.model.mamba import ParallelMambaResidualLayer
from megatron.neox_arguments.features import check_features
from megatron.planning.layers import count_layers, total_parameters
from tests.common.models import inputs_and_targets, model_args, randomize

KERNEL_KEYS = ("mamba_causal_conv_fusion", "mamba_selective_scan_fusion", "mamba_inner_func_fusion")


def mamba_args(**keys):
    return model_args(**{"attention_config": [[["mamba"], "all"]], "pos_emb": "none"} | keys)


def mamba_model(**keys):
    model = build_sequential(mamba_args(**keys))
    randomize(model)
    return model


def make_mixer(**keys):
    return mamba_model(**keys).sequential[2].mixer


@pytest.mark.parametrize("bias", [True, False])
def test_the_mixer_equals_that_of_transformers(bias):
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba.modeling_mamba import MambaMixer

    mixer = make_mixer(mamba_use_bias_in_conv=bias)
    config = transformers.MambaConfig(hidden_size=24, use_conv_bias=bias, num_hidden_layers=2)
    reference = MambaMixer(config, layer_idx=0).eval()
    reference.load_state_dict(mixer.state_dict())
    hidden = torch.randn(12, 2, 24)
    expected = reference(hidden.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(mixer(hidden)[0], expected, rtol=1e-5, atol=1e-5)


def written_out(mixer, hidden):
    """The mixer's output [s, b, h] with one loop over positions, biases of all linear layers included."""
    x, z = (hidden @ mixer.in_proj.weight.T + mixer.in_proj.bias).chunk(2, -1)
    weight = mixer.conv1d.weight
    convolved = F.conv1d(F.pad(x.permute(1, 2, 0), (3, 0)), weight, mixer.conv1d.bias, groups=len(weight))
    x = F.silu(convolved.permute(2, 0, 1))
    selected = x @ mixer.x_proj.weight.T + mixer.x_proj.bias
    steps, B, C = selected.split((selected.shape[-1] - 32, 16, 16), -1)
    delta = F.softplus(steps @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
    state, outputs = 0.0, []
    for t in range(len(hidden)):
        state = torch.exp(delta[t].unsqueeze(-1) * -mixer.A_log.exp()) * state
        state = state + (delta[t] * x[t]).unsqueeze(-1) * B[t].unsqueeze(1)
        outputs.append((state * C[t].unsqueeze(1)).sum(-1) + mixer.D * x[t])
    return (torch.stack(outputs) * F.silu(z)) @ mixer.out_proj.weight.T


def test_the_mixer_equals_its_definition_in_double_precision_with_all_gradients():
    mixer = make_mixer(mamba_use_bias_in_linears=True).double()
    hidden = torch.randn(12, 2, 24, dtype=torch.double)
    output, bias = mixer(hidden)
    expected = written_out(mixer, hidden)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    assert bias is mixer.out_proj.bias
    inside = [parameter for parameter in mixer.parameters() if parameter is not bias]
    gradients = torch.autograd.grad(output.square().sum(), inside)
    for own, other in zip(gradients, torch.autograd.grad(expected.square().sum(), inside), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-8)


def test_the_block_adds_the_mixer_and_its_bias_to_the_residual():
    layer = mamba_model(mamba_use_bias_in_linears=True).sequential[2]
    hidden = torch.randn(12, 2, 24)
    output, bias = layer.mixer(layer.norm(hidden))
    torch.testing.assert_close(layer(hidden), hidden + output + bias)


def test_state_dict_names_are_those_of_gpt_neox():
    names = {name: tuple(tensor.shape) for name, tensor in make_mixer().state_dict().items()}
    assert names == {
        "A_log": (48, 16),
        "D": (48,),
        "in_proj.weight": (96, 24),
        "conv1d.weight": (48, 1, 4),
        "conv1d.bias": (48,),
        "x_proj.weight": (34, 48),
        "dt_proj.weight": (48, 2),
        "dt_proj.bias": (48,),
        "out_proj.weight": (24, 48),
    }
    with_biases = make_mixer(mamba_use_bias_in_linears=True, mamba_use_bias_in_conv=False).state_dict()
    assert set(with_biases) - set(names) == {"in_proj.bias", "x_proj.bias", "out_proj.bias"}
    assert set(names) - set(with_biases) == {"conv1d.bias"}


@pytest.mark.parametrize(
    ("keys", "channels"), [({}, 48), ({"expansion_factor": 1.5}, 36), ({"intermediate_size": 40}, 40)]
)
def test_channels_follow_the_width_keys(keys, channels):
    assert len(make_mixer(**keys).D) == channels


def test_initial_values():
    model = build_sequential(mamba_args(hidden_size=64, seed=3))
    mixer = model.sequential[2].mixer
    steps = F.softplus(mixer.dt_proj.bias)
    assert 1e-3 * 0.999 <= steps.min() < 2e-3 and 5e-2 < steps.max() <= 1e-1 * 1.001
    assert (steps < 1e-2).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert mixer.dt_proj.weight.abs().max() <= 0.5 and mixer.dt_proj.weight.abs().max() > 0.4
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17.0).expand(128, 16))
    assert mixer.D.eq(1).all()


@pytest.mark.parametrize(
    ("layers", "hidden", "parameters"), [(24, 768, 129_135_360), (64, 2560, 2_768_345_600)]
)
def test_the_published_models_have_their_published_size(layers, hidden, parameters):
    # state-spaces/mamba-130m and mamba-2.8b
    args = mamba_args(num_layers=layers, hidden_size=hidden, norm="rmsnorm", no_weight_tying=False)
    args.padded_vocab_size = 50280
    assert total_parameters(count_layers(args)) == parameters


def test_out_proj_starts_from_the_output_layers_initialisation():
    # With 200 layers the two standard deviations differ by a factor of 20.
    args = model_args(init_method="normal", output_layer_init_method="scaled_normal", num_layers=200)
    mixer = ParallelMambaBlock(args, *get_init_methods(args))
    assert mixer.out_proj.weight.std().item() == pytest.approx(0.02 / 20, rel=0.1)
    assert mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_decay_rates_and_skips_do_not_decay():
    model = mamba_model()
    undecayed = get_params_for_weight_decay_optimization(model, mamba_args(weight_decay=0.1))[1]["params"]
    found = {id(parameter) for parameter in undecayed}
    mixer = model.sequential[2].mixer
    assert {id(mixer.A_log), id(mixer.D), id(mixer.dt_proj.bias), id(mixer.conv1d.bias)} <= found
    assert id(mixer.dt_proj.weight) not in found and id(mixer.in_proj.weight) not in found


@pytest.mark.parametrize("pieces", [[1] * 12, [5, 1, 1, 5], [2, 1, 9]])
def test_cached_pieces_equal_one_pass(pieces):
    model = mamba_model()
    (tokens, positions), _ = inputs_and_targets()
    with torch.no_grad():
        expected = model((tokens, positions))
        model.inference_mode(use_cache=True)
        for _ in range(2):  # the second prompt does not see the first
            model.clear_cache()
            found = [
                model(part) for part in zip(tokens.split(pieces, 1), positions.split(pieces, 1), strict=True)
            ]
            torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-5, atol=1e-6)


def test_documents_in_one_row_are_independent():
    block = mamba_model().sequential[2]
    hidden = torch.randn(12, 2, 24)
    lengths = ([5, 7], [1, 2, 9])
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    found, passed_on = block((hidden, positions))
    assert passed_on is positions
    for row, pieces in enumerate(lengths):
        parts = [block(part) for part in hidden[:, row : row + 1].split(pieces)]
        torch.testing.assert_close(found[:, row : row + 1], torch.cat(parts), rtol=1e-5, atol=1e-6)


def test_recomputed_activations_change_no_gradient():
    gradients = []
    for recompute in (False, True):
        model = mamba_model(checkpoint_activations=recompute)
        inputs, _ = inputs_and_targets()
        model(inputs).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("fp32_params", [True, False])
def test_bfloat16_follows_fp32(fp32_params):
    mixer = make_mixer(mamba_selective_fp32_params=fp32_params)
    hidden = torch.randn(12, 2, 24).bfloat16()
    expected = mixer(hidden.float())[0]
    found = mixer.bfloat16()(hidden)[0]
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.03 * expected.norm()


def test_selective_fp32_params_decides_the_precision_of_the_decay_rates():
    found = {flag: make_mixer(mamba_selective_fp32_params=flag).bfloat16()._decay() for flag in (True, False)}
    assert found[True].dtype == torch.float32 and found[False].dtype == torch.bfloat16
    torch.testing.assert_close(found[True], found[False].float(), rtol=1e-2, atol=0)
    assert not torch.equal(found[True], found[False].float())


def test_kernels_without_an_accelerator_leave_the_work_to_torch_with_one_line(capsys):
    mamba_kernels._say_once.cache_clear()
    keys = dict.fromkeys(KERNEL_KEYS, True)
    model = mamba_model(**keys)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "mamba_*_fusion" in out
    inputs, _ = inputs_and_targets()
    assert torch.equal(model(inputs), mamba_model()(inputs))


@pytest.mark.parametrize(
    ("key", "package"), list(zip(KERNEL_KEYS, ("causal_conv1d", "mamba_ssm", "mamba_ssm"), strict=True))
)
def test_kernels_of_a_missing_package_are_asked_for_by_name(key, package, monkeypatch):
    monkeypatch.setattr(device, "has_accelerator", lambda: True)
    with pytest.raises(
        MissingPackageError, match=rf"{key}: true needs the package '{package}'.*requirements-mamba"
    ):
        mamba_kernels.choose_kernels(mamba_args(**{key: True}))


def conv_stand_in(x, weight, bias, activation):
    """causal_conv1d_fn on [b, d, s]."""
    assert activation == "silu" and x.is_contiguous()
    return F.silu(F.conv1d(F.pad(x, (3, 0)), weight.unsqueeze(1), bias, groups=len(weight)))


def scan_stand_in(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """selective_scan_fn on [b, d, s] and [b, n, s]."""
    assert delta_softplus and u.is_contiguous() and A.dtype == D.dtype == delta_bias.dtype == torch.float32
    delta = F.softplus(delta + delta_bias[:, None])
    state, outputs = 0.0, []
    for t in range(u.shape[-1]):
        state = torch.exp(delta[..., t, None] * A) * state
        state = state + (delta * u)[..., t, None] * B[:, None, :, t]
        outputs.append((state * C[:, None, :, t]).sum(-1))
    return (torch.stack(outputs, -1) + D[:, None] * u) * F.silu(z)


def inner_stand_in(
    xz, conv_weight, conv_bias, x_weight, delta_weight, out_weight, out_bias, A, B=None, C=None, D=None,
    delta_bias=None, B_proj_bias=None, C_proj_bias=None, delta_softplus=True,
):  # fmt: skip
    """mamba_inner_fn on [b, 2d, s]; the result is [b, s, h]."""
    assert out_bias is B is C is None
    x, z = xz.chunk(2, dim=1)
    x = conv_stand_in(x.contiguous(), conv_weight.squeeze(1), conv_bias, "silu")
    selected = torch.einsum("od,bds->bos", x_weight, x)
    steps, B, C = selected.split((selected.shape[1] - 32, 16, 16), 1)
    delta = torch.einsum("dr,brs->bds", delta_weight, steps)
    y = scan_stand_in(x, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return y.transpose(1, 2) @ out_weight.T


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins of the packages, and an accelerator as far as the choice of kernels goes."""
    conv, interface = types.ModuleType("causal_conv1d"), types.ModuleType("selective_scan_interface")
    conv.causal_conv1d_fn = conv_stand_in
    interface.selective_scan_fn, interface.mamba_inner_fn = scan_stand_in, inner_stand_in
    monkeypatch.setitem(sys.modules, "causal_conv1d", conv)
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", interface)
    monkeypatch.setattr(mamba_kernels.device, "has_accelerator", lambda: True)


@pytest.mark.parametrize(
    "keys", [KERNEL_KEYS[:1], KERNEL_KEYS[1:2], KERNEL_KEYS[:2], KERNEL_KEYS[2:], KERNEL_KEYS]
)
def test_kernels_are_called_for_what_torch_computes(keys, packages):
    args = mamba_args(**dict.fromkeys(keys, True))
    chosen = mamba_kernels.choose_kernels(args)
    assert [function is not None for function in chosen] == [key in keys for key in KERNEL_KEYS]
    mixer = make_mixer()
    hidden = torch.randn(12, 2, 24)
    expected = mixer(hidden)[0]
    mixer.kernels = chosen
    torch.testing.assert_close(mixer(hidden)[0], expected, rtol=1e-5, atol=1e-5)
    mixer.use_cache = True  # needs the states, which the kernels do not give
    torch.testing.assert_close(mixer(hidden)[0], expected, rtol=1e-5, atol=1e-5)


def test_kernels_are_left_out_where_documents_are_isolated(packages):
    args = mamba_args(**dict.fromkeys(KERNEL_KEYS, True), isolate_documents=True)
    assert mamba_kernels.choose_kernels(args) == (None, None, None)


def test_the_fused_operation_is_done_in_two_with_tensor_parallelism(packages, monkeypatch):
    monkeypatch.setattr(mpu, "get_model_parallel_world_size", lambda: 2)
    chosen = mamba_kernels.choose_kernels(mamba_args(mamba_inner_func_fusion=True))
    assert chosen == (conv_stand_in, scan_stand_in, None)


def test_heads_and_mlp_widths_do_not_matter_to_a_model_without_them():
    args = mamba_args(num_attention_heads=7, expansion_factor=1.375, mlp_multiple_of=256)
    assert len(ParallelMambaResidualLayer(args, *get_init_methods(args), 0).mixer.D) == 33
    with pytest.raises(ConfigError, match="num_attention_heads=7"):
        mamba_args(num_attention_heads=7, attention_config=["mamba", "global"])


def test_impossible_configs_are_refused_in_one_line():
    with pytest.raises(ConfigError, match="mamba blocks have 33 channels"):
        mamba_args(expansion_factor=1.375, model_parallel_size=2)
    with pytest.raises(ConfigError, match="mamba_inner_func_fusion knows no biases"):
        mamba_args(mamba_inner_func_fusion=True, mamba_use_bias_in_linears=True)
    with pytest.raises(ConfigError, match=r"mamba does not support hidden dropout \(hidden_dropout\)"):
        check_features(mamba_args(hidden_dropout=0.1))
