"""Stands in for an environment's Python: makes the outputs that a program is asked for."""

import sys
from pathlib import Path


def outputs(arguments: list[str]) -> list[Path]:
    """Paths given to the options that name outputs."""
    names = {"--output", "--merged", "--results", "--samples"}
    if Path(arguments[0]).name == "transplant.py":
        names.add("--adapter")
    found, option = [], ""
    for argument in arguments[1:]:
        if argument.startswith("--"):
            option = argument
        elif option in names:
            found.append(Path(argument))
    return found


def main() -> None:
    """Make each output: a file where it has an ending, else a directory with a file in it."""
    arguments = sys.argv[1:]
    for path in outputs(arguments):
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Each ends as what is whole ends.
            path.write_bytes(b"IEND\xaeB`\x82" if path.suffix == ".png" else b"{}\n")
            if Path(arguments[0]).name == "make_corpus.py":
                path.with_suffix(".manifest.json").write_text("{}")
        else:
            path.mkdir(parents=True, exist_ok=True)
            (path / "made_by").write_text(" ".join(arguments))


main()
