"""The report: one HTML file that tells the study's story and opens offline."""

import base64
import io
import mimetypes
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas
import yaml

from portllm.comparison import score_table
from portllm.errors import InputError

KINDS = ("tables", "figures")
NUMERIC = re.compile(r"[-−+–]?\d*[\d.,]*( ± [\d.]+)?( ?%)?( \[[^]]*\])?$")
# Parts of a study in words, and the columns of scores that imported ones give for them.
OF_SCORES = {"Models": "model", "Versions": "applied_to", "Tasks": "task", "Seeds": "seed"}
REST = "Further tables and figures"


@dataclass(frozen=True)
class Exhibit:
    """A table or a figure: its number in the report, name, caption, and content as HTML parts."""

    number: int
    name: str
    caption: str
    files: dict[str, str]
    """Downloads: what each is called, and its content as a data URI."""
    header: list[str] | None = None
    rows: list[list[str]] | None = None
    notes: list[str] | None = None
    image: str | None = None


def data_uri(path: Path) -> str:
    """A file's content as a URI, which a page can carry with it."""
    kind = mimetypes.guess_type(path.name)[0] or "text/plain"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def read_markdown(text: str) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, rows and the paragraphs below of a Markdown table, as make_table.py writes it."""
    lines = text.strip().splitlines()
    table = [line for line in lines if line.startswith("|")]
    if len(table) < 2:
        raise InputError(f"no Markdown table: {lines[:1]}")
    frame = pandas.read_csv(
        io.StringIO("\n".join([table[0], *table[2:]])),
        sep="|",
        header=None,
        dtype=str,
        keep_default_na=False,
        quoting=3,
    )
    cells = [[cell.strip() for cell in row[1:-1]] for row in frame.to_numpy().tolist()]
    below = "\n".join(line for line in lines if not line.startswith("|"))
    notes = [paragraph.strip() for paragraph in below.split("\n\n") if paragraph.strip()]
    return cells[0], cells[1:], notes


def _table(number: int, name: str, caption: str, path: Path) -> Exhibit:
    header, rows, notes = read_markdown(path.read_text())
    files = {kind: data_uri(path.with_suffix(f".{kind.lower()}")) for kind in ("CSV", "TEX")}
    return Exhibit(number, name, caption, files, header, rows, notes)


def _figure(number: int, name: str, caption: str, path: Path) -> Exhibit:
    found = {kind: path.with_suffix(f".{kind.lower()}") for kind in ("CSV", "SVG", "PNG")}
    files = {kind: data_uri(file) for kind, file in found.items()}
    return Exhibit(number, name, caption, files, image=files["SVG"])


def with_imported(parts: dict[str, list[str]], sources: Iterable[Path]) -> dict[str, list[str]]:
    """A study's parts in words, with what imported scores are of; parts of nothing are left out.

    `sources` are tables of scores, SOURCE.csv.
    """
    found = {part: list(what) for part, what in parts.items()}
    for path in sources:
        table = score_table.read(path)
        for part, column in OF_SCORES.items():
            names = [name for name in dict.fromkeys(table[column]) if name != score_table.NONE]
            if names:
                found.setdefault(part, []).append(f"{', '.join(names)} (of {path.stem})")
    return {part: what for part, what in found.items() if what}


def read_sections(path: Path) -> list[dict[str, Any]]:
    """The sections of the story, each with every key; InputError where the file is no such list."""
    try:
        sections = yaml.safe_load(path.read_text())
        return [
            {"text": "", "study": False, "tables": {}, "figures": {}, **section}
            for section in sections
        ]
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise InputError(f"{path}: no list of sections ({error})") from None


def arrange(
    sections: list[dict[str, Any]], kinds: dict[str, dict[str, str]]
) -> list[dict[str, list[tuple[str, str]]]]:
    """Names and captions of the tables and figures of each section, and of what is left over.

    `kinds` gives the kind of each table and figure of the study by its name.
    """
    named = {kind: {k for section in sections for k in section[kind]} for kind in KINDS}
    rest = {kind: {k: "" for k in kinds[kind].values() if k not in named[kind]} for kind in KINDS}
    return [
        {
            kind: [
                (name, section[kind][its_kind])
                for wanted in section[kind]
                for name, its_kind in kinds[kind].items()
                if its_kind == wanted
            ]
            for kind in KINDS
        }
        for section in [*sections, rest]
    ]


def _per_cent(value: float) -> str:
    return f"{value:.0%}".replace("%", " %")


def _recovery_sentence(numbers: pandas.DataFrame) -> str | None:
    shares = numbers["recovery"].dropna()
    if shares.empty:
        return None
    left_out = len(numbers) - len(shares)
    gains = f"; {left_out} others gain too little to divide by" if left_out else ""
    return (
        f"Ported patches recover {_per_cent(shares.mean())} of what re-fine-tuning gains, a mean "
        f"over {len(shares)} comparisons ({_per_cent(shares.min())} to {_per_cent(shares.max())}"
        f"{gains})."
    )


def _movement_sentence(numbers: pandas.DataFrame) -> str:
    moved = numbers["relative"]
    return (
        f"{len(moved)} later versions, whose weights lie {moved.min():.1%} to {moved.max():.1%} of "
        "the base's norm away from it."
    )


def _cost_sentence(numbers: pandas.DataFrame) -> str | None:
    hours = numbers.groupby("arm")["hours"].mean()
    if not {"porting", "re-fine-tuning"} <= set(hours.index) or hours["porting"] == 0:
        return None
    ratio = hours["re-fine-tuning"] / hours["porting"]
    return f"Porting trains nothing; training a patch again took {ratio:.0f} times as long."


def _trend_sentence(numbers: pandas.DataFrame) -> str | None:
    # Arms with a patch have the un-patched model's trend beside them.
    patched = numbers[numbers["un_patched_slope"].notna()]
    if patched.empty:
        return None
    # Of intervals and tests alike; rounded, as 1 − 0.95 is a little more than 0.05.
    significant = round(1 - patched["level"].iloc[0], 6)
    parts = []
    for arm, rows in patched.groupby("arm", sort=False):
        falling = int(((rows["slope"] < 0) & (rows["p_holm"] < significant)).sum())
        parts.append(f"{arm} in {falling} of {len(rows)}")
    return (
        f"Over {int(patched['last_update'].max())} updates, scores fall (Holm-corrected "
        f"p < {significant:g}): {', '.join(parts)} series."
    )


HIGHLIGHTS = {
    "recovery": _recovery_sentence,
    "versions": _movement_sentence,
    "trend": _trend_sentence,
    "efficiency": _cost_sentence,
}


def highlights(results: Iterable[tuple[str, pandas.DataFrame]]) -> list[str]:
    """What the study found, a sentence for each kind of table that has one; the first table's."""
    of_kind: dict[str, pandas.DataFrame] = {}
    for kind, numbers in results:
        of_kind.setdefault(kind, numbers)
    sentences = [make(of_kind[kind]) for kind, make in HIGHLIGHTS.items() if kind in of_kind]
    return [sentence for sentence in sentences if sentence]


