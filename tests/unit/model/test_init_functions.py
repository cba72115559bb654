import math
from types import SimpleNamespace

import pytest
import torch

from megatron.common.errors import ConfigError
from megatron.model.init_functions import get_init_methods, init_method_normal
from megatron.registry import lookup, names

SHAPE = SimpleNamespace(
    num_layers=12, hidden_size=768, init_method_std=0.02, use_mup=False, mup_init_scale=1.0
)
LARGE = SimpleNamespace(
    num_layers=44, hidden_size=6144, init_method_std=0.02, use_mup=False, mup_init_scale=1.0
)


def drawn(name, args, shape=(512, 768)):
    tensor = torch.empty(shape)
    lookup("init method", name)(args)(tensor, torch.Generator().manual_seed(0))
    return tensor


@pytest.mark.parametrize(
    "name, args, std",
    [
        ("normal", SHAPE, 0.02),
        ("small_init", SHAPE, 0.0228217732),
        ("wang_init", SHAPE, 0.0060140653),
        ("scaled_normal", SHAPE, 0.0040824829),
        ("single_residual_scaled_normal", SHAPE, 0.0057735027),
        ("small_init", LARGE, 0.0080687153),
        ("wang_init", LARGE, 0.0005798981),
        ("scaled_normal", LARGE, 0.0021320072),
        ("xavier_normal", SHAPE, math.sqrt(2 / (512 + 768))),
        ("xavier_uniform", SHAPE, math.sqrt(2 / (512 + 768))),
        ("orthogonal", SHAPE, math.sqrt(2 / 768)),
        ("scaled_orthogonal", SHAPE, math.sqrt(2 / 12 / 768)),
    ],
)
def test_standard_deviation(name, args, std):
    values = drawn(name, args)
    assert values.std().item() == pytest.approx(std, rel=0.01)
    assert abs(values.mean().item()) < 0.01 * std


def test_normal_initialisers_scale_one_draw_by_the_golden_deviations():
    unit = torch.empty(512, 768).normal_(generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn("small_init", SHAPE), unit * 0.0228217732)
    torch.testing.assert_close(drawn("wang_init", LARGE), unit * 0.0005798981)


@pytest.mark.parametrize(
    "name, gain", [("orthogonal", math.sqrt(2)), ("scaled_orthogonal", math.sqrt(2 / 12))]
)
def test_orthogonal_rows_have_the_length_of_the_gain(name, gain):
    rows = drawn(name, SHAPE, (64, 128))
    torch.testing.assert_close(rows @ rows.T, gain**2 * torch.eye(64), rtol=0, atol=1e-5)


def test_values_are_a_function_of_the_generator():
    for name in names("init method"):
        torch.manual_seed(1)
        first = drawn(name, SHAPE, (32, 32))
        torch.manual_seed(2)
        assert torch.equal(drawn(name, SHAPE, (32, 32)), first), name


def test_the_config_chooses_both_methods():
    args = SimpleNamespace(
        **vars(SHAPE), init_method="normal", output_layer_init_method="single_residual_scaled_normal"
    )
    first, output = get_init_methods(args)
    generator = torch.Generator()
    deviations = [
        method(torch.empty(400, 400), generator.manual_seed(0)).std().item() for method in (first, output)
    ]
    assert deviations[0] / deviations[1] == pytest.approx(math.sqrt(12), rel=1e-4)


def test_an_unknown_method_is_named_with_the_nearest_choice():
    with pytest.raises(ConfigError, match="did you mean 'wang_init'"):
        lookup("init method", "wang_innit")


def test_values_are_scaled_with_mup_only():
    drawn_values = [
        init_method_normal(0.02, mup, 3.0)(torch.empty(8, 8), torch.Generator().manual_seed(0))
        for mup in (False, True)
    ]
    torch.testing.assert_close(drawn_values[1], 3.0 * drawn_values[0])


@pytest.mark.parametrize("name", names("init method"))
def test_a_method_knows_how_large_its_values_are(name):
    method = lookup("init method", name)(SHAPE)
    for shape in ((256, 256), (512, 128)):
        values = method(torch.empty(shape), torch.Generator().manual_seed(0))
        assert values.square().mean().sqrt().item() == pytest.approx(method.rms(shape), rel=0.02)
