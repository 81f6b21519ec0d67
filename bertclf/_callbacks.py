"""The callbacks of scikit-learn, followed where scikit-learn has them: they came with 1.9."""

from typing import Any, Self

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in for the mixin of scikit-learn 1.9: no callback can be set."""

    def with_callbacks(method: Any) -> Any:
        """Return the method itself: there is nothing to tear down."""
        return method


__all__ = ["CallbackSupportMixin", "Silence", "with_callbacks"]


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
