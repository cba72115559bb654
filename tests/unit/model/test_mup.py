"""The maximal update parametrisation: what follows from the width."""

import math

import pytest
import torch
import yaml

from megatron.common.errors import ConfigError
from megatron.model import build_sequential, get_params_for_weight_decay_optimization
from megatron.model.mup import Widths, base_shapes
from megatron.mup_substitute import get_coord_data, make_base_shapes, of_width, write_coord_data
from megatron.optimizers import build_optimizer
from tests.common.models import inputs_and_targets, model_args

BASE, WIDE = 32, 128
SETTINGS = {
    "num_attention_heads": 4,
    "optimizer": {"type": "Adam", "params": {"lr": 0.01}},
    "weight_decay": 0.1,
}


@pytest.fixture
def shapes(tmp_path):
    path = tmp_path / "shapes"
    content = {
        name: list(s) for name, s in make_base_shapes(model_args(hidden_size=BASE, **SETTINGS)).items()
    }
    (tmp_path / "shapes.0").write_text(yaml.safe_dump(content))
    return str(path)


def mup_args(shapes, **keys):
    return model_args(
        **{"hidden_size": WIDE, "use_mup": True, "base_shapes_file": shapes, **SETTINGS, **keys}
    )


def test_dimensions_that_do_not_grow_have_no_base(shapes):
    found = base_shapes(mup_args(shapes))
    assert found["0.word_embeddings.weight"] == (None, BASE)
    assert found["2.attention.query_key_value.weight"] == (3 * BASE, BASE)
    assert found["2.mlp.linear2.bias"] == (BASE,)
    assert found["6.final_linear.weight"] == (None, BASE)


def test_the_names_of_the_package_mup_are_understood(shapes, tmp_path):
    content = {f"sequential.{name}": list(s) for name, s in base_shapes(mup_args(shapes)).items()}
    (tmp_path / "other").write_text(yaml.safe_dump(content))
    assert base_shapes(mup_args(str(tmp_path / "other"))) == base_shapes(mup_args(shapes))


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: 3", "a: [x]", "a: [1, 2", "a: [-1]"])
def test_a_file_of_another_kind_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "bad").write_text(text)
    with pytest.raises(ConfigError, match="base_shapes_file: .* is no file of base shapes"):
        base_shapes(mup_args(str(tmp_path / "bad")))
    with pytest.raises(ConfigError, match="base_shapes_file: there is no"):
        base_shapes(mup_args(str(tmp_path / "missing")))


def test_base_shapes_of_another_model_are_refused(shapes):
    with pytest.raises(ConfigError, match="has no 0.position_embeddings.weight"):
        build_sequential(mup_args(shapes, pos_emb="learned"))


@pytest.mark.parametrize("method", ["normal", "small_init", "wang_init", "xavier_normal", "orthogonal"])
def test_initial_values_are_the_base_models_and_of_matrices_smaller_by_the_root_of_the_width(shapes, method):
    inits = {"init_method": method, "output_layer_init_method": method}
    base = dict(
        build_sequential(model_args(hidden_size=BASE, **SETTINGS, **inits)).logical_named_parameters()
    )
    wide = build_sequential(mup_args(shapes, mup_init_scale=2.0, **inits)).logical_named_parameters()
    ratio = WIDE / BASE
    for name, parameter in wide:
        if parameter.dim() < 2:
            assert parameter.square().sum() in (0.0, parameter.numel()), name
            continue
        matrix = not name.startswith(("0.", "6."))
        expected = 2.0 * base[name].square().mean().sqrt().item() / (math.sqrt(ratio) if matrix else 1.0)
        assert parameter.square().mean().sqrt().item() == pytest.approx(expected, rel=0.1), name


def test_at_the_base_width_only_attention_has_another_scale(shapes):
    args = mup_args(shapes, hidden_size=BASE, mup_attn_temp=math.sqrt(BASE / 4))
    plain = build_sequential(model_args(hidden_size=BASE, **SETTINGS))
    inputs, _ = inputs_and_targets()
    torch.testing.assert_close(build_sequential(args)(inputs), plain(inputs))


def test_the_factors_act(shapes):
    def outputs(**keys):
        model = build_sequential(mup_args(shapes, no_weight_tying=tying, **keys))
        return model(inputs_and_targets()[0]), model

    for tying in (True, False):
        logits, model = outputs()
        doubled, _ = outputs(mup_output_temp=2.0)
        torch.testing.assert_close(doubled, 2.0 * logits)
        assert model.sequential[2].attention.scale == pytest.approx(1 / (WIDE / 4))
        assert outputs(mup_attn_temp=3.0)[1].sequential[2].attention.scale == pytest.approx(3 / (WIDE / 4))
        for keys in ({"mup_embedding_mult": 2.0}, {"mup_attn_temp": 30.0}):
            assert not torch.allclose(outputs(**keys)[0], logits), keys
        normed = model.sequential[5](torch.randn(1, 3, WIDE))
        if tying:
            head = model.sequential[6]
            expected = torch.nn.functional.linear(normed, head.final_linear.weight) * BASE / WIDE
            torch.testing.assert_close(head(normed), expected)


