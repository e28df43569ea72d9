"""The frozen prefix: states at the injection layer, which training never changes, computed once and kept in a file.

Below the injection layer nothing is trained and no prompt is seen, so a text's states there are the same in every step,
round and run. They are stored in bfloat16: 2 bytes x hidden size a token.
"""

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.evaluator import EVALUATION_BATCH_SIZE
from common.backbone import Backbone
from common.batches import TokenizedExample, collate, in_order_of_length, pad_id
from common.decoder import hidden_at

log = logging.getLogger("flwr.fedmops")

ENDING, UNFINISHED = ".states", ".part"
BYTES_PER_VALUE = 2
# An older file without its last state is nobody's any more.
ABANDONED_SECONDS = 6 * 3600.0


def cache_directory() -> Path:
    """Return where states are kept on this machine: fedmops/ in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedmops"


@dataclass(frozen=True)
class PrefixCache:
    """Files of states in a directory that takes `budget_bytes` at most, for all processes of a machine.

    A file is named by a hash of backbone, layer and texts. Where a new one does not fit, those go first that were not
    used for longest, but for this process's own; then as many texts as fit have states, in their order, and the others
    run through all layers as without a cache. Readable by its user alone: states tell much about their texts.
    """

    directory: Path
    budget_bytes: int

    def with_states(
        self, backbone: Backbone, layer: int, tokenized: Sequence[TokenizedExample]
    ) -> tuple[TokenizedExample, ...]:
        """Return the texts with their states at `layer`, from the file or from the layers below.

        Without room, or with a disk that is full, they are returned as they are, and the log says so.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._with_states(backbone, layer, tokenized)
        except OSError as error:
            log.warning("states of the lower layers are not kept (%s): the run goes on without them", error)
            return tuple(tokenized)

    def _with_states(
        self, backbone: Backbone, layer: int, tokenized: Sequence[TokenizedExample]
    ) -> tuple[TokenizedExample, ...]:
        size, path = backbone.hidden_size, self._path(backbone, layer, tokenized)
        room = self.budget_bytes - _bytes_in_use(self.directory, but=path)
        ends = np.cumsum([tokens.num_tokens for tokens in tokenized]) * size * BYTES_PER_VALUE
        num_kept = int((ends <= room).sum())
        if num_kept < len(tokenized):
            log.warning(
                "states of the lower layers are kept for %d of %d texts, as prefix-cache-gib is %.2f: raise it",
                num_kept,
                len(tokenized),
                self.budget_bytes / 2**30,
            )
        if not num_kept:
            return tuple(tokenized)
        kept = tokenized[:num_kept]
        if num_kept < len(tokenized):
            path = self._path(backbone, layer, kept)
        batches = list(in_order_of_length(kept, EVALUATION_BATCH_SIZE))
        order = [index for indices in batches for index in indices]
        num_bytes = int(ends[num_kept - 1])
        if not path.is_file() or path.stat().st_size != num_bytes:
            self._make_room(num_bytes)
            _write(path, backbone, layer, [[kept[index] for index in indices] for indices in batches])
        path.touch()  # used last now
        _in_use.add(path)
        found: Tensor = torch.from_file(str(path), shared=False, size=num_bytes // 2, dtype=torch.bfloat16)
        lengths = [kept[index].num_tokens for index in order]
        states = dict(zip(order, torch.split(found.view(-1, size), lengths), strict=True))
        return tuple(
            replace(tokens, states=states[index]) if index < num_kept else tokens
            for index, tokens in enumerate(tokenized)
        )

    def _path(self, backbone: Backbone, layer: int, tokenized: Sequence[TokenizedExample]) -> Path:
        return self.directory / (_key(backbone, layer, tokenized) + ENDING)

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


def _key(backbone: Backbone, layer: int, tokenized: Sequence[TokenizedExample]) -> str:
    computed = f"{backbone.fingerprint} {layer} {backbone.model.dtype} {backbone.device.type}"
    digest = hashlib.blake2b(computed.encode(), digest_size=20)
    for tokens in tokenized:
        ids = [tokens.num_tokens, *tokens.prompt_ids, *tokens.answer_ids]
        digest.update(np.array(ids, dtype=np.int64).tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _write(path: Path, backbone: Backbone, layer: int, batches: Sequence[Sequence[TokenizedExample]]) -> None:
    """Write all texts' states one after the other; the file is there when it is whole."""
    descriptor, part = tempfile.mkstemp(suffix=UNFINISHED, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for some in batches:
                batch = collate(some, pad_id(backbone.tokenizer), backbone.device)
                hidden = hidden_at(backbone, layer, batch.input_ids, batch.attention_mask)
                rounded = hidden.to(torch.bfloat16).cpu()
                for tokens, row in zip(some, rounded, strict=True):
                    file.write(row[-tokens.num_tokens :].contiguous().view(torch.uint8).numpy().tobytes())
        os.replace(part, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(part)
        raise
