"""A backbone, alone or with a mixture, as lm-evaluation-harness asks a model. Imports lm_eval, which is an extra."""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from client.greedy import answer_logits, greedy_answers
from common.answer_loss import answer_nll
from common.backbone import Backbone
from common.batches import IGNORED, TokenizedExample, collate, in_order_of_length, pad_id
from common.injection import PromptedBackbone
from common.near_names import did_you_mean

BOOTSTRAP_RESAMPLES = 1000  # for the standard error of what is no mean, such as F1
MAX_NEW_TOKENS = 256  # where a task does not say, as the harness's own models


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Scores continuations and generates, each from a context that alone decides the experts' weights.

    Not the harness's own class for transformers: there a context and its continuation come as one text, and a gate
    would read the continuation too, which leaks the label. A context that is too long loses its beginning; the name of
    the harness's task is none that a mixture knows, so a gate that goes by tasks goes by the input.
    """

    def __init__(self, model: Backbone | PromptedBackbone, batch_size: int) -> None:
        super().__init__()
        self._model = model
        self._backbone = model if isinstance(model, Backbone) else model.backbone
        self._reads = isinstance(model, PromptedBackbone) and model.mixture.gate is not None
        self._batch_size = batch_size
        self.tokenizer = self._backbone.tokenizer
        self._specials = set(self.tokenizer.all_special_ids)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands in place of an empty context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokenize a text, with the special tokens of training unless told otherwise."""
        special = True if add_special_tokens is None else add_special_tokens
        token_ids: list[int] = self.tokenizer(string, add_special_tokens=special)["input_ids"]
        return token_ids

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood (nats), and whether it is the likeliest at every token."""
        texts = [self._text(context, continuation) for _, context, continuation in requests]
        found = [(0.0, False)] * len(texts)
        for indices in in_order_of_length(texts, self._batch_size):
            batch = collate([texts[index] for index in indices], pad_id(self.tokenizer), self._backbone.device)
            logits = answer_logits(self._model, batch)
            likeliest = logits[:, :-1].argmax(dim=-1) == batch.labels
            is_greedy = (likeliest | (batch.labels == IGNORED)).all(dim=1).tolist()
            nll = answer_nll(logits, batch.labels).tolist()
            for index, value, greedy in zip(indices, nll, is_greedy, strict=True):
                found[index] = (-value, greedy)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Refuse: a text without a context gives a gate nothing to read."""
        raise ValueError(_no_context(requests[0].task_name))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate greedily until a stop. Raises ValueError for a task that samples."""
        answers = [""] * len(requests)
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for index, request in enumerate(requests):
            ways = normalize_gen_kwargs(dict(request.args[1]), MAX_NEW_TOKENS)
            if ways["do_sample"]:
                raise ValueError(f"task {request.task_name} samples its answers: choose one that generates greedily")
            groups.setdefault((ways["max_gen_toks"], tuple(filter(None, ways["until"]))), []).append(index)
        for (max_new_tokens, stops), indices in groups.items():
            longest = self._backbone.max_positions
            room = longest - min(max_new_tokens, longest // 2)
            prompts = [self._text(self.tok_encode(requests[index].args[0])[-room:], []) for index in indices]
            texts = greedy_answers(self._model, prompts, max_new_tokens, longest, stops)
            for index, text in zip(indices, texts, strict=True):
                answers[index] = text
        return answers

    def _text(self, context: Sequence[int], continuation: Sequence[int]) -> TokenizedExample:
        """Set a continuation after its context. Raises ValueError where one does not fit or the gate has no input."""
        room = self._backbone.max_positions - len(continuation)
        if room < 1:
            raise ValueError(
                f"a continuation has {len(continuation)} tokens, the backbone holds {self._backbone.max_positions}: "
                "leave out its task"
            )
        prompt = list(context[-room:])
        special = [token in self._specials for token in prompt]
        if self._reads and all(special):
            raise ValueError("a request has no context, so the gate has nothing to read: leave out its task")
        return TokenizedExample(prompt, list(continuation), special)


def load_tasks(names: Sequence[str], include_path: str | None) -> TaskManager:
    """Find tasks by name, those in a directory of an own too, and load their data.

    Raises ValueError for an unknown name, and for a task that no mixture can be asked.
    """
    manager = TaskManager(include_path=include_path)
    for name in names:
        if name not in manager.all_tasks:
            hint = did_you_mean(name, manager.all_tasks, otherwise="`lm-eval ls tasks` lists the names")
            raise ValueError(f"tasks: lm-evaluation-harness has no task {name!r}: {hint}")
    for name, task in manager.load(list(names))["tasks"].items():
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise ValueError(_no_context(name))
    return manager


def evaluate(
    model: HarnessModel, names: Sequence[str], manager: TaskManager, limit: int | None, num_fewshot: int | None
) -> dict[str, dict[str, Any]]:
    """Return the figures of each task, and of each group, as the harness names them."""
    found: dict[str, Any] = simple_evaluate(
        model,
        tasks=list(names),
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
        bootstrap_iters=BOOTSTRAP_RESAMPLES,
        log_samples=False,
    )
    results: dict[str, dict[str, Any]] = found["results"]
    return results


def _no_context(task: str | None) -> str:
    return (
        f"task {task} measures the likelihood of whole texts (loglikelihood_rolling), which have no context for a gate "
        "to read: leave it out"
    )
