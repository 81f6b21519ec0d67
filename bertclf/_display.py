"""A picture of the training, in the manner of scikit-learn's displays."""

from typing import Any, Self

from sklearn.utils.validation import check_is_fitted


class TrainingDisplay:
    """Training and validation loss by epoch.

    Use `from_estimator` to draw the curves of a fitted classifier. All parameters are stored as attributes.

    Parameters
    ----------
    history : list of dict
        `BertSequenceClassifier.history_`: one dict an epoch with `epoch`, `training_loss` and `validation_loss`
        (None where there were no validation texts).

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curves, set by `plot`.
    figure_ : matplotlib Figure
        Figure that holds the axes, set by `plot`.
    lines_ : list of matplotlib Line2D
        The curve of the training loss and, if there is one, that of the validation loss, set by `plot`.

    See Also
    --------
    BertSequenceClassifier.history_ : The same numbers as a table.

    Examples
    --------
    >>> from bertclf import TrainingDisplay
    >>> history = [
    ...     {"epoch": 1, "training_loss": 0.60, "validation_loss": 0.55},
    ...     {"epoch": 2, "training_loss": 0.41, "validation_loss": 0.48},
    ... ]
    >>> display = TrainingDisplay(history=history).plot()
    >>> [line.get_label() for line in display.lines_]
    ['training', 'validation']
    """

    def __init__(self, *, history: list[dict[str, Any]]) -> None:
        self.history = history

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None, **kwargs: Any) -> Self:
        """Draw the loss curves of a fitted classifier.

        Parameters
        ----------
        estimator : BertSequenceClassifier or Pipeline
            Fitted classifier, or a pipeline that ends in one.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Passed to matplotlib's `plot` for both curves.

        Returns
        -------
        TrainingDisplay
            The display with its curves drawn.

        Raises
        ------
        NotFittedError
            If the classifier is not fitted.
        """
        from sklearn.pipeline import Pipeline

        classifier = estimator[-1] if isinstance(estimator, Pipeline) else estimator
        check_is_fitted(classifier)
        return cls(history=classifier.history_).plot(ax=ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Passed to matplotlib's `plot` for both curves.

        Returns
        -------
        TrainingDisplay
            This display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
            from matplotlib.ticker import MaxNLocator
        except ImportError as error:
            raise ImportError(
                "TrainingDisplay draws with matplotlib, which is not installed. Install it with "
                "`pip install bertclf[plot]`."
            ) from error
        if ax is None:
            _, ax = plt.subplots()
        self.lines_ = []
        for name in ("training", "validation"):
            points = [(row["epoch"], row[f"{name}_loss"]) for row in self.history if row[f"{name}_loss"] is not None]
            if points:
                self.lines_ += ax.plot(*zip(*points, strict=True), **({"marker": "o", "label": name} | kwargs))
        ax.set(xlabel="Epoch", ylabel="Loss (cross-entropy)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
        self.ax_ = ax
        self.figure_ = ax.figure
        return self
