"""peft's adapters: the same logits as peft's own, a backbone left as it was, and nothing trained but the adapter."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapters import TASKS, adapted_by, config_of, methods, shifted, with_shifted_values
from families import family_model
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft_tiny import peft_warns
from tiny import CPU, backbone_on_disk, batch_of, byte_tokenizer, examples, tiny_backbone, tiny_llama, tokenized

from client.adapter import AdaptedBackbone, peft_config
from client.evaluator import evaluate
from client.trainer import TrainSettings, train
from common.adapter_spec import ADAPTER_METHODS
from common.answer_loss import answer_nll
from common.backbone import Backbone, load_backbone
from common.batches import collate
from common.mixture_arrays import Arrays

SETTINGS = TrainSettings(num_steps=3, batch_size=4, learning_rate=0.04, gate_learning_rate=0.0, balance_weight=0.0)
LORAS = ("lora", "ffa-lora")
# float32 sums of about a hundred terms by another kernel; measured 3e-6 on logits of size 1 to 10.
FLOAT32 = {"rtol": 1e-5, "atol": 5e-5}


def by_peft(method: str, arrays: Arrays, model=None, **changes: object):
    """Return a model of peft's own making with these values."""
    model = get_peft_model(model or tiny_llama(), peft_config(config_of(method, **changes), len(TASKS)))
    set_peft_model_state_dict(model, {name: torch.from_numpy(array) for name, array in arrays.items()})
    return model.eval()


def loss_of(adapted: AdaptedBackbone, batch) -> torch.Tensor:
    return answer_nll(adapted.logits(batch)[0].double(), batch.labels).mean()


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_plain(model, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    head = model.get_output_embeddings()
    for module in model.modules():
        assert len(module._forward_pre_hooks) <= (module is head)  # which has the backbone's own, if it was loaded
        assert not module._forward_hooks and "lora" not in type(module).__module__
    for parameter in model.parameters():
        assert not parameter.requires_grad and parameter.grad is None
    assert not hasattr(model, "peft_config")


# --- The logits ---


@methods
@peft_warns
def test_the_logits_of_one_example_are_pefts_own(method):
    adapted = with_shifted_values(adapted_by(method))
    for row, text in enumerate(tokenized(examples(3))):
        batch = collate([text], 2, CPU)
        logits, log_weights = adapted.logits(batch)
        plain = by_peft(method, adapted.arrays())
        ids = {"task_ids": torch.tensor([TASKS.index(text.task)])} if method == "multitask-prompt-tuning" else {}
        with torch.no_grad():
            expected = plain(batch.input_ids, attention_mask=batch.attention_mask, **ids).logits
            alone = tiny_llama()(batch.input_ids).logits
        torch.testing.assert_close(logits, expected[:, -batch.num_logits :], **FLOAT32, msg=f"example {row}")
        assert not torch.allclose(logits, alone[:, -batch.num_logits :], atol=0.1)
        assert log_weights.tolist() == [[0.0]]


@methods
def test_a_padded_batch_gives_the_logits_of_its_examples_alone(method):
    adapted = with_shifted_values(adapted_by(method))
    texts = tokenized(examples(6))
    together = collate(texts, 2, CPU)
    assert (together.attention_mask == 0).any()
    logits, _ = adapted.logits(together)
    for row, text in enumerate(texts):
        alone, _ = adapted.logits(collate([text], 2, CPU))
        torch.testing.assert_close(logits[row, -alone.shape[1] :], alone[0], **FLOAT32)


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "multitask-prompt-tuning"])
@peft_warns
def test_positions_count_from_the_first_virtual_token(method):
    """Rotary positions would hide a shift of them all; learned ones do not."""
    backbone = Backbone(family_model("gpt2", "sdpa"), byte_tokenizer(), "gpt2", CPU)
    adapted = with_shifted_values(adapted_by(method, backbone))
    batch = collate(tokenized(examples(1)), 2, CPU)
    ids = {"task_ids": torch.tensor([1])} if method == "multitask-prompt-tuning" else {}
    plain = by_peft(method, adapted.arrays(), family_model("gpt2", "sdpa"))
    expected = plain(batch.input_ids, attention_mask=batch.attention_mask, **ids).logits
    torch.testing.assert_close(adapted.logits(batch)[0], expected[:, -batch.num_logits :], **FLOAT32)


