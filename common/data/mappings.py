"""Which column of a row is the instruction, the input, the answer, and so on: built-in mappings, or a user's own."""

import re
from collections.abc import Mapping as ReadOnly
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.near_names import did_you_mean

FIELDS = ("instruction", "input", "output", "task", "domain", "source", "split", "choices")
Columns = dict[str, tuple[str, ...]]

_PAIR = re.compile(r"\s*([\w-]+)\s*=\s*('[^']*'|[^,']*?)\s*(?:,|$)")
PAIRS_EXAMPLE = "columns=\"instruction=question,output=answer,task='qa'\""


@dataclass(frozen=True)
class Mapping:
    """`columns` tells the columns that a field may come from, of which the first that is there counts.

    A row fits where it has at least one column of each group of `needs`, and none of `without`. A mapping that a user
    wrote has no name.
    """

    name: str
    columns: Columns
    needs: tuple[tuple[str, ...], ...]
    without: tuple[str, ...] = ()
    constants: ReadOnly[str, str] = field(default_factory=dict)

    def fits(self, columns: Sequence[str]) -> bool:
        """Tell whether rows with these columns are of this kind."""
        there = set(columns)
        return not there.intersection(self.without) and all(there.intersection(group) for group in self.needs)

    def check(self, columns: Sequence[str], table: str) -> None:
        """Raise ValueError unless a table has the columns that this mapping needs."""
        for group in self.needs:
            if not set(group).intersection(columns):
                raise ValueError(
                    f"{table} has no column {' or '.join(map(repr, group))}, but {', '.join(map(repr, columns))}: "
                    f"columns={self.name or 'PAIRS'} needs it; name the columns that are there, as in {PAIRS_EXAMPLE}"
                )

    @property
    def needs_task(self) -> bool:
        """Whether every row must name a task: where it has none, the file's name is its task otherwise."""
        return self.columns["task"] in self.needs


def _mapping(
    name: str, needs: tuple[tuple[str, ...], ...], without: tuple[str, ...] = (), **columns: tuple[str, ...]
) -> Mapping:
    return Mapping(name, {key: columns.get(key, (key,)) for key in (*FIELDS, *columns)}, needs, without)


_ANSWER = ("answer", "answerKey", "label")
BUILT_IN_MAPPINGS = {
    mapping.name: mapping
    for mapping in (
        _mapping("plain", (("task",), ("output",), ("instruction", "input"))),
        _mapping("alpaca", (("output",), ("instruction", "input")), without=("task",)),
        _mapping(
            "dolly",
            (("instruction",), ("response",)),
            input=("context",),
            output=("response",),
            task=("category",),
        ),
        _mapping(
            "superni",
            (("definition",), ("inputs",), ("targets",)),
            instruction=("definition",),
            input=("inputs",),
            output=("targets",),
            task=("task_name",),
        ),
        _mapping(
            "flan",
            (("inputs",), ("targets",)),
            without=("definition",),
            input=("inputs",),
            output=("targets",),
            task=("task", "task_name", "_task_name"),
            domain=("domain", "_task_source"),
        ),
        _mapping("messages", (("messages",),), messages=("messages",)),
        _mapping(
            "multiple-choice",
            (("question",), ("choices", "options"), _ANSWER),
            instruction=("question",),
            input=("context", "passage"),
            output=_ANSWER,
            task=("task", "subject"),
            choices=("choices", "options"),
        ),
    )
}


def detect(columns: Sequence[str], where: str) -> Mapping:
    """Return the one built-in mapping that rows with these columns fit. Raises ValueError unless it is one."""
    fitting = [mapping for mapping in BUILT_IN_MAPPINGS.values() if mapping.fits(columns)]
    if len(fitting) == 1:
        return fitting[0]
    seen = ", ".join(map(repr, columns)) or "none"
    if fitting:
        names = " and ".join(mapping.name for mapping in fitting)
        raise ValueError(f"{where}: the columns {seen} fit {names}: expected one; say columns={fitting[0].name}")
    raise ValueError(
        f"{where}: the columns {seen} fit none of {', '.join(BUILT_IN_MAPPINGS)}: say what they are, as in "
        f"{PAIRS_EXAMPLE}"
    )


def parse_columns(text: str) -> Mapping | None:
    """Read the key `columns`: a built-in mapping's name, pairs, or "", for which None is returned.

    In pairs a quoted text is no column but stands for itself; fields that are not named come from columns of their own
    name. Raises ValueError for anything else.
    """
    if text in BUILT_IN_MAPPINGS or not text:
        return BUILT_IN_MAPPINGS.get(text)
    if "=" not in text:
        hint = did_you_mean(
            text, list(BUILT_IN_MAPPINGS), otherwise=f"expected {', '.join(BUILT_IN_MAPPINGS)}, or pairs"
        )
        raise ValueError(f"columns {text!r} is no built-in mapping: {hint}; pairs look like {PAIRS_EXAMPLE}")
    columns: Columns = {}
    constants: dict[str, str] = {}
    end = 0
    while end < len(text):
        pair = _PAIR.match(text, end)
        if pair is None or not pair[2]:
            raise ValueError(
                f"columns has {text[end:]!r}, which is no pair: expected field=column, as in {PAIRS_EXAMPLE}"
            )
        name, value, end = pair[1], pair[2], pair.end()
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS, otherwise=f"expected one of {', '.join(FIELDS)}")
            raise ValueError(f"columns names the field {name!r}: {hint}")
        if name in columns:
            raise ValueError(f"columns names the field {name!r} twice: leave one out")
        if value.startswith("'"):
            if name in ("output", "split", "choices"):
                raise ValueError(f"columns gives every row the same {name} {value}: expected a column; name one")
            columns[name], constants[name] = (), value[1:-1]
        else:
            columns[name] = (value,)
    all_columns = {key: columns.get(key, (key,)) for key in FIELDS}
    named = tuple(group for group in columns.values() if group)
    prompt = () if constants.get("instruction") else ((*all_columns["instruction"], *all_columns["input"]),)
    return Mapping("", all_columns, (*named, *prompt, all_columns["output"]), constants=constants)
