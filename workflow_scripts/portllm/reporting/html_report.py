"""Write the report: one HTML file with all tables and figures, which opens offline."""

import base64
import io
import mimetypes
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas
import yaml

from portllm.comparison import score_table
from portllm.errors import InputError
from portllm.study.exhibits import Exhibit, Registry

NUMERIC = re.compile(r"[-−+–]?[\d.,]*( ± [\d.]+)?( ?%)?( \[[^]]*\])?")
# Parts of a study's description, and the column of imported scores for each.
OF_SCORES = {"Models": "model", "Versions": "applied_to", "Tasks": "task", "Seeds": "seed"}
REST = "Further tables and figures"


@dataclass(frozen=True)
class Item:
    """A table or figure in the report: its number, name, caption, and content as HTML parts."""

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
    """Return a file's content as a data URI."""
    kind = mimetypes.guess_type(path.name)[0] or "text/plain"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def read_markdown(text: str) -> tuple[list[str], list[list[str]], list[str]]:
    """Parse a Markdown table of make_table.py: header, rows, and the paragraphs below."""
    lines = text.strip().splitlines()
    table = [line for line in lines if line.startswith("|")]
    if len(table) < 2:
        raise InputError(f"found {lines[:1]}, expected a Markdown table")
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


def _table(number: int, name: str, caption: str, path: Path) -> Item:
    header, rows, notes = read_markdown(path.read_text())
    files = {kind: data_uri(path.with_suffix(f".{kind.lower()}")) for kind in ("CSV", "TEX")}
    return Item(number, name, caption, files, header, rows, notes)


def _figure(number: int, name: str, caption: str, path: Path) -> Item:
    paths = {kind: path.with_suffix(f".{kind.lower()}") for kind in ("CSV", "SVG", "PNG")}
    files = {kind: data_uri(file) for kind, file in paths.items()}
    return Item(number, name, caption, files, image=files["SVG"])


def with_imported(parts: dict[str, list[str]], sources: Iterable[Path]) -> dict[str, list[str]]:
    """Add the models, versions, tasks and seeds of imported scores to a study's description.

    Args:
        parts: the description, by part.
        sources: tables of imported scores, SOURCE.csv.

    Returns:
        The description without empty parts.
    """
    extended = {part: list(names) for part, names in parts.items()}
    for path in sources:
        table = score_table.read(path)
        for part, column in OF_SCORES.items():
            names = [name for name in dict.fromkeys(table[column]) if name != score_table.NONE]
            if names:
                extended.setdefault(part, []).append(f"{', '.join(names)} (of {path.stem})")
    return {part: names for part, names in extended.items() if names}


def read_sections(path: Path) -> list[dict[str, Any]]:
    """Read the report's sections, in order, each with every key.

    Raises:
        InputError: the file is not a list of sections with an id and a title.

    """
    try:
        sections = yaml.safe_load(path.read_text())
        return [
            {"id": section["id"], "title": section["title"], "text": "", "study": False, **section}
            for section in sections
        ]
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise InputError(f"{path}: expected a list of sections ({error})") from None


def arrange(sections: list[dict[str, Any]], kinds: Mapping[str, Exhibit]) -> list[list[str]]:
    """Return the names of the tables, or of the figures, of each section.

    Within a section, the order is that of the kinds, then that of the study. One more list holds
    those whose section does not exist.

    Args:
        sections: The report's sections, in order.
        kinds: The kind of each table, or figure, by name.

    """
    ordered = sorted(kinds, key=lambda name: kinds[name].order)
    ids = [section["id"] for section in sections]
    placed = [[name for name in ordered if kinds[name].section == one] for one in ids]
    return [*placed, [name for name in ordered if kinds[name].section not in ids]]


def headlines(exhibits: Registry, results: Iterable[tuple[str, pandas.DataFrame]]) -> list[str]:
    """Return what the study found, one sentence for each kind of table that has one.

    Args:
        exhibits: All kinds of tables and figures.
        results: Kind and numbers of each table; of two tables of a kind, the first one counts.

    """
    of_kind: dict[str, pandas.DataFrame] = {}
    for kind, numbers in results:
        of_kind.setdefault(kind, numbers)
    tables = exhibits.of_group("tables").items()
    sentences = [kind.headline(of_kind[name]) for name, kind in tables if name in of_kind]
    return [sentence for sentence in sentences if sentence]


def write(
    template: Path,
    sections: list[dict[str, Any]],
    exhibits: Registry,
    *,
    settings: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Path]],
) -> str:
    """Return the report as HTML.

    Args:
        template: Jinja template of the page.
        sections: The report's sections, in order.
        exhibits: All kinds of tables and figures.
        settings: `study`, the study in words; `tables` and `figures`, kind and caption of each.
        files: The Markdown of each table and the SVG of each figure, by name.

    """
    last = {"title": REST, "text": "", "study": False}
    parts: list[dict[str, Any]] = [{**section} for section in [*sections, last]]
    for group, read in (("tables", _table), ("figures", _figure)):
        entries = settings[group]
        kinds = {name: exhibits[group, entries[name]["kind"]] for name in files[group]}
        number = 0
        for part, names in zip(parts, arrange(sections, kinds), strict=True):
            part[group] = []
            for name in names:
                number += 1
                caption = entries[name]["caption"]
                part[group].append(read(number, name, caption, files[group][name]))
    numbers = [
        (settings["tables"][name]["kind"], pandas.read_csv(path.with_suffix(".csv")))
        for name, path in files["tables"].items()
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["numeric"] = lambda cell: NUMERIC.fullmatch(cell) is not None
    return environment.get_template(template.name).render(
        sections=[part for part in parts if part["tables"] or part["figures"] or part["study"]],
        study=settings["study"],
        highlights=headlines(exhibits, numbers),
    )
