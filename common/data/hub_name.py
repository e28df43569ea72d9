"""A data set of the hub by name: owner/name, owner/name:subset, owner/name:subset@revision."""

import re
from dataclasses import dataclass

_PATTERN = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?::([^:@]+))?(?:@([^:@]+))?")


@dataclass(frozen=True)
class HubName:
    """A repository, and perhaps one of its subsets and a revision (branch, tag or commit)."""

    repository: str
    subset: str = ""
    revision: str = ""

    def __str__(self) -> str:
        subset, revision = (
            f"{mark}{text}" if text else "" for mark, text in ((":", self.subset), ("@", self.revision))
        )
        return f"{self.repository}{subset}{revision}"


def parse_hub_name(name: str) -> HubName | None:
    """Read a hub id; None where the name does not look like one."""
    match = _PATTERN.fullmatch(name)
    return HubName(*(group or "" for group in match.groups())) if match else None
