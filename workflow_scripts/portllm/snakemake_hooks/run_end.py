"""Check at the end of a run that everything that was requested is there and up to date.

Snakemake checks each output when its job ends, and not again. A result that is deleted, damaged or
outdated later in the run would go unnoticed until the next start. With this check, status 0 means
that a rerun of the same command finds nothing to do.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from snakemake.persistence.file import FilePersistence

from portllm.snakemake_hooks import not_made
from portllm.training import finished_results


def attend(
    workflow: Any,
    logger: logging.Logger,
    results: Path,
    damaged: Callable[[], Mapping[Path, str]],
    has_begun: Callable[[], bool],
) -> None:
    """Check the end of a workflow's run. Call this where the workflow is defined.

    Args:
        workflow: Snakemake's workflow, of the process that runs it.
        logger: where messages go.
        results: the directory of results.
        damaged: finds damaged results, with a description of the damage.
        has_begun: whether the run has taken the results, as no dry run and no `plan` does.
    """
    execute = workflow.execute

    def execute_and_check(**settings: Any) -> None:
        on_success = workflow._onsuccess
        is_checked = False

        def check() -> None:
            nonlocal is_checked
            is_checked = True
            if not (has_begun() and makes_outputs(workflow)):
                return
            outdated = unfinished(workflow)
            # Snakemake's reason comes first, and wins where an output is missing.
            problems = {**outdated, **damaged_outputs(workflow, damaged), **outdated}
            if problems:
                logger.error(f"error: {message(problems)}")
                sys.exit(1)
            not_made.remove_renewed(results)

        def check_and_report(log: str) -> None:
            check()
            on_success(log)

        workflow._onsuccess = check_and_report
        try:
            execute(**settings)
            # With --no-hooks, Snakemake does not call it. Without jobs, there is nothing to check.
            if not is_checked and len(workflow.dag):
                check()
        finally:
            if has_begun():
                discard_accepted(results)

    workflow.execute = execute_and_check


def makes_outputs(workflow: Any) -> bool:
    """Whether the run makes what was requested before it ends."""
    return not (workflow.touch or workflow.remote_execution_settings.immediate_submit)


def unfinished(workflow: Any) -> dict[str, str]:
    """Map outputs that another run of the same command would make to Snakemake's reason."""
    dag = workflow.dag
    # Ask Snakemake again, as at the start, but for jobs that were forced (--forceall, --forcerun).
    dag.forcerules.clear()
    dag.forcefiles.clear()
    dag._finished.clear()
    dag._reason.clear()
    workflow.async_run(dag.update_needrun())
    needed = [job for job in dag.jobs if dag.needrun(job) and job.output]
    # The others are outdated because of these.
    first = [job for job in needed if not dag.reason(job).updated_input_run] or needed
    return {str(job.output[0]): str(dag.reason(job)).partition("\n")[0] for job in first}


def damaged_outputs(workflow: Any, damaged: Callable[[], Mapping[Path, str]]) -> dict[str, str]:
    """Select the outputs of the run's jobs from damaged results."""
    outputs = {str(path) for job in workflow.dag.jobs for path in job.output}
    return {str(path): problem for path, problem in damaged().items() if str(path) in outputs}


def message(problems: Mapping[str, str]) -> str:
    """Word the error of a run that ended with some outputs missing, outdated or damaged."""
    output, problem = next(iter(problems.items()))
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return (
        f"all jobs ended, but {output} was changed meanwhile ({problem}){more}. Rerun the same "
        "command to make it again"
    )


def discard_accepted(results: Path) -> None:
    """Remove the kept results of trainings whose output Snakemake has accepted."""
    persistence = FilePersistence(nolock=True)
    for work, output in finished_results.kept(results / "checkpoints"):
        # Snakemake marks an output when its job starts, until it has accepted it.
        if output.exists() and not persistence._filter_incomplete_keys([str(output)]):
            finished_results.discard(work)
