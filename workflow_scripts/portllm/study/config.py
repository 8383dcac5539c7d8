"""Reading a study's configuration: the schema, its defaults, and what no schema can say.

Every mistake is an InputError of one line that names the file, the key, what was found and the
nearest thing that would do.
"""

import ast
import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from portllm.data import task_files
from portllm.errors import InputError, nearest
from portllm.study import chains, imported_patterns, matrix
from portllm.study.matrix import Config
from portllm.transplant import methods
from portllm.weights import adapters, checkpoints

Key = tuple[str | int, ...]


def read_yaml(path: Path, *, what: str) -> Any:
    """Read a YAML file; InputError, naming file and line, where it is absent or does not parse."""
    try:
        return yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{what}: no such file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise InputError(f"{what}: does not parse as YAML: {line}{problem}") from None


class _Blame:
    """Names the file that a key of the merged configuration comes from."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = {path: read_yaml(path, what=str(path)) or {} for path in files}

    def at(self, *key: str | int) -> str:
        dotted = ".".join(str(part) for part in key)
        for path, content in reversed(self._files.items()):
            if _holds(content, key):
                return f"{path}: {dotted}" if dotted else str(path)
        first = next(iter(self._files), Path("configuration"))
        return f"{first}: {dotted}" if dotted else str(first)


def _holds(content: Any, key: Key) -> bool:
    for part in key:
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _unknown_key(error: ValidationError, blame: _Blame) -> str:
    allowed = error.schema.get("properties", {})
    unknown = next(key for key in error.instance if key not in allowed)
    place = blame.at(*error.absolute_path, unknown)
    return f"{place}: unknown key; {nearest(unknown, allowed)}"


def _schema_message(error: ValidationError, blame: _Blame) -> str:
    place = blame.at(*error.absolute_path)
    found = repr(error.instance)
    match error.validator:
        case "additionalProperties":
            return _unknown_key(error, blame)
        case "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
            return f"{place}: the key {missing!r} is missing"
        case "type":
            expected = error.validator_value
            names = expected if isinstance(expected, str) else " or ".join(expected)
            return f"{place}: found {found}, expected {names}"
        case "enum":
            options = nearest(str(error.instance), error.validator_value)
            return f"{place}: found {found}, which is none of the choices; {options}"
        case "pattern":
            hint = error.schema.get("description", error.validator_value)
            return f"{place}: found {found}, expected: {hint}"
        case _:
            return f"{place}: {error.message}"


def _fill_defaults(config: Any, schema: dict[str, Any], root: dict[str, Any]) -> None:
    if "$ref" in schema:
        schema = {**root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], **schema}
    if isinstance(config, dict):
        known = schema.get("properties", {})
        for key, part in known.items():
            if "default" in part and key not in config:
                config[key] = copy.deepcopy(part["default"])
            if key in config:
                _fill_defaults(config[key], part, root)
        others = schema.get("additionalProperties")
        if isinstance(others, dict):
            for key in config.keys() - known.keys():
                _fill_defaults(config[key], others, root)
    elif isinstance(config, list) and isinstance(schema.get("items"), dict):
        for item in config:
            _fill_defaults(item, schema["items"], root)


def check_schema(config: Config, schema: dict[str, Any], files: Iterable[Path] = ()) -> None:
    """Hold a configuration against the schema and fill in the schema's defaults, in place."""
    error = best_match(Draft202012Validator(schema).iter_errors(config))
    if error is not None:
        raise InputError(_schema_message(error, _Blame(files)))
    _fill_defaults(config, schema, schema)


def _check_known(name: str, options: Iterable[str], place: str, what: str) -> None:
    known = list(options)
    if name not in known:
        raise InputError(f"{place}: no {what} named {name!r}; {nearest(name, known)}")


def _check_selection(config: Config, blame: _Blame) -> None:
    for kind in ("models", "tasks", "evolutions", "arms"):
        for name in config["study"].get(kind) or ():
            _check_known(name, config[kind], blame.at("study", kind), kind.removesuffix("s"))


def _exactly_one(definition: dict[str, Any], options: tuple[str, ...], place: str) -> str:
    given = [option for option in options if option in definition]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise InputError(f"{place}: expected exactly one of {', '.join(options)}; found {found}")
    return given[0]


def _check_source(config: Config, source: dict[str, Any], key: Key, blame: _Blame) -> None:
    kind = _exactly_one(source, ("hub", "path", "from_scratch"), blame.at(*key))
    if kind == "path":
        checkpoints.check_directory(Path(source["path"]), blame.at(*key, "path"))
    if kind == "from_scratch":
        if key[2] != "base":
            raise InputError(f"{blame.at(*key)}: only a base is trained from scratch")
        corpus = source["from_scratch"]["corpus"]
        _check_known(corpus, config["corpora"], blame.at(*key, "from_scratch", "corpus"), "corpus")


