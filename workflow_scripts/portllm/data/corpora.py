"""Corpora: rows of text from the hub, from local files or from a generator, as JSON lines."""

import importlib.util
import logging
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from portllm.data import hub
from portllm.errors import InputError, nearest

log = logging.getLogger(__name__)

Row = dict[str, Any]
_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def generated(reference: str, arguments: dict[str, Any]) -> Iterator[Row]:
    """Rows of a generator function, named as `file.py:function`.

    Raises InputError where the arguments do not fit the function.
    """
    file, _, name = reference.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        yield from getattr(module, name)(**arguments)
    except TypeError as error:
        raise InputError(f"{reference}: {error}") from error


def pinned(definition: dict[str, Any]) -> dict[str, Any]:
    """The definition with the revision of each hub source replaced by the commit it stands for.

    Raises InputError for a dataset or revision that the hub does not have.
    """
    sources = [
        {**source, "revision": hub.dataset_commit(source["hub"], source.get("revision"))}
        if "hub" in source
        else source
        for source in definition["sources"]
    ]
    return {**definition, "sources": sources}


def commits(definition: dict[str, Any]) -> list[dict[str, str]]:
    """Dataset and commit of each hub source of a pinned definition, for the manifest."""
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
                f"{source['files'][0]}: no known kind of corpus file; {nearest(ending, _FORMATS)}"
            )
        return {"path": _FORMATS[ending], "data_files": source["files"]}
    path = source["hub"]
    if hub_mirror is None:
        return {"path": path, "name": source.get("name"), "revision": source.get("revision")}
    if not Path(hub_mirror, path).is_dir():
        raise InputError(f"hub_mirror {hub_mirror} holds no dataset {path}")
    return {"path": str(Path(hub_mirror, path)), "name": source.get("name")}


def _loaded(source: dict[str, Any], hub_mirror: str | None) -> Iterable[Row]:
    location = _location(source, hub_mirror)
    import datasets

    name = source.get("hub") or source["files"][0]
    with hub.explained("dataset", name, source.get("revision")):
        try:
            return datasets.load_dataset(**location, split=source.get("split", "train"))
        except datasets.exceptions.DatasetGenerationError as error:
            # Which file and why is said by its cause alone.
            raise InputError(f"the rows of {name} cannot be read: {error.__cause__}") from error


def with_fields(rows: Iterable[Row], fields: dict[str, str]) -> Iterator[Row]:
    """Rows rewritten by format strings over their columns, e.g. {"text": "{question}"}.

    Raises InputError for a column that the rows do not have.
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
) -> Iterator[Row]:
    """Rows of one source: exactly one of `generator`, `files` and `hub`.

    Of a part {"number": i, "of": k}, row i and every k-th after it, as cards are dealt: parts of
    one source share no row, and all are alike where the source changes from its start to its end.
    """
    rows: Iterable[Row]
    if "generator" in source:
        rows = generated(source["generator"], source.get("arguments", {}))
    else:
        rows = _loaded(source, hub_mirror)
    first, step = (0, 1) if part is None else (part["number"] - 1, part["of"])
    rows = islice(rows, first, source.get("limit"), step)
    yield from with_fields(rows, source["fields"]) if "fields" in source else rows


def rows_of_corpus(definition: dict[str, Any], hub_mirror: str | None = None) -> list[Row]:
    """All rows of a corpus or of its part, shuffled where it has a seed, then cut to its limit.

    Raises InputError for a corpus without rows.
    """
    part = definition.get("part")
    found = (rows_of_source(source, hub_mirror, part) for source in definition["sources"])
    rows = [row for source in found for row in source]
    if not rows:
        raise InputError("the corpus has no rows")
    if definition.get("seed") is not None:
        random.Random(definition["seed"]).shuffle(rows)
    return rows[: definition.get("limit")]
