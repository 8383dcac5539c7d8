"""Check what the schema cannot: references between names, files, adapters, devices."""

import ast
from pathlib import Path

from portllm.data import task_files
from portllm.errors import InputError
from portllm.storage.files import read_text
from portllm.study import (
    device_checks,
    imported_patterns,
    matrix,
    model_checks,
    selection,
    stage_settings,
)
from portllm.study.check_helpers import check_known, check_no_cycle, exactly_one
from portllm.study.exhibits import FILE, GROUPS, Group, Registry
from portllm.study.matrix import Config
from portllm.study.yaml_files import KeyOrigins, read_recipe
from portllm.transplant import methods


def _check_selection(config: Config, origins: KeyOrigins) -> None:
    for kind in ("models", "tasks", "evolutions", "arms"):
        for name in config["study"].get(kind) or ():
            check_known(name, config[kind], origins.at("study", kind), kind.removesuffix("s"))


def _check_generator(reference: str, place: str) -> None:
    file, _, function = reference.rpartition(":")
    if not Path(file).is_file():
        raise InputError(f"{place}: no such file: {file}")
    try:
        tree = ast.parse(read_text(Path(file)))
    except SyntaxError as error:
        raise InputError(f"{place}: {file}, line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # a null byte, deep nesting
        raise InputError(f"{place}: {file}: found no Python: {error}") from None
    functions = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
    check_known(function, functions, place, f"function in {file}")


def _check_corpora(config: Config, origins: KeyOrigins) -> None:
    for corpus, definition in config["corpora"].items():
        for index, source in enumerate(definition["sources"]):
            key = ("corpora", corpus, "sources", index)
            kind = exactly_one(source, ("hub", "files", "generator"), origins.at(*key))
            if kind == "generator":
                _check_generator(source["generator"], origins.at(*key, "generator"))
            for file in source.get("files", ()):
                if not Path(file).is_file():
                    raise InputError(f"{origins.at(*key, 'files')}: no such file: {file}")
        part = definition.get("part")
        if part is not None and part["number"] > part["of"]:
            place = origins.at("corpora", corpus, "part")
            raise InputError(f"{place}: found part {part['number']}, expected 1 to {part['of']}")


def _check_parents(config: Config, origins: KeyOrigins) -> None:
    known = config["evolutions"]
    releases = {name for model in config["models"].values() for name in model["releases"]}
    for name, definition in known.items():
        check_known(
            definition["from"],
            [matrix.BASE, *releases, *known],
            origins.at("evolutions", name, "from"),
            "version",
        )
    check_no_cycle(
        {name: definition["from"] for name, definition in known.items()},
        {name: origins.at("evolutions", name, "from") for name in known},
        kind="evolutions",
    )


def _check_evolutions(config: Config, origins: KeyOrigins) -> None:
    for name, definition in config["evolutions"].items():
        if name in (matrix.BASE, matrix.NONE, matrix.SAME, matrix.ALL, matrix.LATER):
            raise InputError(f"{origins.at('evolutions', name)}: {name!r} is a reserved name")
        key = ("evolutions", name)
        for task in definition.get("tasks", ()):
            check_known(task, config["tasks"], origins.at(*key, "tasks"), "task")
        check_known(definition["corpus"], config["corpora"], origins.at(*key, "corpus"), "corpus")
        recipe_files = map(Path, stage_settings.recipe_files(config, name))
        read_recipe(recipe_files, origin=origins.at(*key, "recipe"))
    _check_parents(config, origins)


def _check_imported(config: Config, origins: KeyOrigins) -> None:
    for name, source in config["imported"].items():
        try:
            imported_patterns.rules(source)
            imported_patterns.find_files(source)
        except InputError as error:
            raise InputError(f"{origins.at('imported', name)}.{error}") from None
        for model in config["models"].keys() & set(source["models"]):
            own = matrix.updates({**config, "imported": {}}, model)
            for version in own.keys() & source["versions"].keys():
                if own[version] != (number := source["versions"][version]):
                    place = origins.at("imported", name, "versions", version)
                    raise InputError(
                        f"{place}: found update {number}, but it is update {own[version]} of "
                        f"{model} in this study"
                    )


def _check_arms(config: Config, origins: KeyOrigins) -> None:
    everywhere = {
        version for model in config["models"] for version in matrix.versions(config, model)
    }
    imported = config["imported"].values()
    elsewhere = matrix.imported_names(config, "versions")
    known = {matrix.BASE, *config["evolutions"], *everywhere, *elsewhere}
    for arm, definition in config["arms"].items():
        place = origins.at("arms", arm, "trained_on")
        check_known(definition["trained_on"], [matrix.NONE, matrix.SAME, *known], place, "version")
        place = origins.at("arms", arm, "applied_to")
        selector = definition["applied_to"]
        for name in [selector] if isinstance(selector, str) else selector:
            options = [matrix.ALL, matrix.LATER, *known] if isinstance(selector, str) else known
            check_known(name, options, place, "version")
        place = origins.at("arms", arm, "method")
        named = [cell.get("method") for source in imported for cell in source["cells"]]
        known_methods = [*config["methods"], *filter(None, named)]
        check_known(definition["method"], known_methods, place, "method")
    for role in ("zero_shot", "ported", "re_fine_tuned"):
        arm = config["recovery"][role]
        if selection.compared_cells(config, {}):
            check_known(arm, config["arms"], origins.at("recovery", role), "arm")


def _check_exhibits(config: Config, exhibits: Registry, origins: KeyOrigins) -> None:
    # A study may select fewer versions than a table names; the table has no rows for the others.
    everywhere = {
        version for model in config["models"] for version in matrix.sources(config, model)
    } | set(config["evolutions"])
    known = {
        names: [*own, *matrix.imported_names(config, names)]
        for names, own in (
            ("models", config["models"]),
            ("tasks", config["tasks"]),
            ("versions", everywhere),
        )
    }
    known["arms"] = list(config["arms"])
    for group in GROUPS:
        for name, settings in config[group].items():
            for names, options in known.items():
                for selected in settings.get(names, ()):
                    place = origins.at(group, name, names)
                    check_known(selected, options, place, names.removesuffix("s"))
            _check_exhibit(config, exhibits, (group, name), origins)


def _check_exhibit(
    config: Config, exhibits: Registry, key: tuple[Group, str], origins: KeyOrigins
) -> None:
    group, name = key
    settings = config[group][name]
    kind = exhibits[group, settings["kind"]]
    for own in settings:
        others = exhibits.kinds_with(group, own)
        if others and own not in kind.all_keys:
            place = origins.at(group, name, own)
            raise InputError(
                f"{place}: unknown key for kind {kind.kind!r}; only for {', '.join(others)}"
            )
    for own, schema in kind.all_keys.items():
        if schema.get("format") == FILE and own in settings and not Path(settings[own]).is_file():
            place = origins.at(group, name, own)
            raise InputError(f"{place}: no such file: {settings[own]}")
    try:
        kind.check(config, settings)
    except InputError as error:
        raise InputError(f"{origins.at(group, name)}: {error}") from None


def _check_methods(config: Config, origins: KeyOrigins) -> None:
    for name, settings in config["methods"].items():
        parameters = {key: value for key, value in settings.items() if key != "kind"}
        try:
            methods.check(settings["kind"], parameters)
        except InputError as error:
            raise InputError(f"{origins.at('methods', name)}: {error}") from None


def _check_chat(config: Config, origins: KeyOrigins) -> None:
    trained = matrix.trained_tasks(config)
    for task in matrix.chosen(config, "tasks"):
        settings = stage_settings.scoring_settings(config, task)
        place = {
            name: origins.at(
                *(("tasks", task) if name in config["tasks"][task] else ("scoring",)), name
            )
            for name in stage_settings.CHAT
        }
        if settings["fewshot_as_multiturn"] is True and not settings["chat_template"]:
            raise InputError(
                f"{place['fewshot_as_multiturn']}: found true, but task {task!r} has no "
                "chat_template: true"
            )
        for name in ("chat_template", "system_instruction"):
            if settings[name] and task in trained:
                raise InputError(
                    f"{place[name]}: a patch is trained for task {task!r}, and training text has "
                    "no chat template or system instruction; expected a task without patches of "
                    "the study, or with existing ones"
                )


def _check_scoring(config: Config, origins: KeyOrigins) -> None:
    if config["scoring"]["backend"] != "vllm":
        return
    if config["resources"].get("score", {}).get("gpu") == 0:
        place = origins.at("resources", "score", "gpu")
        raise InputError(f"{place}: found 0, but scoring.backend: vllm needs a GPU")
    if config["scoring"]["dtype"] == "float32" and any(cell.patch for cell in matrix.cells(config)):
        place = origins.at("scoring", "dtype")
        raise InputError(
            f"{place}: found 'float32', but vLLM attaches patches in 16 bits; nearest: bfloat16"
        )


def _check_merged(config: Config, origins: KeyOrigins) -> None:
    for index, entry in enumerate(config["merged"]):
        if matrix.merged_cell(config, entry) not in matrix.cells(config):
            described = ", ".join(f"{key}: {value}" for key, value in entry.items())
            raise InputError(f"{origins.at('merged', index)}: no cell of the study: {described}")


def check_tasks(config: Config, library: Path | None, origins: KeyOrigins) -> None:
    """Check that lm-eval or the study defines the selected tasks.

    Without lm-eval (`library` is None), only the study's own tasks are checked.
    """
    trained = matrix.trained_tasks(config)
    for task in matrix.chosen(config, "tasks"):
        definition = config["tasks"][task]
        name = definition.get("lm_eval", task)
        place = origins.at("tasks", task)
        folders = task_files.folders(definition.get("include"), library)
        if "include" in definition and not Path(definition["include"]).is_dir():
            raise InputError(f"{place}.include: no such directory: {definition['include']}")
        if not folders or (library is None and "include" not in definition):
            # lm-eval is not installed yet; a run checks again once it is.
            continue
        path = task_files.find(name, folders)
        if path is None:
            if library is None:
                continue
            raise InputError(f"{place}: {task_files.not_a_task(name, folders)}")
        if task in trained and task_files.load(path).get("training_split") is None:
            raise InputError(
                f"{place}: lm-eval's task {name!r} has no training split, so no patch can be "
                f"trained for it ({path.name} sets no training_split)"
            )


def check_references(
    config: Config,
    origins: KeyOrigins,
    *,
    exhibits: Registry,
    task_library: Path | None = None,
    device_limit: int | None = None,
) -> None:
    """Check everything that the schema cannot, after defaults are set and chains expanded.

    Raises:
        InputError: for the first mistake, with its file and key.

    """
    _check_selection(config, origins)
    _check_corpora(config, origins)
    _check_evolutions(config, origins)
    model_checks.check_models(config, origins)
    _check_methods(config, origins)
    _check_imported(config, origins)
    _check_arms(config, origins)
    check_tasks(config, task_library, origins)
    _check_merged(config, origins)
    _check_scoring(config, origins)
    _check_chat(config, origins)
    _check_exhibits(config, exhibits, origins)
    device_checks.check(config, device_limit, origins)