def _check_models(config: Config, blame: _Blame) -> None:
    for model, definition in config["models"].items():
        for version, source in matrix.sources(config, model).items():
            key = ("base",) if version == matrix.BASE else ("releases", version)
            _check_source(config, source, ("models", model, *key), blame)
        for name in definition.get("evolutions", ()):
            place = blame.at("models", model, "evolutions")
            _check_known(name, config["evolutions"], place, "evolution")
        if not matrix.sources(config, model):
            raise InputError(f"{blame.at('models', model)}: expected a base or releases")
        _check_patches(config, model, blame)
        for release in definition["releases"]:
            if release == matrix.BASE or release in config["evolutions"]:
                place = blame.at("models", model, "releases", release)
                raise InputError(f"{place}: this name is taken by another version")


def _check_patches(config: Config, model: str, blame: _Blame) -> None:
    for task, definition in config["models"][model]["patches"].items():
        key = ("models", model, "patches", task)
        _check_known(task, config["tasks"], blame.at(*key), "task")
        if _exactly_one(definition, ("hub", "path"), blame.at(*key)) == "hub":
            continue
        patch = Path(definition["path"])
        try:
            adapters.check_directory(patch)
            for version, source in matrix.sources(config, model).items():
                # A patch is not held against the version that it was trained on: it may be gone.
                if "path" in source and version != definition["trained_on"]:
                    adapters.check_fit(patch, Path(source["path"]))
        except InputError as error:
            raise InputError(f"{blame.at(*key, 'path')}: {error}") from None


def _check_generator(reference: str, place: str) -> None:
    file, _, function = reference.rpartition(":")
    if not Path(file).is_file():
        raise InputError(f"{place}: no such file: {file}")
    try:
        tree = ast.parse(Path(file).read_text())
    except SyntaxError as error:
        raise InputError(f"{place}: {file}, line {error.lineno}: {error.msg}") from None
    functions = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
    _check_known(function, functions, place, f"function in {file}")


def _check_corpora(config: Config, blame: _Blame) -> None:
    for corpus, definition in config["corpora"].items():
        for index, source in enumerate(definition["sources"]):
            key = ("corpora", corpus, "sources", index)
            kind = _exactly_one(source, ("hub", "files", "generator"), blame.at(*key))
            if kind == "generator":
                _check_generator(source["generator"], blame.at(*key, "generator"))
            for file in source.get("files", ()):
                if not Path(file).is_file():
                    raise InputError(f"{blame.at(*key, 'files')}: no such file: {file}")
        part = definition.get("part")
        if part is not None and part["number"] > part["of"]:
            place = blame.at("corpora", corpus, "part")
            raise InputError(f"{place}: found part {part['number']} of {part['of']}")


def _check_parents(config: Config, blame: _Blame) -> None:
    known = config["evolutions"]
    releases = {name for model in config["models"].values() for name in model["releases"]}
    for name, definition in known.items():
        _check_known(
            definition["from"],
            [matrix.BASE, *releases, *known],
            blame.at("evolutions", name, "from"),
            "version",
        )
    for name in known:
        path = [name]
        while (parent := known[path[-1]]["from"]) in known:
            if parent in path:
                circle = " → ".join([*path[path.index(parent) :], parent])
                place = blame.at("evolutions", parent, "from")
                raise InputError(f"{place}: evolutions go round in a circle: {circle}")
            path.append(parent)


def _check_evolutions(config: Config, blame: _Blame) -> None:
    for name, definition in config["evolutions"].items():
        if name in (matrix.BASE, matrix.NONE, matrix.SAME, matrix.ALL, matrix.LATER):
            raise InputError(f"{blame.at('evolutions', name)}: this name has a meaning already")
        key = ("evolutions", name)
        for task in definition.get("tasks", ()):
            _check_known(task, config["tasks"], blame.at(*key, "tasks"), "task")
        _check_known(definition["corpus"], config["corpora"], blame.at(*key, "corpus"), "corpus")
        place = blame.at(*key, "recipe")
        for file in matrix.recipe_files(config, name):
            recipe = read_yaml(Path(file), what=f"{place}: {file}")
            if not isinstance(recipe, dict):
                raise InputError(f"{place}: {file} is no mapping of Axolotl's keys")
    _check_parents(config, blame)


