"""The plan of a study as text: its jobs, disk, models and memory, in tables."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portllm.planning import architectures, forecasts, resource_requests
from portllm.planning.estimates import DEVICE_BYTES, Estimate, PricedStudy
from portllm.planning.planned_jobs import PlannedJob, PlannedRule
from portllm.study import axolotl_recipes, matrix
from portllm.study.custom_code import CustomCode

MEGABYTE = 1_000_000
CONTEXT_BYTES = 1_000_000_000
"""Memory of a device that CUDA itself takes."""

FORMULAS = """
parameters   the checkpoint's headers, or V*h (twice if untied) + L*(projections + norms) + h;
             LoRA: r*(in + out) per projection
checkpoint   parameters x bytes of their dtype; adapters in float32
training     weights + AdamW's 8 bytes per trained parameter [1] + the larger of activations and
             logits, and gradients; all weights: kept in float32, copied in the dtype
activations  b*s*L*(norms 8h + attention 2w(a+g)d + MLP 3wf); all weights: + w(4h + a*d + f);
             LoRA: + (w + 1) bytes per input element of each adapted projection (input, dropout
             mask); eager attention: + 6as; method of [2], whose GPT layer is 34h + 5as
             checkpointing: b*s*h*w*L [2], and one layer in the backward pass
logits       b*s*V*(w + 8) in training, b*s*V*3w in scoring; + b*s*V*w if they are capped
scoring      weights + logits, or two of them, the cache 2*L*g*d*w per token and one layer
GPU time     the larger of 2P (forward) + 2P (backward) + 2P (all weights) + 2P (checkpointing)
             operations a token at 40 % of an A100's 312e12 a second, and 4.5 ms a layer and batch
             (0.8 ms of a forward pass) to launch kernels; 350 tokens a row of a corpus
host         imports (measured, 0.2 to 0.9 GB) + weights; without a GPU, all of the above
checkpoints  (kept + 1) times the trained weights and AdamW's state
[1] Rajbhandari et al. 2020, ZeRO, 3.1. [2] Korthikanti et al. 2022, arXiv 2205.05198, 4.1 and 5.
Within 10 % of a simulation of one device, without sharding, at maximum lengths. h hidden, f MLP, L
layers, a heads, g key-value heads, d head size, V vocabulary, b batch, s length, w bytes of the
dtype.
"""


def format_bytes(number: float | None) -> str:
    """Format bytes in decimal units; None as "-"."""
    if number is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


@dataclass
class StageTotals:
    """Jobs and bytes of a stage. `unknown` marks sizes that cannot be known yet."""

    rule: PlannedRule
    jobs: int = 0
    cached: int = 0
    disk: int = 0
    to_write: int = 0
    unknown: bool = False

    def add(self, job: PlannedJob, priced: PricedStudy) -> None:
        """Count a job and its disk."""
        self.jobs += 1
        self.cached += job.cached
        try:
            disk = priced.disk(job)
        except architectures.UnknownError:
            self.unknown = True
            return
        self.disk += disk
        self.to_write += 0 if job.cached else disk

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Jobs, cached jobs, jobs to run, and those of them that ask for a GPU."""
        to_run = self.jobs - self.cached
        return self.jobs, self.cached, to_run, to_run if self.rule.gpu else 0

    def row(self) -> list[Any]:
        """The stage's row in the table of jobs."""
        doubt = " + ?" if self.unknown else ""
        return [
            self.rule.name + (" (temporary)" if self.rule.temporary else ""),
            *self.counts,
            format_bytes(self.disk) + doubt,
            format_bytes(self.to_write) + doubt,
        ]


def totals_by_stage(
    jobs: Iterable[PlannedJob], rules: Iterable[PlannedRule], priced: PricedStudy
) -> list[StageTotals]:
    """Count jobs and disk by stage, in the workflow's order."""
    stages = {rule.name: StageTotals(rule) for rule in rules}
    for job in jobs:
        stages[job.rule].add(job, priced)
    return [stage for stage in stages.values() if stage.jobs]


def largest_work(jobs: Iterable[PlannedJob], priced: PricedStudy) -> int:
    """Return the most bytes that a job still to run needs besides its outputs."""
    sizes = [0]
    for job in jobs:
        try:
            sizes.append(0 if job.cached else priced.work(job))
        except architectures.UnknownError:
            continue
    return max(sizes)


