"""Count attacks: trials, held, broken and tracebacks by class, summed up at the end of pytest.

A test asks for the fixture `storm` and attacks in a loop:

    def test_a_mutated_adapter_is_an_error(storm: Storm) -> None:
        for trial in storm.trials("fuzz", 40):
            with trial:
                trial.describe("lora_alpha: NaN")
                assert is_one_line(trial.output(run(mutate(trial.random))))

A trial whose block raises has broken the product. It is recorded, the next one starts, and the test
fails at its end with all of them. Draw from `trial.random` alone, so that a seed gives the same
trials in every run. A test in tests/attacks without the fixture counts as a trial of class "case".
"""

import random
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pytest

DIRECTORY = Path(__file__).parent
FIXED = "case"
PROPERTY = "attacks"
EVENTS = ("trials", "held", "broken", "tracebacks")
SEED = 11


@dataclass
class Trial:
    """One attack. Its random numbers depend on the seed, the test and the trial's number."""

    kind: str
    name: str
    random: random.Random
    storm: "Storm"
    description: str = ""

    def describe(self, text: str) -> None:
        """Name what this trial does, for the message if it breaks something."""
        self.description = text

    def output(self, text: str) -> str:
        """Return the output of a program; a traceback in it breaks the trial."""
        if "Traceback (most recent call last)" in text:
            self.storm.counts[self.kind, "tracebacks"] += 1
            raise AssertionError(f"a traceback:\n{text[-3000:]}")
        return text

    def __enter__(self) -> "Trial":
        self.storm.counts[self.kind, "trials"] += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        if error is not None and not isinstance(error, Exception):
            return False  # Ctrl-C, pytest.skip
        self.storm.counts[self.kind, "held" if error is None else "broken"] += 1
        if error is not None:
            what = f" ({self.description})" if self.description else ""
            self.storm.broken.append(f"{self.name}{what}: {type(error).__name__}: {error}")
        return True


@dataclass
class Storm:
    """The trials of one test."""

    name: str
    seed: int
    rounds: int
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def trials(self, kind: str, count: int) -> Iterator[Trial]:
        """Yield the trials of a class.

        Args:
            kind: Class in the summary: "kill", "damage", "skew" or "fuzz".
            count: Number of trials in CI. `--attack-rounds` multiplies it.
        """
        for number in range(self.rounds * count):
            name = f"trial {number} of {self.name}, seed {self.seed}"
            yield Trial(kind, name, random.Random(name), self)


@pytest.fixture
def storm(request: pytest.FixtureRequest) -> Storm:
    """Counts the trials of a test, which fails at its end if one of them broke something."""
    options = request.config.option
    name = request.node.nodeid.rpartition("/")[2]
    return Storm(name, options.attack_seed, options.attack_rounds)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Generator[None, None, None]:
    """Fail a test whose attacks broke something, and add its counts to its report."""
    if DIRECTORY not in item.path.parents:
        return (yield)
    attacks = item.funcargs.get("storm")
    counts = Counter() if attacks is None else attacks.counts
    event = "broken"
    try:
        yield
        event = "held"
    except pytest.skip.Exception:
        event = ""
        raise
    finally:
        if attacks is None and event:
            counts.update({(FIXED, "trials"): 1, (FIXED, event): 1})
        # As JSON can hold it: pytest-xdist sends reports from its processes.
        item.user_properties.append((PROPERTY, [[*key, count] for key, count in counts.items()]))
    if attacks is not None and attacks.broken:
        shown = "\n\n".join(attacks.broken[:5])
        pytest.fail(f"{len(attacks.broken)} attacks broke something:\n\n{shown}", pytrace=False)


class Summary:
    """Adds up the counts of all tests of a run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.totals: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the counts of a test."""
        if report.when != "call":
            return
        for rows in (value for name, value in report.user_properties if name == PROPERTY):
            for kind, event, count in rows:
                self.totals.setdefault(kind, Counter())[event] += count

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print trials, held, broken and tracebacks by class."""
        if not self.totals:
            return
        terminalreporter.section(f"attacks (seed {self.seed})")
        terminalreporter.line("".join(f"{name:>12}" for name in ("class", *EVENTS)))
        for kind, counts in sorted(self.totals.items()):
            row = "".join(f"{counts[event]:>12}" for event in EVENTS)
            terminalreporter.line(f"{kind:>12}{row}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the storms."""
    group = parser.getgroup("attacks")
    group.addoption(
        "--attack-rounds",
        type=int,
        default=1,
        metavar="N",
        help="run N times as many trials in each storm of tests/attacks",
    )
    group.addoption(
        "--attack-seed",
        type=int,
        default=SEED,
        metavar="SEED",
        help=f"draw other trials (default: {SEED})",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Add the summary."""
    config.pluginmanager.register(Summary(config.option.attack_seed))
