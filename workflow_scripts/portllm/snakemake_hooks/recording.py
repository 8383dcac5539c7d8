"""Record the outputs of each job in the manifest of the results when the job has finished.

Snakemake announces starts and ends of jobs in its log, so `Recorder` is a log handler.
"""

import logging
from contextlib import suppress
from pathlib import Path

from snakemake_interface_logger_plugins.common import LogEvent

from portllm.errors import InputError
from portllm.storage import integrity, results_manifest
from portllm.storage.results_manifest import ResultsManifest


class Recorder(logging.Handler):
    """Log handler that hashes the outputs of each finished job."""

    def __init__(self, results: Path) -> None:
        super().__init__()
        self._results = results
        self._outputs: dict[int, list[Path]] = {}
        self._manifest: ResultsManifest | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Act on the start and the end of a job."""
        match getattr(record, "event", None):
            case LogEvent.JOB_INFO:
                # Snakemake's log marks files that a job updates.
                names = (name.removesuffix(" (update)") for name in record.output)
                outputs = [path for path in map(Path, names) if self._is_result(path)]
                self._outputs[record.jobid] = outputs
                # If this run is killed, the job may still finish on a cluster.
                for output in outputs:
                    self._append(output, {})
            case LogEvent.JOB_FINISHED:
                for output in self._outputs.pop(record.job_id, []):
                    # Recorded by the next start if it cannot be now.
                    with suppress(InputError, OSError):
                        self._append(output, results_manifest.describe(output))

    def _is_result(self, path: Path) -> bool:
        if not path.is_relative_to(self._results):
            return False
        return path.relative_to(self._results).parts[0] not in integrity.NOT_ARTEFACTS

    def _append(self, output: Path, described: results_manifest.Output) -> None:
        # Read here, after the start of the run has written it.
        self._manifest = self._manifest or ResultsManifest(self._results)
        self._manifest.append(output, described)
