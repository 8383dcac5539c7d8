"""Compare the cost of `portllm merge` in this tree with that of an older commit.

    .venvs/eval/bin/python benchmarks/merge_versions.py --commit f1860e0

Both merge the same rank-8 patch into the same bf16 checkpoint with random weights, in turn, each
time in a new process. Prints the medians of CPU and wall seconds and of their ratios by round.
The checkpoint is read once before, so that it is in the page cache for both.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import transplant
from transplant import PROJECT


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commit", default="f1860e0", help="the older version of the code")
    parser.add_argument("--gigabytes", type=float, default=0.4, help="size of the checkpoint")
    parser.add_argument("--hidden", type=int, default=1024, help="width of the model")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--work", type=Path, help="working directory (default: a temporary one)")
    return parser.parse_args()


def export(commit: str, directory: Path) -> Path:
    """Write the programs of a commit to a directory; return the folder of the programs."""
    archive = subprocess.run(
        ["git", "-C", PROJECT, "archive", commit, "workflow_scripts", "config"],
        stdout=subprocess.PIPE,
        check=True,
    )
    directory.mkdir()
    subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True)
    return directory / "workflow_scripts"


def timed(scripts: Path, model: Path, patch: Path, output: Path) -> tuple[float, float]:
    """Merge with the programs of a folder; return CPU and wall seconds."""
    command = [sys.executable, scripts / "transplant.py", "--base", model, "--patch", patch]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    os.sync()
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(
        [*command, "--merged", output], env=environment, capture_output=True, text=True, check=False
    )
    wall, after = time.perf_counter() - started, os.times()
    if done.returncode != 0:
        sys.exit(f"{scripts} failed:\n{done.stderr}")
    shutil.rmtree(output)
    cpu = after.children_user + after.children_system
    return cpu - before.children_user - before.children_system, wall


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        work = Path(name)
        model, patch = work / "model", work / "patch"
        size = transplant.make_model(model, arguments.hidden, arguments.gigabytes)
        transplant.make_patch(patch, model, seed=1)
        versions = {
            arguments.commit: export(arguments.commit, work / "older"),
            "this tree": PROJECT / "workflow_scripts",
        }
        taken: dict[str, list[tuple[float, float]]] = {version: [] for version in versions}
        for repetition in range(arguments.repetitions + 1):
            # In another order each time, because one leaves the disk busy for the next.
            order = list(versions) if repetition % 2 else list(versions)[::-1]
            for version in order:
                times = timed(versions[version], model, patch, work / "merged")
                if repetition:  # The first round compiles bytecode.
                    taken[version].append(times)
    print(f"{size / 1e9:.2f} GB, {arguments.repetitions} repetitions each\n")
    print("| | CPU s | wall s |\n|---|---|---|")
    for version, times in taken.items():
        cpu, wall = (statistics.median(kind) for kind in zip(*times, strict=True))
        print(f"| {version} | {cpu:.2f} | {wall:.2f} |")
    rounds = list(zip(*taken.values(), strict=True))
    for kind, place in (("CPU", 0), ("wall", 1)):
        ratios = sorted(new[place] / old[place] for old, new in rounds)
        print(
            f"\n{kind}: this tree / {arguments.commit} = {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f})",
            end="",
        )
    print()


if __name__ == "__main__":
    main()
