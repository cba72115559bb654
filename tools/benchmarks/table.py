"""A plain table on standard output."""


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a title and aligned columns; the first is left-aligned, the others right-aligned."""
    widths = [max(len(str(row[column])) for row in [header, *rows]) for column in range(len(header))]
    lines = [title, "-" * (sum(widths) + 2 * (len(widths) - 1))]
    for row in [header, *rows]:
        cells = [
            str(cell).ljust(width) if i == 0 else str(cell).rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    print("\n".join(lines), flush=True)  # noqa: T201
