"""The curves of the documentation: what is drawn, and that nothing drawn is lost."""

from megatron import registry
from tests.common.paths import ROOT
from tools.benchmarks import loss_curves


def test_every_block_and_optimizer_has_a_run():
    assert set(loss_curves.choices("optimizers")) == set(registry.names("optimizer"))
    assert set(loss_curves.choices("blocks")) >= {"global", "rwkv", *registry.names("attention")}


def test_a_run_uses_its_choice_and_its_learning_rate():
    values = loss_curves.configuration("sgd", loss_curves.choices("optimizers")["sgd"], 70, "logs")
    assert values["optimizer"]["type"] == "sgd"
    assert values["optimizer"]["params"]["lr"] == loss_curves.LEARNING_RATES["sgd"]
    assert values["train_iters"] == values["lr_decay_iters"] == 70
    merged = loss_curves.merged(ROOT / "configs/quickstart.yml", values)
    assert merged["hidden_size"] == loss_curves.SMALL["hidden_size"]
    assert merged["data_path"] == "data/stdlib/stdlib_text_document"


def test_curves_survive_in_their_file(tmp_path):
    curves = {"one": {10: 3.5, 20: 2.25}, "two": {10: 4.0}}
    loss_curves.write_curves(tmp_path / "curves.csv", curves)
    assert loss_curves.read_curves(tmp_path / "curves.csv") == curves
    assert loss_curves.read_curves(tmp_path / "none.csv") == {}
