"""Log records of other libraries that are held back for a moment, in one thread alone."""

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class _NotFromThread(logging.Filter):
    """Drops the records of one thread, so that other threads still see theirs."""

    def __init__(self, thread: int) -> None:
        super().__init__()
        self.thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record may pass."""
        return record.thread != self.thread


@contextmanager
def quiet(names: Iterable[str]) -> Iterator[None]:
    """Keep what this thread logs under some names from being seen."""
    loggers = [logging.getLogger(name) for name in names]
    drop = _NotFromThread(threading.get_ident())
    for logger in loggers:
        logger.addFilter(drop)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(drop)
