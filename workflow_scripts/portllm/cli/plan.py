"""`portllm plan`: run the workflow's `snakemake plan` from anywhere."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import portllm
from portllm.errors import InputError


def _is_checkout(directory: Path) -> bool:
    return (directory / "Snakefile").is_file() and (
        directory / "workflow_scripts" / "portllm"
    ).is_dir()


def find_checkout(start: Path, package: Path = Path(portllm.__file__).parent) -> Path:
    """Find the workflow: the checkout around `start`, else the one that the package lies in.

    Raises:
        InputError: there is neither.
    """
    start = start.resolve()
    candidates = (start, *start.parents, *package.resolve().parents[1:2])
    checkout = next(filter(_is_checkout, candidates), None)
    if checkout is None:
        raise InputError(
            f"no PortLLM workflow in {start} or above; run this command in a checkout of the "
            "workflow"
        )
    return checkout


def find_snakemake(checkout: Path) -> Path:
    """Find the workflow's Snakemake, or else one on the PATH; raise InputError if there is none."""
    own = checkout / ".venvs" / "workflow" / "bin" / "snakemake"
    if own.exists():
        return own
    on_path = shutil.which("snakemake")
    if on_path is None:
        raise InputError(f"no Snakemake: run `make envs` in {checkout}")
    return Path(on_path)


def show(config_files: Sequence[str], snakemake_options: Sequence[str]) -> None:
    """Replace this process by `snakemake plan`, which prints the plan.

    Raises:
        InputError: there is no workflow, no Snakemake or no such configuration file.
    """
    checkout = find_checkout(Path.cwd())
    snakemake = find_snakemake(checkout)
    for file in config_files:
        if not Path(file).is_file():
            raise InputError(f"--configfile: no such file: {file}")
    # Relative to the checkout, as Snakemake's messages show them.
    files = [os.path.relpath(file, checkout) for file in config_files]
    configuration = ["--configfile", *files] if files else []
    os.chdir(checkout)
    command = [str(snakemake), "plan", "--quiet", "all", *configuration, *snakemake_options]
    os.execv(snakemake, command)
