"""What training never changes, computed once and kept in files: the frozen prefix of a text.

Below the injection layer nothing is trained and no prompt is seen, so a text's states there are the same in every step,
round and run; where answers alone see prompts, so are its past's keys and values in all layers. They are stored in
bfloat16: 2 bytes x hidden size a token, and as many a key's and a value's number.
"""

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.backbone import Backbone
from common.batches import Batch, TokenizedExample, collate, in_order_of_length, pad_id
from common.decoder import hidden_at
from common.past import KVShapes, compute_past, past_width

log = logging.getLogger("flwr.fedmops")

ENDING, UNFINISHED = ".states", ".part"
BYTES_PER_VALUE = 2
# Texts that are computed at once: the past of one of an 8 B model has 64 KiB a token.
BATCH_SIZE = 16
# An older file without its last state is nobody's any more.
ABANDONED_SECONDS = 6 * 3600.0


def cache_directory() -> Path:
    """Return where files are kept on this machine: fedmops/ in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedmops"


@dataclass(frozen=True)
class Kind:
    """What is kept of a text: rows of numbers, one for each of its first `num_rows(text)` tokens."""

    name: str
    width: int
    num_rows: Callable[[TokenizedExample], int]
    compute: Callable[[Batch], Tensor]  # rows `[batch, longest, width]` of a batch, at the right end


@dataclass(frozen=True)
class PrefixCache:
    """Files in a directory that takes `budget_bytes` at most, for all processes of a machine.

    A file is named by a hash of backbone, layer and texts. Where a new one does not fit, those go first that were not
    used for longest, but for this process's own; then what fits is kept of the first texts, and the others
    run through all layers as without a cache. Readable by its user alone: states tell much about their texts.
    Without room, or with a disk that is full, texts stay as they are, and the log says so.
    """

    directory: Path
    budget_bytes: int

    def with_states(
        self, backbone: Backbone, layer: int, tokenized: Sequence[TokenizedExample]
    ) -> tuple[TokenizedExample, ...]:
        """Return texts with their states at `layer`, from the file or from the layers below."""

        def compute(batch: Batch) -> Tensor:
            return hidden_at(backbone, layer, batch.input_ids, batch.attention_mask)

        kind = Kind(f"states {layer}", backbone.hidden_size, lambda text: text.num_tokens, compute)
        rows = self._kept(backbone, kind, tokenized)
        return tuple(
            text if row is None else replace(text, states=row) for text, row in zip(tokenized, rows, strict=True)
        )

    def with_past(
        self, backbone: Backbone, kv_shapes: KVShapes, tokenized: Sequence[TokenizedExample]
    ) -> tuple[TokenizedExample, ...]:
        """Return texts with the keys and values of their past, from the file or from their states."""
        layer = min(kv_shapes)

        def compute(batch: Batch) -> Tensor:
            if batch.hidden is None:
                batch = replace(batch, hidden=hidden_at(backbone, layer, batch.input_ids, batch.attention_mask))
            return compute_past(backbone, kv_shapes, batch)

        kind = Kind(f"past {layer}", past_width(kv_shapes), lambda text: len(text.prompt_ids) - 1, compute)
        inputs = [_without_answer(text) for text in tokenized]
        rows = self._kept(backbone, kind, inputs)
        return tuple(
            text if row is None else replace(text, past=row) for text, row in zip(tokenized, rows, strict=True)
        )

    def _kept(self, backbone: Backbone, kind: Kind, texts: Sequence[TokenizedExample]) -> list[Tensor | None]:
        """Return each text's rows, None where there are none."""
        nothing: list[Tensor | None] = [None] * len(texts)
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._found_or_written(backbone, kind, texts) or nothing
        except OSError as error:
            log.warning("%s of the frozen layers are not kept (%s): the run goes on without them", kind.name, error)
            return nothing

    def _found_or_written(
        self, backbone: Backbone, kind: Kind, texts: Sequence[TokenizedExample]
    ) -> list[Tensor | None]:
        path = self._path(backbone, kind, texts)
        room = self.budget_bytes - _bytes_in_use(self.directory, but=path)
        num_rows = [kind.num_rows(text) for text in texts]
        ends = np.cumsum(num_rows) * kind.width * BYTES_PER_VALUE
        num_kept = int((ends <= room).sum())
        if num_kept < len(texts):
            log.warning(
                "%s of the frozen layers are kept for %d of %d texts, as prefix-cache-gib is %.2f: raise it",
                kind.name,
                num_kept,
                len(texts),
                self.budget_bytes / 2**30,
            )
        if not num_kept or not ends[num_kept - 1]:
            return []
        kept, num_bytes = texts[:num_kept], int(ends[num_kept - 1])
        if num_kept < len(texts):
            path = self._path(backbone, kind, kept)
        batches = list(in_order_of_length(kept, BATCH_SIZE))
        if not path.is_file() or path.stat().st_size != num_bytes:
            self._make_room(num_bytes)
            _write(path, backbone, kind, [[kept[index] for index in indices] for indices in batches])
        path.touch()  # used last now
        _in_use.add(path)
        found: Tensor = torch.from_file(
            str(path), shared=False, size=num_bytes // BYTES_PER_VALUE, dtype=torch.bfloat16
        )
        order = [index for indices in batches for index in indices]
        split = torch.split(found.view(-1, kind.width), [num_rows[index] for index in order])
        rows: list[Tensor | None] = [None] * len(texts)
        for index, row in zip(order, split, strict=True):
            rows[index] = row
        return rows

    def _path(self, backbone: Backbone, kind: Kind, texts: Sequence[TokenizedExample]) -> Path:
        return self.directory / (_key(backbone, kind, texts) + ENDING)

    def _make_room(self, num_bytes: int) -> None:
        """Delete what was left unfinished, and the files that were not used for longest until `num_bytes` fit."""
        for path in self.directory.glob(f"*{UNFINISHED}"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()
        others = [path for path in self.directory.glob(f"*{ENDING}") if path not in _in_use]
        oldest_first = sorted(others, key=lambda path: path.stat().st_mtime)
        held = _bytes_in_use(self.directory) + sum(path.stat().st_size for path in oldest_first)
        for path in oldest_first:
            if held + num_bytes <= self.budget_bytes:
                return
            held -= path.stat().st_size
            path.unlink()


_in_use: set[Path] = set()  # by this process


def _bytes_in_use(directory: Path, but: Path | None = None) -> int:
    here = (path for path in _in_use - {but} if path.parent == directory and path.is_file())
    return sum(path.stat().st_size for path in here)


def _without_answer(text: TokenizedExample) -> TokenizedExample:
    states = None if text.states is None else text.states[: len(text.prompt_ids)]
    return replace(text, answer_ids=[], states=states, past=None)


def _key(backbone: Backbone, kind: Kind, texts: Sequence[TokenizedExample]) -> str:
    computed = f"{backbone.fingerprint} {kind.name} {backbone.model.dtype} {backbone.device.type}"
    digest = hashlib.blake2b(computed.encode(), digest_size=20)
    for text in texts:
        ids = [text.num_tokens, *text.prompt_ids, *text.answer_ids]
        digest.update(np.array(ids, dtype=np.int64).tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _write(path: Path, backbone: Backbone, kind: Kind, batches: Sequence[Sequence[TokenizedExample]]) -> None:
    """Write all texts' rows one after the other; the file is there when it is whole."""
    descriptor, part = tempfile.mkstemp(suffix=UNFINISHED, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for some in batches:
                computed = kind.compute(collate(some, pad_id(backbone.tokenizer), backbone.device))
                rounded = computed.to(torch.bfloat16).cpu()
                for text, rows in zip(some, rounded, strict=True):
                    own = rows[len(rows) - kind.num_rows(text) :]
                    file.write(own.contiguous().view(torch.uint8).numpy().tobytes())
        os.replace(part, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(part)
        raise
