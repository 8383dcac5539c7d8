"""Read the rows of a corpus from the hub, local files or a generator function."""

import importlib.util
import logging
import random
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from portllm import credentials
from portllm.data import hub
from portllm.errors import InputError, nearest

log = logging.getLogger(__name__)

Row = dict[str, Any]
_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def generated(reference: str, arguments: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of a generator function, given as `file.py:function`.

    Raises:
        InputError: `file.py` cannot be loaded, or the arguments do not fit the function.
    """
    file, _, name = reference.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        yield from getattr(module, name)(**arguments)
    except TypeError as error:
        raise InputError(f"{reference}: {error}") from error


def pinned(definition: dict[str, Any]) -> dict[str, Any]:
    """Replace the revision of each hub source by its commit.

    Raises:
        InputError: the hub has no such dataset or revision.
    """
    sources = [
        {**source, "revision": hub.dataset_commit(source["hub"], source.get("revision"))}
        if "hub" in source
        else source
        for source in definition["sources"]
    ]
    return {**definition, "sources": sources}


def commits(definition: dict[str, Any]) -> list[dict[str, str]]:
    """List dataset and commit of each hub source of a pinned definition, for the manifest."""
    return [
        {"hub": source["hub"], "revision": source["revision"]}
        for source in definition["sources"]
        if "hub" in source
    ]


def _location(source: dict[str, Any], hub_mirror: str | None) -> dict[str, Any]:
    if "files" in source:
        ending = Path(source["files"][0]).suffix
        if ending not in _FORMATS:
            raise InputError(
                f"{source['files'][0]}: found type {ending!r}, expected one of "
                f"{', '.join(_FORMATS)}"
            )
        return {"path": _FORMATS[ending], "data_files": source["files"]}
    path = source["hub"]
    if hub_mirror is None:
        return {"path": path, "name": source.get("name"), "revision": source.get("revision")}
    if not Path(hub_mirror, path).is_dir():
        raise InputError(f"hub_mirror {hub_mirror} has no dataset {path}")
    return {"path": str(Path(hub_mirror, path)), "name": source.get("name")}


def _loaded(source: dict[str, Any], hub_mirror: str | None) -> Iterable[Row]:
    location = _location(source, hub_mirror)
    import datasets

    name = source.get("hub") or source["files"][0]
    with hub.explained("dataset", name, source.get("revision")):
        try:
            return datasets.load_dataset(**location, split=source.get("split", "train"))
        except datasets.exceptions.DatasetGenerationError as error:
            # Only the cause names the file and the reason.
            raise InputError(f"cannot read the rows of {name}: {error.__cause__}") from error


def with_fields(rows: Iterable[Row], fields: dict[str, str]) -> Iterator[Row]:
    """Rewrite rows by format strings over their columns, e.g. {"text": "{question}"}.

    Raises:
        InputError: a format string names a column that the rows do not have.
    """
    for row in rows:
        try:
            yield {name: template.format_map(row) for name, template in fields.items()}
        except KeyError as error:
            column = error.args[0]
            raise InputError(
                f"the corpus has no column {column!r}; {nearest(column, row)}"
            ) from None


def rows_of_source(
    source: dict[str, Any], hub_mirror: str | None = None, part: dict[str, int] | None = None
) -> Iterable[Row]:
    """Return the rows of one source. A generator runs when they are read.

    Args:
        source: a source of a corpus, with one of the keys `generator`, `files` and `hub`.
        hub_mirror: local directory laid out like the hub, used instead of it.
        part: {"number": i, "of": k} selects rows i, i + k, i + 2k, … (i from 1). The parts are
            disjoint and, as the rows are interleaved, similar even if the source drifts.
    """
    rows: Iterable[Row]
    if "generator" in source:
        rows = generated(source["generator"], source.get("arguments", {}))
    else:
        rows = _loaded(source, hub_mirror)
    first, step = (0, 1) if part is None else (part["number"] - 1, part["of"])
    rows = islice(rows, first, source.get("limit"), step)
    return with_fields(rows, source["fields"]) if "fields" in source else rows


def rows_of_corpus(definition: dict[str, Any], hub_mirror: str | None = None) -> list[Row]:
    """Read all rows of a corpus, or of one part; shuffle if it has a seed, then apply its limit.

    Generators run when everything else is fetched, in an environment without credentials.

    Raises:
        InputError: the corpus has no rows.
    """
    part = definition.get("part")
    sources = [rows_of_source(source, hub_mirror, part) for source in definition["sources"]]
    credentials.drop()
    rows = list(chain.from_iterable(sources))
    if not rows:
        raise InputError("the corpus has no rows")
    if definition.get("seed") is not None:
        random.Random(definition["seed"]).shuffle(rows)
    return rows[: definition.get("limit")]
