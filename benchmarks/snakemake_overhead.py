"""Measure Snakemake's overhead, the time of dry runs, and how busy devices are kept.

    .venvs/test/bin/python benchmarks/snakemake_overhead.py overhead    # about six minutes
    .venvs/test/bin/python benchmarks/snakemake_overhead.py dry-run     # about three minutes
    .venvs/test/bin/python benchmarks/snakemake_overhead.py makespan    # about a quarter of an hour

Every result is a ratio of two times of the same run. Use an idle machine.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT / "tests"), str(PROJECT / "workflow_scripts")]

from conftest import STAND_IN, Checkout, make_checkout, use_stand_ins  # noqa: E402

from portllm.reporting import registry  # noqa: E402
from portllm.study import validation  # noqa: E402

PAPER = "config/paper.yaml"
MINUTE = "tests/studies/minute.yaml"


def timed(action: Any, *arguments: Any) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - start


def overhead(directory: Path, repetitions: int) -> None:
    """Compare the wall time of the minute-sized study, run serially, with the time of its jobs.

    The time of a job is that of its shell command, which bash records.
    """
    ratios = []
    for repetition in range(repetitions):
        checkout = make_checkout(directory / f"overhead{repetition}")
        record, hook = checkout.directory / "times", checkout.directory / "hook.sh"
        hook.write_text(
            "unset BASH_ENV; start=$EPOCHREALTIME\n"
            f"trap 'echo $start $EPOCHREALTIME >>{record}' EXIT\n"
        )
        command = ("--cores", "1", "--configfile", MINUTE)
        wall = timed(lambda: check(checkout.run(*command, BASH_ENV=str(hook))))  # noqa: B023
        times = [tuple(map(float, line.split())) for line in record.read_text().splitlines()]
        work = sum(end - start for start, end in times)
        ratios.append(wall / work)
        print(
            f"{len(times)} jobs: wall / own work = {wall:.1f} s / {work:.1f} s = {ratios[-1]:.3f}"
        )
    print(f"median overhead: {statistics.median(ratios) - 1:.1%}")


def check(done: subprocess.CompletedProcess[str]) -> None:
    """Exit with the output of a run that failed."""
    if done.returncode != 0:
        sys.exit(done.stdout[-4000:])


def jobs_with(checkout: Checkout, seeds: int, file: str) -> int:
    """Write the paper's study with a number of seeds; return its number of jobs."""
    study = checkout.read(PAPER)
    study["study"]["seeds"] = list(range(seeds))
    checkout.write(file, study)
    return sum(checkout.counts("--configfile", file).values())


