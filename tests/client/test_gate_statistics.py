"""What standardises and pre-trains the gate: its inputs, and their sums, against plain loops."""

import numpy as np
import pytest
import torch
from tiny import HIDDEN, examples, tiny_backbone, tiny_llama, tokenized

from client import gate_statistics
from client.gate_statistics import features, gate_inputs, second_moments, sums_by_cluster, sums_by_task


def inputs_by_loop(texts, layer):
    plain = tiny_llama()
    rows = []
    for text in texts:
        ids = torch.tensor([text.prompt_ids + text.answer_ids])
        hidden = plain(input_ids=ids, output_hidden_states=True).hidden_states[layer][0].double()
        rows.append(hidden[1 : len(text.prompt_ids)].mean(0).numpy())  # all of the prompt but <s>
    return np.stack(rows)


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_gate_inputs_equal_a_loop_over_single_examples(monkeypatch, layer):
    monkeypatch.setattr(gate_statistics, "EVALUATION_BATCH_SIZE", 4)
    texts = tokenized(examples(13))
    inputs = gate_inputs(tiny_backbone(), layer, texts)
    assert inputs.shape == (13, HIDDEN)
    # float32 hidden states, with and without padding
    np.testing.assert_allclose(inputs, inputs_by_loop(texts, layer), rtol=1e-4, atol=1e-5)


def test_sums_by_task_equal_a_loop():
    some = examples(13)
    inputs = np.random.default_rng(0).normal(size=(13, 5))
    sums = sums_by_task(inputs, some)
    assert sums.tasks == sorted({example.task for example in some})
    assert sums.domains == [next(e.domain for e in some if e.task == task) for task in sums.tasks]
    for row, task in enumerate(sums.tasks):
        of_task = [inputs[n] for n, example in enumerate(some) if example.task == task]
        assert sums.counts[row] == len(of_task)
        np.testing.assert_allclose(sums.sums[row], sum(of_task))
        np.testing.assert_allclose(sums.squares[row], sum(x * x for x in of_task))
    assert {sums.counts.dtype, sums.sums.dtype, sums.squares.dtype} == {np.dtype(np.float64)}


def test_second_moments_equal_a_loop():
    rng = np.random.default_rng(0)
    inputs, mean, scale = rng.normal(size=(7, HIDDEN)), rng.normal(size=HIDDEN), rng.uniform(1, 2, HIDDEN)
    projection = rng.normal(size=(3, HIDDEN))
    expected = sum(np.outer(z, z) for z in (projection @ ((x - mean) / scale) for x in inputs))
    moments = second_moments(features(inputs, mean, scale, projection))
    assert moments.dtype == np.float32
    np.testing.assert_allclose(moments, expected, rtol=1e-5)


def test_moments_of_clients_add_up():
    rng = np.random.default_rng(0)
    inputs, mean, scale = rng.normal(size=(7, 4)), np.zeros(4), np.ones(4)
    whole = second_moments(features(inputs, mean, scale, np.eye(4)))
    parts = [second_moments(features(part, mean, scale, np.eye(4))) for part in (inputs[:2], inputs[2:])]
    np.testing.assert_allclose(parts[0] + parts[1], whole, rtol=1e-5, atol=1e-6)  # float32


# --- Clusters ---


def test_sums_by_cluster_equal_a_loop():
    rng = np.random.default_rng(0)
    inputs, centres = rng.normal(size=(11, 3)), rng.normal(size=(4, 3)).astype(np.float32)
    centres[2] = 100.0  # nearest to none
    counts, sums, inertia = np.zeros(4), np.zeros((4, 3)), 0.0
    for x in inputs:
        distances = [float(((x - centre.astype(np.float64)) ** 2).sum()) for centre in centres]
        nearest = distances.index(min(distances))
        counts[nearest] += 1
        sums[nearest] += x
        inertia += min(distances)
    reply = sums_by_cluster(inputs, centres)
    assert reply.counts.tolist() == counts.tolist()
    assert counts[2] == 0
    np.testing.assert_allclose(reply.sums, sums, rtol=1e-12)
    assert reply.inertia == pytest.approx(inertia, rel=1e-12)


def test_of_centres_alike_the_first_is_taken():
    reply = sums_by_cluster(np.ones((3, 2)), np.ones((2, 2), dtype=np.float32))
    assert reply.counts.tolist() == [3, 0]
    assert reply.inertia == 0
