"""A table as text: Markdown and LaTeX."""

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
    """The table as LaTeX with booktabs rules, notes in small type under it.

    One that is wider than the text is made smaller; no table is made larger.
    """
    latex = _FITTED % text.to_latex(index=False, escape=True).strip()
    for note in notes:
        # The paragraph ends within the group, or it would be set as the text around it is.
        latex += f"\\par\\smallskip{{\\footnotesize\\sloppy\\noindent {_latex_text(note)}\\par}}\n"
    for symbol, command in _LATEX.items():
        latex = latex.replace(symbol, command)
    return latex


def _latex_text(text: str) -> str:
    # Long file names hold no spaces: a line may end after a slash or an underscore of theirs.
    special = {character: "\\" + character for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escaped = "".join(special.get(character, character) for character in text)
    return escaped.replace("/", r"/\allowbreak{}").replace(r"\_", r"\_\allowbreak{}")


def to_markdown(text: pandas.DataFrame, notes: Iterable[str] = ()) -> str:
    """The table as Markdown, notes under it; what is text already is left as it is."""
    table = text.to_markdown(index=False, disable_numparse=True) + "\n"
    return table + "".join(f"\n{note}\n" for note in notes)
