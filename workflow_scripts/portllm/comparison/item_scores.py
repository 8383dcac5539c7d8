"""Read per-item scores of scoring jobs as runs whose items can be compared.

A scoring job writes two files: TASK.json, with its cells, their scores and the task's version in
lm-eval, and TASK.samples.jsonl, with a row per cell, item and filter (fields in
`portllm.scoring.harness`).
"""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import pandas

from portllm import statistics
from portllm.comparison import score_table
from portllm.errors import InputError
from portllm.scoring import validity
from portllm.scoring.ties import TIED
from portllm.statistics import aggregations
from portllm.storage.files import read_json_lines

log = logging.getLogger(__name__)

COLUMNS = [*score_table.COLUMNS[:7], "aggregation", "run"]
# Metrics that lm-eval computes from all items at once; other metrics are means of items.
CORPUS_METRICS = ("f1", "mcc")
# The largest rounding difference between a score and the value recomputed from its items.
TOLERANCE = 1e-6

Items = dict[tuple[str, str], list[tuple[int, str, Any, Any]]]


def samples_path(result: Path) -> Path:
    """Return the samples file of a result file."""
    return result.with_suffix(".samples.jsonl")


def _items(path: Path, cells: list[dict[str, Any]]) -> Items:
    """Read the items of each cell key and metric: number, hash, value and `ties.TIED` of each."""
    by_key = {cell["key"]: cell for cell in cells}
    items: Items = {}
    counts = dict.fromkeys(by_key, 0)
    for row in read_json_lines(path):
        if row["cell"] not in by_key:
            continue
        counts[row["cell"]] += 1
        try:
            validity.check_answers([row])
        except InputError as error:
            cell = "{trained_on}/{method}/{seed}".format(**by_key[row["cell"]])
            raise InputError(f"{path}: {cell}: {error}") from None
        for metric, value in row["metrics"].items():
            of_metric = items.setdefault((row["cell"], f"{metric},{row['filter']}"), [])
            tied = row.get(TIED) if metric == "acc" else None
            of_metric.append((row["doc_id"], row["doc_hash"], value, tied))
    for key, count in counts.items():
        if count != by_key[key]["samples"]:
            raise InputError(
                f"{path}: found {count} rows of cell {key}, expected "
                f"{by_key[key]['samples']}; score it again"
            )
    return items


def _aggregation(metric: str, values: list[Any], score: float, name: str) -> str | None:
    """Return the aggregation that gives the score from its items; None if none does."""
    kind = metric.partition(",")[0]
    kind = kind if kind in CORPUS_METRICS and isinstance(values[0], list) else "mean"
    try:
        items = aggregations.arm(numpy.asarray(values, dtype=float), kind)
        recomputed = float(aggregations.by_seed(items, kind)[0])
    except (InputError, TypeError, ValueError) as error:
        log.warning("%s: %s has no paired tests: %s", name, metric, error)
        return None
    if math.isclose(recomputed, score, rel_tol=0, abs_tol=TOLERANCE):
        return kind
    log.warning("%s: %s has no paired tests: it is not the mean of its items", name, metric)
    return None


def _of_job(path: Path) -> list[dict[str, Any]]:
    result = score_table.read_result(path)
    names = result["names"]
    task = result["lm_eval"]
    items = _items(samples_path(path), result["cells"])
    rows = []
    for cell in result["cells"]:
        seed = score_table.NONE if cell["seed"] is None else str(cell["seed"])
        name = "/".join(
            [
                names["model"],
                names["applied_to"],
                names["task"],
                cell["trained_on"],
                cell["method"],
                seed,
            ]
        )
        for metric, measured in cell["metrics"].items():
            of_metric = sorted(items.get((cell["key"], metric), []), key=lambda item: item[0])
            if not of_metric:
                log.warning("%s: %s has no items", name, metric)
                continue
            numbers, hashes, values, tied = zip(*of_metric, strict=True)
            if len(set(numbers)) < len(numbers):
                repeated = next(n for n in numbers if numbers.count(n) > 1)
                raise InputError(
                    f"{samples_path(path)}: {name}, {metric}: found item {repeated} more than once"
                )
            kind = _aggregation(metric, list(values), measured["value"], name)
            if kind is None:
                continue
            run = statistics.Run(
                name=name,
                task_version=f"{task['version']} of {task['task']}",
                items=tuple(f"{n} ({text[:12]})" for n, text in zip(numbers, hashes, strict=True)),
                values=numpy.asarray(values, dtype=float),
                tied={i: tuple(ends) for i, ends in enumerate(tied) if ends is not None},
            )
            rows.append(
                {
                    **names,
                    "trained_on": cell["trained_on"],
                    "method": cell["method"],
                    "seed": seed,
                    "metric": metric,
                    "aggregation": kind,
                    "run": run,
                }
            )
    return rows


def read(results: Iterable[Path]) -> pandas.DataFrame:
    """Read the runs of scoring jobs: one row per cell and metric, with its `statistics.Run`.

    Items are in the order of the task's documents. Metrics whose scores cannot be recomputed from
    their items are left out with a warning.

    Raises:
        InputError: items are missing or repeated; names the file.
    """
    rows = [row for path in results for row in _of_job(path)]
    return pandas.DataFrame(rows, columns=COLUMNS)
