"""External result files: the cell that each belongs to, and the files that are left out."""

import json
import math
from pathlib import Path
from typing import Any

import elsewhere
import pandas
import pytest

from portllm.comparison import imported, score_table
from portllm.errors import InputError
from portllm.storage import files
from portllm.study import imported_patterns

KEYS = ["task", "applied_to", "trained_on", "method", "seed"]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    directory = elsewhere.save_all(tmp_path / "elsewhere")
    return {**elsewhere.STUDY, "directory": str(directory), "files": ["**/*.json"], "seed": 1234}


def path_of(settings: dict[str, Any], file: str) -> Path:
    return Path(settings["directory"]) / file


def left_out(result: imported.Imported) -> dict[str, str]:
    rows = result.files[result.files["status"] == imported.LEFT_OUT]
    return dict(zip(rows["file"], rows["reason"], strict=True))


def test_every_file_is_a_cell(settings: dict[str, Any]) -> None:
    result = imported.collect(settings, "theirs")
    table = result.scores
    assert list(table.columns[: len(score_table.COLUMNS)]) == score_table.COLUMNS
    assert set(result.files["status"]) == {imported.USED}
    assert len(result.files) == 2 * (5 + 5 + 4)
    # gsm8k has two metrics.
    assert len(table) == 3 * (5 + 5 + 4)
    cells = {tuple(row) for row in table[KEYS].to_numpy().tolist()}
    assert ("boolq", "third", "none", "none", "none") in cells
    assert ("boolq", "third", "base", "direct", "42") in cells
    assert ("gsm8k", "third", "third", "direct", "42") in cells
    assert ("gsm8k", "third", "second", "direct", "42") not in cells
    row = table[(table["applied_to"] == "third") & (table["trained_on"] == "base")].iloc[0]
    assert row["value"] == pytest.approx(0.81)
    assert row["stderr"] == pytest.approx(math.sqrt(0.81 * 0.19 / 199))
    assert row["n"] == 200
    assert row["file"] == "patched/boolq_42_t0/results_2026-06-04T10-00-00.5.json"


def test_both_forms_of_model_args() -> None:
    known = {"pretrained": "/a/b=c", "peft": "/p"}
    assert imported_patterns.arguments("pretrained=/a/b=c,peft=/p") == known
    assert imported_patterns.arguments(known) == known
    assert imported_patterns.arguments(None) == {}


def test_repetitions_are_seeds_of_un_patched_versions_too(settings: dict[str, Any]) -> None:
    cell = {"match": {"path": r"^rep_(?P<seed>\d)/v(?P<applied_to>\d)/"}, "trained_on": "none"}
    settings |= {"cells": [cell], "rename": {"seed": {"1": "42", "2": "50"}}}
    for repetition in (1, 2):
        document = elsewhere.result("boolq", 0.5 + repetition / 10, update=1)
        elsewhere.save(path_of(settings, f"rep_{repetition}/v1/results.json"), document)
    table = imported.collect(settings, "theirs").scores
    assert table[["seed", "value"]].to_numpy().tolist() == [["42", 0.6], ["50", 0.7]]


@pytest.mark.parametrize("dated", ["in the file", "in its name"])
def test_the_newest_file_of_a_cell_is_used(settings: dict[str, Any], dated: str) -> None:
    for day, value in (("09", 0.7), ("20", 0.8), ("11", 0.6)):
        document = elsewhere.result("boolq", value, update=1)
        if dated == "in the file":
            # The dates in the names are in the opposite order.
            name = f"results_2026-06-{30 - int(day)}T10-00-00.json"
            document["date"] = 1_780_000_000.5 + 86_400 * int(day)
        else:
            name = f"results_2026-06-{day}T10-00-00.json"
            del document["date"]
        elsewhere.save(path_of(settings, f"bare/v1/again/{name}"), document)
    if dated == "in its name":
        path_of(settings, "bare/v1/boolq/results_2026-06-02T10-00-00.5.json").unlink()
    result = imported.collect(settings, "theirs")
    table = result.scores
    cell = (table["task"] == "boolq") & (table["applied_to"] == "first")
    assert table[cell & (table["trained_on"] == "none")]["value"].tolist() == [0.8]
    older = result.files[result.files["status"] == imported.SUPERSEDED]
    assert len(older) == (3 if dated == "in the file" else 2)
    newest = "10" if dated == "in the file" else "20"
    for reason in older["reason"]:
        assert reason == f"older than bare/v1/again/results_2026-06-{newest}T10-00-00.json"
    assert any(
        "superseded by newer ones" in note for note in imported.notes(result.files, "theirs")
    )


