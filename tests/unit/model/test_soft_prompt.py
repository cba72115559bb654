"""Soft prompts: what is in front of the text, what is trained, and what the loss is of."""

import pytest
import torch

from megatron.common.errors import ConfigError
from megatron.model import build_sequential, get_params_for_weight_decay_optimization
from megatron.model.word_embeddings import SoftEmbedding
from megatron.neox_arguments.soft_prompt import SoftPrompt
from megatron.objectives import build_objective
from tests.common.models import inputs_and_targets, model_args, randomize

PROMPT = 3
ENABLED = {"soft_prompt_tuning": {"enabled": True, "n_tokens": PROMPT}}


def prompt_args(**keys):
    settings = {**ENABLED["soft_prompt_tuning"], **keys.pop("prompt", {})}
    args = model_args(tokenizer_type="CharLevelTokenizer", soft_prompt_tuning=settings, **keys)
    args.build_tokenizer()
    args.padded_vocab_size = 512
    return args


def prompt_of(model):
    return model.sequential[0].soft_prompt.soft_embedding_weight


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_prompt_is_trained(tied):
    args = prompt_args(no_weight_tying=not tied)
    model = build_sequential(args)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["sequential.0.soft_prompt.soft_embedding_weight"]
    (group,) = get_params_for_weight_decay_optimization(model, args)
    assert [id(parameter) for parameter in group["params"]] == [id(prompt_of(model))]
    inputs, targets = inputs_and_targets()
    build_objective(args).loss(model(inputs), targets).value.backward()
    assert prompt_of(model).grad.abs().sum() > 0


def test_other_weights_are_those_of_the_model_without_a_prompt():
    plain_args = model_args(tokenizer_type="CharLevelTokenizer")
    plain_args.padded_vocab_size = 512
    plain, tuned = build_sequential(plain_args), build_sequential(prompt_args())
    found = dict(tuned.logical_named_parameters())
    for name, parameter in plain.logical_named_parameters():
        assert torch.equal(found.pop(name), parameter), name
    assert list(found) == ["0.soft_prompt.soft_embedding_weight"]


def test_training_keeps_the_length_and_scores_each_label_where_its_text_is():
    """The text follows the prompt and loses its end: position i + 3 predicts what token i is followed by."""
    args = prompt_args()
    model = build_sequential(args)
    randomize(model)
    text = torch.randint(61, (2, 13), generator=torch.Generator().manual_seed(1))
    (tokens, positions), (labels, mask) = build_objective(args).collate({"text": text})
    logits = model((tokens, positions))
    assert logits.shape[:2] == tokens.shape == labels.shape == mask.shape == (2, 12)
    assert torch.equal(labels[:, PROMPT:], text[:, 1 : 13 - PROMPT])
    assert (mask[:, :PROMPT] == 0).all() and (mask[:, PROMPT:] == 1).all()
    expected = torch.nn.functional.cross_entropy(
        logits[:, PROMPT:].flatten(0, 1), text[:, 1 : 13 - PROMPT].flatten()
    )
    torch.testing.assert_close(build_objective(args).loss(logits, (labels, mask)).value, expected)


def test_the_prompt_is_text_that_nobody_wrote():
    """A prompt made of the embeddings of three tokens has the effect of these tokens."""
    words = [5, 9, 200]
    args = prompt_args()
    model = build_sequential(args)
    randomize(model)
    with torch.no_grad():
        prompt_of(model).copy_(model.sequential[0].word_embeddings.weight[words])
    plain_args = model_args(tokenizer_type="CharLevelTokenizer")
    plain_args.padded_vocab_size = 512
    plain = build_sequential(plain_args)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "soft_prompt" not in k})
    (tokens, positions), _ = inputs_and_targets()
    written = torch.cat([torch.tensor(words).expand(2, -1), tokens[:, : 12 - PROMPT]], 1)
    torch.testing.assert_close(model((tokens, positions)), plain((written, positions)))


def test_it_starts_from_a_text_repeated_or_cut():
    for text, expected in (("ab", [97, 98, 97]), ("abcdef", [97, 98, 99])):
        model = build_sequential(prompt_args(prompt={"init_string": text}))
        assert torch.equal(prompt_of(model), model.sequential[0].word_embeddings.weight[expected])


def test_a_text_without_tokens_is_refused(monkeypatch):
    """As a tokenizer that strips blanks makes of one."""
    args = prompt_args(prompt={"init_string": " "})
    monkeypatch.setattr(args.tokenizer, "tokenize", lambda text: [])
    with pytest.raises(ConfigError, match="soft_prompt_tuning.init_string=' ' has no tokens"):
        build_sequential(args)


def test_without_a_text_it_starts_within_the_range():
    values = prompt_of(build_sequential(prompt_args(prompt={"n_tokens": 10, "init_range": 0.1})))
    assert 0.05 < values.abs().max() <= 0.1 and values.min() < 0 < values.max()


def test_a_layer_of_its_own_is_public():
    args = prompt_args()
    words = build_sequential(args).sequential[0].word_embeddings
    layer = SoftEmbedding(args, words, n_tokens=4, init_range=0.5)
    embeddings = torch.randn(2, 12, 24)
    torch.testing.assert_close(layer(embeddings)[:, 4:], embeddings[:, :8])
    assert torch.equal(layer(embeddings)[1, :4], layer.soft_embedding_weight)


def test_both_names_of_the_length_are_understood():
    assert SoftPrompt.from_config(prompt_args()).n_tokens == PROMPT
    args = model_args(soft_prompt_tuning={"enabled": True, "num_tokens": 7})
    assert SoftPrompt.from_config(args) == SoftPrompt(7, "", 0.5)
    assert SoftPrompt.from_config(model_args(soft_prompt_tuning={"enabled": False})) is None


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"enabled": True, "tokens": 3},
            "unknown key 'tokens'.*did you mean 'num_tokens'|did you mean 'n_tokens'",
        ),
        ({"n_tokens": 3}, "needs enabled: true or false"),
        ({"enabled": True, "n_tokens": 3, "num_tokens": 3}, "are the same; keep one"),
        ({"enabled": True, "n_tokens": 12}, "leaves no room for text in seq_length=12"),
        ({"enabled": True, "n_tokens": 0}, "must be a whole number of at least 1"),
        ({"enabled": True, "init_range": 0}, "init_range=0 must be above 0"),
        ({"enabled": True, "init_string": 3}, "must be a text"),
        ({"enabled": "yes"}, "must be true or false"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        model_args(soft_prompt_tuning=settings)


def test_documents_that_do_not_see_the_prompt_are_refused():
    with pytest.raises(ConfigError, match="soft_prompt_tuning cannot be combined with isolate_documents"):
        model_args(isolate_documents=True, **ENABLED)
