"""Build the environments that a study's jobs need, before Snakemake chooses the jobs.

Environments are not part of the DAG: changed pins never schedule a job, nor keep one from running.
"""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from portllm.errors import InputError
from portllm.storage import environments
from portllm.storage.environments import State
from portllm.study import matrix

BACKENDS = {"hf": "eval", "vllm": "vllm"}
"""The environment that each scoring backend runs in."""


def required(config: matrix.Config) -> list[str]:
    """List the environments that the jobs of a study need, without Snakemake's own."""
    models = matrix.chosen(config, "models")
    if not models:
        return []
    evolved = any(matrix.evolutions(config, model) for model in models)
    trains = evolved or bool(matrix.trained_tasks(config))
    names = [*(["train"] if trains else []), "eval", BACKENDS[config["scoring"]["backend"]]]
    return list(dict.fromkeys(names))


def build(name: str, checkout: Path, log: Path) -> None:
    """Build an environment, with its output in `log`; raises InputError if that fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        command = ["bash", checkout / "envs" / "make.sh", name]
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
        reason = errors[-1].removeprefix("error: ") if errors else "envs/make.sh failed"
        raise InputError(f"the {name} environment could not be built: {reason}; see {log}")


def outdated_message(name: str, checkout: Path) -> str:
    """Name the command that installs an environment's changed pins."""
    place = "" if checkout.resolve() == Path.cwd() else f" -C {checkout}"
    return (
        f"envs/{name}.txt changed after the {name} environment was built. This run uses the "
        f"installed packages; `make{place} envs` installs the new ones. No finished job is redone."
    )


def prepare(
    names: Iterable[str],
    checkout: Path,
    logs: Path,
    logger: logging.Logger,
    *,
    may_build: bool = True,
) -> bool:
    """Build the missing environments among `names` and warn of those with changed pins.

    Args:
        names: environments to check.
        checkout: directory of the workflow.
        logs: directory of the build logs.
        logger: where messages go.
        may_build: if false, missing environments are only reported.

    Returns:
        Whether an environment was built.

    Raises:
        InputError: a build failed.
    """
    states = {name: environments.state(name, checkout) for name in names}
    for name, state in states.items():
        if state is State.OUTDATED:
            logger.warning(outdated_message(name, checkout))
    missing = [name for name, state in states.items() if state is State.MISSING]
    if missing and not may_build:
        logger.info(
            f"Environments not built yet: {' and '.join(missing)}. The first run builds them."
        )
        return False
    for name in missing:
        log = logs / "environment" / f"{name}.log"
        logger.info(f"Building the {name} environment (once, about a minute); log: {log}")
        build(name, checkout, log)
    return bool(missing)


def attend(
    workflow: Any,
    logger: logging.Logger,
    names: Iterable[str],
    *,
    checkout: Path,
    logs: Path,
    plan: str,
    after_building: Callable[[], None],
) -> None:
    """Prepare the environments `names` before the main process builds the DAG of a run.

    A dry run, the rule `plan` and commands without jobs (--lint, --summary) build nothing.
    `after_building` is called after a build, for checks that need the environment. An InputError of
    a build or of `after_building` ends the process with one line.
    """
    if not workflow.is_main_process:
        return
    own = Path(sys.prefix)
    is_ours = own.resolve() == (checkout / ".venvs" / "workflow").resolve()
    names = [*(["workflow"] if is_ours else []), *names]
    choose_jobs = workflow._prepare_dag

    def prepare_and_choose(*arguments: Any, **settings: Any) -> None:
        # No executor: a command without jobs.
        if workflow.executor_plugin is not None:
            only_plans = set(workflow.dag_settings.targets) == {plan}
            is_dry = workflow.output_settings.dryrun or workflow.touch or only_plans
            try:
                if prepare(names, checkout, logs, logger, may_build=not is_dry):
                    after_building()
            except InputError as error:
                logger.error(f"error: {error}")
                sys.exit(1)
        choose_jobs(*arguments, **settings)

    workflow._prepare_dag = prepare_and_choose
