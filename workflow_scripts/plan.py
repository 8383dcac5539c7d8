"""Print what a study will cost before anything runs: jobs, disk, memory, and what is cached."""

import argparse
import json
import shutil
import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portllm.command_line import run
from portllm.planning import formulas, requests
from portllm.planning.estimates import Estimate, PricedStudy, hub_models
from portllm.planning.jobs import PlannedJob, PlannedRule, read_summary
from portllm.study import matrix

MEGABYTE = 1_000_000
MODELS = Path(__file__).parents[1] / "resources" / "models"

FORMULAE = """
parameters   V*h (twice if untied) + L*(projections + norms) + h; LoRA: r*(in + out) a projection
checkpoint   parameters x bytes of their dtype; adapters in float32
training     weights + gradients + AdamW's 8 bytes a trained parameter [1] + activations + logits
activations  b*s*L*(norms 8h + attention 2w(a+g)d + MLP 3wf); all weights: + w(4h + a*d + f);
             LoRA: + 5 bytes an input element of each adapted projection (its float32 input and
             dropout mask); counted as [2] counts, whose GPT layer is 34h + 5as; measured within 5 %
             checkpointing: b*s*h*w*L [2] + one layer
logits       b*s*V*(w + 8) in training, b*s*V*2w in scoring
scoring      weights + one layer's activations + keys and values 2*L*g*d*w a token + logits
host         imports (measured, 0.2 to 0.9 GB) + weights; without a GPU all of the above
trainer      (kept + 1) checkpoints of what is trained: weights + AdamW's state
[1] Rajbhandari et al. 2020, ZeRO, 3.1. [2] Korthikanti et al. 2022, arXiv 2205.05198, 4.1 and 5.
One device, no sharding; lengths at their limit. h hidden, f MLP, L layers, a heads, g key-value
heads, d head size, V vocabulary, b batch, s length, w bytes of the dtype.
"""


def size(number: float | None) -> str:
    """Bytes for people, in decimal units."""
    if number is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--study",
        type=Path,
        required=True,
        help="JSON: config, results, rules",
    )
    parser.add_argument(
        "--summary", type=Path, required=True, help="what `snakemake --summary` prints"
    )
    return parser.parse_args()


@dataclass
class Stage:
    """One row of the table of stages; sizes in bytes."""

    rule: PlannedRule
    jobs: int = 0
    cached: int = 0
    disk: int = 0
    to_write: int = 0
    unknown: bool = False

    def add(self, job: PlannedJob, priced: PricedStudy) -> None:
        """Count a job; where its disk cannot be known, that is remembered."""
        self.jobs += 1
        self.cached += job.cached
        try:
            disk = priced.disk(job)
        except formulas.UnknownError:
            self.unknown = True
            return
        self.disk += disk
        self.to_write += 0 if job.cached else disk

    def row(self) -> list[Any]:
        """Cells of the table; a GPU job is one that asks for a GPU and is still to run."""
        to_run = self.jobs - self.cached
        doubt = " + ?" if self.unknown else ""
        return [
            self.rule.name + (" (temporary)" if self.rule.temporary else ""),
            self.jobs,
            self.cached,
            to_run,
            to_run if self.rule.gpu else 0,
            size(self.disk) + doubt,
            size(self.to_write) + doubt,
        ]


def stages(
    jobs: Iterable[PlannedJob], rules: Iterable[PlannedRule], priced: PricedStudy
) -> list[Stage]:
    """Jobs counted by stage, in the workflow's order."""
    found = {rule.name: Stage(rule) for rule in rules}
    for job in jobs:
        found[job.rule].add(job, priced)
    return [stage for stage in found.values() if stage.jobs]


def largest_work(jobs: Iterable[PlannedJob], priced: PricedStudy) -> int:
    """Disk beside the outputs that the hungriest job still to run needs."""
    sizes = [0]
    for job in jobs:
        try:
            sizes.append(0 if job.cached else priced.work(job))
        except formulas.UnknownError:
            continue
    return max(sizes)


