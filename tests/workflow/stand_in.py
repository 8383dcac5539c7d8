"""A stand-in for an environment's Python: creates the outputs of the program that it is given.

If the checkout has a folder `stand_ins`, executions are recorded in its `executions.jsonl`, and an
execution waits as long as the folder has a file named like its output (with `-` for `/`).
"""

import json
import os
import sys
import time
from pathlib import Path

FOLDER = Path("stand_ins")


def outputs(arguments: list[str]) -> list[Path]:
    """List the paths given to options that name outputs."""
    names = {"--output", "--merged", "--results", "--samples"}
    if Path(arguments[0]).name == "transplant.py":
        names.add("--adapter")
    paths, option = [], ""
    for argument in arguments[1:]:
        if argument.startswith("--"):
            option = argument
        elif option in names:
            paths.append(Path(argument))
    return paths


def record(event: str, output: Path) -> None:
    """Append a line to the record; appends of short lines are atomic."""
    variables = ("CUDA_VISIBLE_DEVICES", "HF_TOKEN", "SLURM_JOB_ID", "SLURMD_NODENAME")
    line = {"event": event, "output": str(output), "time": time.time(), "process": os.getpid()}
    environment = {name: os.environ.get(name) for name in variables}
    with (FOLDER / "executions.jsonl").open("a") as file:
        file.write(json.dumps({**line, **environment}) + "\n")


def main() -> None:
    """Create each output: a file if it has an extension, else a directory with a file in it."""
    arguments = sys.argv[1:]
    if Path(arguments[0]).name == "run_job.py":
        # If Snakemake's own interpreter is a stand-in too, the job's command follows "--".
        arguments = arguments[arguments.index("--") + 2 :]
    paths = outputs(arguments)
    recording = FOLDER.is_dir()
    if recording:
        record("begin", paths[0])
        while (FOLDER / str(paths[0]).replace("/", "-")).exists():
            time.sleep(0.1)
    for path in paths:
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            # With the ending of a complete file, so that the integrity check passes.
            path.write_bytes(b"IEND\xaeB`\x82" if path.suffix == ".png" else b"{}\n")
            if Path(arguments[0]).name == "make_corpus.py":
                path.with_suffix(".manifest.json").write_text("{}")
        else:
            path.mkdir(parents=True, exist_ok=True)
            (path / "made_by").write_text(" ".join(arguments))
    if recording:
        record("end", paths[0])


main()
