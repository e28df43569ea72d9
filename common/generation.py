"""Answers of a model with a mixture: one as it comes, or many in batches."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextStreamer

from common.backbone import max_positions
from common.batches import pad_id
from common.prompt_tokens import chat_ids

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A generated text, and the experts' weights for its prompt."""

    text: str
    expert_weights: list[float]


class Answerer:
    """Generates with a model of `load_run`: the most likely token, the best of beams, or samples above temperature 0.

    A text ends at the end-of-text token, after `max_new_tokens`, or where the model's positions end.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_new_tokens: int,
        num_beams: int = 1,
        temperature: float = 0.0,
        chat_template: bool = False,
    ) -> None:
        self._model, self._tokenizer, self._chat_template = model, tokenizer, chat_template
        self._max_new_tokens = max_new_tokens
        self._longest = max_positions(model)
        self._ways: dict[str, Any] = {"num_beams": num_beams, "do_sample": temperature > 0}
        if temperature > 0:
            self._ways["temperature"] = temperature

    def stream(self, prompt: str, task: str = "") -> Answer:
        """Answer a prompt, and print the answer as it comes; beams come at the end."""
        if self._ways["num_beams"] == 1:
            streamer = TextStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
            return self._generate([self._token_ids(prompt)], [task], streamer)[0]
        answer = self._generate([self._token_ids(prompt)], [task])[0]
        print(answer.text)
        return answer

    def answers(self, prompts: Sequence[str], tasks: Sequence[str], batch_size: int) -> Iterator[tuple[int, Answer]]:
        """Yield answers, each with its prompt's index, as they come: in batches of similar length, short ones first."""
        token_ids = [self._token_ids(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: len(token_ids[index]))
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            answers = self._generate([token_ids[index] for index in indices], [tasks[index] for index in indices])
            yield from zip(indices, answers, strict=True)

    def _token_ids(self, prompt: str) -> list[int]:
        """Tokenize as in training; a prompt that leaves no room for a token loses its beginning."""
        token_ids: list[int]
        if self._chat_template:
            token_ids = chat_ids([("user", prompt.removesuffix("\n"))], self._tokenizer)
        else:
            token_ids = self._tokenizer(prompt)["input_ids"]
        if len(token_ids) >= self._longest:
            log.warning(
                "a prompt of %d tokens loses its beginning: the model holds %d", len(token_ids), self._longest - 1
            )
        return token_ids[-(self._longest - 1) :]

    @torch.no_grad()
    def _generate(self, token_ids: list[list[int]], tasks: list[str], streamer: Any = None) -> list[Answer]:
        padding, length = pad_id(self._tokenizer), max(map(len, token_ids))
        padded = [[padding] * (length - len(row)) + row for row in token_ids]
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in token_ids]
        # A short text may go on where a long one beside it must end: what is too long is cut off below.
        room = [min(self._max_new_tokens, self._longest - len(row)) for row in token_ids]
        output = self._model.generate(
            input_ids=torch.tensor(padded, device=self._model.device),
            attention_mask=torch.tensor(mask, device=self._model.device),
            tasks=tasks,
            max_new_tokens=max(room),
            pad_token_id=padding,
            streamer=streamer,
            **self._ways,
        )
        weights = self._model.expert_weights.view(len(token_ids), -1, self._model.expert_weights.shape[1])[:, 0]
        return [
            Answer(self._tokenizer.decode(row[length : length + size], skip_special_tokens=True), experts.tolist())
            for row, size, experts in zip(output, room, weights, strict=True)
        ]
