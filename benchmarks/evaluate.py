"""Compare scoring times: one process per version and task against lm-eval's command per cell.

    .venvs/workflow/bin/python benchmarks/evaluate.py                        # the default study
    .venvs/workflow/bin/python benchmarks/evaluate.py --versions tales --repetitions 3

Needs a finished study (`make demo`). Scores its cells again in both ways, alternating, with the
same settings on the same cores. Any item that differs is an error.
"""

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT / "workflow_scripts"))

from portllm.command_line import options  # noqa: E402
from portllm.storage import files  # noqa: E402

DEMO = str(PROJECT / "resources" / "demo")
EVAL = PROJECT / ".venvs" / "eval" / "bin"
# Keys of a sample that must be equal, in addition to the metrics.
SAME = ("doc_hash", "prompt_hash", "resps", "filtered_resps")


@dataclass(frozen=True)
class Job:
    """One version and task of a finished study, described by its results file."""

    results: Path
    path: Path
    document: dict[str, Any]

    @property
    def name(self) -> str:
        return "{model}/{applied_to}/{task}".format(**self.document["names"])

    @property
    def version(self) -> Path:
        return self.results / "models/{model}/{applied_to}".format(**self.document["names"])

    @property
    def task(self) -> str:
        return self.document["lm_eval"]["task"]

    @property
    def cells(self) -> list[dict[str, Any]]:
        return self.document["cells"]

    def adapter(self, cell: dict[str, Any]) -> Path | None:
        """Return the adapter of a cell; None for the un-patched version."""
        names = {**self.document["names"], **cell}
        if cell["trained_on"] == "none":
            return None
        if cell["trained_on"] == names["applied_to"]:
            return self.results / "patches/{model}/{trained_on}/{task}/seed{seed}".format(**names)
        return self.results / (
            "ports/{model}/{trained_on}/{applied_to}/{task}/{method}/seed{seed}".format(**names)
        )


def jobs(results: Path, versions: list[str] | None, tasks: list[str] | None) -> Iterator[Job]:
    """Yield the scoring jobs of a finished study, optionally of some versions and tasks only."""
    for path in sorted(results.glob("scores/*/*/*.json")):
        job = Job(results, path, files.read_json(path))
        names = job.document["names"]
        if names["applied_to"] in (versions or [names["applied_to"]]) and (
            names["task"] in (tasks or [names["task"]])
        ):
            yield job


def run(command: list[str], log: Path) -> float:
    """Run a command; return its wall time in seconds."""
    begin = time.perf_counter()
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"error: failed: {' '.join(command)}\n{log.read_text()[-3000:]}")
    return time.perf_counter() - begin


def our_command(job: Job, include: str | None, output: Path) -> list[str]:
    """Return the command that scores all cells of a job, as in the workflow's rule."""
    adapters = [(cell, job.adapter(cell)) for cell in job.cells]
    settings = {
        "version": job.version,
        "task": job.results / "tasks" / job.document["names"]["task"],
        "lm_eval": job.task,
        "include": include,
        **job.document["parameters"],
        "un_patched": any(adapter is None for _, adapter in adapters),
        "adapter": [
            f"{cell['trained_on']}/{cell['method']}/{cell['seed']}={adapter}"
            for cell, adapter in adapters
            if adapter
        ],
        "results": output / "ours.json",
        "samples": output / "ours.jsonl",
    }
    program = PROJECT / "workflow_scripts" / "score.py"
    return [str(EVAL / "python"), str(program), *shlex.split(options(settings))]


def score_in_one_process(
    job: Job, include: str | None, output: Path
) -> tuple[float, list[list[dict[str, Any]]]]:
    """Score a job's cells in one process; return its seconds and the rows of each cell."""
    for leftover in output.glob("ours.*"):
        leftover.unlink()
    seconds = run(our_command(job, include, output), output / "ours.log")
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in files.read_json_lines(output / "ours.jsonl"):
        rows.setdefault(row["cell"], []).append(row)
    return seconds, list(rows.values())


