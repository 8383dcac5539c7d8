"""Describe a study in words, for its report."""

from typing import Any

from portllm.study import matrix
from portllm.study.exhibits import GROUPS


def _arm_text(name: str, arm: dict[str, Any]) -> str:
    applied_to = arm["applied_to"]
    versions = applied_to if isinstance(applied_to, str) else ", ".join(applied_to)
    on = {matrix.ALL: "all versions", matrix.LATER: "later versions"}.get(versions, versions)
    if arm["trained_on"] == matrix.NONE:
        return f"{name} (no patch, on {on})"
    trained_on = "the same version" if arm["trained_on"] == matrix.SAME else arm["trained_on"]
    method = "" if arm["method"] == "direct" else f", method {arm['method']}"
    return f"{name} (trained on {trained_on}, applied to {on}{method})"


def _source_text(source: dict[str, Any]) -> str:
    if "from_scratch" in source:
        return "trained from scratch"
    if "adapter" in source:
        return f"{source['parent']} updated by {_source_text(source['adapter'])}"
    where = source.get("hub") or source["path"]
    if "subfolder" in source:
        where = f"{where}, folder {source['subfolder']}"
    return f"{where} at {source['revision'][:12]}" if "revision" in source else where


def described(config: matrix.Config) -> dict[str, list[str]]:
    """Describe the models, evolutions, patches, tasks, arms and seeds of a study.

    Empty lists are filled in by the report, from the imported scores.
    """
    obtained = [
        f"{model} {version} ({_source_text(source)})"
        for model in matrix.chosen(config, "models")
        for version, source in matrix.sources(config, model).items()
    ]
    evolved = [
        f"{name} ({definition['from']} continued on {definition['corpus']})"
        for name, definition in config["evolutions"].items()
        if any(
            name in matrix.evolutions(config, model) for model in matrix.chosen(config, "models")
        )
    ]
    existing = [f"{patch.task} for {patch.model}" for patch in matrix.existing_patches(config)]
    seeds = [str(seed) for seed in config["study"]["seeds"]]
    return {
        "Models": obtained,
        "Updates": evolved,
        "Versions": [],
        "Existing patches": existing,
        "Imported scores": [
            f"{name} ({source.get('origin', source['directory'])})"
            for name, source in config["imported"].items()
        ],
        "Tasks": matrix.chosen(config, "tasks"),
        "Arms": [_arm_text(name, config["arms"][name]) for name in matrix.chosen(config, "arms")],
        "Seeds": seeds if matrix.chosen(config, "models") else [],
    }


def report_settings(config: matrix.Config) -> dict[str, Any]:
    """Return what the report needs: the description, and kinds and captions of what it shows."""
    return {
        "study": {"title": config["title"], "parts": described(config)},
        **{
            group: {
                name: {"kind": settings["kind"], "caption": settings["caption"]}
                for name, settings in config[group].items()
            }
            for group in GROUPS
        },
    }


def unpinned_sources(config: matrix.Config) -> list[str]:
    """Return a line that names what the study takes from the hub without a revision, if any."""
    if config["hub_mirror"]:
        return []
    sources = {
        f"models.{model}.{version}": source.get("adapter", source)
        for model in matrix.chosen(config, "models")
        for version, source in matrix.sources(config, model).items()
    }
    for name, corpus in config["corpora"].items():
        sources |= {
            f"corpora.{name}.sources[{index}]": source
            for index, source in enumerate(corpus["sources"])
        }
    patches = matrix.existing_patches(config).items()
    sources |= {f"models.{p.model}.patches.{p.task}": source for p, source in patches}
    names = [
        f"{place} ({source['hub']})"
        for place, source in sources.items()
        if "hub" in source and not source.get("revision")
    ]
    if not names:
        return []
    return [
        f"no revision for {', '.join(names)}: the hub may have other content when it is fetched "
        "again. Set the `revision` that the manifest records"
    ]
