"""Extend Snakemake for runs on a cluster.

Snakemake has no hook between the start of a run and the selection of its jobs. So two methods of
the workflow object are wrapped: the one that starts the selection, in the process that submits
jobs, and the one that executes a job, on the cluster's nodes.
"""

import os
import sys
from pathlib import Path
from typing import Any

from snakemake.logging import logger
from snakemake_interface_executor_plugins.settings import ExecMode

from portllm.errors import InputError
from portllm.snakemake_hooks import slurm


def attend(workflow: Any, results: Path) -> None:
    """Install the extensions; call this from the Snakefile."""
    select_jobs, execute = workflow._prepare_dag, workflow.execute

    def prepare_and_select(*arguments: Any, **settings: Any) -> None:
        plugin = workflow.executor_plugin
        # There is no plugin for commands without jobs, and a local one in a dry run.
        if plugin is not None and not plugin.common_settings.local_exec:
            # The default profile sets `cores: all`, which would limit the threads of jobs to the
            # cores of the login node.
            workflow.resource_settings.cores = None
            if plugin.name == "slurm":
                prepare_slurm(workflow, results)
        select_jobs(*arguments, **settings)

    def execute_and_record(**settings: Any) -> None:
        execute(**settings)
        record_outputs(workflow)

    if workflow.exec_mode == ExecMode.REMOTE:
        workflow.execute = execute_and_record
    else:
        workflow._prepare_dag = prepare_and_select


def prepare_slurm(workflow: Any, results: Path) -> None:
    """Wait for the jobs of earlier runs on the same results, and prepare to submit new ones.

    Before each status check, the executor asks the controller for MinJobAge. If the controller is
    down at that moment, the executor switches to sacct. Without accounting that fails, and it waits
    forever for jobs that it has forgotten. So the value is read once, here.
    """
    import snakemake_executor_plugin_slurm as plugin

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
    plugin.get_submit_command = slurm.without_credentials(plugin.get_submit_command, os.environ)


def record_outputs(workflow: Any) -> None:
    """Write Snakemake's metadata of a job's outputs from the process that ran the job.

    Snakemake leaves this to the process that submitted the job. If that one was killed, later
    changes of parameters or code would go unnoticed.
    """
    workflow.workflow_settings.exec_mode = ExecMode.DEFAULT
    for job in workflow.dag.finished_jobs:
        workflow.async_run(workflow.persistence.finished(job))
