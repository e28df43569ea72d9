"""A mixture on disk: what is written comes back, and whatever else lies there is refused in one line."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from common.mixture_arrays import initial_arrays
from common.mixture_file import (
    CARD,
    PREFIX,
    WEIGHTS,
    card,
    check_fingerprint,
    read_mixture,
    spec_fields,
    spec_of_fields,
    weights_bytes,
)
from common.mixture_spec import MixtureSpec

PLAIN = MixtureSpec(3, 4, 5, 6, {2: (2, 8, 7), 10: (1, 4, 4)})
ALL = replace(
    PLAIN,
    form="hidden",
    positions="answer",
    shared_expert=True,
    gate="both",
    task_embedding_size=3,
    temperature=0.7,
    top_k=2,
    tasks=("b", "a"),
    learned_task_weights=True,
)
SPECS = [PLAIN, ALL, replace(PLAIN, num_experts=1), replace(ALL, form="kv", gate="task")]


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves a drawn mixture and returns its directory and arrays."""

    def write(spec=PLAIN):
        arrays = initial_arrays(spec, np.random.default_rng(0))
        (tmp_path / WEIGHTS).write_bytes(weights_bytes(arrays))
        (tmp_path / CARD).write_text(json.dumps(card(spec, "skills", "abc", 4)))
        return tmp_path, arrays

    return write


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_written_comes_back(saved, spec):
    directory, arrays = saved(spec)
    read = read_mixture(directory)
    assert read.spec == spec
    assert read.fingerprint == "abc"
    assert read.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array, strict=True)


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_survives_json_to_the_type(spec):
    read = spec_of_fields(json.loads(json.dumps(spec_fields(spec))) | {"another": 1})
    assert read == spec
    assert isinstance(read.tasks, tuple)
    assert all(isinstance(layer, int) and isinstance(sizes, tuple) for layer, sizes in read.kv_shapes.items())


def test_a_mixture_that_was_saved_before_gates_could_be_frozen_has_one_that_is_not():
    described = json.loads(json.dumps(spec_fields(SPECS[0])))
    assert described.pop("frozen_gate") is False
    assert spec_of_fields(described) == SPECS[0]
    frozen = replace(SPECS[0], frozen_gate=True)
    assert spec_of_fields(json.loads(json.dumps(spec_fields(frozen)))) == frozen != SPECS[0]


def test_the_files_are_those_of_an_adapter(saved):
    directory, arrays = saved(ALL)
    assert {path.name for path in directory.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    assert load_file(directory / WEIGHTS).keys() == {PREFIX + name for name in arrays}
    described = json.loads((directory / CARD).read_text())
    assert described["peft_type"] == "MIXTURE_OF_PROMPTS"
    assert (described["base_model_name_or_path"], described["server_round"]) == ("skills", 4)


def test_the_order_of_an_arrays_memory_does_not_matter():
    arrays = initial_arrays(PLAIN, np.random.default_rng(0))
    turned = {name: np.asfortranarray(array) for name, array in arrays.items()}
    assert weights_bytes(turned) == weights_bytes(arrays)


def refusal(directory):
    with pytest.raises(ValueError) as error:
        read_mixture(directory)
    message = str(error.value)
    assert str(directory) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", [CARD, WEIGHTS])
def test_a_missing_file_is_named(saved, name):
    directory, _ = saved()
    (directory / name).unlink()
    assert refusal(directory) == f"{directory} has no {name}: give the directory of a run that finished a round"


def test_a_run_whose_clients_keep_their_own_is_told_from_one_without_a_round(tmp_path):
    (tmp_path / "client-3").mkdir()
    assert refusal(tmp_path) == f"{tmp_path} has no mixture for all clients: give one's own in it, client-0 or another"


def test_a_directory_that_is_none_is_named(tmp_path):
    assert f"has no {CARD}" in refusal(tmp_path / "nowhere")


def changed_card(**changes):
    def change(directory):
        described = json.loads((directory / CARD).read_text()) | changes
        kept = {key: value for key, value in described.items() if value is not None}
        (directory / CARD).write_text(json.dumps(kept))

    return change


def changed_arrays(change):
    def write(directory):
        save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS)

    return write


NAME = PREFIX + "pool.keys.2"
DAMAGE = {
    "card is no JSON": (lambda d: (d / CARD).write_text("{"), "Expecting property name"),
    "card is no UTF-8": (lambda d: (d / CARD).write_bytes(b"\xff\xfe"), "codec can't decode"),
    "card is a list": (lambda d: (d / CARD).write_text("[]"), "list indices"),
    "card is of another method": (changed_card(peft_type="LORA"), "it holds a LORA"),
    "card names no method": (changed_card(peft_type=None), "'peft_type' is missing"),
    "card names no backbone": (changed_card(fingerprint=None), "'fingerprint' is missing"),
    "card lacks a field": (changed_card(gate=None), "'gate' is missing"),
    "layers are no numbers": (changed_card(kv_shapes={"x": [1, 1, 1]}), "invalid literal"),
    "layers are a list": (changed_card(kv_shapes=[1]), "has no attribute 'items'"),
    "too few sizes": (changed_card(kv_shapes={"2": [1]}), "not enough values"),
    "other sizes": (changed_card(num_experts=4), "does not agree with adapter_config.json"),
    "sizes are texts": (changed_card(num_experts="three"), ""),
    "weights are cut": (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-9]), "deserializing"),
    "weights are garbage": (lambda d: (d / WEIGHTS).write_bytes(b"garbage"), "deserializing"),
    "weights are empty": (lambda d: (d / WEIGHTS).write_bytes(b""), "deserializing"),
    "an array is missing": (changed_arrays(lambda a: a.pop(NAME) is None or a), "array pool.keys.2 does not agree"),
    "an array is unknown": (changed_arrays(lambda a: a | {"x": a[NAME]}), "array x does not agree"),
    "an array is cut": (changed_arrays(lambda a: a | {NAME: a[NAME][:2].copy()}), "array pool.keys.2 does not agree"),
    "float64": (changed_arrays(lambda a: a | {NAME: a[NAME].astype(np.float64)}), "not finite float32"),
    "NaN": (changed_arrays(lambda a: a | {NAME: a[NAME] * np.float32(np.nan)}), "not finite float32"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_or_foreign_mixture_is_refused_in_one_line_that_says_what_to_do(saved, what):
    directory, _ = saved()
    damage, reason = DAMAGE[what]
    damage(directory)
    message = refusal(directory)
    assert message.startswith(f"{directory} is no saved mixture, or damaged (")
    assert message.endswith("): choose another run")
    assert reason in message


def test_another_backbone_is_refused_by_both_fingerprints(saved):
    directory, _ = saved()
    read = read_mixture(directory)
    check_fingerprint(read, directory, "skills", "abc")
    with pytest.raises(ValueError) as error:
        check_fingerprint(read, directory, "skills", "xyz")
    assert str(error.value) == (
        f"the mixture in {directory} was trained on a backbone with the fingerprint abc, but skills has xyz: choose "
        "the same weights, tokenizer and quantization"
    )
