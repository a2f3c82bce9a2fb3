"""report.tex: the tables of a report for a paper, to be read by \\input; they need the package booktabs."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from featcache.reporting.blocks import OF_ONE_RUN, Paragraph, Report, Table
from featcache.reporting.text import clean

_ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
    "[": "{[}",
    "]": "{]}",
    "\N{REPLACEMENT CHARACTER}": "?",
}


def render(report: Report) -> str:
    r"""Each table of numbers over several runs as one that \input reads, and the paragraph on methods."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield "% Tables of a featcache report. In the preamble: \\usepackage{booktabs}, \\usepackage{graphicx},"
    yield "% \\usepackage[T1]{fontenc} and \\usepackage{textcomp}. Letters beyond Latin need XeLaTeX or LuaLaTeX."
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Table) and section.level < OF_ONE_RUN and block.n_text < len(block.headers):
                yield from _table(block)
            elif isinstance(block, Paragraph) and block.tone == "copy":
                yield f"\n{escaped(block.text)}"


def _table(table: Table) -> Iterator[str]:
    alignment = "".join("l" if table.is_text(column) else "r" for column in range(len(table.headers)))
    yield "\n\\begin{table}[htbp]\n\\centering"
    yield f"\\caption{{{escaped(table.title or 'Table')}}}"
    yield r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    yield f"\\begin{{tabular}}{{{alignment}}}\n\\toprule"
    yield _row(table.headers)
    yield "\\midrule"
    for number, cells in enumerate(table.rows):
        yield _row(cells, best={column for row, column in table.best if row == number})
    if table.foot:
        yield "\\midrule"
        yield from (_row(cells) for cells in table.foot)
    yield "\\bottomrule\n\\end{tabular}}\n\\end{table}"


def _row(cells: Sequence[str], best: set[int] | None = None) -> str:
    words = (
        f"\\textbf{{{escaped(cell)}}}" if column in (best or ()) else escaped(cell) for column, cell in enumerate(cells)
    )
    return " & ".join(words) + r" \\"


def escaped(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_ESCAPED.get(letter, letter) for letter in unicodedata.normalize("NFC", clean(text)))
