"""Check what a study says of its models: versions and existing patches."""

from functools import partial
from pathlib import Path
from typing import Any

from portllm.data import fetching
from portllm.errors import InputError
from portllm.study import matrix
from portllm.study.check_helpers import check_known, check_no_cycle, exactly_one
from portllm.study.matrix import Config
from portllm.study.yaml_files import Key, KeyOrigins
from portllm.weights import checkpoints, fit
from portllm.weights.adapters import StoredAdapter
from portllm.weights.checkpoints import Checkpoint


def _check_source(config: Config, source: dict[str, Any], key: Key, origins: KeyOrigins) -> None:
    options = ("hub", "path", "from_scratch" if key[2] == matrix.BASE else "adapter")
    kind = exactly_one(source, options, origins.at(*key))
    if kind == "path":
        directory = _local_directory(source, key, origins)
        checkpoints.check_directory(directory, origins.at(*key, "path"))
    if kind == "from_scratch":
        corpus = source["from_scratch"]["corpus"]
        place = origins.at(*key, "from_scratch", "corpus")
        check_known(corpus, config["corpora"], place, "corpus")
    if kind != "adapter" and "parent" in source:
        raise InputError(
            f"{origins.at(*key, 'parent')}: only a release with `adapter` has a parent"
        )


def _local_directory(source: dict[str, Any], key: Key, origins: KeyOrigins) -> Path:
    try:
        return fetching.in_directory(Path(source["path"]), source.get("subfolder", ""))
    except InputError as error:
        raise InputError(f"{origins.at(*key, 'subfolder')}: {error}") from None


def check_models(config: Config, origins: KeyOrigins) -> None:
    """Check the versions and existing patches of each model.

    Raises:
        InputError: for the first mistake, with its file and key.
    """
    for model, definition in config["models"].items():
        for version, source in matrix.sources(config, model).items():
            key = ("base",) if version == matrix.BASE else ("releases", version)
            _check_source(config, source, ("models", model, *key), origins)
        for name in definition.get("evolutions", ()):
            place = origins.at("models", model, "evolutions")
            check_known(name, config["evolutions"], place, "evolution")
        if not matrix.sources(config, model):
            raise InputError(f"{origins.at('models', model)}: expected a base or releases")
        _check_patches(config, model, origins)
        _check_adapter_releases(config, model, origins)
        for release in definition["releases"]:
            if release == matrix.BASE or release in config["evolutions"]:
                place = origins.at("models", model, "releases", release)
                raise InputError(f"{place}: another version has this name already")


def _check_adapter_releases(config: Config, model: str, origins: KeyOrigins) -> None:
    place = partial(origins.at, "models", model, "releases")
    known = matrix.versions(config, model)
    releases = config["models"][model]["releases"]
    merged = {name: release for name, release in releases.items() if "adapter" in release}
    for name, release in merged.items():
        for other in release.keys() - {"parent", "adapter"}:
            raise InputError(f"{place(name, other)}: expected it under `adapter`")
        if "parent" not in release:
            raise InputError(f"{place(name)}: the key 'parent' is missing")
        check_known(release["parent"], known, place(name, "parent"), "version")
    parents = matrix.made_from(config, model)
    places = {name: place(name, "parent") for name in merged}
    evolved = {name: origins.at("evolutions", name, "from") for name in config["evolutions"]}
    check_no_cycle(parents, evolved | places, kind="versions")
    for name, release in merged.items():
        key = ("models", model, "releases", name, "adapter")
        source = release["adapter"]
        if exactly_one(source, ("hub", "path"), origins.at(*key)) == "hub":
            continue
        root = name
        while root in parents:
            root = parents[root]
        path = fetching.source_directory(matrix.sources(config, model).get(root, {}))
        directory = _local_directory(source, key, origins)
        try:
            adapter = StoredAdapter(directory)
            if path is not None:
                fit.check(adapter, Checkpoint.open(path))
        except InputError as error:
            raise InputError(f"{origins.at(*key, 'path')}: {error}") from None


def _check_patches(config: Config, model: str, origins: KeyOrigins) -> None:
    checkpoints_by_path: dict[Path, Checkpoint] = {}
    for task, definition in config["models"][model]["patches"].items():
        key = ("models", model, "patches", task)
        check_known(task, config["tasks"], origins.at(*key), "task")
        if exactly_one(definition, ("hub", "path"), origins.at(*key)) == "hub":
            continue
        patch = _local_directory(definition, key, origins)
        is_base_known = definition["trained_on"] in matrix.versions(config, model)
        try:
            adapter = StoredAdapter(patch)
            for version, source in matrix.sources(config, model).items():
                # The version that the patch was trained on need not be available.
                path = fetching.source_directory(source)
                if path is not None and version != definition["trained_on"]:
                    checkpoint = checkpoints_by_path.setdefault(path, Checkpoint.open(path))
                    _check_fit(adapter, checkpoint, is_base_known=is_base_known)
        except InputError as error:
            raise InputError(f"{origins.at(*key, 'path')}: {error}") from None


def _check_fit(adapter: StoredAdapter, model: Checkpoint, *, is_base_known: bool) -> None:
    """Raise InputError unless an adapter fits a version and their tokenizers can be compared.

    The job that fetches the adapter compares it with the version that it was trained on, where the
    study has that one.
    """
    if not fit.check(adapter, model) and not is_base_known:
        raise InputError(
            f"{fit.unchecked_tokenizer(adapter, model)}, so that their tokenizers cannot be "
            "compared; add the version that it was trained on to the study, or put that version's "
            "tokenizer.json into the adapter's directory"
        )