def edited(**changes: Any) -> dict[str, Any]:
    document = elsewhere.result("boolq", 0.5, update=1)
    for part, value in changes.items():
        if value is None:
            del document[part.replace("_", "-")]
        else:
            document[part.replace("_", "-")] = value
    return document


BARE = "bare/v1/odd.json"
UNUSABLE: dict[str, tuple[str, str, str]] = {
    "truncated": (BARE, json.dumps(edited())[:300], "invalid JSON"),
    "empty": (BARE, "", "invalid JSON"),
    "not lm-eval's": (BARE, '{"r": 8}', "not a result file of lm-eval: no key 'results'"),
    "a list": (BARE, "[]", "not a result file of lm-eval"),
    "another task": (
        BARE,
        json.dumps(elsewhere.result("humaneval", 0.5, update=1)),
        "task humaneval is not part of the study",
    ),
    "a task that the path contradicts": (
        "patched/mathematics_42_t0/odd.json",
        json.dumps(elsewhere.result("boolq", 0.5, update=1, patch="/p")),
        "found task boolq, expected gsm8k",
    ),
    "a task that is not in the study": (
        "patched/sst2_42_t0/odd.json",
        json.dumps(elsewhere.result("sst2", 0.5, update=1, patch="/p")),
        "task sst2 is not part of the study",
    ),
    "unknown version": (
        "bare/v9/odd.json",
        json.dumps(edited()),
        "version 9 is not part of the study",
    ),
    "no pattern": ("other/odd.json", json.dumps(edited()), "no entry of `cells` matches"),
    "a patch of an un-patched version": (
        BARE,
        json.dumps(elsewhere.result("boolq", 0.5, update=1, patch="/p")),
        "matched as an un-patched version, but it records an adapter",
    ),
    "no number of items": (BARE, json.dumps(edited(n_samples=None)), "no number of items of boolq"),
    "no scores": (
        BARE,
        json.dumps(edited(results={"boolq": {"alias": "boolq"}})),
        "no scores of boolq",
    ),
    "no number": (
        BARE,
        json.dumps(edited(results={"boolq": {"acc,none": "N/A"}})),
        "found a score of boolq that is not a number",
    ),
    "not finite": (
        BARE,
        json.dumps(edited(results={"boolq": {"acc,none": math.nan}})),
        "found a score of boolq that is not a number",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_file_is_left_out_with_its_reason(settings: dict[str, Any], case: str) -> None:
    file, content, reason = UNUSABLE[case]
    before = imported.collect(settings, "theirs").scores
    path = path_of(settings, file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    result = imported.collect(settings, "theirs")
    pandas.testing.assert_frame_equal(result.scores, before)
    assert list(left_out(result)) == [file]
    assert reason in left_out(result)[file]
    notes = list(imported.notes(result.files, "theirs", "a paper"))
    assert notes[0].startswith("Of 29 result files of theirs (a paper), 28 are used")
    assert any(note.startswith(f"Left out: {file} (") and reason in note for note in notes)


def test_files_in_leave_out_are_left_out(settings: dict[str, Any]) -> None:
    result = imported.collect({**settings, "leave_out": ["patched/boolq*/*"]}, "theirs")
    assert len(left_out(result)) == 5 + 4
    assert set(left_out(result).values()) == {"listed in leave_out"}
    (note,) = [note for note in imported.notes(result.files, "theirs") if "Left out" in note]
    assert note.endswith("and 4 more (listed in leave_out).")


def test_no_usable_file_is_an_error(settings: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=r"theirs: none of 28 files can be used, e\.g\. bare/v0.*: listed in"
    ):
        imported.collect({**settings, "leave_out": ["**/*"]}, "theirs")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"versions": {"boolq": 3.0}}, "task version 2.0 in .*, 3.0 in"),
        ({"n_samples": {"boolq": {"effective": 100}}}, "200 items in .*, 100 in"),
        ({"n_shot": {"boolq": 5}}, "0 few-shot examples in .*, 5 in"),
    ],
)
def test_scores_that_cannot_be_compared_are_errors(
    settings: dict[str, Any], changes: dict[str, Any], difference: str
) -> None:
    document = {**edited(**changes), "date": 1_790_000_000}
    elsewhere.save(path_of(settings, BARE), document)
    with pytest.raises(InputError, match=f"theirs: scores of boolq cannot be .*: {difference}"):
        imported.collect(settings, "theirs")


