"""The rows of a plan."""

import pytest

from portllm.planning import plan_tables
from portllm.planning.architectures import UnknownError
from portllm.planning.planned_jobs import PlannedJob, PlannedRule


class Prices:
    """Stands in for a priced study: 1,000 bytes per job, those of unknown models unknown."""

    def disk(self, job: PlannedJob) -> int:
        if dict(job.wildcards)["model"] == "unknown":
            raise UnknownError("unknown")
        return 1000

    def work(self, job: PlannedJob) -> int:
        return 7 * self.disk(job)


def job(rule: str, model: str, *, cached: bool = False) -> PlannedJob:
    return PlannedJob(rule, (("model", model),), (), cached)


RULES = [
    PlannedRule("train_patch", (), gpu=True),
    PlannedRule("merge", (), temporary=True),
    PlannedRule("score", (), gpu=True),
]
JOBS = [
    job("score", "m"),
    job("train_patch", "m", cached=True),
    job("train_patch", "n"),
    job("train_patch", "unknown"),
]


def test_jobs_and_disk_are_counted_by_stage() -> None:
    stages = plan_tables.totals_by_stage(JOBS, RULES, Prices())
    assert [stage.row() for stage in stages] == [
        ["train_patch", 3, 1, 2, 2, "2 kB + ?", "1 kB + ?"],
        ["score", 1, 0, 1, 1, "1 kB", "1 kB"],
    ]


def test_the_largest_work_is_that_of_jobs_to_run() -> None:
    assert plan_tables.largest_work(JOBS, Prices()) == 7000
    assert plan_tables.largest_work(JOBS[1:2], Prices()) == 0
    assert plan_tables.largest_work(JOBS[3:], Prices()) == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (14_500_000_000, "14.5 GB")],
)
def test_bytes_are_in_decimal_units(number: int | None, text: str) -> None:
    assert plan_tables.format_bytes(number) == text
