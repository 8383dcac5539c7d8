"""Stands in for an environment's Python: makes the outputs that a program is asked for.

Where the checkout has a folder `stand_ins`, what is executed is noted in its `executions.jsonl`,
and an execution lasts for as long as the folder has a file named like its output (`-` for `/`).
"""

import json
import os
import sys
import time
from pathlib import Path

FOLDER = Path("stand_ins")


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


def note(event: str, output: Path) -> None:
    """Append a line; short ones are appended whole, whoever else writes."""
    told = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURMD_NODENAME")
    line = {"event": event, "output": str(output), "time": time.time(), "process": os.getpid()}
    with (FOLDER / "executions.jsonl").open("a") as file:
        file.write(json.dumps({**line, **{name: os.environ.get(name) for name in told}}) + "\n")


def main() -> None:
    """Make each output: a file where it has an ending, else a directory with a file in it."""
    arguments = sys.argv[1:]
    if Path(arguments[0]).name == "run_job.py":
        # Where Snakemake's own interpreter is stood in for too: what follows is the job's.
        arguments = arguments[arguments.index("--") + 2 :]
    paths = outputs(arguments)
    noted = FOLDER.is_dir()
    if noted:
        note("begin", paths[0])
        while (FOLDER / str(paths[0]).replace("/", "-")).exists():
            time.sleep(0.1)
    for path in paths:
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Each ends as what is whole ends.
            path.write_bytes(b"IEND\xaeB`\x82" if path.suffix == ".png" else b"{}\n")
            if Path(arguments[0]).name == "make_corpus.py":
                path.with_suffix(".manifest.json").write_text("{}")
        else:
            path.mkdir(parents=True, exist_ok=True)
            (path / "made_by").write_text(" ".join(arguments))
    if noted:
        note("end", paths[0])


main()