def test_a_task_has_its_own_prompt_and_one_without_rows_is_refused():
    adapted = with_shifted_values(adapted_by("multitask-prompt-tuning"))
    (text,) = tokenized(examples(1))
    of_task = [adapted.logits(collate([replace(text, task=task)], 2, CPU))[0] for task in TASKS]
    assert not torch.allclose(of_task[0], of_task[1], atol=1e-3)
    assert not torch.allclose(of_task[1], of_task[2], atol=1e-3)
    assert adapted.task_ids(["turn", "count"], CPU).tolist() == [2, 0]
    with pytest.raises(ValueError, match="multitask-prompt-tuning has no prompt for the task 'new', which no client"):
        adapted.logits(collate([replace(text, task="new")], 2, CPU))


@pytest.mark.parametrize("method", [method for method in ADAPTER_METHODS if method != "multitask-prompt-tuning"])
def test_other_methods_know_no_tasks(method):
    adapted = with_shifted_values(adapted_by(method))
    (text,) = tokenized(examples(1))
    assert adapted.spec.tasks == ()
    first, new = (adapted.logits(collate([replace(text, task=task)], 2, CPU))[0] for task in ("count", "new"))
    assert torch.equal(first, new)


# --- The arrays ---


@methods
@peft_warns
def test_names_and_shapes_are_those_that_peft_saves(method):
    adapted = adapted_by(method)
    saved = get_peft_model_state_dict(get_peft_model(tiny_llama(), peft_config(config_of(method), len(TASKS))))
    assert adapted.spec.shapes == {name: tuple(value.shape) for name, value in saved.items()}
    assert adapted.arrays().keys() == adapted.spec.all().keys() == saved.keys()
    assert adapted.trained_arrays().keys() == adapted.spec.trainable().keys()
    assert all(array.dtype == np.float32 for array in adapted.arrays().values())
    json.dumps(adapted.spec.peft_card)


@methods
def test_on_a_backbone_of_bfloat16_the_adapter_is_float32(method):
    adapted = adapted_by(method, tiny_backbone(torch.bfloat16))
    values = shifted(adapted.arrays())
    adapted.load_arrays(values)
    assert all(np.array_equal(array, values[name]) for name, array in adapted.arrays().items())
    logits, _ = adapted.logits(batch_of())
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    loss_of(adapted, batch_of()).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in adapted.trained_parameters()["prompts"])


def test_what_peft_is_told():
    card = {method: adapted_by(method).spec.peft_card for method in ADAPTER_METHODS}
    for method in LORAS:
        told = {key: card[method][key] for key in ("peft_type", "r", "lora_alpha", "target_modules", "lora_dropout")}
        expected = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}
        assert told == {"peft_type": "LORA"} | expected
    for method, kind in (
        ("prompt-tuning", "PROMPT_TUNING"),
        ("prefix-tuning", "PREFIX_TUNING"),
        ("multitask-prompt-tuning", "MULTITASK_PROMPT_TUNING"),
    ):
        assert (card[method]["peft_type"], card[method]["num_virtual_tokens"]) == (kind, 4)
    assert card["multitask-prompt-tuning"]["num_tasks"] == 3
    assert all(each["inference_mode"] is True for each in card.values())


def test_soft_prompts_begin_as_rows_of_the_vocabulary():
    backbone = tiny_backbone()
    rows = backbone.model.get_input_embeddings().weight.numpy()
    (prompts,) = adapted_by("prompt-tuning", backbone).arrays().values()
    assert all((rows == prompt).all(axis=1).any() for prompt in prompts)


