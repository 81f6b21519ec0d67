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
        Texts in the largest pass that succeeded since memory last ran out.
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
        start_over: Callable[[], None] | None = None,
    ) -> None:
        """Work on all texts, the longest first, in as many passes as it takes.

        Parameters
        ----------
        lengths : ndarray of int64, shape (n_texts,)
            Tokens of each text.
        work : callable
            Gets the positions of the texts of one pass.
        start_over : callable or None, default=None
            Undoes what the passes before have done; called when one of them ran out of memory, before all are
            repeated with half the tokens. None keeps what was done, and goes on with the pass that failed.

        Raises
        ------
        torch.OutOfMemoryError
            If there is no memory for a pass of one text.
        """
        left = every_row = np.arange(len(lengths))
        while len(left := self._not_done(left, lengths, work)):
            # By now the error is gone, and with it what it held of the pass that failed.
            give_back_memory()
            if start_over is not None:
                start_over()
                left = every_row

    def _not_done(
        self,
        rows: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        work: Callable[[npt.NDArray[np.int64]], None],
    ) -> npt.NDArray[np.int64]:
        """Work on some texts until all are done or memory runs out; return those that are left."""
        is_left = np.ones(len(rows), dtype=bool)
        for positions in batches_by_length(lengths[rows], max_tokens=self.max_tokens, max_texts=self.max_texts):
            texts = rows[positions]
            try:
                work(texts)
            except torch.OutOfMemoryError as error:
                self._shrink(lengths[texts], error)
                break
            self.most_texts = max(self.most_texts, len(texts))
            is_left[positions] = False
        return rows[is_left]

    def _shrink(self, lengths: npt.NDArray[np.int64], error: torch.OutOfMemoryError) -> None:
        """Halve the budget after a pass of texts of these lengths failed, or raise the error if it was one text."""
        if len(lengths) == 1:
            error.add_note(
                f"There is no memory for one text of {int(lengths.max())} tokens. Lower max_length, use a smaller "
                "checkpoint, or free memory of the device."
            )
            raise error
        self.max_tokens = int(lengths.max()) * (len(lengths) // 2)
        self.most_texts = 0
        if self._tell is not None:
            self._tell(f"out of memory: from here on at most {self.max_tokens} tokens at once")
