"""What a run reports: a line for each change, failures with their logs, and where results are."""

import re

import pytest
from conftest import Checkout, use_stand_ins

STUDY = "tests/studies/minute.yaml"
VERSIONS = ("results/models/tiny/first", "results/models/tiny/second")
TIME = r"\d\d:\d\d:\d\d"


def run(checkout: Checkout, *arguments: str) -> str:
    use_stand_ins(checkout)
    return checkout.complete(*arguments, "--configfile", STUDY)


def test_a_run_reports_each_change_in_one_line(checkout: Checkout) -> None:
    output = run(checkout, *VERSIONS)
    lines = re.findall(rf"^{TIME} (\[ *\d+/\d+\] .*)$", output, re.MULTILINE)
    assert lines[0].startswith("[0/")
    total = int(re.search(r"/(\d+)\]", lines[0])[1])
    # A start and an end of each job.
    assert len(lines) == 2 * total
    assert any("start evolve tiny/second" in line for line in lines)
    last = rf"\[{total}/{total}\] done  evolve tiny/second in .* s; .* s elapsed"
    assert re.fullmatch(last, lines[-1])
    # Snakemake's own report of each job is in its log file only.
    assert "rule evolve:" not in output
    assert "Select jobs" not in output
    (log,) = (checkout.directory / ".snakemake/log").iterdir()
    assert "rule evolve:" in log.read_text()
    assert "start evolve" in log.read_text()


def test_snakemakes_own_options_change_how_much_is_shown(checkout: Checkout) -> None:
    quiet = run(checkout, VERSIONS[0], "--quiet")
    assert "start " not in quiet
    full = checkout.complete(VERSIONS[1], "--configfile", STUDY, "--printshellcmds")
    assert "rule evolve:" in full
    assert "evolve.py" in full


@pytest.mark.parametrize(
    ("targets", "results"),
    [
        (["results/models/tiny/first"], "results/models/tiny"),
        (["results/scores/tiny/first/demo_yes_no.json"], "results/scores"),
    ],
)
def test_the_end_names_only_what_was_made(
    checkout: Checkout, targets: list[str], results: str
) -> None:
    output = run(checkout, *targets)
    assert re.search(rf"^Finished \d+ jobs in [\d.]+ s\. Results: {results}$", output, re.MULTILINE)


def test_a_failed_run_points_to_the_logs(checkout: Checkout) -> None:
    use_stand_ins(checkout)
    # Scoring's stand-in leaves results that cannot be collected.
    done = checkout.run("--cores", "2", "results/scores.csv", "--configfile", STUDY)
    assert done.returncode != 0
    lines = done.stdout.splitlines()
    (at_once,) = (line for line in lines if "FAILED" in line)
    assert re.fullmatch(
        rf"{TIME} \[ *\d+/\d+\] FAILED collect_scores; log: logs/collect_scores\.log", at_once
    )
    assert "Failed: collect_scores; log: logs/collect_scores.log" in lines
    assert "Rerun the same command to resume." in lines
    assert "Finished " not in done.stdout


def test_a_dry_run_lists_jobs_and_reports_no_progress(checkout: Checkout) -> None:
    use_stand_ins(checkout)
    done = checkout.run("--dry-run", "--configfile", STUDY)
    assert "rule evolve:" in done.stdout
    assert "Finished " not in done.stdout
    assert "elapsed" not in done.stdout
