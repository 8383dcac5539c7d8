"""What the workflow does beyond Snakemake when its jobs run on a cluster.

Snakemake has no hook between the start of a run and the choice of its jobs. So two methods of the
workflow's object are replaced by ones that do more: the one that begins that choice, in the process
that submits jobs, and the one that executes a job, on the cluster's nodes.
"""

import sys
from pathlib import Path
from typing import Any

from snakemake.logging import logger
from snakemake_interface_executor_plugins.settings import ExecMode

from portllm.errors import InputError
from portllm.snakemake_hooks import slurm


def attend(workflow: Any) -> None:
    """Attend to the runs of a workflow on clusters; to be called where it is defined."""
    choose, execute = workflow._prepare_dag, workflow.execute

    def prepare_and_choose(*arguments: Any, **settings: Any) -> None:
        plugin = workflow.executor_plugin
        # There is none where nothing is run, and a local one in a dry run.
        if plugin is not None and not plugin.common_settings.local_exec:
            # Else jobs would get no more threads than the login node has cores: the default
            # profile says `cores: all`, which means this machine's.
            workflow.resource_settings.cores = None
            if plugin.name == "slurm":
                prepare_slurm(workflow)
        choose(*arguments, **settings)

    def execute_and_record(**settings: Any) -> None:
        execute(**settings)
        record_outputs(workflow)

    if workflow.exec_mode == ExecMode.REMOTE:
        workflow.execute = execute_and_record
    else:
        workflow._prepare_dag = prepare_and_choose


def prepare_slurm(workflow: Any) -> None:
    """Wait for the jobs of earlier runs on the same results, and make this run's easy to watch.

    The executor asks before each question how long squeue knows a job that has ended. When the
    controller is down just then, it turns to sacct; without accounting that fails, and the
    executor forgets its jobs and waits for ever. So it is asked once, here, while it answers.
    """
    import snakemake_executor_plugin_slurm as plugin

    results = Path(workflow.pathvars.apply("<results>"))
    try:
        slurm.finish_earlier_jobs(results, logger.info)
    except InputError as error:
        logger.error(f"error: {error}")
        sys.exit(1)
    options = workflow.executor_settings
    options.jobname_prefix = slurm.job_prefix(options.jobname_prefix, results)
    age = plugin.get_min_job_age()
    if age is not None:
        plugin.get_min_job_age = lambda: age


def record_outputs(workflow: Any) -> None:
    """Let the process that did a job write Snakemake's record of how its outputs were made.

    Snakemake leaves that to the process that submitted the job. If that one died meanwhile, nobody
    would notice later that parameters or code have changed since.
    """
    workflow.workflow_settings.exec_mode = ExecMode.DEFAULT
    for job in workflow.dag.finished_jobs:
        workflow.async_run(workflow.persistence.finished(job))
