"""Per-item results of scoring jobs, as runs whose items can be compared.

A scoring job leaves two files: TASK.json, with its cells, their scores and the task's version in
lm-eval, and beside it TASK.samples.jsonl, with a row for each cell, item and filter (fields in
`portllm.scoring.hf`).
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
from portllm.statistics import aggregations
from portllm.storage.files import read_json_lines

log = logging.getLogger(__name__)

COLUMNS = [*score_table.COLUMNS[:7], "aggregation", "run"]
# Metrics that lm-eval makes from all items at once; others are means of theirs.
TOGETHER = ("f1", "mcc")
# A score and what its items give differ by rounding only.
TOLERANCE = 1e-6

Items = dict[tuple[str, str], list[tuple[int, str, Any]]]


def samples_path(result: Path) -> Path:
    """Where the items of a scoring job's result file are."""
    return result.with_suffix(".samples.jsonl")


def _items(path: Path, cells: list[dict[str, Any]]) -> Items:
    """Items by cell and metric: number, hash and value of each."""
    wanted = {cell["key"]: cell for cell in cells}
    found: Items = {}
    counts = dict.fromkeys(wanted, 0)
    for row in read_json_lines(path):
        if row["cell"] not in wanted:
            continue
        counts[row["cell"]] += 1
        for metric, value in row["metrics"].items():
            place = found.setdefault((row["cell"], f"{metric},{row['filter']}"), [])
            place.append((row["doc_id"], row["doc_hash"], value))
    for key, count in counts.items():
        if count != wanted[key]["samples"]:
            raise InputError(
                f"{path}: found {count} rows of cell {key}, expected "
                f"{wanted[key]['samples']}; score it again"
            )
    return found


def _aggregation(metric: str, values: list[Any], score: float, name: str) -> str | None:
    """How items make the score; None where it is not known here."""
    kind = metric.partition(",")[0]
    kind = kind if kind in TOGETHER and isinstance(values[0], list) else "mean"
    try:
        items = aggregations.arm(numpy.asarray(values, dtype=float), kind)
        again = float(aggregations.by_seed(items, kind)[0])
    except (InputError, TypeError, ValueError) as error:
        log.warning("%s: %s is not compared item by item: %s", name, metric, error)
        return None
    if math.isclose(again, score, rel_tol=0, abs_tol=TOLERANCE):
        return kind
    log.warning("%s: %s is not compared item by item: it is no mean of its items", name, metric)
    return None


def _of_job(path: Path) -> list[dict[str, Any]]:
    result = score_table.read_result(path)
    names = result["names"]
    task = result["lm_eval"]
    items = _items(samples_path(path), result["cells"])
    rows = []
    for cell in result["cells"]:
        seed = score_table.NONE if cell["seed"] is None else str(cell["seed"])
        place = "/".join(
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
            found = sorted(items.get((cell["key"], metric), []), key=lambda item: item[0])
            if not found:
                log.warning("%s: %s has no items", place, metric)
                continue
            numbers, hashes, values = zip(*found, strict=True)
            if len(set(numbers)) < len(numbers):
                twice = next(n for n in numbers if numbers.count(n) > 1)
                raise InputError(
                    f"{samples_path(path)}: {place}, {metric}: item {twice} is there more than once"
                )
            kind = _aggregation(metric, list(values), measured["value"], place)
            if kind is None:
                continue
            run = statistics.Run(
                name=place,
                task_version=f"{task['version']} of {task['task']}",
                items=tuple(f"{n} ({text[:12]})" for n, text in zip(numbers, hashes, strict=True)),
                values=numpy.asarray(values, dtype=float),
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
    """The runs of several scoring jobs: a row, with its `statistics.Run`, per cell and metric.

    Items are in the order of the task's documents. A metric that lm-eval makes from items in a way
    that is not known here is left out, and the log says so. Raises InputError, naming the file, for
    items that are missing or there twice.
    """
    rows = [row for path in results for row in _of_job(path)]
    return pandas.DataFrame(rows, columns=COLUMNS)
