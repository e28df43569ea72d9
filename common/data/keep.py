"""Which rows are kept: of each task and split those with the smallest hash, so that memory does not grow with the data.

Of every row two hashes stay, some 130 bytes: no prompt may stand in two splits, and no example twice in one.
"""

import heapq
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from common.data.bad_row import BadRowError
from common.data.prompt_hash import digest
from common.example import Example, Split

# Where no validation examples are named, so large a share of the training examples is held out.
VALIDATION_SHARE = 0.1

# Smallest first by hash, then by order of reading; negative, because heapq pops the smallest.
_Heap = list[tuple[int, int, Example]]


class Keeper:
    """Takes examples one by one, and keeps at most so many of each task and split as `limits` says."""

    def __init__(self, limits: Mapping[Split, int]) -> None:
        self._limits = limits
        self._split_of: dict[int, Split] = {}
        self._seen: set[int] = set()
        self._heaps: dict[tuple[str, Split, bool], _Heap] = defaultdict(list)
        self._validation_named = False

    def add(self, example: Example, where: str) -> bool:
        """Take an example; tell whether it is a new one.

        Two are the same where task, prompt and output are. Raises BadRowError for a prompt of another split.
        """
        hashed = digest(example.prompt)
        split = self._split_of.setdefault(hashed, example.split)
        if split != example.split:
            raise BadRowError(
                where,
                "a prompt that stands in another split",
                f"has a prompt that stands in {split} and {example.split}: expected it in one of them; leave one "
                "out, or the evaluation leaks",
            )
        same = digest(f"{example.task}\0{example.prompt}\0{example.output}")
        if same in self._seen:
            return False
        self._seen.add(same)
        self._validation_named |= example.split == "validation"
        # It shows at the end only whether these are held out: until then they are kept apart.
        may_be_held_out = example.split == "train" and hashed / 16**16 < VALIDATION_SHARE
        limit = self._limits.get(example.split, 0)
        if may_be_held_out:
            limit = max(limit, self._limits.get("validation", 0))
        heap = self._heaps[example.task, example.split, may_be_held_out]
        if len(heap) < limit:
            heapq.heappush(heap, (-hashed, -len(self._seen), example))
        elif limit:
            heapq.heappushpop(heap, (-hashed, -len(self._seen), example))
        return True

    def examples(self) -> tuple[Example, ...]:
        """Return what was kept, in order of task, split and hash."""
        kept: dict[tuple[str, Split], _Heap] = defaultdict(list)
        for (task, split, may_be_held_out), heap in self._heaps.items():
            if may_be_held_out and not self._validation_named:
                kept[task, "validation"] += [(*entry[:2], replace(entry[2], split="validation")) for entry in heap]
            else:
                kept[task, split] += heap
        return tuple(
            example
            for (_, split), heap in sorted(kept.items(), key=lambda item: item[0])
            for _, _, example in sorted(heap, key=lambda entry: entry[:2], reverse=True)[: self._limits.get(split, 0)]
        )
