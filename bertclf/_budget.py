"""How many tokens go through a network at once, and what happens when the memory of the device runs out."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from bertclf._batches import batches_by_length
from bertclf._device import give_back_memory


class TokenBudget:
    """How many tokens one forward pass takes; halved whenever the device has no memory for them.

    Parameters
    ----------
    max_tokens : int
        Most tokens of a pass, padding included; a text that alone has more is a pass of its own.
    max_texts : int or None, default=None
        Most texts of a pass, None for any number.
    tell : callable or None, default=None
        Gets a line when the budget shrinks.

    Attributes
    ----------
    most_texts : int
        Texts in the largest pass that succeeded.
    """

    def __init__(
        self, max_tokens: int, *, max_texts: int | None = None, tell: Callable[[str], object] | None = None
    ) -> None:
        self.max_tokens = max_tokens
        self.max_texts = max_texts
        self.most_texts = 0
        self._tell = tell

    def run(
        self,
        lengths: npt.NDArray[np.int64],
        work: Callable[[npt.NDArray[np.int64]], None],
        *,
        start_over: Callable[[], None] = lambda: None,
    ) -> None:
        """Work on all texts, the longest first, in as many passes as it takes.

        Parameters
        ----------
        lengths : ndarray of int64, shape (n_texts,)
            Tokens of each text.
        work : callable
            Gets the positions of the texts of one pass.
        start_over : callable
            Undoes what the passes before have done; called when one of them ran out of memory, before all are
            repeated with half the tokens.

        Raises
        ------
        torch.OutOfMemoryError
            If there is no memory for a pass of one text.
        """
        while not self._succeeds(lengths, work):
            # By now the error is gone, and with it what it held of the pass that failed.
            give_back_memory()
            start_over()

    def _succeeds(self, lengths: npt.NDArray[np.int64], work: Callable[[npt.NDArray[np.int64]], None]) -> bool:
        for rows in batches_by_length(lengths, max_tokens=self.max_tokens, max_texts=self.max_texts):
            try:
                work(rows)
            except torch.OutOfMemoryError as error:
                if len(rows) == 1:
                    error.add_note(
                        f"There is no memory for one text of {int(lengths[rows].max())} tokens. Lower max_length, use "
                        "a smaller checkpoint, or free memory of the device."
                    )
                    raise
                self.max_tokens = int(lengths[rows].max()) * (len(rows) // 2)
                if self._tell is not None:
                    self._tell(f"out of memory: from here on at most {self.max_tokens} tokens at once")
                return False
            self.most_texts = max(self.most_texts, len(rows))
        return True
