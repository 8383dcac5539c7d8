"""Score a version on one task, un-patched and with each adapter, in one process."""

import argparse
import logging
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from portllm import lazy_imports
from portllm.command_line import add_names, run
from portllm.data import task_files
from portllm.errors import InputError
from portllm.jobs import data_parallel
from portllm.scoring import cache
from portllm.scoring.cache import CachedCell
from portllm.scoring.ties import TIED
from portllm.storage import files, manifests
from portllm.study.schema import add_options
from portllm.transplant import ports
from portllm.weights import attention as attention_of_models
from portllm.weights.checkpoints import Checkpoint

log = logging.getLogger("score")

MEMORY_ADVICE = "a smaller scoring.batch_size"
"""How to reduce GPU memory, for out-of-memory errors."""


@dataclass(frozen=True)
class RequestedCell:
    """A cell of the job: its names, its adapter with content hash (if patched), its cache key."""

    names: CachedCell
    adapter: Path | None
    content: str | None
    key: str


def adapter(text: str) -> tuple[CachedCell, Path]:
    """Parse `trained_on/method/seed=directory`."""
    name, _, directory = text.partition("=")
    trained_on, method, seed = name.split("/")
    return {"trained_on": trained_on, "method": method, "seed": int(seed)}, Path(directory)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", type=Path, required=True, help="directory of the version")
    parser.add_argument("--task", type=Path, required=True, help="directory of the task data")
    add_names(parser)
    parser.add_argument("--lm-eval", required=True, help="the task's name in lm-eval")
    parser.add_argument("--include", help="folder of local task YAMLs")
    add_options(parser, "tasks.*", "few_shot", "limit", "allow_unsafe_code")
    add_options(parser, "scoring")
    parser.add_argument(
        "--un-patched", action="store_true", help="score the version without a patch"
    )
    parser.add_argument(
        "--adapter",
        type=adapter,
        nargs="+",
        default=[],
        metavar="TRAINED_ON/METHOD/SEED=DIRECTORY",
        help="adapters to score, each with the names of its cell",
    )
    parser.add_argument(
        "--gpus", type=int, default=1, help="most GPUs to use, of those that are visible"
    )
    parser.add_argument("--code", help="a hash of this program's code, for the key of each cell")
    parser.add_argument("--results", type=Path, required=True, help="JSON to write")
    parser.add_argument("--samples", type=Path, required=True, help="JSON lines to write")
    return parser.parse_args()