def memory_rows(
    jobs: Iterable[PlannedJob], rules: Iterable[PlannedRule], priced: PricedStudy
) -> tuple[list[list[Any]], bool]:
    """Memory of each kind of job, and whether some rule asks for less than the estimate."""
    by_name = {rule.name: rule for rule in rules}
    kinds: Counter[tuple[str, str, str, Estimate, int]] = Counter()
    for job in jobs:
        try:
            found = priced.memory(job)
        except formulas.UnknownError:
            continue
        if found is not None:
            names = dict(job.wildcards)
            asked = requests.wanted(priced, job.rule, names, "mem_mb", default=0)
            kinds[job.rule, names["model"], *found, asked] += 1
    rows, short = [], False
    for (name, model, words, estimate, mem_mb), count in kinds.items():
        needed = estimate.host if by_name[name].gpu else estimate.host_alone
        asked = MEGABYTE * mem_mb
        short = short or asked < needed
        mark = " !" if asked < needed else ""
        sizes = (estimate.device, estimate.host, estimate.host_alone)
        rows.append([name, model, words, count, *map(size, sizes), size(asked) + mark])
    order = list(by_name)
    return sorted(rows, key=lambda row: (order.index(row[0]), row[1])), short


def model_rows(priced: PricedStudy, config: matrix.Config) -> list[list[Any]]:
    """What each version takes; evolutions that are alike in a row."""
    rows: Counter[tuple[str, ...]] = Counter()
    names: dict[tuple[str, ...], list[str]] = {}
    rank, targets = config["patch"]["rank"], config["patch"]["target_modules"]
    for (model, version), found in priced.versions.items():
        try:
            trainable = f"{formulas.lora_parameters(found.architecture, rank, targets):,}"
        except formulas.UnknownError:
            trainable = "?"
        disk = "linked" if found.linked else size(found.checkpoint_bytes)
        key = (model, f"{formulas.parameters(found.architecture):,}", trainable, disk, found.origin)
        rows[key] += 1
        names.setdefault(key, []).append(version)
    return [
        [key[0], names[key][0] + (f" and {count - 1} more" if count > 1 else ""), *key[1:]]
        for key, count in rows.items()
    ]


def show(title: str, rows: list[list[Any]], headers: list[str]) -> None:
    from tabulate import tabulate

    print(f"\n{title}")
    # Text is text: tabulate would otherwise take "4.5" out of its column's shape.
    print(tabulate(rows, headers=headers, disable_numparse=True, tablefmt="simple"))


def main() -> None:
    # End silently when the reader of the output has gone, as in `snakemake plan | head`.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    arguments = parse_arguments()
    described = json.loads(arguments.study.read_text())
    config, results = described["config"], Path(described["results"])
    rules = [
        PlannedRule(**{**rule, "outputs": tuple(rule["outputs"])}) for rule in described["rules"]
    ]
    jobs = read_summary(arguments.summary.read_text().splitlines(), rules)
    known = hub_models(MODELS)
    from portllm.study import config as configuration

    priced = PricedStudy(
        config, results=results, known=known, recipes=configuration.recipes(config)
    )
    counted = stages(jobs, rules, priced)

    columns = ["stage", "jobs", "cached", "to run", "GPU jobs to run", "disk", "to be written"]
    counts = [sum(row[column] for row in (s.row() for s in counted)) for column in range(1, 5)]
    kept, new = sum(s.disk for s in counted), sum(s.to_write for s in counted)
    doubt = " + ?" if any(s.unknown for s in counted) else ""
    total = ["total", *counts, size(kept) + doubt, size(new) + doubt]
    show("Jobs and disk", [*(s.row() for s in counted), total], columns)

    target = f"trainable, rank {config['patch']['rank']}"
    columns = ["model", "version", "parameters", target, "checkpoint", "known from"]
    show("Models", model_rows(priced, config), columns)
    for reason in priced.unknown.values():
        print(f"? unknown: {reason}")

    rows, short = memory_rows(jobs, rules, priced)
    columns = [
        "job",
        "model",
        "what",
        "jobs",
        "device",
        "host beside it",
        "host, no GPU",
        "asks for",
    ]
    show("Memory of a job, estimated (at most; without sharding)", rows, columns)
    if short:
        print("! asks for less host memory than the estimate: see `resources` in the study")

    work = largest_work(jobs, priced)
    temporary = sum(s.disk for s in counted if s.rule.temporary)
    peak = kept + work
    print(f"\nTo run: {counts[2]} of {counts[0]} jobs, {counts[3]} of them ask for a GPU.")
    print(f"Disk in the end: {size(kept - temporary)}{doubt}. At its peak: {size(peak)}{doubt},")
    print(f"  with {size(temporary)} of temporary files and, for each training that runs at once,")
    print(f"  {size(work)} of checkpoints. Not counted before it is here: the text of corpora and")
    print(f"  tasks, tables, figures. Free here: {size(shutil.disk_usage(Path.cwd()).free)}.")
    print(f"\nFormulae{FORMULAE}")


if __name__ == "__main__":
    run(main)
