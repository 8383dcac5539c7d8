"""Write a table as Markdown or LaTeX."""

from collections.abc import Iterable

import pandas

_LATEX = {
    "±": r"$\pm$",
    "<": "$<$",
    "–": "--",
    "−": r"$-$",
    "‖": r"$\|$",
    "θ": r"$\theta$",
    "Δ": r"$\Delta$",
    "σ₁": r"$\sigma_1$",
    "′": "$'$",
}
_FITTED = r"""%% needs \usepackage{booktabs,graphicx}
\noindent\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%%
%s%%
}
"""


def to_latex(text: pandas.DataFrame, notes: Iterable[str] = ()) -> str:
    """Write a table as LaTeX with booktabs rules and notes in small type below.

    A table that is wider than the text is scaled down.
    """
    latex = _FITTED % text.to_latex(index=False, escape=True).strip()
    for note in notes:
        # \par inside the group, so that the paragraph uses the group's font size.
        latex += f"\\par\\smallskip{{\\footnotesize\\sloppy\\noindent {_latex_text(note)}\\par}}\n"
    for symbol, command in _LATEX.items():
        latex = latex.replace(symbol, command)
    return latex


def _latex_text(text: str) -> str:
    # Long file names have no spaces, so allow line breaks after slashes and underscores.
    special = {character: "\\" + character for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escaped = "".join(special.get(character, character) for character in text)
    return escaped.replace("/", r"/\allowbreak{}").replace(r"\_", r"\_\allowbreak{}")


def to_markdown(text: pandas.DataFrame, notes: Iterable[str] = ()) -> str:
    """Write a table as Markdown with notes below; text cells are not parsed as numbers."""
    table = text.to_markdown(index=False, disable_numparse=True) + "\n"
    return table + "".join(f"\n{note}\n" for note in notes)
