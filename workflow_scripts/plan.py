"""Print what a study will cost before anything runs: jobs, disk, memory, and what is cached."""

import argparse
import json
import signal
from dataclasses import replace
from pathlib import Path

from portllm.command_line import run

RESOURCES = Path(__file__).parents[1] / "resources"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--study", type=Path, required=True, help="JSON with the study's config, results and rules"
    )
    parser.add_argument(
        "--summary", type=Path, required=True, help="output of `snakemake --summary`"
    )
    return parser.parse_args()


def main() -> None:
    # End silently when the reader of the output has gone, as in `snakemake plan | head`.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    arguments = parse_arguments()
    from portllm.jobs import devices
    from portllm.planning import plan_tables
    from portllm.planning.estimates import PricedStudy
    from portllm.planning.known_versions import hub_models
    from portllm.planning.planned_jobs import PlannedRule, read_summary
    from portllm.study import config as configuration
    from portllm.study import custom_code

    study = json.loads(arguments.study.read_text())
    rules = [PlannedRule.from_json(rule) for rule in study["rules"]]
    jobs = read_summary(arguments.summary.read_text().splitlines(), rules)
    priced = PricedStudy(
        study["config"],
        results=Path(study["results"]),
        known=hub_models(RESOURCES / "models"),
        recipes=configuration.recipes(study["config"]),
        known_tasks=json.loads((RESOURCES / "task_sizes.json").read_text()),
        has_devices=study["has_devices"],
    )
    codes = custom_code.of_study(study["config"], RESOURCES)
    gpus = plan_tables.Devices(study["device_count"])
    if (memory := devices.least_memory()) is not None:
        gpus = replace(gpus, memory=memory, source="of this machine")
    for line in plan_tables.plan_text(priced, jobs, rules, codes, gpus):
        print(line)


if __name__ == "__main__":
    run(main)
