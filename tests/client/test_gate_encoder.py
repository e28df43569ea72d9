"""A gate that reads another model's states: it is the same gate, and sees no answer either."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from client.gate_encoder import encoded
from client.gate_statistics import gate_inputs
from common.backbone import load_backbone
from common.batches import collate
from tests.tiny import CPU, backbone_on_disk, examples, tiny_backbone, tiny_prompted, tokenized


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return backbone_on_disk(tmp_path_factory.mktemp("encoder"))


def test_it_reads_what_a_gate_of_that_model_would_read(encoder: str) -> None:
    some = examples(5)
    own = gate_inputs(load_backbone.__wrapped__(encoder, "none", "cpu"), 2, tokenized(some))
    np.testing.assert_allclose(encoded(some, encoder, "cpu"), own, atol=0.01)  # bfloat16, padded otherwise


def test_it_sees_no_answer(encoder: str) -> None:
    some = examples(5)
    others = [replace(example, output="something else entirely") for example in some]
    np.testing.assert_array_equal(encoded(some, encoder, "cpu"), encoded(others, encoder, "cpu"))


def test_the_gate_weighs_by_what_it_is_given() -> None:
    some = tokenized(examples(4))
    inputs = gate_inputs(tiny_backbone(), 2, some)
    with tiny_prompted(layer=2) as prompted:
        expected_logits, expected = prompted.logits(collate(some, 2, CPU))
        given = [replace(tokens, gate_input=row) for tokens, row in zip(some, inputs, strict=True)]
        logits, weights = prompted.logits(collate(given, 2, CPU))
        torch.testing.assert_close(weights, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=0)
        other = [replace(tokens, gate_input=row) for tokens, row in zip(some, inputs[::-1].copy(), strict=True)]
        assert (prompted.logits(collate(other, 2, CPU))[1] - expected).abs().max() > 0.01
        # Nothing of it is left for the next pass.
        torch.testing.assert_close(prompted.logits(collate(some, 2, CPU))[1], expected, atol=0, rtol=0)
