"""Which waiting job starts, and on which devices."""

import pytest

from portllm.jobs.queues import Request, assign

FOUR = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("holders", "waiting", "starting"),
    [
        # In the order of arrival, whatever the width.
        ({}, [(1, 2, FOUR), (2, 1, FOUR), (3, 2, FOUR)], {1: ["a", "b"], 2: ["c"]}),
        ({"a": 1, "b": 1}, [(2, 1, FOUR), (3, 2, FOUR)], {2: ["c"]}),
        # Later jobs use what an earlier one does not need, and no more.
        ({"a": 1, "b": 1}, [(2, 3, FOUR), (3, 1, FOUR), (4, 1, FOUR)], {3: ["c"]}),
        ({"a": 1, "b": 1, "c": 3}, [(2, 3, FOUR), (4, 1, FOUR)], {}),
        ({"a": 1, "b": 1}, [(2, 3, FOUR), (3, 2, FOUR), (4, 1, FOUR)], {4: ["c"]}),
        ({"a": 1}, [(2, 4, FOUR), (3, 1, FOUR)], {}),
        # Jobs with other devices wait for nobody.
        (
            {"a": 1},
            [(2, 2, ("a", "b")), (3, 1, ("c",)), (4, 1, ("b", "c", "d"))],
            {3: ["c"], 4: ["d"]},
        ),
        # A device of a job of unknown age counts as held by an earlier one.
        ({"a": 0}, [(5, 2, ("a", "b")), (6, 1, ("b",))], {}),
    ],
)
def test_first_come_first_served_with_backfill(
    holders: dict[str, int],
    waiting: list[tuple[int, int, tuple[str, ...]]],
    starting: dict[int, list[str]],
) -> None:
    requests = [Request(*fields) for fields in waiting]
    assert assign(reversed(requests), holders) == starting
