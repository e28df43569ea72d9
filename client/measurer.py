"""Measures of answers beyond perplexity: exact match and ROUGE-L of generated ones, accuracy of multiple choice."""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from client.adapter import Tuned
from client.greedy import answer_logits, greedy_answers
from common.answer_loss import answer_nll
from common.backbone import Backbone
from common.batches import TokenizedExample, answer_token_ids, collate, in_order_of_length, pad_id
from common.example import Example
from common.measures import (
    CHOICE_ACCURACY,
    CHOICE_ACCURACY_NORMALISED,
    CHOICE_MEASURES,
    EXACT_MATCH,
    ROUGE_L,
    TEXT_MEASURES,
    Measured,
    MeasureSum,
    check_installed,
)

# A child of Flower's logger, so that it is shown where the client runs.
log = logging.getLogger("flwr.fedmops")

BATCH_SIZE = 64


def measure(
    model: Backbone | Tuned,
    examples: Sequence[Example],
    tokenized: Sequence[TokenizedExample],
    names: Sequence[str],
    examples_per_task: int,
    max_new_tokens: int,
    longest: int,
) -> Measured:
    """Measure the answers to the first examples of each task (`tokenized`, in the same order), tasks in order.

    No text has more than `longest` tokens. A task without choices has no accuracy. The cost is told in the log.
    """
    started = time.monotonic()
    backbone = model if isinstance(model, Backbone) else model.backbone
    seen: Counter[str] = Counter()
    chosen = []
    for index, example in enumerate(examples):
        seen[example.task] += 1
        if seen[example.task] <= examples_per_task:
            chosen.append(index)
    asked, tokens = [examples[index] for index in chosen], [tokenized[index] for index in chosen]
    sums: dict[str, dict[str, MeasureSum]] = defaultdict(dict)

    def add(example: Example, name: str, value: float) -> None:
        sums[example.task][name] = sums[example.task].get(name, MeasureSum()) + MeasureSum(value, 1)

    of_texts = {name: text_measure(name) for name in names if name in TEXT_MEASURES}
    if of_texts:
        too_long = sum(len(text.answer_ids) - 1 > max_new_tokens for text in tokens)
        if too_long:
            log.warning(
                "%d of %d true answers are longer than max-answer-tokens, %d: none of theirs can be right",
                too_long,
                len(tokens),
                max_new_tokens,
            )
        answers = greedy_answers(model, tokens, max_new_tokens, longest)
        for example, answer in zip(asked, answers, strict=True):
            for name, compare in of_texts.items():
                add(example, name, compare(answer, example.output))
    if any(name in CHOICE_MEASURES for name in names):
        answered = _answered_by_each_choice(asked, tokens, backbone, longest)
        likelihoods = choice_log_likelihoods(model, [texts for _, texts in answered])
        for (example, _), values in zip(answered, likelihoods, strict=True):
            for name in names:
                if name in CHOICE_MEASURES:
                    add(example, name, float(likeliest(name, example.choices, values) == example.output))
    log.info("%s of %d answers took %.1f s", ", ".join(names), len(asked), time.monotonic() - started)
    return {task: sums[task] for task in sorted(sums)}


def text_measure(name: str) -> Callable[[str, str], float]:
    """Return what compares an answer with the reference, from 0 to 1. Raises ValueError where its package is missing.

    Exact match is 1 where both texts are the same but for whitespace around them. ROUGE-L (Lin 2004) is the F1 of the
    longest common subsequence of words, as the package rouge-score has it by default: words are runs of a-z and 0-9
    after lower-casing, without stemming.
    """
    if name == EXACT_MATCH:
        return lambda answer, reference: float(answer.strip() == reference.strip())
    assert name == ROUGE_L
    check_installed([name])
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    # Given a tokenizer, it does not tell the root logger of its own, which would then print all that is logged.
    scorer = RougeScorer(["rougeL"], tokenizer=DefaultTokenizer())
    return lambda answer, reference: float(scorer.score(reference, answer)["rougeL"].fmeasure)


@torch.no_grad()
def choice_log_likelihoods(
    model: Backbone | Tuned, answered: Sequence[Sequence[TokenizedExample]]
) -> list[list[float]]:
    """Return the log-likelihood (nats) of the answer of each text, the end included; texts come and go in groups."""
    backbone = model if isinstance(model, Backbone) else model.backbone
    texts = [text for group in answered for text in group]
    values = [0.0] * len(texts)
    for indices in in_order_of_length(texts, BATCH_SIZE):
        batch = collate([texts[index] for index in indices], pad_id(backbone.tokenizer), backbone.device)
        for index, nll in zip(indices, answer_nll(answer_logits(model, batch), batch.labels).tolist(), strict=True):
            values[index] = -nll
    following = iter(values)
    return [[next(following) for _ in group] for group in answered]


def likeliest(name: str, choices: Sequence[str], log_likelihoods: Sequence[float]) -> str:
    """Return the choice with the largest log-likelihood, the first of equal ones.

    As lm-evaluation-harness's acc (choice-accuracy) and acc_norm (choice-accuracy-normalised), which divides by the
    number of characters; unlike there the end of the text is a part of an answer, as in training: without it "1" would
    always beat "12".
    """
    assert name in (CHOICE_ACCURACY, CHOICE_ACCURACY_NORMALISED)
    lengths = [max(len(choice), 1) if name == CHOICE_ACCURACY_NORMALISED else 1 for choice in choices]
    scores = [value / length for value, length in zip(log_likelihoods, lengths, strict=True)]
    return choices[scores.index(max(scores))]


def _answered_by_each_choice(
    examples: Sequence[Example], tokenized: Sequence[TokenizedExample], backbone: Backbone, longest: int
) -> list[tuple[Example, list[TokenizedExample]]]:
    """Put each choice after the same prompt, which loses its beginning where the longest choice leaves no room."""
    answered, num_too_long = [], 0
    for example, tokens in zip(examples, tokenized, strict=True):
        answers = [answer_token_ids(choice, backbone.tokenizer) for choice in example.choices]
        room = longest - max(map(len, answers), default=0)
        if room < 1:
            num_too_long += 1
        elif answers:
            prompt_ids, special = tokens.prompt_ids[-room:], tokens.special[-room:]
            shortened = replace(tokens, prompt_ids=prompt_ids, special=special, states=None, past=None)
            answered.append((example, [replace(shortened, answer_ids=answer) for answer in answers]))
    if num_too_long:
        log.warning(
            "%d of %d examples have no choice accuracy: a choice does not fit into %d tokens",
            num_too_long,
            len(examples),
            longest,
        )
    return answered
