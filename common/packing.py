"""Packing: documents of any length into rows of one length, so that training wastes little on padding."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from jaxtyping import Int
from torch import Tensor

DOCUMENTS_PER_CHUNK = 1024
IGNORED = -100  # the label that cross_entropy leaves out

Encode = Callable[[Sequence[str]], list[list[int]]]
Row = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Position:
    """How much of a stream is used up: whole chunks of documents, and rows of the chunk after them."""

    num_chunks: int = 0
    num_rows: int = 0


@dataclass(frozen=True)
class Batch:
    """Rows to train on: `labels[b, s]` is the token after `input_ids[b, s]`, or IGNORED; `end` is where to go on."""

    input_ids: Int[Tensor, "batch seq"]
    labels: Int[Tensor, "batch seq"]
    num_tokens: int
    end: Position


def pack(documents: Sequence[Sequence[int]], length: int, pad: int) -> list[Row]:
    """Pack token ids into rows of `length` input tokens and as many labels, by best fit, the longest first.

    A document that fits is never cut. Of a longer one every token is a label once; its rows overlap by one token.
    """
    pieces = sorted(
        ((list(ids[start : start + length + 1]), start) for ids in documents for start in _starts(len(ids), length)),
        key=lambda piece: -len(piece[0]),
    )
    rows: list[tuple[list[int], list[int]]] = []
    open_rows: list[tuple[int, int]] = []  # (free places, index of the row), ascending
    for ids, start in pieces:
        # The first token of a later piece follows nothing that belongs to it: no label.
        labels = [IGNORED, *ids[1:]] if start else ids
        found = bisect_left(open_rows, (len(ids), 0))
        if found < len(open_rows):
            free, index = open_rows.pop(found)
            rows[index][0].extend(ids)
            rows[index][1].extend(labels)
        else:
            free, index = length + 1, len(rows)
            rows.append((list(ids), list(labels)))
        if free > len(ids):
            insort(open_rows, (free - len(ids), index))
    return [
        (
            (ids + [pad] * (length - len(ids)))[:length],
            (labels[1:] + [IGNORED] * (length - len(labels) + 1)),
        )
        for ids, labels in rows
    ]


def batches(
    documents: Iterator[str], encode: Encode, *, batch_size: int, length: int, pad: int, start: Position
) -> Iterator[Batch]:
    """Yield batches of packed rows from `start` on; the last one may be short. The same stream gives the same batches.

    The order of rows is mixed within a chunk, since packing sorts them by the length of their documents.
    """
    for _ in islice(documents, start.num_chunks * DOCUMENTS_PER_CHUNK):
        pass
    num_chunks, skip = start.num_chunks, start.num_rows
    waiting: list[tuple[Row, Position]] = []
    while chunk := list(islice(documents, DOCUMENTS_PER_CHUNK)):
        rows = pack(encode(chunk), length, pad)
        Random(num_chunks).shuffle(rows)
        ends = [Position(num_chunks, used) for used in range(1, len(rows))] + [Position(num_chunks + 1)]
        waiting += list(zip(rows, ends, strict=True))[skip:]
        num_chunks, skip = num_chunks + 1, 0
        while len(waiting) >= batch_size:
            yield _batch(waiting[:batch_size])
            waiting = waiting[batch_size:]
    if waiting:
        yield _batch(waiting)


def _starts(num_tokens: int, length: int) -> range:
    return range(0, max(num_tokens - 1, 1), length)


def _batch(rows: list[tuple[Row, Position]]) -> Batch:
    labels = torch.tensor([row[1] for row, _ in rows])
    return Batch(torch.tensor([row[0] for row, _ in rows]), labels, int((labels != IGNORED).sum()), rows[-1][1])
