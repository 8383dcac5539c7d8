"""The command line sets the number of retries, and each attempt requests more resources."""

from conftest import Checkout

STUDY = "tests/studies/minute.yaml"
TRAINING = {"pretrain", "train_patch", "preprocess", "evolve"}
COMPUTING = {*TRAINING, "transplant", "merge", "merge_release", "score"}
FETCHING = {"fetch_model", "fetch_patch", "fetch_update", "make_corpus", "make_task_data"}
MEASURING = {"measure_movement", "measure_norms", "measure_geometry", "measure_loss_slice"}
PRESENTING = {"collect_scores", "make_table", "make_figure", "make_report", "all"}

SHOW_RETRIES = """
include: "Snakefile"
for each in workflow.rules:
    # What the rule itself says; None leaves it to --retries.
    print("retries of", each.name, each._restart_times)
"""


def with_every_rule(checkout: Checkout) -> None:
    """Extend the study by a model, an update and a patch from the hub and a prepared dataset."""
    study = checkout.read(STUDY)
    study["models"]["brought"] = {
        "base": {"hub": "someone/model"},
        "releases": {"later": {"parent": "base", "adapter": {"hub": "someone/update"}}},
        "patches": {"demo_yes_no": {"hub": "someone/patch"}},
        "evolutions": ["first"],
    }
    study["evolutions"]["second"]["preprocess"] = True
    checkout.write(STUDY, study)


def asked(checkout: Checkout, attempt: int) -> dict[tuple[str, str], dict[str, str]]:
    """Return the requests of each job at an attempt, by rule and outputs."""
    done = checkout.run("--dry-run", "--attempt", str(attempt), "--configfile", STUDY)
    assert done.returncode == 0, done.stdout[-4000:]
    jobs: dict[tuple[str, str], dict[str, str]] = {}
    rule = output = ""
    for line in done.stdout.splitlines():
        if line.startswith(("rule ", "localrule ")):
            rule, output = line.split()[1].rstrip(":"), ""
        elif line.startswith("    output: "):
            output = line
        elif line.startswith("    resources: "):
            pairs = line.removeprefix("    resources: ").split(", ")
            jobs[rule, output] = dict(pair.split("=", 1) for pair in pairs)
    return jobs


def test_every_rule_requests_more_at_each_attempt(checkout: Checkout) -> None:
    with_every_rule(checkout)
    first, third = asked(checkout, 1), asked(checkout, 3)
    assert first.keys() == third.keys()
    assert {rule for rule, _ in first} == COMPUTING | FETCHING | MEASURING | PRESENTING
    for (rule, output), resources in first.items():
        if rule in PRESENTING:
            assert "mem_mb" not in resources
            continue
        for name in ("mem_mb", "runtime"):
            assert int(third[rule, output][name]) == 3 * int(resources[name]), (rule, name)
        assert third[rule, output].get("gpu") == resources.get("gpu")


def test_no_rule_sets_retries(checkout: Checkout) -> None:
    (checkout.directory / "retries.smk").write_text(SHOW_RETRIES)
    output = checkout.run("--snakefile", "retries.smk", "--dry-run", "--configfile", STUDY).stdout
    shown = [line.split()[2:] for line in output.splitlines() if line.startswith("retries of ")]
    assert {name for name, _ in shown} >= COMPUTING | FETCHING | MEASURING
    assert {times for _, times in shown} == {"None"}
