"""Jobs of a study, read from Snakemake's summary."""

import pytest

from portllm.errors import InputError
from portllm.planning.plan_tables import outdated_rows
from portllm.planning.planned_jobs import PlannedRule, read_summary

RULES = [
    PlannedRule("train_patch", ("results/patches/{model}/{task}/seed{seed,[0-9]+}",), gpu=True),
    PlannedRule("score", ("results/{model}/{task}.json", "results/{model}/{task}.samples.jsonl")),
]
HEADER = "output_file\tdate\trule\tlog-file(s)\tstatus\tplan"


def test_jobs_of_a_summary() -> None:
    lines = [
        HEADER,
        "results/patches/m/a.b/seed1\tdate\ttrain_patch\t-\tok\tno update",
        "results/m/a.b.json\tdate\tscore\t-\tok\tno update",
        "results/m/a.b.samples.jsonl\t-\tscore\t-\tmissing\tupdate pending",
    ]
    patch, score = read_summary(lines, RULES)
    assert dict(patch.wildcards) == {"model": "m", "task": "a.b", "seed": "1"}
    assert patch.cached
    assert dict(score.wildcards) == {"model": "m", "task": "a.b"}
    assert len(score.outputs) == 2
    assert not score.cached


def test_an_outdated_result_has_a_reason() -> None:
    lines = [
        HEADER,
        "results/patches/m/a/seed1\tdate\ttrain_patch\t-\tparams changed\tupdate pending",
        "results/patches/m/b/seed1\tdate\ttrain_patch\t-\tparams changed\tno update",
        "results/m/a.json\tdate\tscore\t-\tok\tupdate pending",
    ]
    jobs = read_summary(lines, RULES)
    assert [job.reason for job in jobs] == ["settings or code changed", "", ""]
    assert outdated_rows(jobs) == [["train_patch", 1, "settings or code changed"]]


def test_no_summary_is_an_error() -> None:
    with pytest.raises(InputError, match="no summary"):
        read_summary(["Error: something"], RULES)
