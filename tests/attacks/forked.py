"""Run the project's programs in forks of a process that has imported the libraries.

A merge of a tiny model takes 2 s to import torch and 50 ms to work. A fork starts at once, so that
a test can attack often, and hits the work instead of the imports.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "workflow_scripts"
COMMAND = str(SCRIPTS / "portllm" / "cli" / "main.py")
"""The program of the `portllm` command."""


TRAINING = ("-sklearn", "-scipy", "-datasets", "-bitsandbytes", "portllm.training.patch_training")
"""Modules that training a patch imports, without those that it hides."""


class Forker:
    """Starts programs as forks of one process, one at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, directory: Path, program: str, *arguments: str) -> "Run":
        """Start a program in a directory.

        Args:
            directory: the working directory. Temporary files go to its folder `tmp`.
            program: path of the program's file.
            arguments: its command line.
        """
        output = directory / "output.log"
        request = {"directory": str(directory), "output": str(output), "program": program}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**request, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        return Run(int(self._answer()), output, self)

    def run(self, directory: Path, program: str, *arguments: str) -> tuple[int, str]:
        """Run a program to its end; return its exit status and output."""
        return self.start(directory, program, *arguments).wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        assert answer, "the process that forks has ended"
        return answer


class Run:
    """A running program."""

    def __init__(self, pid: int, output: Path, forker: Forker) -> None:
        self.pid = pid
        self._output = output
        self._forker = forker

    def kill(self, number: int) -> None:
        """Send a signal. The program stays a zombie until `wait`, so its id is not reused."""
        os.kill(self.pid, number)

    def wait(self) -> tuple[int, str]:
        """Wait for the end; return the exit status (negative: the signal) and the output."""
        process = self._forker._process
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return int(self._forker._answer()), self._output.read_text(errors="replace")


@contextmanager
def forker(*modules: str) -> Iterator[Forker]:
    """Start a process that imports modules and forks for each program.

    Args:
        modules: names of modules. One that starts with "-" is hidden from those that follow.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(SCRIPTS),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, __file__, *modules],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Forker(process)
    finally:
        process.communicate()


def _serve(modules: list[str]) -> None:
    from portllm import lazy_imports

    for name in modules:
        if name.startswith("-"):
            lazy_imports.hide(name[1:])
        else:
            __import__(name)
    gc.freeze()
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            _run(**json.loads(line))
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        sys.stdin.readline()  # The child stays a zombie until then.
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _run(directory: str, output: str, program: str, arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.chdir(directory)
    temporary = Path(directory, "tmp")
    temporary.mkdir(exist_ok=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
    sys.argv = [program, *arguments]
    status = 1
    try:
        runpy.run_path(program, run_name="__main__")
        status = 0
    except SystemExit as exit_:
        if isinstance(exit_.code, str):
            sys.stderr.write(f"{exit_.code}\n")
        else:
            status = exit_.code or 0
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    # Freeing all that the parent has imported would take seconds.
    os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1:])