@methods
def test_the_seed_decides_and_torchs_generator_is_left_alone(method):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = adapted_by(method, seed=3).arrays()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    same, other = adapted_by(method, seed=3).arrays(), adapted_by(method, seed=4).arrays()
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


@methods
def test_arrays_are_copies(method):
    adapted = adapted_by(method)
    before = adapted.arrays()
    for array in (*adapted.arrays().values(), *adapted.trained_arrays().values()):
        array += 1.0
    sent = {name: array.copy() for name, array in before.items()}
    adapted.load_arrays(sent)
    for array in sent.values():
        array += 1.0
    assert all(np.array_equal(array, before[name]) for name, array in adapted.arrays().items())


@methods
def test_arrays_that_do_not_fit_are_refused(method):
    adapted = adapted_by(method)
    arrays = adapted.arrays()
    name = next(iter(arrays))
    for wrong in (
        {key: value for key, value in arrays.items() if key != name},
        arrays | {name: arrays[name][:1]},  # which torch would stretch in silence
        arrays | {"other": arrays[name]},
    ):
        with pytest.raises(ValueError, match=f"the adapter that was sent does not fit method={method}"):
            adapted.load_arrays(wrong)


# --- Training ---


@methods
def test_only_what_is_trainable_changes(method):
    with with_shifted_values(adapted_by(method)) as adapted:
        before = adapted.arrays()
        result = train(adapted, tokenized(examples(8)), SETTINGS, np.random.default_rng(0))
        after = adapted.arrays()
    assert adapted.spec.frozen == {name for name in before if method == "ffa-lora" and "lora_A" in name}
    assert bool(adapted.spec.frozen) == (method == "ffa-lora")
    for name in before:
        assert (after[name] != before[name]).any() == (name not in adapted.spec.frozen), name
    assert result.usage.tolist() == [12.0] and result.gate_entropy == 0.0 and result.num_examples == 12
    if method == "multitask-prompt-tuning":
        assert result.task_examples.sum() == 12
    else:
        assert result.task_examples.shape == (0,)


def test_a_task_that_is_not_in_the_data_keeps_its_rows():
    adapted = with_shifted_values(adapted_by("multitask-prompt-tuning"))
    before = adapted.arrays()
    some = [example for example in examples(9) if example.task != "shout"]
    result = train(adapted, tokenized(some), SETTINGS, np.random.default_rng(0))
    after = adapted.arrays()
    for name in ("prefix_task_cols", "prefix_task_rows"):
        changed = (after[name] != before[name]).reshape(3, -1).any(axis=1)
        assert changed.tolist() == [True, False, True], name
    assert result.task_examples[1] == 0 and result.task_examples.sum() == 12


@methods
def test_training_learns(method):
    adapted = adapted_by(method)
    texts = tokenized(examples(8))
    batch = collate(texts, 2, CPU)
    before = float(loss_of(adapted, batch).detach())
    settings = replace(SETTINGS, num_steps=20)
    train(adapted, texts, settings, np.random.default_rng(0))
    assert float(loss_of(adapted, batch).detach()) < before - 1


