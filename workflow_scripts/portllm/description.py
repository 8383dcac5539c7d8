"""A study in words, for its report."""

from typing import Any

from portllm import study


def _arm_text(name: str, arm: dict[str, Any]) -> str:
    applied_to = arm["applied_to"]
    versions = applied_to if isinstance(applied_to, str) else ", ".join(applied_to)
    on = {study.ALL: "all versions", study.LATER: "later versions"}.get(versions, versions)
    if arm["trained_on"] == study.NONE:
        return f"{name} (no patch, on {on})"
    trained_on = "the same version" if arm["trained_on"] == study.SAME else arm["trained_on"]
    method = "" if arm["method"] == "direct" else f", method {arm['method']}"
    return f"{name} (trained on {trained_on}, applied to {on}{method})"


def _source_text(source: dict[str, Any]) -> str:
    if "from_scratch" in source:
        return "trained from scratch"
    where = source.get("hub") or source["path"]
    return f"{where} at {source['revision'][:12]}" if "revision" in source else where


def described(config: study.Config) -> dict[str, list[str]]:
    """What a study runs, in words: models, evolutions, tasks, arms, seeds, what is brought.

    A study of imported scores alone runs nothing: what these are of, the report says.
    """
    obtained = [
        f"{model} {version} ({_source_text(source)})"
        for model in study.chosen(config, "models")
        for version, source in study.sources(config, model).items()
    ]
    evolved = [
        f"{name} ({definition['from']} continued on {definition['corpus']})"
        for name, definition in config["evolutions"].items()
        if any(name in study.evolutions(config, model) for model in study.chosen(config, "models"))
    ]
    brought = [f"{patch.task} for {patch.model}" for patch in study.existing_patches(config)]
    seeds = [str(seed) for seed in config["study"]["seeds"]]
    return {
        "Models": obtained,
        "Updates": evolved,
        "Versions": [],
        "Patches brought": brought,
        "Results made elsewhere": [
            f"{name} ({source.get('origin', source['directory'])})"
            for name, source in config["imported"].items()
        ],
        "Tasks": study.chosen(config, "tasks"),
        "Arms": [_arm_text(name, config["arms"][name]) for name in study.chosen(config, "arms")],
        "Seeds": seeds if study.chosen(config, "models") else [],
    }


def report_settings(config: study.Config) -> dict[str, Any]:
    """What the report needs: the study in words, and the kinds of its tables and figures."""
    return {
        "study": {"title": config["title"], "parts": described(config)},
        **{
            kind: {name: settings["kind"] for name, settings in config[kind].items()}
            for kind in ("tables", "figures")
        },
    }
