"""Measure how long programs take to start, relative to `python -c pass` in their environment.

    .venvs/workflow/bin/python benchmarks/startup.py
    .venvs/workflow/bin/python benchmarks/startup.py --results results    # and a job with no work

Prints medians of CPU and wall seconds and their ratios to `pass`, which alternates with the
programs. The last rows show what hiding unused packages from transformers and PEFT saves, relative
to importing torch.
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
HIDDEN = {
    "eval": ("scoring.hf", ["sklearn", "scipy"]),
    "train": (
        "training.patch_training",
        ["sklearn", "scipy", "datasets", "bitsandbytes", "torchao"],
    ),
}


def environment_of(program: str) -> str:
    """Return the environment of the program's rule."""
    return "workflow" if program in WORKFLOW else "train" if program in TRAIN else "eval"


def python(environment: str) -> str:
    return str(PROJECT / ".venvs" / environment / "bin" / "python")


def seconds(command: list[str]) -> tuple[float, float]:
    """Return CPU and wall seconds of a command, which must succeed."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    if status:
        sys.exit(f"error: failed: {' '.join(command)}\n{errors.decode()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, wall


def compare(name: str, command: list[str], against: list[str], repetitions: int) -> None:
    """Print a command's medians and their ratios to those of the reference command."""
    pairs = [(seconds(command), seconds(against)) for _ in range(repetitions)]
    medians, reference = (
        [statistics.median(kind) for kind in zip(*side, strict=True)]
        for side in zip(*pairs, strict=True)
    )
    ratios = [a / b for a, b in zip(medians, reference, strict=True)]
    print(
        f"{name:48} {medians[0]:7.3f} {ratios[0]:8.1f} {medians[1]:7.3f} {ratios[1]:8.1f}",
        flush=True,
    )


def importing(module: str, hidden: list[str]) -> str:
    """Return code that imports a module of the library with some packages hidden."""
    return (
        f"import sys; sys.path.insert(0, {str(PROGRAMS)!r}); from portllm import lazy_imports\n"
        f"with lazy_imports.without(*{hidden!r}): import portllm.{module}"
    )


def without_work(results: Path, repetitions: int) -> None:
    """Measure a scoring job that reuses all its cells, on the first job of a finished study."""
    job = next(evaluate.jobs(results, None, None))
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory)
        command = evaluate.our_command(job, evaluate.DEMO, output)
        subprocess.run(command, check=True, capture_output=True)
        passing = [python("eval"), "-c", "pass"]
        compare("score.py, all cells reused", command, passing, repetitions)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, help="of a finished study (make demo)")
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{'':48}  CPU s    ratio  wall s    ratio")
    for program in sorted(path.name for path in PROGRAMS.glob("*.py")):
        interpreter = python(environment_of(program))
        command = [interpreter, str(PROGRAMS / program), "--help"]
        compare(f"{program} --help", command, [interpreter, "-c", "pass"], arguments.repetitions)
    if arguments.results:
        without_work(arguments.results, arguments.repetitions)
    for environment, (module, hidden) in HIDDEN.items():
        interpreter = python(environment)
        against = [interpreter, "-c", "import torch"]
        for label, names in (("packages hidden", hidden), ("nothing hidden", [])):
            compare(
                f"imports of {module}, {label}, relative to torch",
                [interpreter, "-c", importing(module, names)],
                against,
                max(1, arguments.repetitions // 2),
            )


if __name__ == "__main__":
    main()
