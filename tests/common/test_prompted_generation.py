"""Generating with a mixture is a greedy loop by hand, with a cache and without, by beams and samples."""

import pytest
import torch
from peft_tiny import FLOAT32, TASKS, generated, kinds, loaded, peft_warns, prompts_of
from tiny import (
    byte_tokenizer,
    tiny_backbone,
)
from transformers import TextStreamer

from common.batches import Batch
from common.injection import PromptedBackbone

pytestmark = peft_warns


def greedy_by_hand(prompted, ids, task, num_tokens=8):
    """Read the whole text again for every token."""
    prompt = ids.shape[1]
    with torch.no_grad():
        for _ in range(num_tokens):
            read = (ids > 2).long()
            read[:, prompt:] = 0
            logits, _ = prompted.logits(Batch(ids, torch.ones_like(ids), read, ids[:, prompt:], (task,)))
            logits[0, -1, 1] = -torch.inf  # min_new_tokens: the text may not end
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids[:, prompt:]


@kinds
def test_generate_is_a_greedy_loop_by_hand_with_a_cache_and_without(tmp_path, kind):
    model, mixture = loaded(tmp_path, kind)
    inputs, tasks, singles = prompts_of()
    prompted = PromptedBackbone(tiny_backbone(), mixture)
    expected = torch.cat([greedy_by_hand(prompted, ids, task) for ids, task in zip(singles, tasks, strict=True)])
    model(**inputs, tasks=tasks)
    weights = model.expert_weights
    for use_cache in (True, False):
        assert torch.equal(generated(model, inputs, tasks=tasks, use_cache=use_cache), expected)
        torch.testing.assert_close(model.expert_weights, weights, **FLOAT32)  # as of the prompt alone
        for row, (ids, task) in enumerate(zip(singles, tasks, strict=True)):
            alone = generated(model, {"input_ids": ids}, tasks=[task], use_cache=use_cache)
            assert torch.equal(alone[0], expected[row])
    with model.disable_adapter():
        assert not torch.equal(generated(model, inputs), expected)


@pytest.mark.parametrize("kind", ["both", "hidden", "answer"])
def test_beams_and_samples_of_a_text_share_its_weights(tmp_path, kind):
    model, _ = loaded(tmp_path, kind)
    inputs, tasks, singles = prompts_of()
    for ways in (
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2, "top_k": 5},
    ):
        outputs = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            outputs.append(generated(model, inputs, tasks=tasks, use_cache=use_cache, **ways))
            rows = model.expert_weights.view(3, -1, 3)
            assert rows.shape[1] > 1 and (rows == rows[:, :1]).all() and not torch.equal(rows[0], rows[1])
        assert torch.equal(*outputs)
        if "do_sample" not in ways:
            alone = [
                generated(model, {"input_ids": ids}, tasks=[task], **ways)
                for ids, task in zip(singles, tasks, strict=True)
            ]
            assert torch.equal(outputs[0], torch.cat(alone))


def test_the_same_seed_draws_the_same_sample(tmp_path):
    model, _ = loaded(tmp_path)
    inputs, _, _ = prompts_of()
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(generated(model, inputs, do_sample=True))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_streamer_gets_the_text_as_it_comes(tmp_path, capsys):
    model, _ = loaded(tmp_path)
    tokenizer = byte_tokenizer()
    ids = prompts_of(1)[2][0]
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    tokens = generated(model, {"input_ids": ids}, streamer=streamer)
    assert capsys.readouterr().out == tokenizer.decode(tokens[0], skip_special_tokens=True) + "\n"


def test_speculating_changes_nothing(tmp_path):
    """Prompt lookup lets a pass over the prompt hold guesses of the answer too: the gate must not read them."""
    model, _ = loaded(tmp_path)
    ids = prompts_of(1)[2][0].repeat(1, 2)
    assert torch.equal(
        generated(model, {"input_ids": ids}, 12), generated(model, {"input_ids": ids}, 12, prompt_lookup_num_tokens=3)
    )


def test_tasks_change_what_is_generated(tmp_path):
    model, mixture = loaded(tmp_path, "task")
    ids = prompts_of(1)[2][0]
    found = {}
    for task in ("unheard-of", *TASKS):
        generated(model, {"input_ids": ids}, tasks=[task])
        found[task] = model.expert_weights
    model.get_base_model()(ids)  # of no task: those of the last generate are forgotten
    assert torch.equal(found["unheard-of"], model.expert_weights)
    for row, task in enumerate(TASKS):
        expected = mixture.gate.query(mixture.gate.task_embeddings[row]) @ mixture.gate.expert_keys.T
        torch.testing.assert_close(found[task][0], expected.softmax(-1), **FLOAT32)