def memory_rows(
    jobs: Iterable[PlannedJob], rules: Iterable[PlannedRule], priced: PricedStudy
) -> tuple[list[list[Any]], bool]:
    """Return the memory of each kind of job, and whether a rule asks for less than estimated."""
    by_name = {rule.name: rule for rule in rules}
    kinds: Counter[tuple[str, str, str, Estimate, int]] = Counter()
    for job in jobs:
        try:
            memory = priced.memory(job)
        except architectures.UnknownError:
            continue
        if memory is not None:
            names = dict(job.wildcards)
            mem_mb = resource_requests.requested(priced, job.rule, names, "mem_mb", default=0)
            kinds[job.rule, names["model"], *memory, mem_mb] += 1
    largest = {}
    for kind in sorted(kinds, key=lambda kind: kind[3].host_alone):
        # Scoring jobs differ by their tasks' lengths. The longest of a model stands for all.
        key = kind[:2] if kind[0] == "score" else kind
        _, count = largest.get(key, (kind, 0))
        largest[key] = kind, count + kinds[kind]
    kinds = Counter(dict(largest.values()))
    rows, short = [], False
    for (name, model, words, estimate, mem_mb), count in kinds.items():
        on_gpu = priced.uses_gpu(resource_requests.stage_of(name))
        needed = estimate.host if on_gpu else estimate.host_alone
        requested = MEGABYTE * mem_mb
        short = short or requested < needed
        mark = " !" if requested < needed else ""
        sizes = (estimate.device, estimate.host, estimate.host_alone)
        columns = [*map(format_bytes, sizes), format_bytes(requested) + mark]
        rows.append([name, model, words, count, *columns])
    order = list(by_name)
    return sorted(rows, key=lambda row: (order.index(row[0]), row[1])), short


def model_rows(priced: PricedStudy, config: matrix.Config) -> list[list[Any]]:
    """Return the size of each version; versions of equal size share a row."""
    rows: Counter[tuple[str, ...]] = Counter()
    names: dict[tuple[str, ...], list[str]] = {}
    rank, targets = config["patch"]["rank"], config["patch"]["target_modules"]
    for (model, name), version in priced.versions.items():
        try:
            trainable = f"{architectures.lora_parameters(version.architecture, rank, targets):,}"
        except architectures.UnknownError:
            trainable = "?"
        parameters = f"{architectures.parameters(version.architecture):,}"
        disk = "linked" if version.linked else format_bytes(version.checkpoint_bytes)
        key = (model, parameters, trainable, disk, version.origin)
        rows[key] += 1
        names.setdefault(key, []).append(name)
    return [
        [key[0], names[key][0] + (f" and {count - 1} more" if count > 1 else ""), *key[1:]]
        for key, count in rows.items()
    ]


def evolution_rows(jobs: Iterable[PlannedJob], priced: PricedStudy) -> list[list[Any]]:
    """Return the effective batch of each evolution, which its devices multiply."""
    rows = {}
    for job in jobs:
        if job.rule != "evolve":
            continue
        names = dict(job.wildcards)
        recipe = priced.recipes[names["version"]]
        devices = max(1, resource_requests.requested(priced, "evolve", names, "gpu", 1))
        micro = recipe.get("micro_batch_size") or 1
        accumulated = recipe.get("gradient_accumulation_steps") or 1
        batch = axolotl_recipes.sequences_per_update(recipe, devices)
        rows[names["version"], devices] = [
            names["version"],
            micro,
            accumulated,
            devices,
            batch,
            recipe.get("sequence_len") or 512,
        ]
    return list(rows.values())


