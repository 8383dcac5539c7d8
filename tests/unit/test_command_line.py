"""Options as shell words, offline mode, and errors as one line."""

import argparse
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

from portllm.command_line import options, run
from portllm.errors import InputError


def test_options_are_read_back_by_argparse() -> None:
    settings = {
        "batch_size": 4,
        "name": "two words",
        "flag": True,
        "off": False,
        "absent": None,
        "several": ["a", "b=c"],
        "mapping": {"text": "it's {x}", "on": True},
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--name")
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("--off", action="store_true")
    parser.add_argument("--absent")
    parser.add_argument("--several", nargs="+")
    parser.add_argument("--mapping", type=json.loads)
    assert vars(parser.parse_args(shlex.split(options(settings)))) == settings


@pytest.mark.parametrize(("hub", "offline"), [(False, "1"), (True, None)])
def test_programs_run_offline_unless_they_need_the_hub(
    monkeypatch: pytest.MonkeyPatch, hub: bool, offline: str | None
) -> None:
    import os

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    seen = {}
    run(lambda: seen.update(os.environ), hub=hub)
    assert seen.get("HF_HUB_OFFLINE") == seen.get("HF_DATASETS_OFFLINE") == offline
    assert seen["OMP_WAIT_POLICY"] == "PASSIVE"


def test_bad_input_is_one_line_and_a_bug_is_a_traceback() -> None:
    def mistake() -> None:
        raise InputError("config.yaml: nothing there")

    def bug() -> None:
        raise KeyError("programmer")

    with pytest.raises(SystemExit, match=r"^error: config\.yaml: nothing there$"):
        run(mistake)
    with pytest.raises(KeyError):
        run(bug)


ENDING = """
import atexit, os
from portllm.command_line import run
atexit.register(lambda: os.kill(os.getpid(), NUMBER))
run(lambda: print("done"))
"""
WORKING = """
import os
from portllm.command_line import run
run(lambda: os.kill(os.getpid(), NUMBER))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_traceback(number: int) -> None:
    for program, status, output in ((ENDING, 0, "done\n"), (WORKING, 128 + number, "")):
        done = subprocess.run(
            [sys.executable, "-c", program.replace("NUMBER", str(int(number)))],
            env={"PYTHONPATH": str(PROJECT / "workflow_scripts")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (status, output, "")


def test_names_in_an_error_neither_end_the_line_nor_control_the_terminal() -> None:
    def mistake() -> None:
        raise InputError(f"two\nlines \x1b[31mred {5000 * 'x'}")

    with pytest.raises(SystemExit) as error:
        run(mistake)
    assert str(error.value).startswith(r"error: two\nlines \x1b[31mred xxx")
    assert len(str(error.value)) < 4100


def test_an_error_of_the_file_system_is_one_line() -> None:
    name = 300 * "x"
    with pytest.raises(SystemExit, match=f"^error: {name}: File name too long$"):
        run(lambda: Path(name).stat())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of "
            "79.25 GiB of which 1.12 GiB is free. Process 7 has 70 GiB memory in use.",
            "error: out of device memory (Tried to allocate 2.50 GiB, total capacity of 79.25 GiB)"
            "; try a smaller patch.batch_size, or a larger device",
        ),
        (
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 4 bytes. Error code 12 (Cannot allocate memory)",
            "error: out of host memory; raise mem_mb of the stage under resources",
        ),
    ],
)
def test_out_of_memory_is_one_line(error: str, line: str) -> None:
    def too_much() -> None:
        raise RuntimeError(error)

    with pytest.raises(SystemExit) as ended:
        run(too_much, memory_advice="a smaller patch.batch_size")
    assert ended.value.code == line


def test_memory_errors_are_recognised_by_class_name() -> None:
    import torch

    def device() -> None:
        raise torch.OutOfMemoryError("no words")

    def host() -> None:
        raise MemoryError

    with pytest.raises(SystemExit, match=r"^error: out of device memory; .* a smaller batch, or"):
        run(device)
    with pytest.raises(SystemExit, match=r"^error: out of host memory; "):
        run(host)
