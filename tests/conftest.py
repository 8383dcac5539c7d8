"""Shared test helpers: fresh copies of the project, and Snakemake runs in them."""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from snakemake_server import Server

# A background job of a script ignores these signals, and its children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

PROJECT = Path(__file__).parents[1]
SNAKEMAKE = PROJECT / ".venvs" / "workflow" / "bin" / "snakemake"
# Options, fixtures and summaries of tests/attacks and tests/gpu.
pytest_plugins = ["attacks.storm", "gpu.plugin"]
_SERVER = Server(SNAKEMAKE.with_name("python"))
PARTS = (
    "Snakefile",
    "config.yaml",
    "config",
    "envs",
    "profiles",
    "report",
    "resources",
    "rules",
    "tests/studies",
    "workflow_scripts",
)


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """Restore the handlers of signals that programs replace, which tests also call as functions."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@dataclass(frozen=True)
class Checkout:
    """A copy of the project in which a study can be run."""

    directory: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Snakemake; `stdout` of the result contains standard error too."""
        return _SERVER.run(arguments, self.directory, {**os.environ, **environment})

    def complete(self, *arguments: str, **environment: str) -> str:
        """Run Snakemake, which must succeed, and return its output."""
        done = self.run("--cores", "2", *arguments, **environment)
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def start(self, log: str, *arguments: str) -> subprocess.Popen[str]:
        """Start Snakemake in the background, with its output in the file `log`."""
        with (self.directory / log).open("w") as output:
            return subprocess.Popen(
                [SNAKEMAKE, "--cores", "1", *arguments],
                cwd=self.directory,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def planned(self, *arguments: str) -> list[tuple[str, dict[str, str]]]:
        """Return rule and wildcards of every job in a dry run, except `all`."""
        done = self.run("--dry-run", *arguments)
        assert done.returncode == 0, done.stdout[-6000:]
        jobs: list[tuple[str, dict[str, str]]] = []
        for line in done.stdout.splitlines():
            words = line.split()
            if line.startswith(("rule ", "localrule ")):
                jobs.append((words[1].rstrip(":"), {}))
            elif line.startswith("    wildcards: "):
                pairs = line.removeprefix("    wildcards: ").split(", ")
                jobs[-1][1].update(pair.split("=", 1) for pair in pairs)
        return [(rule, wildcards) for rule, wildcards in jobs if rule != "all"]

    def counts(self, *arguments: str) -> dict[str, int]:
        """Count the jobs of each rule in a dry run."""
        return dict(Counter(rule for rule, _ in self.planned(*arguments)))

    def read(self, file: str) -> Any:
        """Read a YAML file of the checkout."""
        return yaml.safe_load((self.directory / file).read_text())

    def write(self, file: str, content: Any) -> None:
        """Write a YAML file of the checkout."""
        (self.directory / file).write_text(yaml.safe_dump(content, sort_keys=False))


def make_checkout(directory: Path) -> Checkout:
    """Copy the project to a new directory, with a link to the installed environments."""
    directory.mkdir(parents=True)
    for part in PARTS:
        source, target = PROJECT / part, directory / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
    (directory / ".venvs").symlink_to(PROJECT / ".venvs")
    return Checkout(directory)


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.02)


def is_running(process: int) -> bool:
    """Whether a process is running; a zombie that nobody has reaped yet is not."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes_in(directory: Path) -> list[psutil.Process]:
    """List the running processes with a given working directory."""
    return [
        process
        for process in psutil.process_iter(["cwd", "status"])
        if process.info["cwd"] == str(directory) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def run_into_pipe(checkout: Checkout, arguments: str, seconds: float = 60) -> str:
    """Run `snakemake ARGUMENTS`, which end in a pipe to a reader, and return its standard error.

    Fails if Snakemake or a process that it started is still running after `seconds`.
    """
    errors = checkout.directory / "errors.log"
    with errors.open("w") as file:
        pipe = subprocess.Popen(
            ["bash", "-c", f"'{SNAKEMAKE}' --cores 1 {arguments}"],
            cwd=checkout.directory,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    try:
        pipe.wait(seconds)
        wait_for(lambda: not processes_in(checkout.directory), seconds=5)
    finally:
        for process in processes_in(checkout.directory):
            process.kill()
        pipe.wait()
    return errors.read_text()


def run_program(
    program: str, *arguments: str, python: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
    """Run a stage program in the environment of its rule."""
    light = ("make_table.py", "make_figure.py", "plan.py")
    environment = "workflow" if program in light else "eval"
    interpreter = PROJECT / ".venvs" / environment / "bin" / "python"
    script = PROJECT / "workflow_scripts" / program
    return subprocess.run(
        [interpreter, *python, script, *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A copy of the project."""
    return make_checkout(tmp_path / "checkout")


STAND_IN = Path(__file__).parent / "workflow" / "stand_in.py"


INTERPRETER = f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n'


def use_stand_ins(checkout: Checkout, interpreter: str = INTERPRETER) -> None:
    """Replace the environments' interpreters by a stand-in that only creates the outputs.

    Rules, configuration and Snakemake are real, so tests of scheduling take seconds.
    """
    (checkout.directory / ".venvs").unlink()
    for name in ("train", "eval"):
        add_environment(checkout, name, interpreter)


def add_environment(checkout: Checkout, name: str, interpreter: str = INTERPRETER) -> None:
    """Add an environment whose Python is a script, with the stamp of the checkout's pins."""
    environment = checkout.directory / ".venvs" / name
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.write_text(interpreter)
    python.chmod(0o755)
    pins = checkout.directory / "envs" / f"{name}.txt"
    (environment / "made_from").write_text(hashlib.sha256(pins.read_bytes()).hexdigest() + "\n")


def copy_state(checkout: Checkout, directory: Path) -> Checkout:
    """Copy a checkout with its results, Snakemake's metadata and modification times."""
    shutil.copytree(checkout.directory, directory, symlinks=True)
    return Checkout(directory)


MINUTE = "tests/studies/minute.yaml"


@pytest.fixture(scope="session")
def shared_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all processes of a test run share.

    PORTLLM_TEST_STUDIES names it where several test runs share it.
    """
    if named := os.environ.get("PORTLLM_TEST_STUDIES"):
        return Path(named)
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def finish_minute_study(directory: Path) -> Checkout:
    """Return a finished minute study in `directory`; the first caller runs it, the others wait."""
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        study, finished = Checkout(directory / "minute"), directory / "minute.finished"
        if not finished.exists():
            shutil.rmtree(study.directory, ignore_errors=True)
            make_checkout(study.directory).complete("--configfile", MINUTE)
            finished.touch()
        return study
    finally:
        os.close(lock)


@pytest.fixture(scope="session")
def minute_study(shared_directory: Path) -> Checkout:
    """The finished minute study. Copy it with `copy_state` before you change anything in it."""
    return finish_minute_study(shared_directory)