@methods
def test_gradients_equal_finite_differences(method):
    # Products of two small numbers make short prompts, and the loss is far from straight there.
    scale = 1.0 if method == "multitask-prompt-tuning" else 0.3
    backbone = tiny_backbone(torch.float64)
    adapted = with_shifted_values(adapted_by(method, backbone), scale)
    batch = batch_of(6)
    for parameter in adapted.trained_parameters()["prompts"]:
        parameter.data = parameter.data.double()
    loss_of(adapted, batch).backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in zip(adapted.spec.trainable(), adapted.trained_parameters()["prompts"], strict=True):
        # Along a direction that leans on the gradient, so that the slope is not lost in noise.
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction = direction / direction.norm() + parameter.grad / parameter.grad.norm()
        slope = float((parameter.grad * direction).sum())
        step = 1e-3
        with torch.no_grad():
            parameter += step * direction
            above = loss_of(adapted, batch)
            parameter -= 2 * step * direction
            below = loss_of(adapted, batch)
            parameter += step * direction
        # The logits are rounded to float32: of a loss near 10 that is about 1e-6, of the slope 1e-3.
        assert float(above - below) / (2 * step) == pytest.approx(slope, rel=5e-3, abs=2e-3), name
    frozen = [adapted._parameters[name] for name in adapted.spec.frozen]
    assert all(parameter.grad is None for parameter in frozen)
    names = {name for name, parameter in adapted._model.named_parameters() if parameter.grad is not None}
    assert len(names) == len(adapted.spec.trainable())


# --- The backbone ---


@methods
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_the_backbone_is_plain_and_bit_identical_afterwards(tmp_path, method, quantization):
    """Twice in a row, without a warning, which would be an error here; gradients stay exact."""
    backbone = load_backbone.__wrapped__(backbone_on_disk(tmp_path), quantization, "cpu")
    before, modules = state_of(backbone.model), [*backbone.model.modules()]
    some = examples(8)
    texts = tokenized(some)
    plain = evaluate(backbone, some, texts)
    gradients, scores = [], []
    for _ in range(2):
        with with_shifted_values(adapted_by(method, backbone)) as adapted:
            loss_of(adapted, collate(texts, 2, CPU)).backward()
            gradients.append([parameter.grad.clone() for parameter in adapted.trained_parameters()["prompts"]])
            train(adapted, texts, SETTINGS, np.random.default_rng(0))
            scores.append(evaluate(adapted, some, texts).scores)
        assert_plain(backbone.model, before)
        assert all(first is again for first, again in zip(modules, backbone.model.modules(), strict=True))
        assert evaluate(backbone, some, texts).scores == plain.scores
    assert scores[0] == scores[1] != plain.scores
    for first, again in zip(*gradients, strict=True):
        assert (first != 0).any() and torch.equal(first, again)


@methods
def test_an_error_within_gives_the_plain_backbone_back(method):
    backbone = tiny_backbone()
    before = state_of(backbone.model)
    with pytest.raises(KeyboardInterrupt), adapted_by(method, backbone):
        raise KeyboardInterrupt
    assert_plain(backbone.model, before)


@methods
def test_a_user_sees_no_warning_of_pefts(method):
    """pytest would make errors of some and hide others: here all are shown."""
    backbone = Backbone(family_model("gpt2", "sdpa"), byte_tokenizer(), "gpt2", CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with adapted_by(method, backbone, lora_targets="c_attn") as adapted:
            adapted.logits(batch_of())


# --- LoRA's targets ---


@pytest.mark.parametrize("method", LORAS)
@pytest.mark.parametrize("targets", ["nope", "q_proj,nope", "mlp", "embed_tokens", "all-linear,q_proj"])
def test_targets_that_the_backbone_has_not_are_one_clear_error(method, targets):
    backbone = tiny_backbone()
    before = state_of(backbone.model)
    with pytest.raises(ValueError) as error:
        adapted_by(method, backbone, lora_targets=targets)
    wrong = targets.split(",")[0] if targets.startswith("all") else targets.split(",")[-1]
    assert str(error.value) == (
        f"lora-targets must be linear layers of the backbone (down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, "
        f"up_proj, v_proj) or all-linear alone, got {wrong!r}"
    )
    assert_plain(backbone.model, before)


def test_targets_choose_the_layers():
    def adapted_layers(targets: str) -> set[str]:
        return {name.split(".")[-3] for name in adapted_by("lora", lora_targets=targets).spec.shapes}

    assert adapted_layers("q_proj, down_proj") == {"q_proj", "down_proj"}
    assert adapted_layers("self_attn.k_proj") == {"k_proj"}
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted_layers("all-linear") == linear
