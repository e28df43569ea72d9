"""What is wrong with a row, and how often: rows are skipped only on request, and never in silence."""

from dataclasses import dataclass, field


class BadRowError(ValueError):
    """A row is no example. `kind` names the fault without the row's own values, so that faults can be counted."""

    def __init__(self, where: str, kind: str, said: str) -> None:
        super().__init__(f"{where} {said}")
        self.where, self.kind = where, kind


@dataclass
class ReadingCounts:
    """What became of the rows of a data set. A kind of fault comes with how often, and where first."""

    num_rows: int = 0
    num_duplicates: int = 0
    bad: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def num_bad(self) -> int:
        """Rows that were left out because of a fault."""
        return sum(count for count, _ in self.bad.values())

    def add(self, error: BadRowError) -> None:
        """Count a row that is left out."""
        count, first = self.bad.get(error.kind, (0, error.where))
        self.bad[error.kind] = (count + 1, first)

    def lines(self, data: str) -> list[str]:
        """Say in lines what was left out; none where nothing was."""
        said = []
        if self.num_duplicates:
            said.append(f"data {data}: left out {self.num_duplicates} of {self.num_rows} rows, which stand there twice")
        if self.bad:
            ordered = sorted(self.bad.items(), key=lambda item: -item[1][0])
            faults = "; ".join(f"{count} with {kind} (first: {first})" for kind, (count, first) in ordered)
            said.append(f"data {data}: left out {self.num_bad} of {self.num_rows} rows as bad: {faults}")
        return said
