"""The tables that notebooks show, in one style."""

import html
from collections.abc import Iterable, Sequence


def table(
    rows: Iterable[Sequence[str]],
    head: Sequence[str] = (),
    caption: str = "",
    *,
    names: bool = False,
    marked: Iterable[int] = (),
) -> str:
    """An HTML table of plain text, which is escaped.

    Args:
        rows: The cells of each row.
        head: Titles of the columns; none where it is empty.
        caption: Above the table; none where it is empty.
        names: Whether the first cell of each row is its name.
        marked: Indices of rows to highlight, such as those that failed.

    Returns:
        One `<table>` element.
    """
    left, marked = " style='text-align:left'", set(marked)
    parts = [f"<caption>{html.escape(caption)}</caption>"] if caption else []
    if head:
        parts.append(f"<tr>{''.join(f'<th{left}>{html.escape(title)}</th>' for title in head)}</tr>")
    for index, row in enumerate(rows):
        tags = ["th" if names and column == 0 else "td" for column in range(len(row))]
        cells = "".join(f"<{tag}{left}>{html.escape(cell)}</{tag}>" for tag, cell in zip(tags, row, strict=True))
        parts.append(f"<tr{' style=' + repr('background:#fdd') if index in marked else ''}>{cells}</tr>")
    return f"<table>{''.join(parts)}</table>"
