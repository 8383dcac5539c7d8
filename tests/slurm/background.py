"""A SLURM cluster on this machine, and studies that run on it in the background."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import SNAKEMAKE, Checkout, make_checkout, use_stand_ins

MINI_SLURM = Path(__file__).parent / "mini_slurm.sh"
STUDY = "tests/studies/minute.yaml"
# A short delay before the first status check; the plugin adds ten seconds for the next one.
PROFILE = ("--profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "1")


def wait_until(description: str, is_true: Callable[[], Any], seconds: float = 300) -> Any:
    """Wait until `is_true` returns something true, and return that."""
    end = time.monotonic() + seconds
    while not (answer := is_true()):
        assert time.monotonic() < end, f"not within {seconds} s: {description}"
        time.sleep(0.2)
    return answer


@dataclass(frozen=True)
class Cluster:
    """The running cluster."""

    environment: dict[str, str]

    def do(self, *command: str) -> None:
        """Run one of mini_slurm.sh's commands."""
        done = subprocess.run(
            [MINI_SLURM, *command], env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def jobs(self, states: str = "all") -> dict[str, str]:
        """Return the state of each job, by job id."""
        command = ["squeue", "--noheader", f"--states={states}", "--format=%i %T"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return dict(line.split() for line in done.stdout.splitlines())


@dataclass
class Run:
    """A Snakemake process in the background."""

    process: subprocess.Popen[str]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def is_alive(self) -> bool:
        return self.process.poll() in (None, -signal.SIGKILL)

    def complete(self, seconds: float = 400) -> str:
        """Wait until it succeeds and return its output."""
        code = self.process.wait(seconds)
        assert code == 0, self.output[-6000:]
        return self.output

    def kill(self) -> None:
        """Kill it without warning, as the kernel would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@dataclass
class StandInStudy:
    """The minute-sized study with stand-in jobs, whose duration the test controls."""

    checkout: Checkout
    studies: list[str] = field(default_factory=lambda: [STUDY])
    runs: list[Run] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.checkout.directory / "stand_ins"

    def change(self, **settings: Any) -> None:
        """Change settings of the study."""
        self.checkout.write("changes.yaml", settings)
        self.studies = [STUDY, "changes.yaml"]

    def start(self, *targets: str, partition: str = "gpu", resources: Sequence[str] = ()) -> Run:
        """Start Snakemake on the cluster; `partition` is the one that trains patches."""
        partitions = {"pretrain": "gpu", "train_patch": partition, "score": "gpu"}
        named = [f"{rule}:slurm_partition={name}" for rule, name in partitions.items()]
        arguments = (*targets, "--set-resources", *named, *resources)
        log = self.folder / f"run{len(self.runs)}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [SNAKEMAKE, *arguments, *PROFILE, "--configfile", *self.studies],
                cwd=self.checkout.directory,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.runs.append(Run(process, log))
        return self.runs[-1]

    def end(self) -> None:
        """Kill all runs, for tests that fail."""
        for run in self.runs:
            run.kill()

    def hold(self, *outputs: str) -> None:
        """Make the jobs of these outputs wait until they are released."""
        for output in outputs:
            (self.folder / output.replace("/", "-")).touch()

    def release(self, *outputs: str) -> None:
        """Let the jobs of these outputs end."""
        for output in outputs:
            (self.folder / output.replace("/", "-")).unlink()

    def events(self, event: str, *outputs: str) -> list[dict[str, Any]]:
        """List the "begin" or "end" records of executions, of some outputs or of all."""
        file = self.folder / "executions.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        records = [record for record in map(json.loads, lines) if record["event"] == event]
        return [record for record in records if record["output"] in outputs or not outputs]

    def begun(self, *outputs: str, times: int = 1) -> list[dict[str, Any]]:
        """Wait until the jobs of these outputs have started `times` times in total."""

        def have_begun() -> list[dict[str, Any]]:
            records = self.events("begin", *outputs)
            assert len(records) >= times or self.runs[-1].is_alive, self.runs[-1].output[-6000:]
            return records if len(records) >= times else []

        return wait_until(f"{times} executions of {outputs}", have_begun)

    def executions(self) -> dict[str, int]:
        """Count how often each output's job was executed."""
        outputs = [record["output"] for record in self.events("begin")]
        return {output: outputs.count(output) for output in outputs}

    def submissions(self) -> int:
        """Count the jobs that Snakemake submitted in all runs."""
        return sum(run.output.count("has been submitted with SLURM jobid") for run in self.runs)


def stand_in_study(directory: Path) -> StandInStudy:
    """Create the study in a new directory."""
    checkout = make_checkout(directory)
    use_stand_ins(checkout)
    study = StandInStudy(checkout)
    study.folder.mkdir()
    return study