def test_different_conditions_are_noted(settings: dict[str, Any]) -> None:
    config = {**edited()["config"], "batch_size": 1, "model_dtype": "torch.bfloat16"}
    document = {**edited(config=config), "date": 1_790_000_000}
    del document["lm_eval_version"]
    elsewhere.save(path_of(settings, BARE), document)
    notes = list(imported.notes(imported.collect(settings, "theirs").files, "theirs"))
    assert "Conditions differ: batch size 1 or 64 in boolq." in notes
    assert "Conditions differ: precision bfloat16 or float16 in boolq." in notes
    assert "Conditions differ: lm-eval 0.4.11 or not recorded in boolq." in notes


def test_a_missing_standard_error_stays_missing(settings: dict[str, Any]) -> None:
    values = {"acc,none": 0.5, "acc_stderr,none": "N/A"}
    document = {**edited(results={"boolq": values}), "date": 1_790_000_000}
    elsewhere.save(path_of(settings, BARE), document)
    table = imported.collect(settings, "theirs").scores
    assert table[table["file"] == BARE]["stderr"].isna().tolist() == [True]


def changed(cell: int = 0, **changes: Any) -> dict[str, Any]:
    cells = [dict(entry) for entry in elsewhere.STUDY["cells"]]
    cells[cell] |= changes
    return {"cells": cells}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed(match={"path": "(v"}), r"cells.0.match.path: '\(v' is not a regular expression"),
        (
            changed(match={"path": r"(?P<aplied_to>\d)"}),
            "cells.0.match.path: unknown group 'aplied_to'; nearest: applied_to",
        ),
        (changed(match={"path": "v"}), r"cells.0: no 'applied_to'; expected"),
        (changed(applied_to="base"), "cells.0: found 'applied_to' 2 times, expected once"),
        (
            changed(trained_on="bas"),
            "cells.0.trained_on: found 'bas', expected a version; nearest: base",
        ),
        (changed(1, task="x", match={"path": "x"}), "cells.1: no 'applied_to'"),
        ({"models": ["m", "k"]}, "cells.0: no 'model'"),
        ({"versions": {"base": 0, "other": 0}}, "versions: base and other are both update 0"),
    ],
)
def test_invalid_patterns_are_errors(settings: dict[str, Any], changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        imported_patterns.rules({**settings, **changes})


def test_a_directory_without_matching_files_is_an_error(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"files: no file of .*elsewhere matches \*.jsn"):
        imported_patterns.find_files({**settings, "files": ["*.jsn"]})


def own_result(path: Path, **changes: Any) -> Path:
    """Write a result file of this study: the patch of the first version on the third one."""
    metrics = {"acc,none": {"value": 0.7, "stderr": 0.03, "n": 200}}
    cell = {"trained_on": "first", "method": "direct", "seed": 42, "metrics": metrics}
    document = {
        "names": {"model": "m", "task": "boolq", "applied_to": "third"},
        "parameters": {"few_shot": 0},
        "lm_eval": {"task": "boolq", "version": 2.0},
        "cells": [{**cell, **changes.pop("cell", {})}],
        **changes,
    }
    files.write_json(path, document)
    return path


@pytest.fixture
def reference(settings: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "theirs.csv"
    imported.collect(settings, "theirs").scores.to_csv(path, index=False)
    return path


def test_own_and_imported_scores_are_collected_in_one_table(
    reference: Path, tmp_path: Path
) -> None:
    own = own_result(tmp_path / "own.json")
    table = score_table.collect([own], [reference])
    assert list(table.columns) == score_table.COLUMNS
    assert len(table) == 1 + 3 * 14
    assert table.iloc[0]["trained_on"] == "first"
    table.to_csv(tmp_path / "scores.csv", index=False)
    assert score_table.read(tmp_path / "scores.csv")["seed"].isin(["42", "none"]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": {"trained_on": "third"}}, "two files give the same score, m boolq third third"),
        ({"parameters": {"few_shot": 5}}, "cannot be compared: 5 few-shot examples in .*own.json"),
        ({"lm_eval": {"version": 1.0}}, "cannot be compared: task version 1.0 in .*own"),
    ],
)
def test_own_and_imported_scores_that_conflict_are_errors(
    reference: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    own = own_result(tmp_path / "own.json", **changes)
    with pytest.raises(InputError, match=message):
        score_table.collect([own], [reference])
