"""A mixture's configuration as a peft method: what cannot be is refused, and the method is registered once."""

import importlib

import pytest
from peft import PeftType
from peft_tiny import peft_warns

from common import peft_mixture
from common.peft_config import MixtureConfig

pytestmark = peft_warns


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, "num_experts must be at least 1, got 0"),
        ({"form": "soft"}, "form must be one of kv, hidden, got 'soft'"),
        ({"shared_expert": True, "num_experts": 2}, "at least 3 with a shared expert, got 2"),
        ({"top_k": 17}, "top_k must be from 0 to 16"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"gate": "task"}, "gate='task' needs tasks"),
        ({"task_type": "SEQ_CLS"}, "task_type must be CAUSAL_LM or left out"),
    ],
)
def test_a_configuration_that_cannot_be_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        MixtureConfig(**changes)


def test_the_method_can_be_imported_again():
    kinds_before = list(PeftType)
    importlib.reload(peft_mixture)
    assert list(PeftType) == kinds_before and PeftType("MIXTURE_OF_PROMPTS") is PeftType["MIXTURE_OF_PROMPTS"]
    assert MixtureConfig().peft_type is PeftType.MIXTURE_OF_PROMPTS