def input_hashes(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the content hashes of the inputs that all cells of the job share."""
    definition = task_files.definition_hashes(arguments.lm_eval, arguments.include)
    return {
        "version": manifests.content_hash(arguments.version),
        "task": manifests.content_hash(arguments.task),
        "definition": files.hash_value(definition),
    }


def requested_cells(arguments: argparse.Namespace, *key_parts: Any) -> list[RequestedCell]:
    """List the cells of the job, the un-patched one first; `key_parts` go into every cache key."""
    un_patched: CachedCell = {"trained_on": "none", "method": "none", "seed": None}
    first: list[tuple[CachedCell, Path | None]] = (
        [(un_patched, None)] if arguments.un_patched else []
    )
    cells = []
    for names, directory in first + arguments.adapter:
        content = manifests.content_hash(directory) if directory else None
        key = cache.key(names, content, *key_parts)
        cells.append(RequestedCell(names, directory, content, key))
    return cells


def label(cell: RequestedCell) -> str:
    """Name a cell in log messages, e.g. `base/direct/1234`."""
    if cell.adapter is None:
        return "the un-patched version"
    return "the patch {trained_on}/{method}/{seed}".format(**cell.names)


def load_scorer(
    version: Path, settings: cache.ScoringSettings, adapters: list[Path], gpus: int
) -> Any:
    """Load the version in the backend of the settings, ready to be scored with each adapter."""
    if settings.chat_template:
        Checkpoint(version).check_chat_template()
    if settings.backend == "vllm":
        from portllm.scoring import vllm

        return vllm.VllmScorer(version, settings, adapters, gpus=gpus)
    with lazy_imports.without("sklearn", "scipy"):
        from portllm.scoring import hf
    return hf.HfScorer(version, settings)


def load_task(arguments: argparse.Namespace) -> Any:
    """Load lm-eval's task with the dataset that make_task_data.py has written."""
    from portllm.data import tasks

    return tasks.load(
        arguments.lm_eval,
        include=arguments.include,
        dataset=(arguments.task / task_files.DATASET).absolute(),
        allow_unsafe_code=arguments.allow_unsafe_code,
    )


def score(
    arguments: argparse.Namespace,
    settings: cache.ScoringSettings,
    missing: list[RequestedCell],
    gpus: int,
) -> cache.Scored:
    """Score the missing cells in this process."""
    meter = manifests.Meter()
    task = load_task(arguments)
    adapters = [cell.adapter for cell in missing if cell.adapter]
    scorer = load_scorer(arguments.version, settings, adapters, gpus)
    scored = cache.Scored(lm_eval={"task": arguments.lm_eval, "version": task.VERSION})
    if settings.few_shot is None:
        scored.lm_eval["few_shot"] = task.config.num_fewshot or 0
    for cell in missing:
        log.info("scoring %s", label(cell))
        cell_meter = manifests.Meter()
        try:
            result = scorer.score(task, cell.adapter)
        except InputError as error:
            place = " ".join(f"{kind} {name}" for kind, name in arguments.names)
            raise InputError(f"{place}, {label(cell)}: {error}".lstrip(" ,")) from None
        rows = [{"cell": cell.key, **cell.names, **sample} for sample in result.samples]
        scored.samples[cell.key] = rows
        scored.cells[cell.key] = {
            **cell.names,
            "key": cell.key,
            "adapter_content": cell.content,
            "applied": ports.how_applied(cell.adapter),
            "metrics": result.metrics,
            "samples": len(rows),
            "ties": sum(TIED in row for row in rows),
            "wall_seconds": cell_meter.read().wall_seconds,
        }
    return replace(scored, cost=meter.read(**scorer.finish()))


def used_attention(version: Path, backend: str) -> str | None:
    """Return the attention that transformers uses for a version; None where vLLM chooses it."""
    if backend != "hf":
        return None
    return attention_of_models.implementation(Checkpoint(version).config)


def write(arguments: argparse.Namespace, scored: cache.Scored, **provenance: Any) -> None:
    """Write the results with their manifest, and the samples, in the order of `scored`."""
    files.write_json_lines(arguments.samples, chain.from_iterable(scored.samples.values()))
    document = manifests.describe(
        stage="score",
        content={arguments.samples.name: files.hash_file(arguments.samples)},
        sizes={arguments.samples.name: arguments.samples.stat().st_size},
        cost=scored.cost,
        names=dict(arguments.names),
        lm_eval=scored.lm_eval,
        cells=list(scored.cells.values()),
        **provenance,
    )
    files.write_json(arguments.results, document)


def main() -> None:
    arguments = parse_arguments()
    visible = data_parallel.visible_gpus()
    settings = cache.ScoringSettings(
        **{field.name: getattr(arguments, field.name) for field in fields(cache.ScoringSettings)}
    )
    inputs = input_hashes(arguments)
    packages = manifests.package_versions(cache.PACKAGES[settings.backend])
    gpus = min(arguments.gpus, len(visible))
    # The number of processes changes the batches, and with them the rounding.
    hardware = [visible[0] if visible else "cpu", data_parallel.launched() or max(gpus, 1)]
    attention = used_attention(arguments.version, settings.backend)
    cells = requested_cells(
        arguments, inputs, asdict(settings), packages, hardware, attention, arguments.code
    )
    scored = cache.read_scored(arguments.results, arguments.samples)
    missing = [cell for cell in cells if cell.key not in scored.cells]
    if missing and settings.backend == "hf" and gpus > 1 and not data_parallel.launched():
        data_parallel.launch(gpus)
    if not data_parallel.is_first():
        logging.disable(logging.INFO)
    for cell in cells:
        if cell not in missing:
            log.info("reusing %s", label(cell))
    if missing:
        scored = scored.merged_with(score(arguments, settings, missing, gpus))
    if data_parallel.is_first():
        write(
            arguments,
            scored.only([cell.key for cell in cells]),
            parameters=asdict(settings),
            inputs=inputs,
            packages=cache.PACKAGES[settings.backend],
            attention=attention,
        )


if __name__ == "__main__":
    run(main, memory_advice=MEMORY_ADVICE)
