"""Runs programs in one of several processes.

python -m processes.launch <module>[,<module> ...] <rank> <processes> <folder>
"""

import datetime
import importlib
import inspect
import pickle
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist


def programs(module):
    """The functions of a module that are programs: they are told the rank, and how many processes there are."""
    found = vars(importlib.import_module(f"processes.{module}")).values()
    own = (item for item in found if inspect.isfunction(item) and item.__module__ == f"processes.{module}")
    return [item for item in own if list(inspect.signature(item).parameters)[:2] == ["rank", "size"]]


def main(modules, rank, size, folder):
    """Runs programs one after the other, and stores what each of them returns.

    Args:
        modules: Of this folder.
        rank: Of this process.
        size: How many processes there are.
        folder: Where to store it.
    """
    torch.set_num_threads(1)
    if modules != ["on_lightning"]:  # which makes the process group itself
        patience = datetime.timedelta(seconds=30)
        dist.init_process_group("gloo", init_method="env://", rank=rank, world_size=size, timeout=patience)
    results = {}
    for program in [program for module in modules for program in programs(module)]:
        more = (folder,) if "folder" in inspect.signature(program).parameters else ()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results[program.__name__] = program(rank, size, *more)
        except Exception:  # noqa: BLE001  # whatever it is, a test has to show it
            results[program.__name__] = {"error": traceback.format_exc()}
            break  # the processes are not in step any more
        finally:
            (folder / f"{rank}.pickle").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1].split(","), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
