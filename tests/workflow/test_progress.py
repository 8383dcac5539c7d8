"""What a run says of how far it is, and how it ends."""

import re

from conftest import Checkout, use_stand_ins

STUDY = "tests/studies/minute.yaml"


def test_a_run_says_how_far_it_is(checkout: Checkout) -> None:
    use_stand_ins(checkout)
    versions = ["results/models/tiny/first", "results/models/tiny/second"]
    said = checkout.complete(*versions, "--configfile", STUDY)
    lines = re.findall(r"After \d+ s: (.*)", said)
    assert lines[0].count("of") == len(lines[0].split(", "))
    assert "evolve 1 of 2" in lines
    assert re.search(r"Done in \d+ s\. Look at results/report\.html", said)


def test_a_failed_run_points_to_the_logs(checkout: Checkout) -> None:
    use_stand_ins(checkout)
    # The stand-in of scoring leaves a result that is none.
    done = checkout.run("--cores", "2", "results/scores.csv", "--configfile", STUDY)
    assert done.returncode != 0
    failure = "Failed: collect_scores (results/scores.csv); why: logs/collect_scores.log"
    assert failure in done.stdout
    assert re.search(r"goes on from here. Everything is in [^\[]*\.snakemake\.log", done.stdout)
    assert "Done in" not in done.stdout


def test_a_dry_run_says_nothing_of_it(checkout: Checkout) -> None:
    use_stand_ins(checkout)
    done = checkout.run("--dry-run", "--configfile", STUDY)
    assert "Done in" not in done.stdout
    assert "After " not in done.stdout
