"""Storms on the shared cache: no damaged entry is used unnoticed, and nothing is left behind."""

import json
import os
import subprocess
from pathlib import Path

from attacks.storm import Storm
from conftest import PROJECT, SNAKEMAKE

PROGRAM = Path(__file__).with_name("cache_storm.py")
RUNS = 150


def test_checkouts_share_a_cache_that_is_damaged_while_runs_are_killed(
    storm: Storm, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            SNAKEMAKE.with_name("python"),
            PROGRAM,
            tmp_path,
            str(storm.seed),
            str(RUNS * storm.rounds),
        ],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "workflow_scripts")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for kind in ("kill", "damage"):
        storm.counts[kind, "trials"] += result[kind]
        storm.counts[kind, "held"] += result[kind]
    # Which of them broke it is not known.
    storm.counts["damage", "held"] -= len(result["broken"])
    storm.counts["damage", "broken"] += len(result["broken"])
    storm.broken += result["broken"]
    assert min(result["kill"], result["damage"]) > RUNS // 10