def lm_eval(
    output: Path,
    version: Path,
    tasks: str,
    adapter: Path | None,
    include: str | None,
    settings: dict[str, Any],
) -> tuple[float, dict[str, list[dict[str, Any]]]]:
    """Call lm-eval's command line once; return its seconds and its samples by task."""
    model = {"pretrained": version, "peft": adapter, "max_length": settings["max_length"]}
    if settings["dtype"] != "auto":
        model["dtype"] = settings["dtype"]
    pairs = [f"{name}={value}" for name, value in model.items() if value is not None]
    command = [EVAL / "lm_eval", "--model", "hf", "--model_args", ",".join(pairs)]
    command += ["--tasks", tasks, "--batch_size", settings["batch_size"]]
    command += ["--num_fewshot", settings["few_shot"]]
    command += ["--include_path", include] if include else []
    command += ["--limit", settings["limit"]] if settings["limit"] else []
    command += ["--log_samples", "--output_path", output / "lm_eval"]
    shutil.rmtree(output / "lm_eval", ignore_errors=True)
    seconds = run([str(word) for word in command], output / "lm_eval.log")
    return seconds, {
        path.name.removeprefix("samples_").rpartition("_")[0]: list(files.read_json_lines(path))
        for path in (output / "lm_eval").rglob("samples_*.jsonl")
    }


def as_text(value: Any) -> Any:
    """Convert numbers, also in nested lists, to text, as lm-eval writes them."""
    return [as_text(item) for item in value] if isinstance(value, list) else str(value)


def differences(rows: list[dict[str, Any]], samples: list[dict[str, Any]]) -> list[str]:
    """List the differences between our rows of a cell and lm-eval's samples."""
    by_item = {(row["filter"], row["doc_id"]): row for row in rows}
    if not len(by_item) == len(rows) == len(samples):
        return [f"{len(rows)} rows, {len(samples)} samples"]
    problems = []
    for sample in samples:
        item = (sample["filter"], sample["doc_id"])
        row = by_item.get(item)
        if row is None:
            problems.append(f"{item}: missing")
            continue
        differing = [name for name in SAME if as_text(row[name]) != as_text(sample[name])]
        differing += [name for name, value in row["metrics"].items() if value != sample[name]]
        problems += [f"{item}: {name}" for name in differing]
    return problems


def measure(job: Job, include: str | None, output: Path) -> tuple[float, list[float]]:
    """Return the seconds of our process and of each call of lm-eval; exit on a difference."""
    seconds, rows = score_in_one_process(job, include, output)
    calls = []
    for cell, own_rows in zip(job.cells, rows, strict=True):
        call, samples = lm_eval(
            output, job.version, job.task, job.adapter(cell), include, job.document["parameters"]
        )
        calls.append(call)
        problems = differences(own_rows, samples[job.task])
        if problems:
            shown = "; ".join(problems[:5])
            sys.exit(f"error: {job.name}: {len(problems)} differences from lm-eval: {shown}")
    return seconds, calls


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="of a finished study")
    parser.add_argument("--include", default=DEMO, help="folder of local task YAMLs")
    parser.add_argument("--versions", nargs="+", help="only these; default: all")
    parser.add_argument("--tasks", nargs="+", help="only these; default: all")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="per process")
    arguments = parser.parse_args()
    selected = list(jobs(arguments.results, arguments.versions, arguments.tasks))
    if not selected:
        sys.exit(f"error: {arguments.results}: no scores there; run the study first (make demo)")
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    # Neither side may wait for the hub.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    ratios, totals = [], []
    print(f"{'version and task':44} cells items  ours  lm-eval  ratio")
    for repetition in range(arguments.repetitions):
        total = [0.0, 0.0]
        for job in selected:
            with tempfile.TemporaryDirectory() as output:
                own_seconds, calls = measure(job, arguments.include, Path(output))
            ratios.append(sum(calls) / own_seconds)
            total = [total[0] + own_seconds, total[1] + sum(calls)]
            items = sum(cell["samples"] for cell in job.cells)
            print(
                f"{job.name:44} {len(calls):5} {items:5} {own_seconds:5.1f} {sum(calls):8.1f}"
                f" {ratios[-1]:6.2f}",
                flush=True,
            )
        totals.append(total[1] / total[0])
        print(
            f"repetition {repetition + 1}: lm-eval takes {totals[-1]:.2f} times as long", flush=True
        )
    print(
        f"all items equal; {sum(len(job.cells) for job in selected)} cells in {len(selected)} jobs"
    )
    print(f"wall time, lm-eval / ours, median over jobs:        {statistics.median(ratios):.2f}")
    print(f"wall time, lm-eval / ours, median over repetitions: {statistics.median(totals):.2f}")


if __name__ == "__main__":
    main()
