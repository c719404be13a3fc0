"""Starts the processes of a launch once, for all tests that look at what they bring home."""

import functools
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

over_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available() or sys.platform != "linux", reason="needs processes over gloo"
)

HERE = Path(__file__).parents[1]
TWO = "programs,sharded,alone"
"""Modules whose programs two processes run, all in one launch."""

SECONDS = 240
"""What a launch may take before its processes are ended."""


@functools.cache
def launched(modules, size=2):
    """What each process of a launch brought home: program → results, by rank."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        shared |= {
            "TORCHELASTIC_RUN_ID": "test",
            "GROUP_RANK": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}",
        }
        processes = []
        try:
            for rank in range(size):
                command = [sys.executable, "-m", "processes.launch", modules, str(rank), str(size), folder]
                environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                with Path(folder, f"{rank}.txt").open("wb") as said:
                    processes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said, cwd=folder))
            end = time.monotonic() + SECONDS
            for process in processes:
                process.wait(max(end - time.monotonic(), 0.1))
        finally:
            for process in processes:
                process.kill()
                process.wait()
        found = []
        for rank in range(size):
            path = Path(folder, f"{rank}.pickle")
            found.append(
                pickle.loads(path.read_bytes()) if path.exists() else {"": {"error": Path(folder, f"{rank}.txt").read_text()}}
            )
        return found


def ran(program, modules=TWO, size=2):
    """What each process brought home from a program, by rank."""
    found = launched(modules, size)
    errors = [result["error"] for results in found for result in results.values() if "error" in result]
    assert not errors, errors[0]
    return [results[program] for results in found]


def together(program, modules=TWO, size=2):
    """The record of a program of which nothing was said, and which is the same on all ranks."""
    results = ran(program, modules, size)
    first = results[0]
    for result in results:
        assert result["log"] == []
        assert result["history"] == first["history"]
        assert result["findings"] == []
        if "unwatched" in result:
            assert all(torch.equal(watched, not_so) for watched, not_so in zip(result["weights"], result["unwatched"], strict=True))
    return first
