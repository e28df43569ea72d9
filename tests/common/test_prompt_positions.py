"""Prompts that only the last input token and the answer see: everything before is the backbone's own."""

import pytest
import torch
from llama_by_hand import FLOAT32, llama_by_hand
from tiny import CPU, LAYERS, examples, logits_of, mixture_for, tiny_backbone, tiny_llama, tiny_prompted, tokenized

from common.batches import collate
from common.injection import PromptedBackbone

TEXTS = tokenized(examples(4))
BATCH = collate(TEXTS, 2, CPU)


def states_of(prompted, batch):
    """Return the hidden states that leave each layer, `[layers, batch, seq, hidden]`, and the logits."""
    left = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: left.append(output))
        for layer in prompted.backbone.model.model.layers
    ]
    with torch.no_grad():
        logits, _ = logits_of(prompted, batch)
    for hook in hooks:
        hook.remove()
    return torch.stack(left[-LAYERS:]), logits


@pytest.mark.parametrize("form", ["kv", "hidden"])
def test_what_comes_before_the_last_input_token_is_the_backbones_own(form):
    prompted, other = tiny_prompted(positions="answer", form=form), tiny_prompted(positions="answer", form=form)
    with torch.no_grad():
        for parameter in other.mixture.pool.parameters():
            parameter.copy_(parameter.flip(0) + 1)
    states, _ = states_of(prompted, BATCH)
    others, _ = states_of(other, BATCH)
    plain = tiny_llama()
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([text.prompt_ids + text.answer_ids])
        begin, last_input = -ids.shape[1], -len(text.answer_ids) - 1
        expected = plain.model(input_ids=ids, output_hidden_states=True).hidden_states
        for layer in range(LAYERS):
            before = slice(begin, last_input)
            # Whatever the prompts are, to the bit.
            assert torch.equal(states[layer, row, before], others[layer, row, before])
            if layer < LAYERS - 1:  # transformers gives the last one behind the final norm
                torch.testing.assert_close(states[layer, row, before], expected[layer + 1][0, before], **FLOAT32)
            seeing = (states[layer, row, last_input:] - others[layer, row, last_input:]).abs().amax(dim=1)
            assert ((seeing > 1e-3) == (layer >= 2)).all(), layer


def test_logits_equal_a_llama_written_out():
    prompted = tiny_prompted(positions="answer")
    logits, _ = logits_of(prompted, BATCH)
    everywhere, _ = logits_of(tiny_prompted(), BATCH)
    for row, text in enumerate(TEXTS):
        ids, num_prompt = text.prompt_ids + text.answer_ids, len(text.prompt_ids)
        by_hand = llama_by_hand(prompted.backbone.model, ids, prompted.mixture, 2, num_prompt, num_prompt - 1)
        found = logits[row, -len(text.answer_ids) - 1 :]
        torch.testing.assert_close(found.double(), by_hand[-len(found) :], **FLOAT32)
        assert not torch.allclose(found, everywhere[row, -len(found) :], atol=0.01)


@pytest.mark.parametrize("form", ["kv", "hidden"])
def test_padding_changes_nothing(form):
    prompted = tiny_prompted(positions="answer", form=form)
    logits, log_weights = logits_of(prompted, BATCH)
    for row, text in enumerate(TEXTS):
        alone, weights_alone = logits_of(prompted, collate([text], 2, CPU))
        torch.testing.assert_close(logits[row, -len(alone[0]) :], alone[0], **FLOAT32)
        torch.testing.assert_close(log_weights[row], weights_alone[0], **FLOAT32)


def test_a_longer_answer_beside_it_lets_no_more_of_an_input_see_prompts():
    prompted = tiny_prompted(positions="answer")
    short, *_, long = sorted(TEXTS, key=lambda text: len(text.answer_ids))
    assert len(short.answer_ids) < len(long.answer_ids)
    alone, _ = logits_of(prompted, collate([short], 2, CPU))
    beside, _ = logits_of(prompted, collate([long, short], 2, CPU))
    torch.testing.assert_close(beside[1, -len(alone[0]) :], alone[0], **FLOAT32)


def test_the_gate_weighs_as_where_all_positions_see_prompts():
    backbone = tiny_backbone()
    answer = PromptedBackbone(backbone, mixture_for(backbone, positions="answer"))
    _, log_weights = logits_of(answer, BATCH)
    assert torch.equal(log_weights, logits_of(tiny_prompted(), BATCH)[1])
