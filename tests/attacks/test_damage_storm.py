"""Random damage to the files of a finished study is named and made again by the same command."""

import random
import re
from pathlib import Path

import pytest
from attacks.storm import Storm, Trial
from conftest import MINUTE, Checkout, copy_state

pytestmark = pytest.mark.slow

CONFIG = ("--configfile", MINUTE)
AT_ONCE = 8


def result_files(results: Path) -> list[Path]:
    """List the files that a study has made, without what Snakemake and its runs keep."""
    return sorted(
        path
        for path in results.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.parts[-3:])
    )


def damage(path: Path, others: list[Path], draw: random.Random) -> str:
    """Damage a file; return what was done."""
    content = path.read_bytes()
    ways = ["delete", "empty", "cut", "flip"]
    same_kind = [
        other for other in others if other.suffix == path.suffix and other.read_bytes() != content
    ]
    way = draw.choice([*ways, "swap"] if same_kind else ways)
    if way == "delete":
        path.unlink()
    elif way == "empty":
        path.write_bytes(b"")
    elif way == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif way == "flip":
        place = draw.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    else:
        path.write_bytes(draw.choice(same_kind).read_bytes())
    return way


def is_named(path: Path, output: str) -> bool:
    """Whether a run names a file, its directory or the file that it belongs to as damaged."""
    named = map(Path, re.findall(r"(\S+) is (?:damaged|missing)", output))
    stem = path.name.partition(".")[0]
    return any(
        place in (path, *path.parents)
        or (place.parent == path.parent and place.name.partition(".")[0] == stem)
        for place in named
    )


def attack(study: Checkout, trials: list[Trial], pool: list[Path]) -> dict[int, Path]:
    """Damage one file for each trial; return their paths in the study."""
    damaged = {}
    for number, trial in enumerate(trials):
        left = [path for path in pool if path not in damaged.values()]
        path = trial.random.choice(left)
        damaged[number] = path
        names = [other for other in left if other != path]
        with_directory = [study.directory / other for other in names]
        way = damage(study.directory / path, with_directory, trial.random)
        trial.describe(f"{way} {path}")
    return damaged


def groups(trials: list[Trial]) -> list[list[Trial]]:
    return [trials[start : start + AT_ONCE] for start in range(0, len(trials), AT_ONCE)]


def test_damage_is_named_before_work(minute_study: Checkout, tmp_path: Path, storm: Storm) -> None:
    pool = [
        path.relative_to(minute_study.directory)
        for path in result_files(minute_study.directory / "results")
    ]
    for number, trials in enumerate(groups([*storm.trials("damage", 4 * AT_ONCE)])):
        study = copy_state(minute_study, tmp_path / f"copy{number}")
        damaged = attack(study, trials, pool)
        done = study.run("--dry-run", *CONFIG)
        for place, trial in enumerate(trials):
            with trial:
                trial.output(done.stdout)
                assert done.returncode == 0, done.stdout[-3000:]
                assert is_named(damaged[place], done.stdout), done.stdout[:3000]


def test_damaged_tables_are_made_again(
    minute_study: Checkout, tmp_path: Path, storm: Storm
) -> None:
    # What is made in seconds. tests/integration and test_damage.py train again.
    folders = ("tables", "figures")
    pool = [
        path.relative_to(minute_study.directory)
        for folder in folders
        for path in result_files(minute_study.directory / "results" / folder)
    ]
    pool.append(Path("results/scores.csv"))
    texts = [path for path in pool if path.suffix in (".csv", ".md", ".tex")]
    for number, trials in enumerate(groups([*storm.trials("damage", AT_ONCE)])):
        study = copy_state(minute_study, tmp_path / f"copy{number}")
        damaged = attack(study, trials, pool)
        done = study.run("--cores", "2", *CONFIG)
        after = study.run("--cores", "2", *CONFIG)
        for place, trial in enumerate(trials):
            with trial:
                trial.output(done.stdout)
                assert done.returncode == 0, done.stdout[-3000:]
                assert is_named(damaged[place], done.stdout), done.stdout[:3000]
                assert (study.directory / damaged[place]).exists()
                for path in texts:
                    before = (minute_study.directory / path).read_bytes()
                    assert (study.directory / path).read_bytes() == before, path
                assert "Nothing to be done" in trial.output(after.stdout)
