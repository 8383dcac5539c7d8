"""How long programs take to start: against `python -c pass` of the same environment.

    .venvs/workflow/bin/python benchmarks/startup.py
    .venvs/workflow/bin/python benchmarks/startup.py --results results    # and a job with no work

Medians of processor and wall seconds, in turn with `pass`, as ratios to it. The last rows show what
leaving unused packages out of transformers and PEFT saves (against importing torch alone).
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parents[1]
PROGRAMS = PROJECT / "workflow_scripts"
sys.path.insert(0, str(Path(__file__).parent))

import evaluate  # noqa: E402

WORKFLOW = ("collect_scores.py", "make_figure.py", "make_table.py", "plan.py")
TRAIN = ("evolve.py", "train_patch.py")
LEFT_OUT = {
    "eval": ("scoring.hf", ["sklearn", "scipy"]),
    "train": (
        "training.patch_training",
        ["sklearn", "scipy", "datasets", "bitsandbytes", "torchao"],
    ),
}


def environment_of(program: str) -> str:
    """The environment that the program's rule runs it in."""
    return "workflow" if program in WORKFLOW else "train" if program in TRAIN else "eval"


def python(environment: str) -> str:
    return str(PROJECT / ".venvs" / environment / "bin" / "python")


def seconds(command: list[str]) -> tuple[float, float]:
    """Processor and wall seconds of a command, which must succeed."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    if status:
        sys.exit(f"error: failed: {' '.join(command)}\n{errors.decode()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, wall


def compare(name: str, command: list[str], against: list[str], repetitions: int) -> None:
    """Print a command's medians, and their ratios to those of what it is measured against."""
    pairs = [(seconds(command), seconds(against)) for _ in range(repetitions)]
    mine, other = (
        [statistics.median(kind) for kind in zip(*side, strict=True)]
        for side in zip(*pairs, strict=True)
    )
    ratios = [a / b for a, b in zip(mine, other, strict=True)]
    print(f"{name:48} {mine[0]:7.3f} {ratios[0]:8.1f} {mine[1]:7.3f} {ratios[1]:8.1f}", flush=True)


def importing(module: str, left_out: list[str]) -> str:
    """Code that imports one of the library's modules without some packages."""
    return (
        f"import sys; sys.path.insert(0, {str(PROGRAMS)!r}); from portllm import imports\n"
        f"with imports.without(*{left_out!r}): import portllm.{module}"
    )


def without_work(results: Path, repetitions: int) -> None:
    """Measure a scoring job whose cells are all known, on a finished study's first job."""
    job = next(evaluate.jobs(results, None, None))
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory)
        command = evaluate.our_command(job, evaluate.DEMO, output)
        subprocess.run(command, check=True, capture_output=True)
        passing = [python("eval"), "-c", "pass"]
        compare("score.py, all cells known", command, passing, repetitions)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, help="a finished study's (make demo)")
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{'':48}  cpu s    ratio  wall s    ratio")
    for program in sorted(path.name for path in PROGRAMS.glob("*.py")):
        interpreter = python(environment_of(program))
        command = [interpreter, str(PROGRAMS / program), "--help"]
        compare(f"{program} --help", command, [interpreter, "-c", "pass"], arguments.repetitions)
    if arguments.results:
        without_work(arguments.results, arguments.repetitions)
    for environment, (module, left_out) in LEFT_OUT.items():
        interpreter = python(environment)
        against = [interpreter, "-c", "import torch"]
        for what, names in (("as it is", left_out), ("nothing left out", [])):
            compare(
                f"{module}'s imports, {what}, against torch",
                [interpreter, "-c", importing(module, names)],
                against,
                max(1, arguments.repetitions // 2),
            )


if __name__ == "__main__":
    main()
