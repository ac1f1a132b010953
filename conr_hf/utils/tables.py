"""Tables as aligned text."""

from collections.abc import Sequence


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first a header, as columns: the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def format_bin(low: float, high: float, whole: bool) -> str:
    """
    What a bin from `low` up to `high` holds; of whole labels, its first and its last.

    Example:
        >>> format_bin(0, 2.5, whole=False), format_bin(20, 25, whole=True), format_bin(20, 21, whole=True)
        ('0 to 2.5', '20 to 24', '20')
    """
    if whole and low == round(low) and high == round(high):
        return f"{low:g}" if high == low + 1 else f"{low:g} to {high - 1:g}"
    return f"{low:g} to {high:g}"
