"""Several processes that train one model: their records become one, the same on all of them, in one collective a record."""

from gradwatch.distributed.link import rank, world_size
from gradwatch.distributed.processes import Processes

__all__ = ["Processes", "rank", "world_size"]
