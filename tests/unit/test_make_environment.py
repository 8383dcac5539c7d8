"""`envs/make.sh` finds uv or Python, installs the pins, and explains what is missing."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from portllm.storage.files import hash_file

PROJECT = Path(__file__).parents[2]
# What the script itself needs, less everything that could be a Python.
TOOLS = ("bash", "cat", "cut", "dirname", "flock", "head", "mkdir", "sha256sum", "sort")
# Notes how it is called; `venv` makes a directory with a Python in it.
UV = """#!/bin/bash
if [ "$1" = --version ]; then echo "uv {version} (abc 2026-01-01)"; exit; fi
echo "$@" >>{calls}
if [ "$1" = venv ]; then mkdir -p "${{@: -1}}/bin"; : >"${{@: -1}}/bin/python"; fi
if [ "$1" = venv ]; then /bin/chmod +x "${{@: -1}}/bin/python"; fi
"""


@dataclass
class Machine:
    """A checkout on a machine whose PATH holds nothing but chosen programs."""

    directory: Path

    @property
    def programs(self) -> Path:
        return self.directory / "bin"

    @property
    def environment(self) -> Path:
        return self.directory / ".venvs" / "some"

    @property
    def calls(self) -> list[str]:
        """The calls of uv, `--version` left out."""
        file = self.directory / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def add(self, name: str, text: str) -> None:
        program = self.programs / name
        program.write_text(text)
        program.chmod(0o755)

    def add_uv(self, version: str = "0.13.9") -> None:
        self.add("uv", UV.format(version=version, calls=self.directory / "calls"))

    def make(self, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [self.programs / "bash", self.directory / "envs" / "make.sh", "some"]
        return subprocess.run(
            command,
            env={"PATH": str(self.programs), **environment},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    (tmp_path / "envs").mkdir()
    for file in ("make.sh", "uv.txt"):
        shutil.copy(PROJECT / "envs" / file, tmp_path / "envs")
    (tmp_path / "envs" / "some.txt").write_text("no-such-package-at-all==1\n")
    return Machine(tmp_path)


def test_uv_alone_is_enough(machine: Machine) -> None:
    machine.add_uv()
    done = machine.make(PIP_FIND_LINKS="/wheels")
    assert done.returncode == 0, done.stderr
    create, install = machine.calls
    assert create == "venv --quiet --clear --python 3.11 .venvs/some"
    assert "--compile-bytecode --find-links /wheels" in install
    assert install.endswith("--requirement envs/some.txt")
    made_from = machine.environment / "made_from"
    assert made_from.read_text().strip() == hash_file(machine.directory / "envs" / "some.txt")


def test_an_environment_is_built_once_and_again_for_other_pins(machine: Machine) -> None:
    machine.add_uv()
    assert "Building the some environment" in machine.make().stdout
    assert machine.make().stdout == ""
    assert len(machine.calls) == 2
    (machine.directory / "envs" / "some.txt").write_text("another==1\n")
    assert "Building the some environment" in machine.make().stdout
    assert len(machine.calls) == 4


@pytest.mark.parametrize("uv", [None, "0.4.30"])
def test_python3_alone_brings_uv(machine: Machine, uv: str | None) -> None:
    """Any Python 3 will do, whatever its version, also beside a uv that is too old."""
    if uv:
        machine.add("uv", f"#!/bin/bash\necho uv {uv}\n")
    machine.add("new_uv", UV.format(version="0.13.9", calls=machine.directory / "calls"))
    # Stands in for `python3 -m venv` and the new environment's pip, which would need an index.
    pip = f"#!/bin/bash\\n/bin/cp {machine.programs}/new_uv .venvs/uv/bin/uv\\n"
    machine.add(
        "python3",
        "#!/bin/bash\n"
        'if [ "$1" = -c ]; then exit 0; fi\n'
        "mkdir -p .venvs/uv/bin\n"
        f'printf "{pip}" >.venvs/uv/bin/python\n'
        "/bin/chmod +x .venvs/uv/bin/python\n",
    )
    done = machine.make()
    assert done.returncode == 0, done.stderr
    assert len(machine.calls) == 2


def test_neither_uv_nor_python(machine: Machine) -> None:
    done = machine.make()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: neither uv (>= 0.8.0) nor python3 is on PATH; install uv")


def test_a_python_without_venv(machine: Machine) -> None:
    machine.add("python3", "#!/bin/bash\nexit 1\n")
    done = machine.make()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "cannot create virtual environments" in line
    assert "python3-venv" in line


def test_no_python_of_the_right_version(machine: Machine) -> None:
    """The real uv, which finds no Python 3.11 and may not download one."""
    uv = shutil.which("uv") or PROJECT / ".venvs" / "uv" / "bin" / "uv"
    (machine.programs / "uv").symlink_to(uv)
    place = str(machine.directory / "pythons")
    done = machine.make(
        UV_PYTHON_DOWNLOADS="never", UV_PYTHON_INSTALL_DIR=place, HOME=os.environ["HOME"]
    )
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: found no Python 3.11 on PATH, and uv could not download one")
    assert "uv python install 3.11" in line
    assert "command not found" not in done.stderr
    assert not (machine.environment / "made_from").exists()
