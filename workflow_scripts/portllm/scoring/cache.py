"""Keep the cells of a scoring job that are still valid when the job runs again.

Nothing heavy is imported, so that a job without new cells ends at once.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from portllm.errors import InputError
from portllm.scoring import validity
from portllm.storage import files, manifests
from portllm.study.schema import defaults

CachedCell = dict[str, Any]
"""One cell of a results file: its names, cache key, metrics and wall time."""

PACKAGES = {
    "hf": ("lm_eval", "torch", "transformers", "peft"),
    "vllm": ("lm_eval", "torch", "transformers", "vllm"),
}
"""Packages of each backend, whose versions are part of a cell's cache key."""


_OF_TASK, _OF_STUDY = defaults("tasks.*"), defaults("scoring")


@dataclass(frozen=True)
class ScoringSettings:
    """The settings that change a score; config/schema.yaml explains each and states its default."""

    few_shot: int | None = _OF_TASK["few_shot"]
    limit: int | None = _OF_TASK["limit"]
    batch_size: int = _OF_STUDY["batch_size"]
    dtype: str = _OF_STUDY["dtype"]
    max_length: int | None = _OF_STUDY["max_length"]
    bootstrap_iterations: int = _OF_STUDY["bootstrap_iterations"]
    allow_unsafe_code: bool = _OF_TASK["allow_unsafe_code"]
    backend: str = _OF_STUDY["backend"]
    chat_template: bool = _OF_STUDY["chat_template"]
    system_instruction: str | None = _OF_STUDY["system_instruction"]
    fewshot_as_multiturn: bool | None = _OF_STUDY["fewshot_as_multiturn"]


@dataclass(frozen=True)
class Scored:
    """Cells and samples by cache key, with the metadata that they share."""

    cells: dict[str, CachedCell] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    lm_eval: dict[str, Any] = field(default_factory=dict)
    cost: manifests.Cost | None = None

    def merged_with(self, new: "Scored") -> "Scored":
        """Merge two results; the new cells and metadata win."""
        return replace(new, cells=self.cells | new.cells, samples=self.samples | new.samples)

    def only(self, keys: list[str]) -> "Scored":
        """Select cells by key, in the order of `keys`."""
        return replace(
            self,
            cells={key: self.cells[key] for key in keys},
            samples={key: self.samples[key] for key in keys},
        )


def key(*parts: Any) -> str:
    """Return the cache key of a cell: a short hash of everything that decides its score."""
    return files.hash_value(parts)[:16]


def read_scored(results: Path, samples: Path) -> Scored:
    """Read the complete cells of an earlier run; empty if a file is missing or damaged.

    Cells whose log-likelihoods or metrics are not finite are left out.
    """
    try:
        document = files.read_json(results)
        cost = manifests.Cost(**document["cost"])
        cells, lm_eval = document["cells"], document["lm_eval"]
        rows = list(files.read_json_lines(samples))
    except (InputError, KeyError, TypeError):
        return Scored()
    by_key: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_key.setdefault(row["cell"], []).append(row)
    # Cells record their number of samples, so that a truncated file is noticed.
    complete = [cell for cell in cells if len(by_key.get(cell["key"], ())) == cell["samples"]]
    complete = [cell for cell in complete if _is_valid(cell, by_key[cell["key"]])]
    return Scored({cell["key"]: cell for cell in complete}, by_key, lm_eval, cost)


def _is_valid(cell: CachedCell, samples: list[dict[str, Any]]) -> bool:
    try:
        validity.check_answers(samples)
        validity.check_metrics(cell.get("metrics", {}))
    except InputError:
        return False
    return True