def write_larger(checkout: Checkout, factor: int, file: str) -> tuple[int, int]:
    """Write the paper's study with enough seeds for `factor` times its jobs.

    A seed adds patches and their scores but no evolutions, so it takes more than `factor` seeds.

    Returns:
        The numbers of seeds and of jobs.
    """
    one, two = (jobs_with(checkout, seeds, file) for seeds in (1, 2))
    target = factor * one
    seeds = 1 + -(-(target - one) // (two - one))
    while (jobs := jobs_with(checkout, seeds, file)) < target:
        seeds += 1
    return seeds, jobs


def dry_run(directory: Path, repetitions: int) -> None:
    """Time dry runs of the paper's study, and with ten times its jobs, in starts of Snakemake."""
    checkout = make_checkout(directory / "dry-run")
    large = "ten_times.yaml"
    paper = sum(checkout.counts("--configfile", PAPER).values())
    seeds, jobs = write_larger(checkout, 10, large)

    def median(*arguments: str) -> float:
        runs = (timed(lambda: check(checkout.run(*arguments))) for _ in range(repetitions))
        return statistics.median(runs)

    start = median("--version")
    print(f"{seeds} seeds: {jobs} jobs, {jobs / paper:.1f} x the paper's {paper}")
    for count, file in ((paper, PAPER), (jobs, large)):
        seconds = median("--dry-run", "--quiet", "--configfile", file)
        print(f"{count} jobs: {seconds:.1f} s, {seconds / start:.1f} x snakemake --version")


# Minutes of a job on one GPU, plausible for 7 billion parameters and the published settings. They
# differ widely, which makes it hard to keep all devices busy.
PATCH = {"sst2": 300, "winogrande": 190, "boolq": 50, "gsm8k": 60, "mrpc": 20, "rte": 15, "wnli": 5}
SCORE = {"gsm8k": 45, "boolq": 12, "winogrande": 8, "sst2": 6, "mrpc": 3, "rte": 2, "wnli": 1}
EVOLVE = {"openorca-full": 900, "openplatypus": 120, "third-update": 120}
EVOLVE_OTHERS = 400
DEVICES = 4


def minutes(rule: str, wildcards: dict[str, str]) -> float:
    """Return the minutes that a job holds its device; 0 for jobs without a device."""
    match rule:
        case "train_patch":
            return PATCH[wildcards["task"]]
        case "score":
            return SCORE[wildcards["task"]]
        case "evolve":
            return EVOLVE.get(wildcards["version"], EVOLVE_OTHERS)
    return 0


def stand_in(checkout: Checkout, config: dict[str, Any], seconds_a_minute: float) -> None:
    """Replace the interpreters by scripts that sleep as long as a job takes, then write outputs."""
    cases = [(f"train_patch.py*task={task}*", duration) for task, duration in PATCH.items()]
    cases += [(f"score.py*task={task}*", duration) for task, duration in SCORE.items()]
    for version in config["evolutions"]:
        duration = minutes("evolve", {"version": version})
        cases.append((f"evolve.py*--output?*/{version}", duration))
    lines = [f"  *{pattern}) sleep {duration * seconds_a_minute};;" for pattern, duration in cases]
    # Preprocessing matches the pattern of its version too, but holds no device.
    prepared = "  *evolve.py*--preprocess-only*) ;;"
    script = "\n".join(
        [
            "#!/bin/sh",
            'case "$*" in',
            prepared,
            *lines,
            "esac",
            f'exec {sys.executable} {STAND_IN} "$@"',
        ]
    )
    use_stand_ins(checkout, script + "\n")


def lower_bound(jobs: list[tuple[str, dict[str, str]]], config: dict[str, Any]) -> float:
    """Return the minutes that no schedule can beat: all work divided evenly, or the longest chain.

    A chain is the evolutions of a version, a patch on it, and the longest score that uses it.
    """
    total = sum(minutes(rule, wildcards) for rule, wildcards in jobs)

    def ready(version: str) -> float:
        if version not in config["evolutions"]:
            return 0
        own = minutes("evolve", {"version": version})
        return own + ready(config["evolutions"][version]["from"])

    chains = [
        ready(wildcards["trained_on"]) + minutes(rule, wildcards) + SCORE[wildcards["task"]]
        for rule, wildcards in jobs
        if rule == "train_patch"
    ]
    return max(total / DEVICES, *chains)


def makespan(directory: Path, repetitions: int, seconds_a_minute: float) -> None:
    """Compare the makespan of the paper's study on four devices to its bound; jobs sleep."""
    ratios = []
    for repetition in range(repetitions):
        checkout = make_checkout(directory / f"makespan{repetition}")
        config = checkout.read(PAPER)
        schema = validation.full_schema(
            checkout.directory / "config" / "schema.yaml", registry.load()
        )
        validation.check_schema(config, schema)
        stand_in(checkout, config, seconds_a_minute)
        jobs = checkout.planned("--configfile", PAPER)
        command = ["--cores", "64", "--resources", f"gpu={DEVICES}", "--omit-from"]
        command += [
            "make_table",
            "make_figure",
            "collect_scores",
            "measure_movement",
            "measure_norms",
            "--configfile",
            PAPER,
        ]
        devices = ",".join(map(str, range(DEVICES)))
        wall = timed(lambda: check(checkout.run(*command, CUDA_VISIBLE_DEVICES=devices)))  # noqa: B023
        bound = lower_bound(jobs, config) * seconds_a_minute
        ratios.append(wall / bound)
        print(
            f"{len(jobs)} jobs: makespan / bound = {wall:.0f} s / {bound:.0f} s = {ratios[-1]:.3f}"
        )
    print(f"median: {statistics.median(ratios):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["overhead", "dry-run", "makespan"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds-a-minute", type=float, default=0.06, help="scale of makespan")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        if arguments.what == "overhead":
            overhead(directory, arguments.repetitions)
        elif arguments.what == "dry-run":
            dry_run(directory, arguments.repetitions)
        else:
            makespan(directory, arguments.repetitions, arguments.seconds_a_minute)


if __name__ == "__main__":
    main()
