"""What a run needs to go on after a round, beside its settings: one file, replaced as a whole after every round."""

import json
import zipfile
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np

from common.atomic_file import replace_file
from common.mixture_arrays import Arrays

CHECKPOINT = "checkpoint.npz"
_ABOUT, _SHARED, _OWN = "about", "shared", "own"


@dataclass(frozen=True)
class Checkpoint:
    """The mixtures after a round, how long (bytes) the files were that grow, and who failed of late.

    `failed` and `back` are those of server.attendance; `tasks` those that the mixture was made for, as clients with
    others may have come since. Nothing else is left of a round: who is sampled, and how clients shuffle, follows from
    seed and round.
    """

    server_round: int
    shared: Arrays
    own: dict[int, Arrays]
    sizes: dict[str, int]
    failed: dict[int, int] = field(default_factory=dict)
    back: dict[int, int] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Replace a run's checkpoint. Raises OSError where there is no room; the one before is whole then."""
    arrays = {f"{_SHARED}/{name}": array for name, array in checkpoint.shared.items()}
    for client, own in checkpoint.own.items():
        arrays |= {f"{_OWN}/{client}/{name}": array for name, array in own.items()}
    named = ("server_round", "sizes", "failed", "back", "tasks")
    about = json.dumps({name: getattr(checkpoint, name) for name in named})
    content = BytesIO()
    np.savez(content, **{_ABOUT: np.array(about)}, **arrays)  # type: ignore[arg-type]
    replace_file(directory / CHECKPOINT, content.getvalue())


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read a run's checkpoint. Raises ValueError where there is none, or a damaged one."""
    path = directory / CHECKPOINT
    if not path.is_file():
        raise ValueError(f"{directory} has no {CHECKPOINT}: no round of it was finished; start the run anew")
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as file:
            about = json.loads(str(file[_ABOUT]))
            shared: Arrays = {}
            own: dict[int, Arrays] = {}
            for key in file.files:
                kind, _, name = key.partition("/")
                if kind == _SHARED:
                    shared[name] = file[key]
                elif kind == _OWN:
                    client, _, name = name.partition("/")
                    own.setdefault(int(client), {})[name] = file[key]
            failed, back = ({int(client): n for client, n in about[name].items()} for name in ("failed", "back"))
            return Checkpoint(
                int(about["server_round"]), shared, own, about["sizes"], failed, back, tuple(about["tasks"])
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): start the run anew") from None
