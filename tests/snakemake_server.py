"""Snakemake, imported once: a process that forks for each run that a test asks for.

Importing Snakemake takes 1.2 s of CPU time, more than most runs of the tests themselves. A fork has
the imports of a fresh process and nothing that an earlier run has left.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

# What pytest changes from test to test means nothing to Snakemake.
_IGNORED = "PYTEST_CURRENT_TEST"


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name != _IGNORED}


class Server(threading.local):
    """The server of this thread of a test process, started with the first run."""

    def __init__(self, python: Path) -> None:
        self._python = python
        self._process: subprocess.Popen[str] | None = None
        self._variables: dict[str, str] = {}

    def run(
        self, arguments: tuple[str, ...], directory: Path, variables: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake to its end; standard output and error come together."""
        variables = _environment(variables)
        if self._process is None:
            self._variables = variables
            # -P: as Snakemake's own command, it does not import what lies beside this file.
            self._process = subprocess.Popen(
                [self._python, "-P", __file__],
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        # Some variables count when Python or a module starts: other ones take a fresh process.
        if variables != self._variables:
            snakemake = self._python.with_name("snakemake")
            return subprocess.run(
                [snakemake, *arguments],
                cwd=directory,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.NamedTemporaryFile("r") as output:
            request = {
                "arguments": list(arguments),
                "directory": str(directory),
                "output": output.name,
            }
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            assert answer, "the Snakemake server has ended"
            return subprocess.CompletedProcess(list(arguments), int(answer), output.read())


def _serve() -> dict[str, object]:
    """Fork for each request. Return in the child, with its request; the parent never returns."""
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()
    sys.exit()


def _prepare(request: dict[str, object]) -> None:
    output = os.open(str(request["output"]), os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
        if source > 2:
            os.set_inheritable(source, False)
    os.chdir(str(request["directory"]))
    arguments = request["arguments"]
    assert isinstance(arguments, list)
    sys.argv = [str(Path(sys.executable).with_name("snakemake")), *arguments]


if __name__ == "__main__":
    from snakemake.cli import main

    _prepare(_serve())
    sys.exit(main())
