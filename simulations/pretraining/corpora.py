"""What to pre-train on: an endless stream of documents from the built-in skills or from a file, and a held-out part."""

import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import IO

from common.skills.corpus import documents as skill_documents

SKILLS = "skills"
SHUFFLE_BUFFER_DOCUMENTS = 10_000
HELD_OUT_SEED_OFFSET = 1_000_003  # far from the seeds that people use
HELD_OUT_ONE_IN = 100  # of a file's documents, by hash


def check_corpus(text: str) -> None:
    """Raise ValueError unless `text` is "skills" or a JSON Lines file whose first line has the field `text`."""
    if text == SKILLS:
        return
    path = Path(text)
    if not path.is_file():
        raise ValueError(f'text {text!r} is no file: pass "{SKILLS}" or the path of a .jsonl or .jsonl.gz file')
    if next(_lines(path), None) is None:
        raise ValueError(f'{path} holds no documents: it must hold lines like {{"text": "..."}}')


def training_documents(text: str, seed: int) -> Iterator[str]:
    """Yield documents without end: a file's again and again, in another order each time."""
    if text == SKILLS:
        yield from skill_documents(seed)
        return
    for epoch in count():
        num_documents = 0
        for document in _shuffled(_part(Path(text), held_out=False), Random(f"pretrain/{seed}/{epoch}")):
            num_documents += 1
            yield document
        if not num_documents:
            raise ValueError(f"{text} holds no documents to train on: it must hold hundreds, add some")


def held_out_documents(text: str, seed: int) -> Iterator[str]:
    """Yield documents that are not trained on: of another seed, or the slice of the file whose hash says so."""
    if text == SKILLS:
        return skill_documents(seed + HELD_OUT_SEED_OFFSET)
    return _part(Path(text), held_out=True)


def _part(path: Path, held_out: bool) -> Iterator[str]:
    # By hash of the content, so that copies of a document never fall on both sides.
    return (line for line in _lines(path) if (zlib.crc32(line.encode()) % HELD_OUT_ONE_IN == 0) == held_out)


def _lines(path: Path) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                raise ValueError(
                    f'{path}, line {number} has no string "text": it must be like {{"text": "..."}}, mend it'
                )
            if text:
                yield text


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _shuffled(documents: Iterator[str], rng: Random) -> Iterator[str]:
    """Mix the order within a buffer, so that memory stays bounded."""
    buffer: list[str] = []
    for document in documents:
        if len(buffer) < SHUFFLE_BUFFER_DOCUMENTS:
            buffer.append(document)
            continue
        index = rng.randrange(len(buffer))
        yield buffer[index]
        buffer[index] = document
    rng.shuffle(buffer)
    yield from buffer
