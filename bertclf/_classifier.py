"""The one public estimator: parameters, `fit` as one story, and the prediction methods."""

import os
import warnings
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from bertclf._defaults import automatic_settings
from bertclf._inputs import LabelledTexts, Texts, read_labels, read_texts, read_weights, targets_of
from bertclf._version import __version__

if TYPE_CHECKING:
    from bertclf._checkpoint import Checkpoint
    from bertclf._training import LabelledTokens, TrainingSettings

# The rooms that need torch and transformers are imported by the methods that use them: importing bertclf must cost no
# more than importing scikit-learn.


class BertSequenceClassifier(ClassifierMixin, BaseEstimator):
    """Text classifier that fine-tunes a pretrained transformer.

    Takes raw texts, or pairs of texts, and does the rest inside `fit`: special tokens, truncation, padding, attention
    masks, a new head on the pretrained network, and its training with AdamW.

    Parameters
    ----------
    model : str or path-like, default="bert-base-uncased"
        Folder with config, tokenizer and safetensors weights, or the name of a repository on the Hugging Face Hub.
    revision : str, default=None
        Branch, tag or commit on the Hub. None takes the default branch.
    epochs : int or "auto", default="auto"
        Passes over the training texts. "auto" takes as many as make about 300 optimiser steps, from 3 to 20.
    batch_size : int, default=32
        Texts per optimiser step; the last batch of an epoch may hold fewer.
    learning_rate : float or "auto", default="auto"
        Peak step size of AdamW. "auto" follows the width of the network: 1e-4 below 768, 5e-5 below 1024, else 2e-5.
    lr_schedule : str, default="linear"
        Course of the learning rate, by its name in `transformers.get_scheduler`. "reduce_lr_on_plateau" and "greedy"
        look at the validation loss, or without validation texts at the training loss, after each epoch.
    warmup_ratio : float, default=0.1
        Share of all steps in which the learning rate rises to its peak, in [0, 1]. The schedules "constant",
        "reduce_lr_on_plateau" and "greedy" have no warm-up.
    weight_decay : float, default=0.01
        Decay of AdamW, never on biases and norms.
    max_grad_norm : float, default=1.0
        Gradients with a larger 2-norm are scaled down to it. None never scales.
    label_smoothing : float, default=0.0
        Share of each target that is spread evenly over all classes, in [0, 1).
    dropout : float, default=None
        Probability, in [0, 1), that replaces every dropout probability of the checkpoint. None keeps them.
    pooling : {"auto", "cls", "mean", "last"}, default="auto"
        How the tokens of a text become one vector: the first token, the mean, the last token. "auto" follows the
        checkpoint: its sentence-embedding configuration if it has one, else its architecture (first token for
        encoders, last token for decoders).
    max_length : int, default=None
        Longest input in tokens, special tokens included; the rest of a text is cut, of a pair the longer text first.
        None is the limit of the checkpoint: what its positions and its tokenizer allow.
    precision : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Precision of the matrix products; weights stay in float32. "auto" takes bfloat16, on a GPU without it float16,
        where the hardware has circuits for it, else float32.
    device : str, default="auto"
        Device of torch: "cpu", "cuda", "cuda:1", "mps". "auto" takes CUDA, then MPS, then the CPU.
    random_state : int, RandomState instance or None, default=None
        Seeds the head, the order of the texts and dropout, and nothing outside the classifier. An int gives the same
        weights at each fit on one CPU; on a GPU up to the order in which its kernels add. None takes a new seed from
        the operating system at each fit.
    verbose : int, default=0
        0 is silent; 1 or more shows a progress bar, a line per epoch, and the progress of a download.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted, in the dtype in which they came.
    n_iter_ : int
        Epochs run.
    history_ : list of dict
        One row an epoch: `epoch`, `step` (optimiser steps so far), `training_loss`, `validation_loss`,
        `validation_score` (accuracy), `training_seconds`, `validation_seconds`; None where there were no validation
        texts. `pandas.DataFrame(clf.history_)` is a table.
    loss_curve_ : list of float
        Training loss of each epoch.
    model_ : torch.nn.Module
        The network, called with `input_ids` and `attention_mask` and returning an output with `logits`. It is the
        sequence-classification class of transformers where the pooling is that of the architecture.
    tokenizer_ : transformers.PreTrainedTokenizerBase
        The tokenizer.
    truncation_ : dict
        What `max_length` cut from the training texts: `texts` and `tokens` are counts, `per_class` maps each label to
        such a dict. Of a text over 32,768 characters the tokens that were never read are estimated from its length.
    n_features_in_ : int
        Number of columns, 1 or 2. Only after a fit on 2-D input.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns. Only after a fit on a data frame whose column names are all strings.

    See Also
    --------
    TrainingDisplay : Draws the loss curves.

    Notes
    -----
    Pickles hold the weights as safetensors bytes and can be loaded where there is no GPU. Like any pickle they can run
    code: load only what you trust. To pickle and to load, the files of the tokenizer pass through a temporary folder.

    A pair is encoded as the tokenizer encodes pairs: BERT sets separators and segments, GPT-2 puts the second text
    right behind the first.

    References
    ----------
    Devlin et al. (2019), "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".

    Examples
    --------
    >>> from bertclf import BertSequenceClassifier
    >>> texts = ["a fine film", "dull and long", "a joy", "a waste of time"]
    >>> labels = ["fresh", "rotten", "fresh", "rotten"]
    >>> checkpoint = "bert-base-uncased"  # doctest: +SKIP
    >>> clf = BertSequenceClassifier(checkpoint, epochs=2, random_state=0).fit(texts, labels)
    >>> clf.predict_proba(["a fine joy"]).shape
    (1, 2)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "model": [str, os.PathLike],
        "revision": [str, None],
        "epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "lr_schedule": [
            StrOptions(
                {
                    "constant",
                    "constant_with_warmup",
                    "cosine",
                    "cosine_warmup_with_min_lr",
                    "cosine_with_min_lr",
                    "cosine_with_restarts",
                    "greedy",
                    "inverse_sqrt",
                    "linear",
                    "polynomial",
                    "reduce_lr_on_plateau",
                    "warmup_stable_decay",
                }
            )
        ],
        "warmup_ratio": [Interval(Real, 0, 1, closed="both")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left"), None],
        "pooling": [StrOptions({"auto", "cls", "mean", "last"})],
        "max_length": [Interval(Integral, 1, None, closed="left"), None],
        "precision": [StrOptions({"auto", "float32", "bfloat16", "float16"})],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        model: str | os.PathLike[str] = "bert-base-uncased",
        *,
        revision: str | None = None,
        epochs: int | str = "auto",
        batch_size: int = 32,
        learning_rate: float | str = "auto",
        lr_schedule: str = "linear",
        warmup_ratio: float = 0.1,
        weight_decay: float = 0.01,
        max_grad_norm: float | None = 1.0,
        label_smoothing: float = 0.0,
        dropout: float | None = None,
        pooling: str = "auto",
        max_length: int | None = None,
        precision: str = "auto",
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.revision = revision
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.lr_schedule = lr_schedule
        self.warmup_ratio = warmup_ratio
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.label_smoothing = label_smoothing
        self.dropout = dropout
        self.pooling = pooling
        self.max_length = max_length
        self.precision = precision
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, X_val: Any = None, y_val: Any = None) -> Self:
        """Fine-tune the pretrained network on labelled texts.

        A fit that fails leaves the classifier as it was.

        Parameters
        ----------
        X : array-like of str, of shape (n_texts,), (n_texts, 1) or (n_texts, 2)
            Texts; two columns, or tuples of two, are pairs of texts.
        y : array-like of shape (n_texts,)
            Labels of one sortable type.
        sample_weight : array-like of shape (n_texts,), default=None
            Non-negative weights in the loss, scaled to a mean of one. None weighs all texts alike.
        X_val, y_val : array-like, default=None
            Texts and labels on which loss and accuracy are measured after each epoch. None measures nothing.

        Returns
        -------
        BertSequenceClassifier
            The fitted classifier.

        Raises
        ------
        ValueError, TypeError
            If a parameter, a text, a label or a weight is not what it must be.
        OSError
            If the checkpoint can't be found or read.
        FloatingPointError
            If the training diverges.
        """
        from bertclf._device import choose_compute
        from bertclf._network import width
        from bertclf._random import draw_seed, seeded
        from bertclf._tokens import resolve_max_length, truncation_report
        from bertclf._training import check_schedule, train

        if not get_config()["skip_parameter_validation"]:
            self._validate_params()
        check_schedule(self.lr_schedule)
        texts = read_texts(X)
        classes, targets = np.unique(read_labels(y, n_texts=len(texts)), return_inverse=True)
        labelled = LabelledTexts(texts, targets, read_weights(sample_weight, n_texts=len(texts)))
        held_out = _read_validation(X_val, y_val, like=texts, classes=classes)
        compute = choose_compute(device=self.device, precision=self.precision)
        seed = draw_seed(self.random_state)

        with seeded(seed, compute.device):
            checkpoint = self._load(classes)
            network, tokenizer = checkpoint.network, checkpoint.tokenizer
            compute.place(network)
            max_length = resolve_max_length(self.max_length, checkpoint.length_limit, tokenizer, pairs=texts.are_pairs)
            training = _tokenized(labelled, checkpoint, max_length=max_length)
            history = train(
                network,
                training,
                validation=None if held_out is None else _tokenized(held_out, checkpoint, max_length=max_length),
                settings=self._settings(n_texts=len(texts), width=width(network)),
                compute=compute,
                generator=np.random.default_rng(seed),
                verbose=bool(self.verbose),
            )
            truncation = truncation_report(training.tokens.cut, targets, classes)

        self._forget()
        self.classes_ = classes
        self.n_iter_ = len(history)
        self.history_ = history
        self.loss_curve_ = [row["training_loss"] for row in history]
        self.model_ = network
        self.tokenizer_ = tokenizer
        self.truncation_ = truncation
        self._takes_pairs = texts.are_pairs
        self._max_length = max_length
        self._compute = compute
        if texts.n_columns is not None:
            self.n_features_in_ = texts.n_columns
        if texts.column_names is not None:
            self.feature_names_in_ = texts.column_names
        return self

    def decision_function(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the logits.

        Parameters
        ----------
        X : array-like of str, of shape (n_texts,), (n_texts, 1) or (n_texts, 2)
            Texts or pairs, as in `fit`.

        Returns
        -------
        ndarray of float32, of shape (n_texts,) or (n_texts, n_classes)
            One column a class. With two classes, 1-D: the logit of the second class less that of the first.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the probability of each class.

        Parameters
        ----------
        X : array-like of str, of shape (n_texts,), (n_texts, 1) or (n_texts, 2)
            Texts or pairs, as in `fit`.

        Returns
        -------
        ndarray of float32, of shape (n_texts, n_classes)
            Columns in the order of `classes_`; rows sum to one.
        """
        logits = self._logits(X)
        from bertclf._inference import probabilities

        return probabilities(logits)

    def predict_log_proba(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the logarithm of the probability of each class.

        Parameters
        ----------
        X : array-like of str, of shape (n_texts,), (n_texts, 1) or (n_texts, 2)
            Texts or pairs, as in `fit`.

        Returns
        -------
        ndarray of float32, of shape (n_texts, n_classes)
            Columns in the order of `classes_`.
        """
        logits = self._logits(X)
        from bertclf._inference import log_probabilities

        return log_probabilities(logits)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the most probable class of each text.

        Parameters
        ----------
        X : array-like of str, of shape (n_texts,), (n_texts, 1) or (n_texts, 2)
            Texts or pairs, as in `fit`.

        Returns
        -------
        ndarray of shape (n_texts,)
            Labels, in the dtype of `classes_`.
        """
        positions = self.predict_proba(X).argmax(axis=1)
        labels: npt.NDArray[Any] = self.classes_[positions]
        return labels

    def _logits(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the logits of each text, one column a class."""
        check_is_fitted(self)
        from bertclf._inference import predict_logits
        from bertclf._network import takes_segments
        from bertclf._tokens import tokenize

        texts = read_texts(X)
        self._check_columns(X, texts)
        tokens = tokenize(
            texts.first,
            texts.second,
            tokenizer=self.tokenizer_,
            max_length=self._max_length,
            with_segments=takes_segments(self.model_, self.tokenizer_),
        )
        return predict_logits(self.model_, tokens, compute=self._compute)

    def _check_columns(self, X: Any, texts: Texts) -> None:
        """Raise if pairs come where single texts were fitted, or the reverse, or columns under other names."""
        if texts.are_pairs != self._takes_pairs:
            n_fitted, n_given = (2, 1) if self._takes_pairs else (1, 2)
            raise ValueError(
                f"X has {n_given} text(s) a row, but BertSequenceClassifier was fitted on {n_fitted}: single texts "
                "and pairs can't be exchanged. Pass what fit was given."
            )
        has_columns = len(getattr(X, "shape", ())) == 2
        if has_columns and hasattr(self, "n_features_in_"):
            validate_data(self, X, reset=False, skip_check_array=True)

    def _load(self, classes: npt.NDArray[Any]) -> "Checkpoint":
        """Load the pretrained network with a new head for these classes, and its tokenizer."""
        from bertclf._checkpoint import load_checkpoint

        return load_checkpoint(
            self.model,
            revision=self.revision,
            labels=[str(label) for label in classes.tolist()],
            pooling=self.pooling,
            dropout=self.dropout,
            verbose=bool(self.verbose),
        )

    def _settings(self, *, n_texts: int, width: int) -> "TrainingSettings":
        """Return how to train, every "auto" resolved."""
        from bertclf._training import TrainingSettings

        epochs, learning_rate = automatic_settings(n_texts=n_texts, batch_size=self.batch_size, width=width)
        return TrainingSettings(
            epochs=epochs if self.epochs == "auto" else int(self.epochs),
            batch_size=self.batch_size,
            learning_rate=learning_rate if self.learning_rate == "auto" else float(self.learning_rate),
            lr_schedule=self.lr_schedule,
            warmup_ratio=self.warmup_ratio,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            label_smoothing=self.label_smoothing,
        )

    def _forget(self) -> None:
        """Delete what an earlier fit left that this one may not set."""
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self, name):
                delattr(self, name)

    def __sklearn_is_fitted__(self) -> bool:
        """Tell whether a fit has succeeded."""
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Tags:
        """Describe the input to scikit-learn: one-dimensional, of strings."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return parameters and fitted state as plain Python, numpy and bytes, independent of the device."""
        state = dict(super().__getstate__())
        if self.__sklearn_is_fitted__():
            from bertclf._persistence import to_state

            del state["_compute"]
            state["checkpoint"] = to_state(state.pop("model_"), state.pop("tokenizer_"))
            state["bertclf_version"] = __version__
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Rebuild the network, on the device that `device` means on this machine."""
        state = dict(state)
        original = state.pop("bertclf_version", __version__)
        stored = state.pop("checkpoint", None)
        super().__setstate__(state)
        if stored is None:
            return
        from bertclf._device import compute_after_loading
        from bertclf._persistence import InconsistentBertclfVersionWarning, from_state

        if original != __version__:
            warnings.warn(InconsistentBertclfVersionWarning(current=__version__, original=original), stacklevel=2)
        checkpoint = from_state(stored)
        self._compute = compute_after_loading(device=self.device, precision=self.precision)
        self._compute.place(checkpoint.network)
        self.model_ = checkpoint.network
        self.tokenizer_ = checkpoint.tokenizer


def _read_validation(X_val: Any, y_val: Any, *, like: Texts, classes: npt.NDArray[Any]) -> LabelledTexts | None:
    """Return the validation texts, of the same kind as the training texts; None if none were passed."""
    if X_val is None and y_val is None:
        return None
    if X_val is None or y_val is None:
        given, missing = ("X_val", "y_val") if y_val is None else ("y_val", "X_val")
        raise ValueError(f"{given} was passed without {missing}: validation needs both. Pass both or none.")
    texts = read_texts(X_val, name="X_val")
    if texts.are_pairs != like.are_pairs:
        kinds = {True: "pairs", False: "single texts"}
        raise ValueError(
            f"X_val holds {kinds[texts.are_pairs]}, but X holds {kinds[like.are_pairs]}. Pass the same kind to both."
        )
    labels = read_labels(y_val, n_texts=len(texts), name="y_val", texts_name="X_val")
    return LabelledTexts(texts, targets_of(labels, classes, name="y_val"), read_weights(None, n_texts=len(texts)))


def _tokenized(labelled: LabelledTexts, checkpoint: "Checkpoint", *, max_length: int | None) -> "LabelledTokens":
    """Return labelled texts as the network takes them."""
    from bertclf._network import takes_segments
    from bertclf._tokens import tokenize
    from bertclf._training import LabelledTokens

    tokens = tokenize(
        labelled.texts.first,
        labelled.texts.second,
        tokenizer=checkpoint.tokenizer,
        max_length=max_length,
        with_segments=takes_segments(checkpoint.network, checkpoint.tokenizer),
    )
    return LabelledTokens(tokens, labelled.targets, labelled.weights)
