"""Paths of a study's files: artefacts below `<results>`, and the user's files that it reads.

`<results>` is a Snakemake path variable, which the workflow replaces.
"""

from collections.abc import Iterable
from pathlib import Path

from portllm.data import task_files
from portllm.study import matrix
from portllm.study.matrix import Cell, Config, Patch

SCORES = "<results>/scores.csv"


def corpus_path(corpus: str) -> str:
    """Return the rows of a corpus."""
    return f"<results>/corpora/{corpus}.jsonl"


def version_path(model: str, version: str) -> str:
    """Return the directory of a version's checkpoint."""
    return f"<results>/models/{model}/{version}"


def parent_path(config: Config, model: str, version: str) -> str:
    """Return the version that an evolution continues, or that an adapter updates."""
    release = config["models"][model]["releases"].get(version)
    parent = release["parent"] if release else config["evolutions"][version]["from"]
    return version_path(model, parent)


def prepared_paths(config: Config, model: str, version: str) -> list[str]:
    """Return the prepared dataset of an evolution, if a separate job makes it."""
    is_prepared = config["evolutions"][version]["preprocess"]
    return [f"<results>/prepared/{model}/{version}"] if is_prepared else []


def patch_name(patch: Patch) -> str:
    """Return the path of a patch below the directory of all patches."""
    return f"{patch.model}/{patch.trained_on}/{patch.task}/seed{patch.seed}"


def patch_path(patch: Patch) -> str:
    """Return the directory of a patch."""
    return f"<results>/patches/{patch_name(patch)}"


def base_of_patch(config: Config, patch: Patch) -> list[str]:
    """Return the version that a patch was trained on; none if the study does not have it."""
    known = patch.trained_on in matrix.versions(config, patch.model)
    return [version_path(patch.model, patch.trained_on)] if known else []


def _port_name(cell: Cell) -> str:
    place = f"{cell.model}/{cell.trained_on}/{cell.applied_to}/{cell.task}"
    return f"{place}/{cell.method}/seed{cell.seed}"


def adapter_path(cell: Cell) -> str:
    """Return the adapter that a cell applies: its patch, or the port of it to another version.

    Raises:
        ValueError: for a cell without a patch.

    """
    if cell.patch is None:
        raise ValueError(f"{cell} applies no patch")
    return f"<results>/ports/{_port_name(cell)}" if cell.is_ported else patch_path(cell.patch)


def adapter_paths(cells: Iterable[Cell]) -> list[str]:
    """Return the adapters that some cells apply, in their order; un-patched cells have none."""
    return [adapter_path(cell) for cell in cells if cell.patch]


def merged_path(cell: Cell) -> str:
    """Return the full checkpoint of a version with its patch merged in."""
    return f"<results>/merged/{_port_name(cell)}"


def merged_paths(config: Config) -> list[str]:
    """Return the full checkpoints that the study asks for."""
    return [merged_path(matrix.merged_cell(config, entry)) for entry in config["merged"]]


def score_paths(jobs: Iterable[matrix.Job], suffix: str) -> list[str]:
    """Return a file of each scoring job: results (`.json`) or items (`.samples.jsonl`)."""
    return [f"<results>/scores/{model}/{version}/{task}{suffix}" for model, version, task in jobs]


def imported_paths(sources: Iterable[str], suffix: str) -> list[str]:
    """Return a file made from each source of imported scores: `.csv` or `.notes.txt`."""
    return [f"<results>/imported/{source}{suffix}" for source in sources]


def movement_path(model: str, version: str) -> str:
    """Return the measured distance between a version and its base."""
    return f"<results>/analysis/{model}/{version}/movement.json"


def measurement_path(kind: str, cell: Cell) -> str:
    """Return a measurement (norms, geometry, loss_slices) of a port and the re-trained patch."""
    place = f"<results>/analysis/{cell.model}/{cell.applied_to}/{kind}"
    return f"{place}/{cell.trained_on}/{cell.task}/seed{cell.seed}.json"


def artefact_paths(config: Config) -> list[str]:
    """Return everything in the study with a manifest: versions, patches, ports, scores."""
    versions = {
        version_path(model, version)
        for model in matrix.chosen(config, "models")
        for version in matrix.versions(config, model)
    }
    patched = [cell for cell in matrix.cells(config) if cell.patch]
    patches = {patch_path(cell.patch) for cell in patched if cell.patch}
    ports = {adapter_path(cell) for cell in patched if cell.is_ported}
    scores = score_paths(matrix.cells_by_job(config), ".json")
    return [*sorted(versions), *sorted(patches), *sorted(ports), *scores]


def corpus_files(config: Config, corpus: str) -> list[str]:
    """Return the local files that a corpus is made from."""
    sources = config["corpora"][corpus]["sources"]
    generators = [
        source["generator"].rpartition(":")[0] for source in sources if "generator" in source
    ]
    return [*generators, *(file for source in sources for file in source.get("files", []))]


def task_definition_files(config: Config, task: str) -> list[Path]:
    """Return the study's own files that define a task; lm-eval's version covers the others."""
    definition = config["tasks"][task]
    if "include" not in definition:
        return []
    path = task_files.find(definition.get("lm_eval", task), [Path(definition["include"])])
    return [] if path is None else task_files.defining_files(path)
