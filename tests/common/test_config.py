"""The configuration: defaults that hold, and one line for everything that does not."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from common.adapter_spec import METHODS
from common.config import Config, default_run_config, kebab, read_config

DEFAULTS = default_run_config(Path(__file__).parents[2])


def read(**changes):
    return read_config(DEFAULTS | {kebab(name): value for name, value in changes.items()})


def test_the_defaults_are_valid_and_arrive_unchanged():
    config = read_config(DEFAULTS)
    assert {kebab(name): value for name, value in dataclasses.asdict(config).items()} == DEFAULTS


def test_config_and_defaults_have_the_same_keys_in_the_same_order():
    assert [kebab(field.name) for field in dataclasses.fields(Config)] == list(DEFAULTS)


def test_a_whole_number_will_do_for_a_number():
    config = read(temperature=2)
    assert config.temperature == 2.0 and type(config.temperature) is float


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().seed = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Types
        ({"num_rounds": "8"}, "num-rounds must be a whole number, got '8'"),
        ({"num_rounds": 8.0}, "num-rounds must be a whole number, got 8.0"),
        ({"num_rounds": True}, "num-rounds must be a whole number, got True"),
        ({"temperature": "1"}, "temperature must be a number, got '1'"),
        ({"temperature": True}, "temperature must be a number, got True"),
        ({"centralised": 1}, "centralised must be true or false, got 1"),
        ({"name": 3}, "name must be text, got 3"),
        ({"freeze_gate": 1}, "freeze-gate must be true or false, got 1"),
        ({"prompt_text": 3}, "prompt-text must be text, got 3"),
        ({"lora_targets": False}, "lora-targets must be text, got False"),
        ({"columns": 3}, "columns must be text, got 3"),
        ({"skip_bad_rows": 1}, "skip-bad-rows must be true or false, got 1"),
        ({"num_shots": 2.0}, "num-shots must be a whole number, got 2.0"),
        ({"num_personal_steps": "1"}, "num-personal-steps must be a whole number, got '1'"),
        ({"num_virtual_tokens": 1.5}, "num-virtual-tokens must be a whole number, got 1.5"),
        ({"lora_rank": True}, "lora-rank must be a whole number, got True"),
        ({"eval_split": 3}, "eval-split must be text, got 3"),
        # Ranges
        *(
            ({name: 0}, f"{kebab(name)} must be at least 1, got 0")
            for name in (
                "num_rounds num_clients train_examples eval_examples max_sequence_tokens num_experts "
                "tokens_per_expert gate_hidden_size num_local_steps batch_size num_virtual_tokens lora_rank "
                "measure_examples max_answer_tokens"
            ).split()
        ),
        *(
            ({name: value}, f"{kebab(name)} must be above 0, got {value}")
            for name in "round_timeout_seconds dirichlet_alpha temperature learning_rate".split()
            for value in (0.0, math.inf, math.nan)
        ),
        *(
            ({name: value}, f"{kebab(name)} must be at least 0, got {value}")
            for name, value in {
                "seed": -1,
                "gate_learning_rate": -0.1,
                "balance_weight": math.nan,
                "num_shots": -1,
                "num_personal_steps": -1,
            }.items()
        ),
        ({"client_fraction": 0.0}, "client-fraction must be above 0 and at most 1, got 0.0"),
        ({"client_fraction": 1.5}, "client-fraction must be above 0 and at most 1, got 1.5"),
        ({"device_map": "even"}, "device-map must be empty or one of auto, balanced, sequential, got 'even'"),
        (
            {"device_map": "auto", "device": "cpu"},
            "device-map must be empty on a CPU, got 'auto': leave it out",
        ),
        ({"gpu_memory_fraction": 0.0}, "gpu-memory-fraction must be above 0 and at most 1, got 0.0"),
        ({"gpu_memory_fraction": 1.1}, "gpu-memory-fraction must be above 0 and at most 1, got 1.1"),
        ({"client_fraction": math.nan}, "client-fraction must be above 0 and at most 1, got nan"),
        # Choices
        (
            {"quantization": "int4"},
            "quantization must be one of none, nf4, nf4-double, fp4, int8, int8-weights, stored",
        ),
        (
            {"partition": "evenly"},
            "partition must be one of by-task, by-source, iid, dirichlet, pathological, shard, own",
        ),
        ({"compute_dtype": "int8"}, "compute-dtype must be one of auto, float32, bfloat16, float16, got 'int8'"),
        (
            {"quantization": "stored"},
            "quantization 'stored' is for checkpoints that are quantized: 'skills' is not, us",
        ),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
        ({"eval_split": "train"}, "eval-split must be one of validation, test, got 'train'"),
        ({"prompt_form": "soft"}, "prompt-form must be one of kv, hidden, got 'soft'"),
        ({"prompt_positions": "input"}, "prompt-positions must be one of all, answer, got 'input'"),
        ({"gate": "none"}, "gate must be one of input, task, both, got 'none'"),
        (
            {"gate_pretraining": "tasks"},
            "gate-pretraining must be one of task, like-tasks, domain, kmeans, none, got 'tasks'",
        ),
        ({"task_weights": "even"}, "task-weights must be one of uniform, size, learned, got 'even'"),
        (
            {"method": "fedavg"},
            "method must be one of mixture, prompt-tuning, prefix-tuning, multitask-prompt-tuning, lora, ffa-lora, "
            "hand-written, got 'fedavg'",
        ),
        ({"aggregation": "mean"}, "aggregation must be one of usage, plain, none, got 'mean'"),
        ({"measures": "rouge"}, "measures must be some of exact-match, rouge-l, choice-accuracy, "),
        ({"measures": "rouge-l,rouge-l"}, "measures must name each measure once, got 'rouge-l,rouge-l'"),
        ({"measures": 1}, "measures must be text, got 1"),
        # Methods
        ({"lora_targets": ""}, "lora-targets must be names with commas between them, got ''"),
        ({"lora_targets": "q_proj,,v_proj"}, "lora-targets must be names with commas between them, got 'q_proj,,v_p"),
        ({"lora_targets": "q_proj, "}, "lora-targets must be names with commas between them, got 'q_proj, '"),
        (
            {"centralised": True, "aggregation": "none"},
            "aggregation must be usage or plain in centralised training, which keeps one mixture, got 'none'",
        ),
        *(
            (
                {"method": method, "task_weights": "learned"},
                f"task-weights must be size or uniform with method={method}, got 'learned'",
            )
            for method in METHODS
            if method != "mixture"
        ),
        (
            {"method": "hand-written", "num_personal_steps": 2},
            "num-personal-steps must be 0 with method=hand-written, which trains nothing, got 2",
        ),
        # Experts
        ({"task_embedding_size": 0}, "task-embedding-size must be at least 1, got 0"),
        ({"task_weight_learning_rate": -1}, "task-weight-learning-rate must be at least 0, got -1"),
        ({"top_k": -1}, "top-k must be at least 0, got -1"),
        ({"top_k": 17}, "top-k must be at most 16, the experts that the gate weighs, got 17"),
        ({"top_k": 16, "shared_expert": True}, "top-k must be at most 15, the experts that the gate weighs, got 16"),
        ({"num_experts": 2, "shared_expert": True}, "num-experts must be at least 3 with a shared expert, got 2"),
        # Names and places
        ({"prompt_init": "runs/none"}, "prompt-init must be random, vocabulary or the directory of a run, got 'runs/"),
        ({"name": ""}, "name must be letters, digits, '-', '_' or '.', got ''"),
        ({"name": "a/b"}, "name must be letters, digits, '-', '_' or '.', got 'a/b'"),
        ({"data": "none.jsonl"}, "data 'none.jsonl' is neither 'skills' nor a file: give the path of a file ("),
        ({"data": "data/none.csv"}, "data 'data/none.csv' is neither 'skills' nor a file: give the path of a file ("),
        ({"data": "a/b/c"}, "data 'a/b/c' is neither 'skills' nor a file: give the path of a file ("),
        ({"columns": "alpaka"}, "columns 'alpaka' is no built-in mapping: did you mean alpaca"),
        ({"columns": "answer=a"}, "columns names the field 'answer': expected one of instruction, input, output"),
        ({"backbone": "llama"}, "unknown backbone 'llama': expected 'skills', a directory with a config.json or a hub"),
        ({"chat_template": True}, "chat-template must be false, got true: backbone 'skills' has no template; leave it"),
        ({"chat_template": "yes"}, "chat-template must be true or false, got 'yes'"),
        ({"too_long_prompts": "cut"}, "too-long-prompts must be one of cut-start, cut-input, leave-out, got 'cut'"),
        ({"injection_layer": -2}, "injection-layer must be -1 (the middle) or a layer from 0, got -2"),
    ],
)
def test_a_bad_value_is_an_error_in_one_line(changes, message):
    with pytest.raises(ValueError) as error:
        read(**changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_an_injection_layer_past_the_last_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4}))
    assert read(backbone=str(tmp_path), injection_layer=3).injection_layer == 3
    with pytest.raises(ValueError, match=r"injection-layer must be at most 3, the last layer of '.*', got 4"):
        read(backbone=str(tmp_path), injection_layer=4)
    assert read(backbone="owner/name", injection_layer=99).injection_layer == 99  # the hub is not asked


def test_data_may_be_a_file_a_directory_or_of_the_hub_which_is_not_asked(tmp_path):
    (tmp_path / "rows.csv").touch()
    for data in (str(tmp_path), str(tmp_path / "rows.csv"), "owner/name", "owner/name:subset@main"):
        assert read(data=data, columns="instruction=q,task='a'", skip_bad_rows=True).data == data


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("num-expert", "unknown key 'num-expert': did you mean num-experts"),
        ("learning_rate", "unknown key 'learning_rate': did you mean learning-rate"),
        ("zzz", "unknown key 'zzz': known keys: name, seed"),
    ],
)
def test_an_unknown_key_suggests_the_near_one(key, message):
    with pytest.raises(ValueError) as error:
        read_config(DEFAULTS | {key: 1})
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match=r"batch-size is missing from the run's configuration: pyproject.toml holds"):
        read_config({key: value for key, value in DEFAULTS.items() if key != "batch-size"})


SHAPES = {1: (1, 2, 2)}


def test_the_mixtures_spec_is_as_configured():
    config = read(prompt_form="hidden", prompt_positions="answer", shared_expert=True, temperature=0.5, top_k=3)
    spec = config.mixture_spec(16, SHAPES, {"b", "a"}, 16)
    assert (spec.form, spec.positions, spec.shared_expert) == ("hidden", "answer", True)
    assert (spec.temperature, spec.top_k, spec.task_embedding_size, spec.gate_hidden_size) == (0.5, 3, 16, 64)
    assert (spec.hidden_size, spec.kv_shapes, spec.num_experts, spec.tokens_per_expert) == (16, SHAPES, 16, 2)


@pytest.mark.parametrize(
    ("changes", "tasks"),
    [
        ({}, ()),
        ({"gate": "task"}, ("a", "b")),
        ({"gate": "both"}, ("a", "b")),
        ({"task_weights": "learned"}, ("a", "b")),
        ({"gate": "both", "num_experts": 1}, ()),
        ({"task_weights": "learned", "num_experts": 1}, ("a", "b")),
    ],
)
def test_tasks_are_named_in_order_where_something_belongs_to_them(changes, tasks):
    spec = read(**changes).mixture_spec(16, SHAPES, ["b", "a"], 16)
    assert spec.tasks == tasks
    assert spec.learned_task_weights == (changes.get("task_weights") == "learned")


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_gate_is_in_the_spec(frozen):
    assert read(freeze_gate=frozen).mixture_spec(16, SHAPES, [], 16).frozen_gate is frozen


def test_measures_are_taken_after_the_last_round():
    config = read(measures="rouge-l, exact-match", num_rounds=5)
    assert (config.measure_names, config.last_round) == (("rouge-l", "exact-match"), 5)
    assert read(method="hand-written", num_rounds=5).last_round == 1  # nothing is trained: scored once
    assert read().measure_names == ()
