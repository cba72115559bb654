"""The models of configs/ are expressed by the family whose name their folder has."""

import pytest

from megatron.conversion.specs import model_config
from megatron.families import family_named
from tests.common import shipped

FAMILY_OF = {
    "bloom": "bloom",
    "falcon": "falcon",
    "gpt-j": "gptj",
    "gpt-neo": "gpt_neo",
    "llama": "llama",
    "llama2": "llama",
    "llama3": "llama",
    "mamba": "mamba",
    "mistral": "mistral",
    "opt": "opt",
    "pythia": "gpt_neox",
    "stablelm": "stablelm",
}
OTHERS = {
    "mistral/8x7B.yml": "mixtral",
    "stablelm/3B-alpha.yml": "gpt_neox",
    "stablelm/7B-alpha.yml": "gpt_neox",
}
MODELS = [name for name in shipped.models() if name.split("/")[0] in FAMILY_OF]


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_is_expressed(name):
    family = family_named(OTHERS.get(name, FAMILY_OF[name.split("/")[0]]))
    args = model_config(shipped.values_of(name))
    config = family.to_hf(args, 512)
    for key, theirs in family.same.items():
        assert config[theirs] == getattr(args, key)


def test_every_family_has_a_shipped_model():
    assert {*FAMILY_OF.values(), *OTHERS.values()} >= {"gptj", "gpt_neo", "opt", "bloom", "falcon", "mamba"}
    assert {name.split("/")[0] for name in MODELS} == set(FAMILY_OF)
