"""Files with random dates: the run says so, nothing is lost, and the next run has nothing to do."""

import os
import time
from pathlib import Path

import pytest
from attacks.storm import Storm
from conftest import MINUTE, Checkout, copy_state, make_checkout, use_stand_ins

pytestmark = pytest.mark.slow

CONFIG = ("--configfile", MINUTE)
SCORES = "results/scores/tiny/base/demo_yes_no.json"
YEAR = 365 * 86400.0


@pytest.fixture(scope="module")
def made_by_stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    study = make_checkout(tmp_path_factory.mktemp("skew") / "checkout")
    use_stand_ins(study)
    study.complete(SCORES, *CONFIG)
    return study


def carriers(study: Checkout) -> list[Path]:
    """List the files whose dates Snakemake compares: results, or the stamps of directories."""
    return sorted(
        path
        for path in (study.directory / "results").rglob("*")
        if path.name == ".snakemake_timestamp"
        or (path.suffix in (".json", ".jsonl") and not path.name.startswith("."))
    )


def test_dates_lose_nothing(made_by_stand_ins: Checkout, tmp_path: Path, storm: Storm) -> None:
    for number, trial in enumerate(storm.trials("skew", 4)):
        with trial:
            study = copy_state(made_by_stand_ins, tmp_path / f"copy{number}")
            outputs = {path.relative_to(study.directory) for path in carriers(study)}
            changed = trial.random.sample(carriers(study), trial.random.randint(1, 4))
            shifts = [trial.random.choice((-30, -1, -0.01, 0.001, 1, 30)) * YEAR for _ in changed]
            for path, shift in zip(changed, shifts, strict=True):
                os.utime(path, times=(time.time() + shift,) * 2)
            names = [str(path.relative_to(study.directory)) for path in changed]
            trial.describe(f"{names} by {shifts} s")
            first = study.run("--cores", "2", SCORES, *CONFIG)
            assert first.returncode == 0, first.stdout[-3000:]
            again = study.run("--cores", "2", SCORES, *CONFIG)
            assert "Nothing to be done" in trial.output(again.stdout)
            assert "future" not in again.stdout
            if any(shift > 0 for shift in shifts):
                assert "dated in the future" in trial.output(first.stdout)
            missing = [str(path) for path in outputs if not (study.directory / path).exists()]
            assert missing == []