def _check_imported(config: Config, blame: _Blame) -> None:
    for name, source in config["imported"].items():
        try:
            imported_patterns.rules(source)
            imported_patterns.find_files(source)
        except InputError as error:
            raise InputError(f"{blame.at('imported', name)}.{error}") from None
        for model in config["models"].keys() & set(source["models"]):
            own = matrix.updates({**config, "imported": {}}, model)
            for version in own.keys() & source["versions"].keys():
                if own[version] != (number := source["versions"][version]):
                    place = blame.at("imported", name, "versions", version)
                    raise InputError(
                        f"{place}: found update {number}, but it is update {own[version]} of "
                        f"{model} in this study"
                    )


def _check_arms(config: Config, blame: _Blame) -> None:
    everywhere = {
        version for model in config["models"] for version in matrix.versions(config, model)
    }
    imported = config["imported"].values()
    elsewhere = matrix.imported_names(config, "versions")
    known = {matrix.BASE, *config["evolutions"], *everywhere, *elsewhere}
    for arm, definition in config["arms"].items():
        place = blame.at("arms", arm, "trained_on")
        _check_known(definition["trained_on"], [matrix.NONE, matrix.SAME, *known], place, "version")
        place = blame.at("arms", arm, "applied_to")
        selector = definition["applied_to"]
        for name in [selector] if isinstance(selector, str) else selector:
            options = [matrix.ALL, matrix.LATER, *known] if isinstance(selector, str) else known
            _check_known(name, options, place, "version")
        place = blame.at("arms", arm, "method")
        named = [cell.get("method") for source in imported for cell in source["cells"]]
        known_methods = [*config["methods"], *filter(None, named)]
        _check_known(definition["method"], known_methods, place, "method")
    for role in ("zero_shot", "ported", "re_fine_tuned"):
        wanted = config["recovery"][role]
        if matrix.has_rows(config, {"kind": "recovery"}):
            _check_known(wanted, config["arms"], blame.at("recovery", role), "arm")


def _check_tables(config: Config, blame: _Blame) -> None:
    # A study may leave out versions that a table names: the table then has no rows for them.
    everywhere = {
        version for model in config["models"] for version in matrix.sources(config, model)
    } | set(config["evolutions"])
    known = {
        kind: [*own, *matrix.imported_names(config, kind)]
        for kind, own in (
            ("models", config["models"]),
            ("tasks", config["tasks"]),
            ("versions", everywhere),
        )
    }
    known["arms"] = list(config["arms"])
    shown = [("tables", name, settings) for name, settings in config["tables"].items()]
    shown += [("figures", name, settings) for name, settings in config["figures"].items()]
    for section, name, settings in shown:
        for kind, options in known.items():
            for wanted in settings.get(kind, ()):
                place = blame.at(section, name, kind)
                _check_known(wanted, options, place, kind.removesuffix("s"))
        published = settings.get("published")
        if published and not Path(published).is_file():
            raise InputError(f"{blame.at(section, name, 'published')}: no such file: {published}")
        if settings["kind"] in matrix.TEMPORAL:
            _check_chain(config, settings, blame.at(section, name))


def _check_chain(config: Config, settings: dict[str, Any], place: str) -> None:
    """Refuse a table or figure over updates in which two versions are the same update."""
    models = [*matrix.chosen(config, "models"), *matrix.imported_names(config, "models")]
    for model in settings.get("models", models):
        versions: dict[int, str] = {}
        for version, number in matrix.updates(config, model).items():
            if version not in settings.get("versions", [version]):
                continue
            other = versions.setdefault(number, version)
            if other != version:
                raise InputError(
                    f"{place}: {other} and {version} are both update {number} of {model}; "
                    "expected one chain of updates, named by `versions`"
                )


def _check_methods(config: Config, blame: _Blame) -> None:
    for name, settings in config["methods"].items():
        parameters = {key: value for key, value in settings.items() if key != "kind"}
        try:
            methods.check(settings["kind"], parameters)
        except InputError as error:
            raise InputError(f"{blame.at('methods', name)}: {error}") from None


def _check_scoring(config: Config, blame: _Blame) -> None:
    if config["scoring"]["backend"] != "vllm":
        return
    if config["resources"].get("score", {}).get("gpu") == 0:
        place = blame.at("resources", "score", "gpu")
        raise InputError(f"{place}: found 0, but scoring.backend: vllm needs a GPU")
    if config["scoring"]["dtype"] == "float32" and any(cell.patch for cell in matrix.cells(config)):
        place = blame.at("scoring", "dtype")
        raise InputError(
            f"{place}: found 'float32', but vLLM attaches patches in 16 bits; nearest: bfloat16"
        )


