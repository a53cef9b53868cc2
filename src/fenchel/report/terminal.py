"""The comparison as a table in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fenchel.report.aggregate import ARROWS, cells, spread_note
from fenchel.report.palette import comparison_marks
from fenchel.report.schema import Comparison, validate_comparison


def print_table(comparison: Comparison, console: Console) -> None:
    """Print the comparison: mean ± spread per column, the best mean of a column in bold.

    Raises:
        InputError: `comparison` does not fit the schema.
    """
    validate_comparison(comparison)
    notes = [comparison["caption"], spread_note(comparison), "Bold: best of its column."]
    table = Table(
        box=SIMPLE,
        pad_edge=False,
        collapse_padding=True,
        caption=Text(" ".join(filter(None, notes))),
        caption_justify="left",
    )
    longest = max((len(row["name"]) for row in comparison["rows"]), default=0)
    table.add_column(overflow="fold", no_wrap=longest <= console.width // 4)
    for column in comparison["columns"]:
        label = f"{column['label']} {ARROWS[column['better']]}".rstrip()
        table.add_column(Text(label), justify="right", vertical="bottom", overflow="fold")
    marks = comparison_marks(comparison)
    for row, row_cells in zip(comparison["rows"], cells(comparison), strict=True):
        name = Text.assemble(("● ", marks[row["name"]].colour), row["name"])
        table.add_row(
            name,
            *(
                Text.assemble(
                    (cell.text, "bold" if cell.best else ""),
                    # No space after ±, so that a narrow terminal breaks the line before it.
                    (f" ±{cell.spread}" if cell.spread else "", "dim"),
                )
                for cell in row_cells
            ),
        )
    console.print(table)