def _table(title: str, rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    from tabulate import tabulate

    # Without disable_numparse, tabulate would reformat "4.5".
    text = tabulate(rows, headers=headers, disable_numparse=True, tablefmt="simple")
    return f"\n{title}\n{text}"


def _summary(
    stages: Sequence[StageTotals], counts: Sequence[int], work: int, doubt: str
) -> Iterator[str]:
    to_write = sum(stage.to_write for stage in stages) + work
    disk = sum(stage.disk for stage in stages)
    temporary = sum(stage.disk for stage in stages if stage.rule.temporary)
    free = shutil.disk_usage(Path.cwd()).free
    yield f"\nTo run: {counts[2]} of {counts[0]} jobs, {counts[3]} of them ask for a GPU."
    yield (
        f"Disk at the end: {format_bytes(disk - temporary)}{doubt}; at the peak: "
        f"{format_bytes(disk + work)}{doubt}; free here: {format_bytes(free)}."
    )
    yield (
        f"The peak includes {format_bytes(temporary)} of temporary files, and "
        f"{format_bytes(work)} of checkpoints for each training that runs."
    )
    yield "Corpora, task data, tables and figures count only once they exist."
    if to_write > free:
        missing = format_bytes(to_write - free)
        yield f"! the disk is too small: {missing} more are needed; pathvars.results moves results"


def outdated_rows(jobs: Iterable[PlannedJob]) -> list[list[Any]]:
    """Return the stages with results that are there and will be made again, and why."""
    counts = Counter((job.rule, job.reason) for job in jobs if job.reason)
    return [[rule, count, reason] for (rule, reason), count in counts.items()]


@dataclass(frozen=True)
class Devices:
    """The GPUs that a run may use: how many, and the memory of the smallest in bytes.

    `source` says where the memory is from.
    """

    count: int
    memory: int = DEVICE_BYTES
    source: str = "assumed"


def unfit_jobs(jobs: Iterable[PlannedJob], priced: PricedStudy, devices: Devices) -> dict[str, int]:
    """Return the kinds of jobs to run that one device cannot hold, with their number."""
    kinds: Counter[str] = Counter()
    for job in jobs:
        try:
            memory = None if job.cached else priced.memory(job)
        except architectures.UnknownError:
            continue
        if memory and (memory[1].device or 0) + CONTEXT_BYTES > devices.memory:
            names = dict(job.wildcards)
            size = format_bytes(memory[1].device)
            kinds[f"{job.rule} {names['model']} ({memory[0]}) takes {size}"] += 1
    return dict(kinds)


def _time(jobs: Sequence[PlannedJob], priced: PricedStudy, devices: Devices) -> Iterator[str]:
    stages = forecasts.forecast(priced, jobs)
    if stages:
        rows = [
            [
                stage.rule,
                _hours(stage.seconds, unknown=stage.unknown > 0),
                _hours(stage.longest),
                f"{stage.measured} finished jobs" if stage.measured else "throughput",
            ]
            for stage in stages
        ]
        columns = ["job", "GPU hours", "longest job, hours", "forecast from"]
        yield _table("GPU time of the jobs to run, forecast for an A100", rows, columns)
        total = sum(stage.seconds for stage in stages)
        unknown = any(stage.unknown for stage in stages)
        wall = max(total / devices.count, *(stage.longest for stage in stages), 0)
        yield (
            f"{_hours(total, unknown=unknown)} GPU hours; at least "
            f"{_hours(wall, unknown=unknown)} hours on "
            f"{devices.count} GPU{'s' * (devices.count > 1)} (--resources gpu=N)."
        )
    for kind, count in unfit_jobs(jobs, priced, devices).items():
        yield (
            f"! does not fit a GPU of {format_bytes(devices.memory)} ({devices.source}): {kind}, "
            f"{count} jobs"
        )


def _hours(seconds: float, *, unknown: bool = False) -> str:
    hours = seconds / 3600
    text = "<0.1" if 0 < hours < 0.1 else f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"
    return text if not unknown else f"{text} + ?" if hours else "?"


def code_rows(codes: Iterable[CustomCode]) -> list[list[str]]:
    """Return the code that a study runs, each once, and where it comes from."""
    rows = {
        custom.code: [".".join(map(str, custom.key)), custom.code, custom.origin]
        for custom in reversed(list(codes))
    }
    return list(reversed(rows.values()))


def plan_text(
    priced: PricedStudy,
    jobs: Sequence[PlannedJob],
    rules: Sequence[PlannedRule],
    codes: Sequence[CustomCode] = (),
    devices: Devices | None = None,
) -> Iterator[str]:
    """Yield the lines of a study's plan."""
    config = priced.config
    stages = totals_by_stage(jobs, rules, priced)
    counts = [sum(numbers) for numbers in zip(*(stage.counts for stage in stages), strict=True)]
    doubt = " + ?" if any(stage.unknown for stage in stages) else ""
    sizes = (sum(stage.disk for stage in stages), sum(stage.to_write for stage in stages))
    total = ["total", *counts, *(format_bytes(size) + doubt for size in sizes)]
    columns = ["stage", "jobs", "cached", "to run", "GPU jobs to run", "disk", "to be written"]
    yield _table("Jobs and disk", [*(stage.row() for stage in stages), total], columns)

    trainable = f"trainable, rank {config['patch']['rank']}"
    columns = ["model", "version", "parameters", trainable, "checkpoint", "known from"]
    yield _table("Models", model_rows(priced, config), columns)
    for warning in priced.warnings():
        yield f"? {warning}"

    if batches := evolution_rows(jobs, priced):
        columns = ["evolution", "micro batch", "accumulated", "GPUs", "sequences", "tokens each"]
        yield _table("Sequences per update of each evolution", batches, columns)

    rows, short = memory_rows(jobs, rules, priced)
    hosts = ("host, with GPU", "host, no GPU", "requested")
    columns = ["job", "model", "what", "jobs", "GPU memory", *hosts]
    yield _table("Memory per job, estimated (upper bound)", rows, columns)
    if short:
        yield "! requests less host memory than estimated: see `resources` in the configuration"

    if codes:
        title = "Code that the study names (it runs with your rights)"
        yield _table(title, code_rows(codes), ["first named in", "code", "comes with"])

    if rows := outdated_rows(jobs):
        yield _table("Outdated results", rows, ["stage", "jobs", "made again because"])
        yield "`snakemake -n` shows for each job what changed; jobs below these run again too."

    yield from _time(jobs, priced, devices or Devices(1))
    yield from _summary(stages, counts, largest_work(jobs, priced), doubt)
    yield f"\nFormulas{FORMULAS}"
