"""The callbacks of scikit-learn, followed where scikit-learn has them: they came with 1.9."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in for the mixin of scikit-learn 1.9: nobody listens."""

        def _init_callback_context(self, **settings: Any) -> "Silence":
            """Return a context that tells nobody."""
            return Silence()

    def with_callbacks(method: Any) -> Any:
        """Return the method itself: there is nothing to tear down."""
        return method


__all__ = ["CallbackSupportMixin", "Silence", "Task", "with_callbacks"]


class Silence:
    """A callback context without callbacks."""

    def subcontext(self, **settings: Any) -> Self:
        """Return a context for a part of the work."""
        return self

    def call_on_fit_task_begin(self, **hook_arguments: Any) -> Self:
        """Tell nobody."""
        return self

    def call_on_fit_task_end(self, **hook_arguments: Any) -> bool:
        """Tell nobody; nobody asks to stop."""
        return False


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
        snapshot: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self._context = context
        self._owner = owner
        self._data = {} if data is None else data
        self._snapshot = snapshot
        self.is_last = False

    def epoch(self, *, n_batches: int, snapshot: Callable[[], dict[str, Any]] | None) -> "Task":
        """Return the task of the next epoch."""
        context = self._context.subcontext(task_name="epoch", max_subtasks=n_batches)
        return Task(context, self._owner, data=self._data, snapshot=snapshot)

    def batch(self) -> "Task":
        """Return the task of the next batch."""
        return Task(self._context.subcontext(task_name="batch"), self._owner)

    def __enter__(self) -> Self:
        """Tell that the task begins."""
        self._context.call_on_fit_task_begin(**self._owner, **self._data)
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell that the task has ended, unless it failed."""
        if error is None:
            self.is_last = self._context.call_on_fit_task_end(
                **self._owner, **self._data, reconstruction_attributes=self._snapshot
            )