def write(
    template: Path,
    sections: list[dict[str, Any]],
    *,
    tables: dict[str, tuple[str, Path]],
    figures: dict[str, tuple[str, Path]],
    study: dict[str, Any],
) -> str:
    """The report as HTML. Tables and figures are given by name, with their kind and file."""
    kinds = {
        "tables": {name: kind for name, (kind, _) in tables.items()},
        "figures": {name: kind for name, (kind, _) in figures.items()},
    }
    titles = [*sections, {"title": REST, "text": "", "study": False}]
    parts, counts = [], dict.fromkeys(KINDS, 0)
    makers = {"tables": (_table, tables), "figures": (_figure, figures)}
    for section, names in zip(titles, arrange(sections, kinds), strict=True):
        part: dict[str, Any] = {**section}
        for kind, (make, given) in makers.items():
            part[kind] = []
            for name, caption in names[kind]:
                counts[kind] += 1
                part[kind].append(make(counts[kind], name, caption, given[name][1]))
        if part["tables"] or part["figures"] or part["study"]:
            parts.append(part)
    numbers = [(kind, pandas.read_csv(path.with_suffix(".csv"))) for kind, path in tables.values()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["numeric"] = lambda cell: NUMERIC.match(cell) is not None
    page = environment.get_template(template.name)
    return page.render(sections=parts, study=study, highlights=highlights(numbers))
