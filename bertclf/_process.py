"""What a process must do otherwise that was forked from one that has used torch: the threads there are not here."""

import os
import threading
from contextlib import AbstractContextManager

import torch

# This room is imported with the first use of torch, so a process with another number was forked after that.
_PROCESS = os.getpid()
_LOCKS: dict[tuple[str, int], AbstractContextManager[bool]] = {}


def lock_for(work: str) -> AbstractContextManager[bool]:
    """Return the lock for some work that one thread of this process at a time may do.

    A forked child has locks of its own: in its parent another thread may have held one, and nobody would release it.
    """
    return _LOCKS.setdefault((work, os.getpid()), threading.RLock())


def compute_without_lost_threads() -> None:
    """Let torch compute in one thread from now on if this process was forked.

    In the child torch would wait for ever for the threads that computed in the parent. Its own `DataLoader` does the
    same in the processes that it forks.
    """
    if os.getpid() != _PROCESS and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
