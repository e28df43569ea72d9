"""The bytes of a message's content as Flower ships it: nested objects, each with a header, equal ones once.

Flower calls an object by the SHA-256 of its bytes. A count needs lengths alone, and names are all of one length, so
nothing is hashed here, which takes a third of the time of counting what Flower would write.
"""

import json
from collections.abc import Hashable

from flwr.app import Array, ArrayRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.supercore.inflatable.inflatable_object import InflatableObject

_NAME = "0" * 64


def message_bytes(content: InflatableObject) -> int:
    """Count the bytes of a message's content, or a record's: what `deflate` gives for it and all objects within it."""
    shipped: dict[Hashable, int] = {}  # lengths by what an object holds
    _enter(content, shipped)
    return sum(shipped.values())


def _enter(each: InflatableObject, shipped: dict[Hashable, int]) -> Hashable:
    """Enter an object and those within it; return what it holds."""
    held: Hashable
    if isinstance(each, RecordDict | ArrayRecord):
        children = [_enter(child, shipped) for child in each.values()]
        held = type(each), tuple(zip(each, children, strict=True))
        shipped[held] = _length(type(each), len(set(children)), len(json.dumps(dict.fromkeys(each, _NAME))))
    elif isinstance(each, Array):
        size = FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
        chunks = [each.data[start : start + size] for start in range(0, len(each.data), size)]
        numbers = {chunk: number for number, chunk in enumerate(dict.fromkeys(chunks))}
        for chunk in numbers:
            shipped[ArrayChunk, chunk] = _length(ArrayChunk, 0, len(chunk))
        about = {"dtype": each.dtype, "shape": each.shape, "stype": each.stype}
        body = json.dumps(about | {"arraychunk_ids": [numbers[chunk] for chunk in chunks]})
        held = body, each.data
        shipped[held] = _length(Array, len(numbers), len(body))
    else:
        held = each.deflate()
        shipped[held] = len(held)
    return held


def _length(kind: type[InflatableObject], num_children: int, body: int) -> int:
    """Return the length of an object with its header: its kind, its children's names, and its body's length."""
    names = num_children * (len(_NAME) + 1) - (num_children > 0)
    return len(kind.__qualname__) + 1 + names + 1 + len(str(body)) + 1 + body
