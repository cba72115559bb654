"""Every family, both ways: equal logits, the same bits after import and export, and the same training step."""

import functools
import tempfile
from pathlib import Path

import pytest
import torch
import transformers

from megatron.conversion.from_hf import import_hf
from megatron.conversion.specs import model_config
from megatron.conversion.to_hf import export_hf
from megatron.families import family_named
from megatron.neox_arguments.loading import read_files
from tests.common.distributed import run_distributed
from tests.parity.families import CASES, VOCABULARY, make_model, save_model, texts
from tests.parity.family_worker import BATCH, DECAY, EPSILON, RATE, run_models

# name -> (processes, tensor ranks, pipeline stages)
LAYOUTS = {"tp1": (1, 1, 0), "tp2": (2, 2, 0), "pp2": (2, 1, 2)}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@functools.cache
def scratch() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="families-")
    scratch.folder = folder  # lives as long as the tests
    return Path(folder.name)


@functools.cache
def reference(case: str) -> transformers.PreTrainedModel:
    return make_model(case)


@functools.cache
def hugging_face_folder(case: str) -> Path:
    return save_model(reference(case), scratch() / "theirs" / str(list(CASES).index(case)))


@functools.cache
def imported(case: str, layout: str) -> Path:
    """The config file of the case's model, imported for a layout."""
    _, tensor, pipe = LAYOUTS[layout]
    target = scratch() / layout / str(list(CASES).index(case))
    return import_hf(hugging_face_folder(case), target, tensor, pipe)


@functools.cache
def results(layout: str) -> dict[str, list[dict]]:
    """Case -> what each rank found, all cases in one launch."""
    processes = LAYOUTS[layout][0]
    configs = [str(imported(case, layout)) for case in CASES]
    ranks = run_distributed(run_models, processes, configs, processes, timeout=60 + 10 * len(CASES))
    return {case: [rank[number] for rank in ranks] for number, case in enumerate(CASES)}


@functools.cache
def one_step(case: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of two steps of torch's AdamW on transformers' model, and its weights after the first."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        hugging_face_folder(case), attn_implementation="eager"
    )
    # The decay rates of Mamba's states are not drawn to zero.
    matrices = [
        value for name, value in model.named_parameters() if value.dim() > 1 and not name.endswith("A_log")
    ]
    others = [value for name, value in model.named_parameters() if value.dim() == 1 or name.endswith("A_log")]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=RATE,
        betas=(0.9, 0.95),
        eps=EPSILON,
    )
    losses, weights = [], {}
    model.train()
    for step in range(2):
        text = texts(step + 1, BATCH)
        logits = model(text[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:
            weights = {name: value.clone() for name, value in model.state_dict().items()}
    return losses, weights


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_equal_after_import(case, layout):
    expected = reference(case)(texts(0, BATCH)[:, :-1]).logits
    assert expected.std() > 0.1
    found = next(rank["logits"] for rank in reversed(results(layout)[case]) if rank["logits"] is not None)
    torch.testing.assert_close(found[..., :VOCABULARY], expected, **CLOSE)
    # Rows that a layout adds take no part.
    assert bool((found[..., VOCABULARY:] == -torch.inf).all())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_a_training_step_equals_that_of_torch_after_import(case, layout):
    losses, weights = one_step(case)
    (found, *_) = results(layout)[case]
    torch.testing.assert_close(found["losses"], losses, **CLOSE)
    assert losses[1] != losses[0]
    if layout == "tp1":
        exported = named_as_theirs(case, found["weights"])
        before = reference(case).state_dict()
        for name, value in exported.items():
            torch.testing.assert_close(
                value, weights[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
            )
            # The same for all keys, a bias of theirs changes no softmax, and may stay where it is.
            assert name.endswith("k_proj.bias") or not torch.equal(value, before[name]), (
                f"{name} has not moved"
            )


def named_as_theirs(case: str, ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    args = model_config(read_files([imported(case, "tp1")])[0])
    family = family_named(reference(case).config.model_type)
    named = {}
    for rule in family.rules(args):
        if rule.native in ours and not rule.unused:
            named |= dict(zip(rule.theirs, rule.form.split(ours[rule.native]), strict=True))
    return in_their_model(case, named)


def in_their_model(case: str, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as stored in files under the names and in the form that transformers' model has."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        reference(case).config.save_pretrained(folder)
        save_file(
            {name: value.contiguous() for name, value in named.items()},
            f"{folder}/model.safetensors",
            {"format": "pt"},
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_export_gives_back_the_same_bits(case, layout, tmp_path):
    folder = export_hf(
        imported(case, layout).parent / "global_step0",
        [],
        tmp_path,
        reference(case).config.model_type,
        shard_size="20KB",
    )
    assert (tmp_path / "model.safetensors.index.json").is_file()  # several files
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert type(model) is type(reference(case))
    expected, found = reference(case).state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    tokens = texts(0, BATCH)[:, :-1]
    assert torch.equal(model(tokens).logits, reference(case)(tokens).logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("w5 w7")["input_ids"] == [5, 7]
    assert model.generation_config.eos_token_id == 0
