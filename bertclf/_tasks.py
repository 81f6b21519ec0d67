"""A fit, its epochs and their batches, as callbacks follow them."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import torch

from bertclf._random import undisturbed


class Task:
    """A fit, one of its epochs or one of their batches: callbacks hear when it begins and when it has ended.

    Parameters
    ----------
    context : sklearn.callback.CallbackContext or Silence
        Place of the task in the tree of tasks.
    owner : mapping
        What every hook is told: whose fit it is.
    data : mapping, default=None
        What the hooks of the fit and of its epochs are told beside: the training data.
    device : torch.device
        Where the training runs: its random numbers are the same whatever a callback draws.
    snapshot : callable, default=None
        Returns the fitted attributes that the classifier would have if the fit ended now; called only if a callback
        asks for them at the end of the fit or of an epoch.

    Attributes
    ----------
    is_last : bool
        Whether a callback asked, when the task ended, that no other of its kind may follow.
    """

    def __init__(
        self,
        context: Any,
        owner: Mapping[str, Any],
        *,
        data: Mapping[str, Any] | None = None,
        device: torch.device,
        snapshot: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self._context = context
        self._owner = owner
        self._data = {} if data is None else data
        self._device = device
        self._snapshot = snapshot
        self.is_last = False

    def epoch(self, *, n_batches: int, snapshot: Callable[[], dict[str, Any]]) -> "Task":
        """Return the task of the next epoch."""
        context = self._context.subcontext(task_name="epoch", max_subtasks=n_batches)
        return Task(context, self._owner, data=self._data, device=self._device, snapshot=snapshot)

    def batch(self) -> "Task":
        """Return the task of the next batch."""
        # To read the generator of a GPU would make the host wait for it at every step.
        return Task(self._context.subcontext(task_name="batch"), self._owner, device=torch.device("cpu"))

    def __enter__(self) -> Self:
        """Tell that the task begins."""
        with undisturbed(self._device):
            self._context.call_on_fit_task_begin(**self._owner, **self._data)
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell that the task has ended, unless it failed."""
        if error is None:
            with undisturbed(self._device):
                self.is_last = self._context.call_on_fit_task_end(
                    **self._owner, **self._data, reconstruction_attributes=self._snapshot
                )
