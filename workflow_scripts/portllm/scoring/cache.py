"""Cells of a scoring job: what each is made from, and which an earlier run has left.

Nothing heavy is imported, so that a job whose cells are all there is done at once.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from portllm.errors import InputError
from portllm.storage import files, manifests
from portllm.study.settings import defaults

CachedCell = dict[str, Any]
"""One score of a results file: its names, its key, its metrics, what it cost."""

PACKAGES = {
    "hf": ("lm_eval", "torch", "transformers", "peft"),
    "vllm": ("lm_eval", "torch", "transformers", "vllm"),
}
"""What runs the model, by backend; a score is one of these versions."""


_OF_TASK, _OF_STUDY = defaults("tasks.*"), defaults("scoring")


@dataclass(frozen=True)
class ScoringSettings:
    """The settings that change a score; config/schema.yaml explains each and states its default."""

    few_shot: int = _OF_TASK["few_shot"]
    limit: int | None = _OF_TASK["limit"]
    batch_size: int = _OF_STUDY["batch_size"]
    dtype: str = _OF_STUDY["dtype"]
    max_length: int | None = _OF_STUDY["max_length"]
    bootstrap_iterations: int = _OF_STUDY["bootstrap_iterations"]
    allow_unsafe_code: bool = _OF_TASK["allow_unsafe_code"]
    backend: str = _OF_STUDY["backend"]


@dataclass(frozen=True)
class Scored:
    """Cells by their keys, their samples, and what is said of all of them."""

    cells: dict[str, CachedCell] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    lm_eval: dict[str, Any] = field(default_factory=dict)
    cost: manifests.Cost | None = None

    def with_new(self, new: "Scored") -> "Scored":
        """These and the new ones; what is said of all of them is what the new ones say."""
        return replace(new, cells=self.cells | new.cells, samples=self.samples | new.samples)

    def only(self, keys: list[str]) -> "Scored":
        """The cells of these keys, in this order."""
        return replace(
            self,
            cells={key: self.cells[key] for key in keys},
            samples={key: self.samples[key] for key in keys},
        )


def key(*made_from: Any) -> str:
    """The key of a cell: a short hash of everything that it is made from."""
    return files.hash_value(made_from)[:16]


def earlier(results: Path, samples: Path) -> Scored:
    """Read what an earlier run has left, whole cells only; nothing where a file is cut off."""
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
    # Every cell says how many rows it has, so a file that was cut off is not taken for whole.
    whole = [cell for cell in cells if len(by_key.get(cell["key"], ())) == cell["samples"]]
    return Scored({cell["key"]: cell for cell in whole}, by_key, lm_eval, cost)