def _check_merged(config: Config, blame: _Blame) -> None:
    for index, wanted in enumerate(config["merged"]):
        if merged_cell(config, wanted) not in matrix.cells(config):
            described = ", ".join(f"{key}: {value}" for key, value in wanted.items())
            raise InputError(f"{blame.at('merged', index)}: no cell of the study: {described}")


def merged_cell(config: Config, wanted: dict[str, Any]) -> matrix.Cell:
    """The cell that an entry of `merged` names; its seed defaults to the study's first."""
    seed = wanted.get("seed", config["study"]["seeds"][0])
    return matrix.Cell(
        wanted["model"],
        wanted["applied_to"],
        wanted["task"],
        wanted["trained_on"],
        wanted["method"],
        seed,
    )


def _check_tasks(config: Config, library: Path | None, blame: _Blame) -> None:
    trained = matrix.trained_tasks(config)
    for task in matrix.chosen(config, "tasks"):
        definition = config["tasks"][task]
        name = definition.get("lm_eval", task)
        place = blame.at("tasks", task)
        folders = task_files.folders(definition.get("include"), library)
        if "include" in definition and not Path(definition["include"]).is_dir():
            raise InputError(f"{place}.include: no such directory: {definition['include']}")
        if not folders or (library is None and "include" not in definition):
            # lm-eval is not installed yet; the task-data stage will say it.
            continue
        found = task_files.find(name, folders)
        if found is None:
            if library is None:
                continue
            known = task_files.names(folders)
            raise InputError(f"{place}: lm-eval knows no task {name!r}; {nearest(name, known)}")
        if task in trained and task_files.load(found).get("training_split") is None:
            raise InputError(
                f"{place}: lm-eval's task {name!r} has no training split, so no patch can be "
                f"trained for it ({found.name} sets no training_split)"
            )


ONE_DEVICE = ("base", "patch")
"""Stages whose programs train on one device; with several their batches would silently grow."""


def _check_devices(config: Config, limit: int | None, blame: _Blame) -> None:
    for stage, asked in config["resources"].items():
        wanted, place = asked.get("gpu", 0), blame.at("resources", stage, "gpu")
        if stage in ONE_DEVICE and wanted > 1:
            raise InputError(f"{place}: found {wanted}, but this stage uses one device (gpu: 1)")
        # Snakemake would lower the number and say nothing.
        if limit is not None and wanted > limit:
            raise InputError(
                f"{place}: found {wanted}, but the run may use {limit} (--resources gpu={limit})"
            )


def recipes(config: Config) -> dict[str, dict[str, Any]]:
    """The Axolotl keys of each evolution: its files, one over the other, and its overrides."""
    found = {}
    for name, definition in config["evolutions"].items():
        keys: dict[str, Any] = {}
        for file in matrix.recipe_files(config, name):
            keys |= read_yaml(Path(file), what=file)
        found[name] = {**keys, **definition["overrides"]}
    return found


def check_packages(found: dict[str, dict[str, Any]], pins: Path) -> None:
    """Raise InputError for a recipe that asks for DeepSpeed where no pin installs it.

    It is no default: where it is installed, every training imports it.
    """
    if re.search(r"^deepspeed==", pins.read_text(), flags=re.MULTILINE):
        return
    for name, recipe in found.items():
        if recipe.get("deepspeed"):
            raise InputError(
                f"evolutions.{name}: its recipe asks for DeepSpeed ({recipe['deepspeed']}), which "
                f"{pins.parent.name}/{pins.name} does not install: add deepspeed to "
                f"{pins.with_suffix('.in').name} there and run `make pins envs`, or shard with "
                "fsdp_config"
            )


def load(
    config: Config,
    *,
    schema: Path,
    files: Iterable[Path] = (),
    task_library: Path | None = None,
    device_limit: int | None = None,
) -> Config:
    """Check a configuration, fill in its defaults in place, and return it.

    `files` are the YAML files that it was merged from, for the messages; `task_library` is the
    folder of lm-eval's own tasks, None where lm-eval is not installed; `device_limit` is how many
    devices the run may use, None where that is not limited here.
    """
    files = list(files)
    blame = _Blame(files)
    check_schema(config, read_yaml(schema, what=str(schema)), files)
    chains.expand(config, blame.at)
    _check_selection(config, blame)
    _check_corpora(config, blame)
    _check_evolutions(config, blame)
    _check_models(config, blame)
    _check_methods(config, blame)
    _check_imported(config, blame)
    _check_arms(config, blame)
    _check_tasks(config, task_library, blame)
    _check_merged(config, blame)
    _check_scoring(config, blame)
    _check_tables(config, blame)
    _check_devices(config, device_limit, blame)
    return config