@pytest.mark.parametrize("kind", ["Adam", "sgd"])
def test_rates_and_decay_of_the_groups(shapes, kind):
    optimizer = {"type": kind, "params": {"lr": 0.01}}
    args = mup_args(shapes, optimizer=optimizer)
    model = build_sequential(args)
    groups = get_params_for_weight_decay_optimization(model, args)
    ratio = WIDE / BASE
    of = {id(p): group for group in groups for p in group["params"]}
    named = dict(model.logical_named_parameters())
    assert len(of) == len(named)
    matrix, vector = of[id(named["2.mlp.linear1.weight"])], of[id(named["0.word_embeddings.weight"])]
    bias = of[id(named["2.mlp.linear1.bias"])]
    if kind == "Adam":
        assert (matrix["width_mult"], vector["width_mult"], bias["width_mult"]) == (ratio, 1.0, 1.0)
    else:
        assert (matrix["width_mult"], vector["width_mult"], bias["width_mult"]) == (1.0, 1 / ratio, 1 / ratio)
    for group in (matrix, vector):
        assert group["weight_decay"] == pytest.approx(0.1 * group["width_mult"])
    assert bias["weight_decay"] == 0.0 and of[id(named["2.input_layernorm.weight"])] is bias
    # and the optimizer keeps the key that the schedule divides by
    assert [g["width_mult"] for g in build_optimizer("adam", groups, {"lr": 0.01}, 0.1).param_groups] == [
        group["width_mult"] for group in groups
    ]


def test_ratios_of_matrices_that_are_not_square():
    taller = Widths.of((512, 64), (64, 32))
    assert taller.rate_divisor("adam") == 2.0 and taller.rate_divisor("sgd") == 2.0 / 8.0
    assert Widths.of((7, 64), (None, 32)).rate_divisor("sgd") == 0.5
    assert Widths.of((7,), (None,)).rate_divisor("adam") == 1.0


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"use_mup": True}, "use_mup needs base_shapes_file"),
        ({"save_base_shapes": True}, "save_base_shapes needs base_shapes_file"),
        ({"mup_attn_temp": 2.0}, "mup_attn_temp=2.0 has no effect without use_mup"),
        ({"base_shapes_file": "x"}, "base_shapes_file has no effect"),
        ({"coord_check": True, "base_shapes_file": "x"}, "coord_check compares muP"),
        ({"use_mup": True, "base_shapes_file": "x", "mup_output_temp": 0.0}, "must be above 0"),
        ({"mup_width_scale": 1}, "mup_width_scale=1 must be at least 2"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        model_args(**keys)


def growth(shapes, mup, optimizer, rate, module):
    """Size of a module's output in the last of a few steps, widest model over narrowest."""
    args = mup_args(shapes, use_mup=mup, base_shapes_file=shapes if mup else None)
    args.optimizer_type = optimizer
    models = {
        width: lambda width=width: build_sequential(of_width(args, width))
        for width in (BASE, 4 * BASE, 16 * BASE)
    }
    text = torch.randint(61, (8, 13), generator=torch.Generator().manual_seed(3))
    records = get_coord_data(args, None, None, models, iter([{"text": text}]), optimizer, rate, mup)
    assert {record["t"] for record in records} == {1, 2, 3, 4}
    last = {r["width"]: r["l1"] for r in records if r["module"] == module and r["t"] == 4}
    return last[16 * BASE] / last[BASE]


@pytest.mark.parametrize("optimizer, rate", [("adam", 0.01), ("sgd", 0.3)])
def test_activations_do_not_grow_with_the_width_and_without_mup_they_do(shapes, optimizer, rate):
    for module in ("3", "6"):
        assert 0.5 < growth(shapes, True, optimizer, rate, module) < 1.6, module
    assert growth(shapes, False, optimizer, rate, "6") > 2.5


def test_the_numbers_are_written_with_or_without_a_plot(tmp_path, capsys):
    keys = ("width", "module", "t", "l1", "optimizer", "lr")
    records = [dict(zip(keys, (w, "6", t, 0.5, "sgd", 0.1), strict=True)) for w in (8, 16) for t in (1, 2)]
    write_coord_data(records, tmp_path / "coord_check_up.0")
    lines = (tmp_path / "coord_check_up.0.csv").read_text().splitlines()
    assert lines[0] == "width,module,t,l1,optimizer,lr" and len(lines) == 5
    said = capsys.readouterr().out
    assert "coord_check_up.0.csv" in said
    assert (tmp_path / "coord_check_up.0.jpg").exists() or "requirements-plot.txt" in said
