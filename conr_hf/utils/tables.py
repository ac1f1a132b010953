"""Tables as text."""

from collections.abc import Sequence


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first a header, as aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells that are Markdown already, the first a header; the first column to the left, the others right."""
    header, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---", *["---:"] * (len(header) - 1)], *others))


def format_bin(low: float, high: float, whole: bool) -> str:
    """
    The labels in a bin from `low` up to `high`: for whole-number labels, its first and its last.

    Example:
        >>> format_bin(0, 2.5, whole=False), format_bin(20, 25, whole=True), format_bin(20, 21, whole=True)
        ('0 to 2.5', '20 to 24', '20')
    """
    if whole and low == round(low) and high == round(high):
        return f"{low:g}" if high == low + 1 else f"{low:g} to {high - 1:g}"
    return f"{low:g} to {high:g}"
