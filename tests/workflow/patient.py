"""A stand-in for a training that waits for permission to finish and records signals."""

import os
import runpy
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    """Append the process id to `started`, wait for `go`; on SIGTERM write `stopped` and exit."""

    def stop(number: int, frame: object) -> None:
        Path("stopped").write_text(signal.Signals(number).name)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    with Path("started").open("a") as file:
        file.write(f"{os.getpid()}\n")
    while not Path("go").exists():
        time.sleep(0.05)
    runpy.run_path(str(Path(__file__).with_name("stand_in.py")))


main()
