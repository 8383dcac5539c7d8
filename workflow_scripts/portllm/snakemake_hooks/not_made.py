"""Name what a failed run has not made and why, and set outdated tables aside."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portllm.snakemake_hooks.placement import Placement
from portllm.study.matrix import NONE, Cell

LAST_BYTES = 65_536
"""How much of the end of a log is searched for the reason of a failure."""
MOST_LINES = 40
"""Lines of cells that are shown."""
OUTDATED = "outdated"
"""Directory below the results for tables, figures and reports that a failed run has not renewed."""
PRESENTING = ("collect_scores", "make_table", "make_figure", "make_report")
"""The rules that make them."""

_REASON = re.compile(r"(?:error: |\d\d:\d\d:\d\d ERROR \S+: )(.+)")


def reason(logs: Iterable[Path]) -> str:
    """Return why a job failed, from its logs: the last error, or else the last line."""
    lines: list[str] = []
    for log in logs:
        try:
            with log.open("rb") as file:
                file.seek(max(0, log.stat().st_size - LAST_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            continue
        lines += [line.strip() for line in text.splitlines() if line.strip()]
    errors = [match[1] for line in lines if (match := _REASON.match(line))]
    return (errors or lines or ["it left no log"])[-1]


def cell_name(cell: Cell) -> str:
    """Name a cell of a scoring job by its patch."""
    if cell.trained_on == NONE:
        return "un-patched"
    method = f" {cell.method}" if cell.method != NONE else ""
    return f"patch of {cell.trained_on}{method} seed {cell.seed}"


@dataclass(frozen=True)
class FailedRun:
    """The jobs of a failed run.

    Attributes:
        dag: Snakemake's graph of jobs.
        failed: the jobs that failed.
        name_in_run: gives a rule's name in the run, which differs for the rules of a module.
    """

    dag: Any
    failed: Sequence[Any]
    name_in_run: Callable[[str], str] = str

    def missing_cells(self, cells_by_job: Mapping[tuple[str, ...], Iterable[Cell]]) -> list[str]:
        """List the cells that were not scored because of each failed job, a line per scoring job.

        Args:
            cells_by_job: the cells of each scoring job, by model, version and task.
        """
        lines: list[str] = []
        listed: set[Any] = set()
        for failed in self.failed:
            blocked = [
                job
                for job in self.dag.bfs(self.dag.depending, failed)
                if job.rule.name == self.name_in_run("score")
                and self.dag.needrun(job)
                and job not in listed
            ]
            if not blocked:
                continue
            listed |= set(blocked)
            why = reason(map(Path, failed.log))
            name = "/".join(failed.wildcards_dict.values())
            lines.append(f"Not scored, because {failed.rule.name} {name} failed ({why}):")
            for job in blocked:
                key = tuple(job.wildcards_dict[part] for part in ("model", "applied_to", "task"))
                lines.append(f"  {'/'.join(key)}: {', '.join(map(cell_name, cells_by_job[key]))}")
        more = len(lines) - MOST_LINES
        return lines if more <= 0 else [*lines[:MOST_LINES], f"  … and {more} more lines"]

    def set_outdated_aside(self, results: Path) -> str | None:
        """Move tables, figures, scores and reports that the run should have renewed.

        Returns:
            A message; None if there are none.
        """
        rules = set(map(self.name_in_run, PRESENTING))
        jobs = [job for job in self.dag.needrun_jobs() if job.rule.name in rules]
        outputs = [path for job in jobs for path in map(Path, job.output) if path.is_file()]
        outdated = [path for path in outputs if path.is_relative_to(results)]
        for path in outdated:
            aside = results / OUTDATED / path.relative_to(results)
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.replace(aside)
        if not outdated:
            return None
        names = ", ".join(map(str, outdated[:3])) + (", …" if len(outdated) > 3 else "")
        return f"Moved to {results / OUTDATED}, because they are from an earlier run: {names}"


def report(
    workflow: Any, place: Placement, cells_by_job: Mapping[tuple[str, ...], Iterable[Cell]]
) -> list[str]:
    """Set outdated results of a failed run aside; return what to report at its end.

    Args:
        workflow: Snakemake's workflow.
        place: where it is.
        cells_by_job: the cells of each scoring job, by model, version and task.
    """
    failed = sorted(workflow.scheduler.failed, key=str)
    run = FailedRun(workflow.dag, failed, place.name_in_run)
    moved = run.set_outdated_aside(place.results)
    return [*run.missing_cells(cells_by_job), *([moved] if moved else [])]


def is_set_aside(output: Path, results: Path) -> bool:
    """Whether a failed run has moved a result."""
    return (results / OUTDATED / output.relative_to(results)).exists()


def remove_renewed(results: Path) -> None:
    """Remove outdated files that have been made again."""
    outdated = results / OUTDATED
    for path in sorted(outdated.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif (results / path.relative_to(outdated)).exists():
            path.unlink()
    if outdated.is_dir() and not any(outdated.iterdir()):
        outdated.rmdir()
