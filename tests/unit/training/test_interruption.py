"""Signals in trainings with several processes and in processes that a training forks."""

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import TrainerControl

from portllm.training.interruption import Interruption

FORK = multiprocessing.get_context("fork")


def _step(rank: int, store: Path, told: multiprocessing.Queue) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    interruption, control = Interruption(lambda: 0.0), TrainerControl()
    arguments = SimpleNamespace(device=torch.device("cpu"))
    state = SimpleNamespace(global_step=1, max_steps=2)
    interruption.on_step_end(arguments, state, control)
    before = control.should_training_stop
    if rank == 1:
        interruption._receive(signal.SIGTERM, None)
    interruption.on_step_end(arguments, state, control)
    told.put((rank, before, control.should_training_stop, control.should_save))
    torch.distributed.destroy_process_group()


def test_all_processes_stop_after_the_same_step(tmp_path: Path) -> None:
    reported = FORK.Queue()
    processes = [
        FORK.Process(target=_step, args=(rank, tmp_path / "s", reported)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    result = sorted(reported.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
    assert result == [(0, False, True, True), (1, False, True, True)]


def _blocked(told: multiprocessing.Queue) -> None:
    told.put(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))


def test_data_workers_ignore_signals(tmp_path: Path) -> None:
    interruption, control, reported = Interruption(lambda: 0.0), TrainerControl(), FORK.Queue()
    arguments = SimpleNamespace(output_dir=str(tmp_path))
    state = SimpleNamespace(global_step=0, max_steps=1, log_history=[])
    before = signal.getsignal(signal.SIGINT)
    interruption.on_train_begin(arguments, state, control)
    os.kill(os.getpid(), signal.SIGTERM)
    during = FORK.Process(target=_blocked, args=(reported,))
    during.start()
    assert reported.get(timeout=60) == [signal.SIGINT, signal.SIGTERM]
    state.global_step = 1
    # All steps are done, so that the signal has come too late to stop anything.
    interruption.on_train_end(arguments, state, control)
    signal.signal(signal.SIGINT, before)
    after = FORK.Process(target=_blocked, args=(reported,))
    after.start()
    assert reported.get(timeout=60) == []
    for worker in (during, after):
        worker.join(60)
