"""Check a study's configuration files before Snakemake reads them.

Snakemake reads the files of `--configfile` before the Snakefile. A missing file ends it with a
traceback, a file that does not parse with a message that names neither file nor line, and aliases
that multiply take all memory. The profile profiles/default is read even earlier, so it calls this
check.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from portllm.errors import InputError, nearest
from portllm.study.yaml_files import read_yaml


def named_files(arguments: Sequence[str]) -> list[Path]:
    """Return the config files that Snakemake's command line names, or else the default one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--configfile", "--configfiles", dest="files", nargs="+", type=Path)
    parser.add_argument("--directory", "-d", type=Path, default=Path())
    known, _ = parser.parse_known_args(arguments)
    default = known.directory / "config.yaml"
    return known.files or ([default] if default.exists() else [])


def _similar_files(path: Path) -> list[str]:
    directories = dict.fromkeys([path.parent, Path(), Path("config")])
    return [str(file) for directory in directories for file in sorted(directory.glob("*.yaml"))]


def check(path: Path) -> None:
    """Raise InputError if a config file does not exist, does not parse or is not a mapping."""
    if not path.exists():
        suggestion = nearest(str(path), _similar_files(path))
        raise InputError(f"--configfile {path}: no such file; {suggestion}")
    if not path.is_file():  # Snakemake cannot read pipes either
        raise InputError(f"--configfile {path}: expected a file")
    if not isinstance(read_yaml(path, what=str(path)), dict):
        raise InputError(f"{path}: expected a mapping, such as `study: {{models: [tiny]}}`")


def check_command_line() -> None:
    """End Snakemake with one line if a config file cannot be used."""
    try:
        for path in named_files(sys.argv[1:]):
            check(path)
    except InputError as error:
        sys.exit(f"error: {error}")
