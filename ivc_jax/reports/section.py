"""What a report is made of: sections of text, tables and figures, before they are written.

`markdown` and `html` write them. Backticks in a text mean what they mean in Markdown.
"""

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what it says.
        interval: ends of the 95 % interval, as they are written.
        mark: why it stands out: "best", "right" or "wrong"; "" if it does not.
        code: letter by letter what a model said.
    """

    text: str
    interval: tuple[str, str] | None = None
    mark: str = ""
    code: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, its heading, a text above it and notes below.

    Attributes:
        rows: as many cells each as there are columns; plain text is a cell of it.
        starts: numbers of the rows that begin another block.
        folded: closed until the reader opens it, where the format can; None is always open.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell | str, ...], ...]
    title: str = ""
    text: str = ""
    notes: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()
    folded: bool | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawn figure; `name` is that of its file, without the ending."""

    name: str
    title: str
    caption: str
    png: bytes  # drawn already: writers need no matplotlib

    @property
    def path(self) -> str:
        """Where it lies in the result folder."""
        return f"figures/{self.name}.png"


@dataclasses.dataclass(frozen=True)
class Section:
    """What stands under one heading of a report.

    Attributes:
        text: paragraphs.
        notes: a list below the tables.
        files: further files of the result folder, content by name.
        replaces: titles of the usual sections that are left out beside this one.
        printed: its tables are what the terminal shows, in place of the usual scores.
    """

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    replaces: tuple[str, ...] = ()
    printed: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to read but a heading."""
        return not (self.tables or self.figures or self.notes)


@dataclasses.dataclass(frozen=True)
class Report:
    """A whole page: its heading, the command that made it, facts by name, and sections."""

    title: str
    command: str
    facts: Mapping[str, object]
    sections: tuple[Section, ...]


def short_name(title: str) -> str:
    """Write a title as a name in addresses and of files, such as `equal-budgets`."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
