"""README, docs, changelog, citation and licence hold together."""

import hashlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT

import portllm
from portllm.cli import main

PAGES = [
    *sorted(PROJECT.glob("*.md")),
    *sorted(PROJECT.glob("docs/**/*.md")),
    PROJECT / "config/README.md",
    PROJECT / "profiles/README.md",
]
STUDIES = [
    PROJECT / "config.yaml",
    *sorted(path for path in PROJECT.glob("config/*.yaml") if path.name != "schema.yaml"),
    *sorted(PROJECT.glob("tests/studies/*.yaml")),
    PROJECT / ".test/config.yaml",
]
# The digest of https://www.apache.org/licenses/LICENSE-2.0.txt.
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def without_code(text: str) -> str:
    """Leave out fenced and inline code, where brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S))


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures, references included."""
    text = without_code(page.read_text())
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    return inline + re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, flags=re.M)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ +(.+?) *#*$", text, flags=re.M)
    names = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", name).replace(" ", "-") for name in names}


def broken_links(page: Path, root: Path = PROJECT) -> list[str]:
    """Relative links of a page that lead nowhere, out of `root`, or to a missing heading."""
    broken = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        is_missing = not target.exists() or not target.is_relative_to(root)
        if is_missing or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_of_a_page_resolve(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path.parent / "x.md").touch()
    page.write_text(
        '# A `b`: c\n[x](#a-b-c) `[y](no)` ![z](no.png "t") [w](../x.md) [v](#d)\n\n[r]: gone.md\n'
    )
    assert broken_links(page, root=tmp_path) == ["no.png", "../x.md", "#d", "gone.md"]


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links(page)
    }
    linked |= {target / "README.md" for target in linked}
    # docs/demo/ is linked as a folder.
    pages = [page for page in PAGES if page.parent != PROJECT / "docs/demo"]
    assert [page for page in pages if page not in linked] == [PROJECT / "README.md"]


def test_readme_is_short() -> None:
    assert len((PROJECT / "README.md").read_text().split()) < 1000


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row of a page's Markdown tables."""
    rows = re.findall(r"^\|(.+)\|$", text, re.M)
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def test_readme_shows_the_scores_of_the_demo() -> None:
    shown = {}
    version = ""
    section = (PROJECT / "README.md").read_text().split("\n## What the default study shows", 1)[1]
    for row in table_rows(section.split("\n## ", 1)[0])[2:]:
        version = row[0] or version
        task = "demo_" + row[1].replace("/", "_")
        shown[version, task] = [cell.split(" ± ")[0] for cell in row[2:]]
    measured = {}
    for row in table_rows((PROJECT / "docs/demo/recovery.md").read_text()):
        if row[3] in ("acc,none", "exact_match,strict-match"):
            measured[row[1], row[2]] = row[5:8]
    assert shown == measured


def test_licence_is_apache_2_word_for_word() -> None:
    assert hashlib.sha256((PROJECT / "LICENSE").read_bytes()).hexdigest() == APACHE_2


def test_changelog_citation_and_package_agree_on_the_version() -> None:
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "Apache-2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (PROJECT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == str(citation["version"])
    assert portllm.__version__ == released[0]


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_a_study_names_its_schema_for_editors(study: Path) -> None:
    first = study.read_text().splitlines()[0]
    schema = first.removeprefix("# yaml-language-server: $schema=")
    assert (study.parent / schema).resolve() == PROJECT / "config/study.schema.json"


def make_targets() -> set[str]:
    """The targets that the Makefile offers to users."""
    phony = re.search(r"^\.PHONY: (.+)$", (PROJECT / "Makefile").read_text(), re.M)
    assert phony is not None
    return set(phony[1].split())


def test_make_help_lists_every_target() -> None:
    command = ["make", "--no-print-directory", "help"]  # within make test, it prints directories
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert {line.split()[1] for line in done.stdout.splitlines()} == make_targets()


def documented_commands(program: str) -> list[list[str]]:
    """The arguments of every call of a program in the pages' consoles."""
    lines = [line for page in PAGES for line in page.read_text().splitlines()]
    calls = [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]
    return [call[1:] for call in calls if call[:1] == [program]]


def test_documented_targets_of_make_exist() -> None:
    calls = documented_commands("make")
    assert ["demo"] in calls
    words = {word for call in calls for word in call if word != "&&"}
    variables = {word for word in words if "=" in word}
    assert words - variables <= make_targets() | {".", ".venvs/workflow/bin/activate"}
    makefile = (PROJECT / "Makefile").read_text()
    for variable in variables:
        assert f"\n{variable.partition('=')[0]} = " in makefile


def test_documented_calls_of_portllm_parse() -> None:
    calls = documented_commands("portllm")
    assert {"check", "port", "merge"} <= {call[0] for call in calls}
    for call in calls:
        main.build_parser().parse_args(call[:1] if call[0] == "plan" else call)


def test_documented_studies_exist() -> None:
    calls = [*documented_commands("snakemake"), *documented_commands("portllm")]
    named = {word for call in calls for word in call if re.match(r"config/.*\.yaml$", word)}
    assert "config/paper.yaml" in named
    assert [study for study in named if not (PROJECT / study).exists()] == []
