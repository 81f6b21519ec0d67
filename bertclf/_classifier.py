"""The one public estimator: parameters, `fit` as one story, and the prediction methods."""

import copy
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    InvalidParameterError,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import check_is_fitted, validate_data

from bertclf._callbacks import CallbackSupportMixin, Silence, with_callbacks
from bertclf._defaults import automatic_epochs, automatic_label_smoothing, automatic_learning_rate
from bertclf._inputs import Texts, read_in_parts, read_texts
from bertclf._manifest import FITTED, encode
from bertclf._targets import (
    Classes,
    LabelledTexts,
    label_texts,
    mean_one,
    metric_labels,
    read_class_weight,
    read_classes,
    read_labels,
    read_validation,
    split,
    weigh_classes,
    without_weightless,
)
from bertclf._version import __version__

if TYPE_CHECKING:
    from bertclf._checkpoint import Checkpoint
    from bertclf._device import Compute
    from bertclf._encoding import Way
    from bertclf._engine import Engine
    from bertclf._frozen import FrozenPart
    from bertclf._memory import TextMemory
    from bertclf._network import Network
    from bertclf._progress import Trained
    from bertclf._resume import FitFile
    from bertclf._steps import LabelledTokens, TrainingSettings
    from bertclf._tasks import Task
    from bertclf._tokens import TokenStore

# What a fit on 2-D input tells of its columns; until a fit is taken on, None where there is nothing to tell.
COLUMN_ATTRIBUTES = ("n_features_in_", "feature_names_in_")

# Parameters that a fit need not be started again with, since they change no bit of it, or since what they stand for is
# compared itself: the weights to start from, the seed, the device and the precision.
KNOWN_OTHERWISE = frozenset(
    {"model", "revision", "precision", "device", "memory", "checkpoint", "warm_start", "random_state", "verbose"}
)

# Parameters that mean nothing on another machine, or could do harm there.
PARAMETERS_OF_MACHINE = ("device", "memory", "checkpoint")

# The rooms that need torch and transformers are imported by the methods that use them: importing bertclf must cost no
# more than importing scikit-learn.


class BertSequenceClassifier(CallbackSupportMixin, ClassifierMixin, BaseEstimator):
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
        Share of all steps in which the learning rate rises to its peak, in [0, 1], rounded up to whole steps. It begins
        with a step of rate zero and never takes the last one, but in "cosine_warmup_with_min_lr". The schedules
        "constant", "reduce_lr_on_plateau" and "greedy" have none.
    weight_decay : float, default=0.01
        Decay of AdamW, never on biases and norms.
    max_grad_norm : float, default=1.0
        Gradients with a larger 2-norm are scaled down to it. None never scales.
    layer_decay : float, default=1.0
        Factor, in (0, 1], on the step size from layer to layer, from the top down: the head has that of
        `learning_rate`, the highest layer that times the factor, and so on down to the embeddings, which are one below
        the lowest layer. 1 trains all alike. ELECTRA was fine-tuned with 0.7 to 0.9 (Clark et al. 2020). Where layers
        share weights (ALBERT) or are in two stacks (BART) only 1 is possible.
    label_smoothing : float or "auto", default="auto"
        Share of each target that is spread evenly over all classes, in [0, 1): the network is less sure where it is
        wrong. "auto" takes 0.05 where `fit` learns from 50 texts a class on average, or more (those held out or of
        weight 0 don't count), and 0 where there are fewer, in `partial_fit`, and with an indicator matrix. Set a number
        where probabilities of fits on fewer texts are to suit a fit on all, as in tuned thresholds.
    dropout : float, default=None
        Probability, in [0, 1), that replaces every dropout probability of the checkpoint. None keeps them.
    head_init : {"probe", "random"}, default="probe"
        Where the new head begins. "probe" adds to what is drawn a logistic regression on what the untouched network
        makes of the training texts, scaled to vectors of one norm, of more than 8,192 of so many that are drawn at
        random; it is penalised as that of scikit-learn by default, its intercepts hardly; then all is trained from
        there. As a regression knows its own texts too well, and would leave little to learn, what it adds to the
        intercepts that the shares of the classes have is multiplied by a strength from 0 to 1: its loss on texts is
        then as high as the lowest that regressions on four fifths of the texts reach there, without these texts, at any
        strength: all texts, of many as many as make 1,000. As few texts tell little of that, it is averaged with 1,
        weighted by their number and by 5. "random" draws the head, from which few texts don't lead far.
        `partial_fit` draws it, and `warm_start` goes on with the one that there is. The more texts there are, the less
        the penalty matters, so that with "probe" a text of weight 2 is nearly, not exactly, the same as that text
        twice.
    freeze : int or "encoder", default=0
        Number of lowest layers that stay fixed, with all that they depend on, the embeddings first of all; or "encoder"
        for all but the head. What is fixed has no dropout and is run once a text and fit: its output is kept, in
        float32, if that of all texts (4 bytes times the width for each token, with "encoder" for each text, or window
        of it) is at most 1 GiB, and again as much for validation texts, or if there is a `memory`. Where layers share
        weights (ALBERT) or are in two stacks (BART) 0 and "encoder" are possible; where attention doesn't go through
        the interface of transformers (DeBERTa, MPNet) nothing but the output of the whole encoder is kept.
    pooling : {"auto", "cls", "mean", "last"}, default="auto"
        How the tokens of a text become one vector: the first token, the mean, the last token. "auto" follows the
        checkpoint: its sentence-embedding configuration if it has one, else its architecture (first token for
        encoders, last token for decoders).
    max_length : int, default=None
        Longest input in tokens, special tokens included; the rest of a text is cut, of a pair the longer text first.
        None is the limit of the checkpoint: what its positions and its tokenizer allow.
    long_text : {"head_tail", "truncate", "chunk"}, default="head_tail"
        What becomes of texts that are longer than `max_length`. "head_tail" keeps both ends, of what fits a quarter for
        the beginning (Sun et al. 2019). "truncate" keeps the beginning, or what the tokenizer keeps, as pipelines of
        transformers do; it costs as much. "chunk" cuts the text into windows, of which neighbours have at least an
        eighth of what fits in common, and loses nothing: each window is trained on with the label of the text, those of
        one text together with the weight of one, and the logits of a text are the mean of theirs. In windows of a
        hundred tokens or more, it takes about as long as reading 8/7 of all tokens, however many these are.
        `training_loss` is then the mean over windows, and `validation_loss` that of the mean logits, which is lower. Of
        a pair, "head_tail" cuts as `max_length` says, and "chunk" spreads the longer text over the windows and repeats
        the shorter one in each, cut to half of what fits. Texts that fit are the same in all three.
    class_weight : dict, list of dict, "balanced" or None, default=None
        What each class weighs in the training loss and in the validation loss, on top of the weights of the texts. A
        dict maps labels to weights, 1 where there is none; "balanced" weighs each class by the inverse of its weighted
        share of the texts. For an indicator matrix as y, a list with one dict a label, from 0 and 1 to weights.
    early_stopping : bool, default=False
        Whether to stop when validation shows no gain, and to keep the weights of the best epoch. Measured on `X_val`
        and `y_val` where `fit` gets them, else on a share of the training texts that is held out.
    validation_fraction : float, default=0.1
        Share of the training texts that early stopping, `calibration` or `thresholds` hold out, in (0, 1). Each class
        keeps its proportion; rows of an indicator matrix are held out at random. Texts that belong together (of one
        author, one thread) are not kept together: hold them out yourself and pass `X_val` and `y_val`.
    n_iter_no_change : int, default=2
        Epochs without gain after which early stopping stops.
    scoring : str, callable or None, default=None
        What early stopping watches. None is the validation loss; a str or a callable is a scorer as in
        :func:`sklearn.metrics.get_scorer`, of which more is better, and among equal scores the lowest loss. It is
        called after each epoch, and once in advance to see that it works, with the classifier, a list of the validation
        texts and their labels, and with `sample_weight` if they have weights. Class weights are no part of it.
    calibration : {"temperature"} or None, default=None
        How to make probabilities as sure as they are right. "temperature" divides the logits by one number, after the
        training and for good, with which the loss of the validation texts is lowest; where these are few, a number
        nearer 1. They are `X_val` and `y_val` where `fit` gets them, else a share of the training texts that is held
        out, as with early stopping, which uses the same. It changes no prediction, up to rounding, nor what `history_`
        says. The number goes into the weights of the head, so that whatever loads the network gets these logits;
        `warm_start` and `partial_fit` take it out again. Weights of classes have no part in it: with them
        probabilities are those of classes that are as frequent as they weigh, whatever the temperature. None leaves
        the logits as they are.
    thresholds : {"f1"} or None, default=None
        Above which probability `predict` gives a text each of many labels, for an indicator matrix as y. "f1" seeks for
        each label the one with the highest F1 on the validation texts, the same as for `calibration`, if at least ten
        of them have the label; with fewer it stays at 0.5, and a warning says so. It pays where labels are rare, as F1
        asks for a lower threshold there than 0.5. What is gained is F1, not the share of texts with all labels right,
        which `score` is. Scores in `history_`, and what early stopping watches, are those at 0.5. Probabilities stay as
        they are, and weights of classes have no part in it. None is 0.5. For two classes, wrap the classifier in
        :class:`sklearn.model_selection.TunedThresholdClassifierCV` instead.
    precision : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Precision of the matrix products; weights stay in float32. "auto" takes bfloat16, on a GPU without it float16,
        where the hardware has circuits for it, else float32.
    device : str, default="auto"
        Device of torch: "cpu", "cuda", "cuda:1", "mps". "auto" takes CUDA, then MPS, then the CPU.
    memory : str, path-like, joblib.Memory or None, default=None
        Folder that keeps token ids, and with `freeze` the output of the fixed layers, by content of the text,
        tokenizer, length, `long_text` and weights: no fold and no candidate of a search tokenizes or encodes a text
        that another one has, be it to train on it or to predict. Any number of processes may share it, but on a network
        drive, where locks may not hold. It is a file that grows, by 5 bytes a token, some 60 a text and what `freeze`
        says, and holds what can be made again: delete it, and `set_params(memory=None)`, when the search is over.
        `clear` of a `joblib.Memory` deletes it. None keeps nothing.
    checkpoint : str or path-like, default=None
        Folder that keeps the state of one fit after each of its epochs, in one file, written whole or not at all. If
        the fit is killed, `fit` with the same folder, data and parameters goes on after the last epoch that was kept,
        and ends with the same bits, on one CPU with as many threads, as if it had never been stopped; if it was over,
        it ends at once with the same result. With `random_state=None` the seed is taken from the file. Other data,
        parameters or weights to start from are an error, other versions of torch or transformers a warning; functions,
        such as a scorer, are told apart by their names alone. Callbacks hear of the epochs that are run. The file takes
        up to four times as much as the weights, holds nothing that can run, and is yours to delete. It is that of one
        fit: the fits of a search, or of a `warm_start`, need a folder each. None keeps nothing.
    warm_start : bool, default=False
        Whether `fit` goes on from the weights of the last `fit` or `partial_fit`, head included, instead of loading
        `model` anew: then `model`, `revision`, `pooling` and `dropout` are not looked at, the labels must be the same,
        and the learning rate takes its whole course again. With `early_stopping`, `calibration` or `thresholds` pass an
        int as `random_state`, or `X_val`: another split would hold out texts that the last fit has learnt from.
    random_state : int, RandomState instance or None, default=None
        Seeds the head, the split for early stopping and the like, the order of the texts and dropout, and nothing
        outside the classifier. An int gives the same weights at each fit on one CPU; on a GPU up to the order in which
        its kernels add. None takes a new seed from the operating system at each fit.
    verbose : int, default=0
        0 is silent; 1 or more shows device, precision, epochs, learning rate and label smoothing, a progress bar, a
        line per epoch, and the progress of a download.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted, in the dtype in which they came; for an indicator matrix the numbers of its columns.
    n_iter_ : int
        Epochs run by the last `fit`, 1 after `partial_fit`.
    history_ : list of dict
        One row an epoch: `epoch`, `step` (optimiser steps so far), `training_loss`, `validation_loss` (both without
        `label_smoothing`), `validation_score` (what `scoring` says, the accuracy if that is None), `training_seconds`,
        `validation_seconds`; None where there were no validation texts. `pandas.DataFrame(clf.history_)` is a table.
        Each `partial_fit` adds a row.
    loss_curve_ : list of float
        Training loss of each row of `history_`.
    validation_scores_ : list of float or None
        Validation score of each epoch; None without early stopping.
    best_validation_score_ : float or None
        Validation score of the epoch whose weights were kept: the one with the best score, or if `scoring` is None
        with the lowest `validation_loss` in `history_`, whose accuracy need not be the highest. None without early
        stopping.
    temperature_ : float
        Number by which `calibration` divided the logits: above 1 where the network was surer than right. 1 without it.
    thresholds_ : list of float or None
        Probability above which a text has each label, in the order of the columns; None without `thresholds`, where
        that is 0.5.
    best_loss_ : float or None
        Lowest training loss of an epoch; None with early stopping.
    micro_batch_size_ : int
        Most texts that the last `fit` or `partial_fit` sent through the network at once, since memory last ran out:
        `batch_size`, or fewer where a batch takes more memory than there is, or on a CPU more than 2,048 tokens, or is
        padded there. The step is that of the whole batch all the same. With `long_text="chunk"` windows are counted,
        of which a batch can have more than texts.
    model_ : torch.nn.Module
        The network, called with `input_ids` and `attention_mask` and returning an output with `logits`. It is the
        sequence-classification class of transformers where the pooling is that of the architecture.
    tokenizer_ : transformers.PreTrainedTokenizerBase
        The tokenizer.
    truncation_ : dict
        What `max_length` cut from the texts that the last `fit` or `partial_fit` trained on: `texts` and `tokens` are
        counts, `per_class` maps each label to such a dict. Of a text over 32,768 characters the tokens that were never
        read are estimated from its length. With `long_text="chunk"` nothing is cut but the shorter text of a pair.
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
    code: load only what you trust, or use `save_pretrained` and `from_pretrained`. In both ways the files of the
    tokenizer pass through a temporary folder.

    A pair is encoded as the tokenizer encodes pairs: BERT sets separators and segments, GPT-2 puts the second text
    right behind the first.

    References
    ----------
    Devlin et al. (2019), "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".
    Sun et al. (2019), "How to Fine-Tune BERT for Text Classification?".

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

    # Where scikit-learn links to from a notebook: there is no public page yet, and "" links to none.
    _doc_link_module = "bertclf"
    _doc_link_template = ""

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
        "layer_decay": [Interval(Real, 0, 1, closed="right")],
        "label_smoothing": [Interval(Real, 0, 1, closed="left"), StrOptions({"auto"})],
        "dropout": [Interval(Real, 0, 1, closed="left"), None],
        "head_init": [StrOptions({"probe", "random"})],
        "freeze": [Interval(Integral, 0, None, closed="left"), StrOptions({"encoder"})],
        "pooling": [StrOptions({"auto", "cls", "mean", "last"})],
        "max_length": [Interval(Integral, 1, None, closed="left"), None],
        "long_text": [StrOptions({"head_tail", "truncate", "chunk"})],
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "scoring": [str, callable, None],
        "calibration": [StrOptions({"temperature"}), None],
        "thresholds": [StrOptions({"f1"}), None],
        "precision": [StrOptions({"auto", "float32", "bfloat16", "float16"})],
        "device": [str],
        "memory": [str, os.PathLike, HasMethods(["cache"]), None],
        "checkpoint": [str, os.PathLike, None],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _optimizer_state: dict[str, Any] | None
    _frozen_part: "FrozenPart | None"

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
        layer_decay: float = 1.0,
        label_smoothing: float | str = "auto",
        dropout: float | None = None,
        head_init: str = "probe",
        freeze: int | str = 0,
        pooling: str = "auto",
        max_length: int | None = None,
        long_text: str = "head_tail",
        class_weight: dict[Any, float] | list[dict[int, float]] | str | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 2,
        scoring: str | Callable[..., float] | None = None,
        calibration: str | None = None,
        thresholds: str | None = None,
        precision: str = "auto",
        device: str = "auto",
        memory: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        warm_start: bool = False,
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
        self.layer_decay = layer_decay
        self.label_smoothing = label_smoothing
        self.dropout = dropout
        self.head_init = head_init
        self.freeze = freeze
        self.pooling = pooling
        self.max_length = max_length
        self.long_text = long_text
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.scoring = scoring
        self.calibration = calibration
        self.thresholds = thresholds
        self.precision = precision
        self.device = device
        self.memory = memory
        self.checkpoint = checkpoint
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks  # type: ignore[untyped-decorator]
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:
        """Fine-tune the pretrained network on labelled texts.

        A fit that fails leaves the classifier as it was.

        Parameters
        ----------
        X : array-like of str, of shape (n_texts,), (n_texts, 1) or (n_texts, 2)
            Texts; two columns, or tuples of two, are pairs of texts.
        y : array-like of shape (n_texts,) or (n_texts, n_labels)
            Labels, all of one type: str, int, bool, whole floats or datetime64; or, where a text can have any number of
            labels, a matrix of zeros and ones with a column a label.
        sample_weight : array-like of shape (n_texts,), default=None
            Non-negative weights in the loss, scaled to a mean of one. None weighs all texts alike; a text of weight 0
            is left out.
        X_val, y_val : array-like, default=None
            Texts and labels on which loss and score are measured after each epoch, and which early stopping watches.
            Without early stopping, calibration and thresholds they change nothing but `history_`. None measures on
            what these hold out, without them nothing.
        sample_weight_val : array-like of shape (n_validation_texts,), default=None
            Weights of the validation texts in loss and score. None weighs all alike.

        Returns
        -------
        BertSequenceClassifier
            The fitted classifier.

        Raises
        ------
        ValueError, TypeError
            If a parameter, a text, a label or a weight is not what it must be, or `checkpoint` keeps another fit.
        OSError
            If `model` can't be found or read, or `checkpoint` can't be written.
        ModelFileError
            If a file of `model` is damaged, is of an architecture that can't classify, or asks for code of its own, or
            the file in `checkpoint` is damaged.
        FloatingPointError
            If the training diverges.

        Warns
        -----
        UserWarning
            If `max_length`, or the limit of the checkpoint, cuts more than a hundredth of the tokens.
        UserWarning
            If the training collapses: after 100 steps or more, the training loss of the last epoch is at least 0.99
            times that of the best answer that is the same for all texts, which is the entropy of the shares that the
            classes have in the loss; and the logits of 256 training texts, as far as possible of all classes alike,
            are less than 0.05 apart.

        Notes
        -----
        Where metadata routing passes `X_val` through a search or a cross-validation, scikit-learn cuts it into folds
        if it is as long as `X`. Pass validation texts of another length, or leave the split to `early_stopping`.
        """
        from bertclf._device import choose_compute
        from bertclf._random import draw_seed
        from bertclf._tasks import Task

        self._check_parameters()
        texts = read_texts(X)
        labels = read_labels(y, n_texts=len(texts))
        classes = Classes.of(labels)
        self._check_thresholds(classes)
        goes_on = self.warm_start and self.__sklearn_is_fitted__()
        if goes_on:
            classes = self._same_kind(texts, classes)
        labelled, class_weights = self._labelled(texts, labels, sample_weight, classes=classes)
        held_out = read_validation(
            X_val, y_val, sample_weight_val, like=texts, classes=classes, class_weights=class_weights
        )
        compute = choose_compute(device=self.device, precision=self.precision)
        seed = draw_seed(self.random_state)
        fit_file = None
        if self.checkpoint is not None:
            fit_file = self._fit_file(self.checkpoint, labelled, held_out, classes=classes, compute=compute, seed=seed)
            seed = fit_file.seed
        if self._needs_validation and held_out is None:
            labelled, held_out = split(labelled, fraction=self.validation_fraction, seed=seed)

        epochs = self._n_epochs(len(labelled))
        attributes: dict[str, Any] = {}  # empty until the training is over, when callbacks may ask for them
        with Task(
            self._init_callback_context(max_subtasks=epochs) if self._has_callbacks else Silence(),
            {"estimator": self},
            data={"X": X, "y": y, "metadata": None if sample_weight is None else {"sample_weight": sample_weight}},
            device=compute.device,
            snapshot=lambda: attributes,
        ) as task:
            state, trained = self._train(
                labelled,
                held_out=held_out,
                classes=classes,
                goes_on=goes_on,
                epochs=epochs,
                seed=seed,
                compute=compute,
                task=task,
                fit_file=fit_file,
            )
            attributes |= _fitted_attributes(state, trained, n_iter=len(trained.history))
        self._become(attributes)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train on for one pass over some labelled texts.

        The first call loads the pretrained network, unless the classifier is fitted already; each call starts where the
        last `fit` or `partial_fit` ended. The learning rate is that of the parameter, at each step: as nobody knows how
        many calls will come, there is neither warm-up nor decay. What AdamW remembers of the gradients is kept from
        call to call, and in pickles, which are three times as large for it; a `fit` begins and ends without.

        A call that fails leaves the classifier as it was. Callbacks are not told of it.

        Parameters
        ----------
        X : array-like of str, of shape (n_texts,), (n_texts, 1) or (n_texts, 2)
            Texts or pairs, always the same of the two.
        y : array-like of shape (n_texts,) or (n_texts, n_labels)
            Labels, as in `fit`.
        classes : array-like of shape (n_classes,), default=None
            All labels that will ever come; for an indicator matrix the numbers of its columns. The first call needs
            them; later they may be left out.
        sample_weight : array-like of shape (n_texts,), default=None
            Non-negative weights in the loss, scaled to a mean of one over the texts of this call.

        Returns
        -------
        BertSequenceClassifier
            The fitted classifier.

        Raises
        ------
        ValueError, TypeError
            If a parameter, a text, a label or a weight is not what it must be; with `early_stopping=True`,
            `calibration`, `thresholds` or `class_weight="balanced"`, which need all texts at once; with a `checkpoint`,
            as there is one epoch.
        OSError
            If the checkpoint can't be found or read.
        ModelFileError
            If a file of the checkpoint is damaged, of an architecture that can't classify, or asks for code of its own.
        FloatingPointError
            If the training diverges.
        """
        from bertclf._device import choose_compute
        from bertclf._random import draw_seed, seed_of_part
        from bertclf._tasks import Task

        self._check_parameters()
        self._check_fits_in_parts()
        texts = read_texts(X)
        labels = read_labels(y, n_texts=len(texts))
        goes_on = self.__sklearn_is_fitted__()
        if classes is None and not goes_on:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        known = self._classes if classes is None else read_classes(classes, labels=labels)
        if goes_on:
            known = self._same_kind(texts, known)
            self._check_columns(X, texts)
        labelled, _ = self._labelled(texts, labels, sample_weight, classes=known)
        compute = choose_compute(device=self.device, precision=self.precision)
        history = self.history_ if goes_on else []

        state, trained = self._train(
            labelled,
            held_out=None,
            classes=known,
            goes_on=goes_on,
            epochs=1,
            seed=seed_of_part(draw_seed(self.random_state), part=len(history)),
            compute=compute,
            task=Task(Silence(), {}, device=compute.device),
            in_parts=True,
        )
        if goes_on:
            state |= {name: getattr(self, name, None) for name in COLUMN_ATTRIBUTES}
        trained = replace(trained, history=[*history, _continued(trained.history[0], history)])
        self._become(_fitted_attributes(state, trained, n_iter=1) | {"_optimizer_state": trained.optimizer_state})
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
            One column a class. With two classes, 1-D: the logit of the second class less that of the first. After a
            fit on an indicator matrix always one column a label.
        """
        fitted = self._as_it_is()
        logits = fitted._logits(X)
        is_binary = len(fitted.classes_) == 2 and not fitted._classes.are_multilabel
        return logits[:, 1] - logits[:, 0] if is_binary else logits

    def predict_proba(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the probability of each class.

        Parameters
        ----------
        X : array-like of str, of shape (n_texts,), (n_texts, 1) or (n_texts, 2)
            Texts or pairs, as in `fit`.

        Returns
        -------
        ndarray of float32, of shape (n_texts, n_classes)
            Columns in the order of `classes_`; rows sum to one. After a fit on an indicator matrix, the probability of
            each label by itself.
        """
        fitted = self._as_it_is()
        logits = fitted._logits(X)
        from bertclf._inference import probabilities

        return probabilities(logits, multilabel=fitted._classes.are_multilabel)

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
        fitted = self._as_it_is()
        logits = fitted._logits(X)
        from bertclf._inference import log_probabilities

        return log_probabilities(logits, multilabel=fitted._classes.are_multilabel)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the most probable class of each text, or the labels whose probability is above their threshold.

        Parameters
        ----------
        X : array-like of str, of shape (n_texts,), (n_texts, 1) or (n_texts, 2)
            Texts or pairs, as in `fit`.

        Returns
        -------
        ndarray of shape (n_texts,) or (n_texts, n_labels)
            Labels, in the dtype of `classes_`; after a fit on an indicator matrix, such a matrix in its dtype.
        """
        fitted = self._as_it_is()
        probabilities = fitted.predict_proba(X)
        return fitted._classes.decode(probabilities, thresholds=fitted.thresholds_)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of texts whose labels are all predicted, the accuracy.

        Parameters
        ----------
        X : array-like of str, of shape (n_texts,), (n_texts, 1) or (n_texts, 2)
            Texts or pairs, as in `fit`.
        y : array-like of shape (n_texts,) or (n_texts, n_labels)
            Their labels, in any form that `fit` takes.
        sample_weight : array-like of shape (n_texts,), default=None
            What each text counts; None counts all alike.

        Returns
        -------
        float
            From 0 to 1.
        """
        from sklearn.metrics import accuracy_score

        predicted = metric_labels(self.predict(X))
        labels = metric_labels(read_labels(y, n_texts=len(predicted)))
        return float(accuracy_score(labels, predicted, sample_weight=sample_weight))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save the fitted classifier to a folder, from which `from_pretrained` loads it without running any code.

        The folder is a model folder of Hugging Face. Where `model_` is the sequence-classification class of
        transformers, `transformers.pipeline("text-classification", model=folder)` gives the same labels and
        probabilities to texts that fit; `truncation=True` in its calls cuts longer ones as `long_text="truncate"` does,
        whatever `long_text` was here. Nor does it know `thresholds_`: hold its probabilities against them. Where it
        isn't that class, `bertclf.json` names the pooling, and `transformers.AutoModel.from_pretrained(folder)` loads
        the encoder; a pipeline would draw a head at random there.

        Parameters
        ----------
        folder : str or path-like
            A new folder, an empty one, or one that was saved before, which is replaced: whole or not at all, even if
            the process is killed or the power fails. A folder that holds anything else is refused.

        Raises
        ------
        NotFittedError
            If the classifier is not fitted.
        ValueError
            If a parameter is not what it must be, a weight is not finite or not float32, modules of `model_` were
            exchanged, or labels are of a type that JSON has no form for, such as datetime64.
        OSError
            If the folder can't be written, or holds anything else. It is as it was, and nothing is left beside it.

        Warns
        -----
        UserWarning
            If a parameter can't be written as JSON, such as a function as `scoring`, or a RandomState: it will have its
            default. Or if somebody put a file into the old folder meanwhile, which is kept in a hidden one beside it.

        Notes
        -----
        Not kept are `memory`, `checkpoint` and `device`, which are of this machine, what AdamW remembers between calls
        of `partial_fit`, callbacks, and requests of metadata routing. Parameters are kept in types of Python: paths
        become str.
        """
        check_is_fitted(self)
        from bertclf._process import compute_without_lost_threads
        from bertclf._saving import save_folder

        self._check_parameters()
        compute_without_lost_threads()
        save_folder(
            folder,
            self.model_,
            self.tokenizer_,
            parameters=self._parameters_to_save(),
            classes=self._classes,
            takes_pairs=self._takes_pairs,
            max_length=self._max_length,
            long_text=self._long_text,
            n_columns=getattr(self, "n_features_in_", None),
            column_names=getattr(self, "feature_names_in_", None),
            truncation=self.truncation_,
            fitted={name: getattr(self, name) for name in FITTED},
        )

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], device: str = "auto") -> Self:
        """Load a classifier that `save_pretrained` has written.

        Nothing in the folder is run: no pickle is opened, no code of a model or a tokenizer imported, no link followed,
        and no file read that `bertclf.json` does not list with its size and its SHA-256. These tell damage. Who can
        write into the folder can exchange them as well, and make the classifier say what they like.

        Parameters
        ----------
        folder : str or path-like
            The folder.
        device : str, default="auto"
            Device of torch to run on, as the parameter of the classifier, which takes it on.

        Returns
        -------
        BertSequenceClassifier
            The fitted classifier. It predicts the same as the saved one, on the same kind of machine to the last bit.

        Raises
        ------
        ModelFileError
            If a file is damaged, missing or refused. The message names it, and the reason.
        OSError
            If the folder is not there or can't be read.
        ValueError
            If the device isn't there.
        """
        from bertclf._device import choose_compute
        from bertclf._folder import MANIFEST, blaming
        from bertclf._process import compute_without_lost_threads
        from bertclf._saving import load_folder

        choose_compute(device=device, precision="float32")  # before anything is read
        compute_without_lost_threads()
        loaded = load_folder(folder)
        manifest = loaded.manifest
        names = set(cls._get_param_names()) - set(PARAMETERS_OF_MACHINE)
        known = {name: value for name, value in manifest.parameters.items() if name in names}
        with blaming(Path(folder) / MANIFEST):
            classifier = cls(**(known | {"device": device}))
            validate_parameter_constraints(classifier._parameter_constraints, known, caller_name=cls.__name__)
        classifier._become(
            manifest.fitted
            | {
                "classes_": manifest.classes.values,
                "truncation_": manifest.truncation,
                "n_features_in_": manifest.n_columns,
                "feature_names_in_": manifest.column_names and np.array(manifest.column_names, dtype=object),
                "_indicator_dtype": getattr(manifest.classes.indicator_dtype, "str", None),
                "_takes_pairs": manifest.takes_pairs,
                "_max_length": manifest.max_length,
                "_long_text": manifest.long_text,
                "_optimizer_state": None,
            }
        )
        compute = choose_compute(device=device, precision=classifier.precision)
        classifier._take_on(loaded.checkpoint, compute, engine=loaded.engine if compute.is_host else None)
        return classifier

    @property
    def _frozen(self) -> int | str:
        """The parameter `freeze` in types of Python, also where a search took it from an array."""
        return "encoder" if self.freeze == "encoder" else int(self.freeze)

    @property
    def _needs_validation(self) -> bool:
        """Whether a fit needs texts that it doesn't learn from."""
        return self.early_stopping or self.calibration is not None or self.thresholds is not None

    @property
    def _classes(self) -> Classes:
        """The classes of the last fit."""
        dtype = self._indicator_dtype
        return Classes(self.classes_, None if dtype is None else np.dtype(dtype))

    def _train(
        self,
        labelled: LabelledTexts,
        *,
        held_out: LabelledTexts | None,
        classes: Classes,
        goes_on: bool,
        epochs: int,
        seed: int,
        compute: "Compute",
        task: "Task",
        fit_file: "FitFile | None" = None,
        in_parts: bool = False,
    ) -> tuple[dict[str, Any], "Trained"]:
        """Load or copy the network and train it; return the attributes that predicting needs, and what training left.

        The classifier itself stays as it was.
        """
        from bertclf._device import with_gradients
        from bertclf._frozen import FrozenMemory
        from bertclf._memory import open_memory
        from bertclf._process import compute_without_lost_threads
        from bertclf._random import seeded
        from bertclf._resume import key_of_start
        from bertclf._training import Validation, train

        compute_without_lost_threads()
        with seeded(seed, compute.device), with_gradients():
            memory = open_memory(self.memory)
            training, way, state = self._prepared(
                labelled, classes=classes, goes_on=goes_on, compute=compute, memory=memory
            )
            network, engine, part = state["model_"], state["_engine"], state["_frozen_part"]
            validation = None
            if held_out is not None:
                tokens = _tokenized(held_out, network, way, memory=memory)
                weights = mean_one(np.ones(len(held_out)) if held_out.weights is None else held_out.weights)
                weights = weights[:, None] if classes.are_multilabel else weights
                validation = Validation(tokens, weights, self._scorer(held_out, state))
            if fit_file is not None:
                stores = [training.tokens] if validation is None else [training.tokens, validation.labelled.tokens]
                fit_file.add_data("model to start from", key_of_start(network, stores))

            def snapshot(so_far: "Trained") -> dict[str, Any]:
                """Return the attributes of a classifier as training has left it so far."""
                attributes = _fitted_attributes(state, so_far, n_iter=len(so_far.history))
                return attributes | {"model_": copy.deepcopy(network)}

            trained = train(
                network,
                training,
                validation=validation,
                reader=engine,
                settings=self._settings(
                    epochs=epochs,
                    width=engine.width,
                    label_smoothing=self._smoothing(len(labelled), classes, in_parts=in_parts),
                    goes_on=goes_on,
                    in_parts=in_parts,
                ),
                compute=compute,
                generator=np.random.default_rng(seed),
                task=task,
                fit_file=fit_file,
                snapshot=snapshot,
                frozen_memory=None if memory is None or part is None else FrozenMemory(memory, part.key),
                goes_on=in_parts,
                optimizer_state=self._optimizer_state if in_parts and goes_on else None,
                verbose=bool(self.verbose),
            )
            network.requires_grad_(True)  # of other weights, autocast would repeat the cast in every batch
        return state, trained

    def _fit_file(
        self,
        folder: str | os.PathLike[str],
        labelled: LabelledTexts,
        held_out: LabelledTexts | None,
        *,
        classes: Classes,
        compute: "Compute",
        seed: int,
    ) -> "FitFile":
        """Return the file in a folder that keeps the state of this fit, and no other."""
        from bertclf._resume import FitFile, keys_of_texts

        parameters = {name: value for name, value in self.get_params(deep=False).items() if name not in KNOWN_OTHERWISE}
        parameters |= {"device": compute.device.type, "precision": str(compute.dtype).removeprefix("torch.")}
        return FitFile(
            folder,
            parameters=parameters,
            data=keys_of_texts(labelled, classes=classes) | keys_of_texts(held_out, classes=classes, suffix="_val"),
            seed=seed,
            takes_any_seed=self.random_state is None,
        )

    def _prepared(
        self,
        labelled: LabelledTexts,
        *,
        classes: Classes,
        goes_on: bool,
        compute: "Compute",
        memory: "TextMemory | None",
    ) -> tuple["LabelledTokens", "Way", dict[str, Any]]:
        """Load or copy the network, place it on the device, freeze what is to be frozen, and tokenize the texts.

        Returns
        -------
        training : LabelledTokens
            The texts.
        way : Way
            How they, and others, become tokens.
        state : dict
            The attributes that predicting needs.
        """
        from bertclf._encoding import Way
        from bertclf._engine import Engine
        from bertclf._frozen import FrozenPart
        from bertclf._network import freeze
        from bertclf._tokens import resolve_max_length, truncation_report, warn_if_much_is_cut

        checkpoint = self._copied() if goes_on else self._load(classes)
        network, frozen = checkpoint.network, self._frozen
        compute.place(network)
        freeze(network, frozen)
        pairs = labelled.texts.are_pairs
        max_length = resolve_max_length(self.max_length, checkpoint.length_limit, checkpoint.tokenizer, pairs=pairs)
        way = Way(checkpoint.tokenizer, max_length, str(self.long_text))
        training = _tokenized(labelled, network, way, memory=memory)
        if not goes_on:
            warn_if_much_is_cut(training.tokens, way)
        engine = Engine(network, device=compute.device, frozen=frozen)
        remembers = memory is not None and engine.has_states
        state = {
            "classes_": classes.values,
            "model_": network,
            "tokenizer_": way.tokenizer,
            "truncation_": truncation_report(training.tokens.cut, labelled.targets, classes.values),
            "_indicator_dtype": None if classes.indicator_dtype is None else classes.indicator_dtype.str,
            "_takes_pairs": pairs,
            "_max_length": way.max_length,
            "_long_text": way.long_text,
            "_compute": compute,
            "_engine": engine,
            "_frozen_part": FrozenPart.of(network, frozen=frozen, compute=compute) if remembers else None,
            "n_features_in_": labelled.texts.n_columns,
            "feature_names_in_": labelled.texts.column_names,
        }
        return training, way, state

    def _logits(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the logits of each text, one column a class."""
        check_is_fitted(self)
        from bertclf._encoding import Way
        from bertclf._frozen import FrozenMemory, FrozenStates
        from bertclf._inference import joined, predict_logits, prediction_budget
        from bertclf._memory import open_memory
        from bertclf._process import compute_without_lost_threads

        compute_without_lost_threads()
        engine, memory = self._engine_of_model(), open_memory(self.memory)
        way = Way(self.tokenizer_, self._max_length, self._long_text)
        budget = prediction_budget(self._compute, verbose=bool(self.verbose))
        part, frozen_memory = self._frozen_part, None
        if memory is not None and engine.has_states and part is not None and part.is_in(self.model_):
            frozen_memory = FrozenMemory(memory, part.key)

        def logits_of(texts: Texts) -> npt.NDArray[np.float32]:
            """Return the logits of some of the texts."""
            self._check_columns(X, texts)
            tokens = _tokens_of(texts, self.model_, way, memory=memory)
            states = None
            if frozen_memory is not None:
                states = FrozenStates(engine, tokens, memory=frozen_memory, is_reused=False)
            return predict_logits(engine, tokens, compute=self._compute, budget=budget, states=states)

        return joined(map(logits_of, read_in_parts(X)), n_texts=lambda: len(X))

    def _engine_of_model(self) -> "Engine":
        """Return what runs the network; a new one if somebody put other modules into `model_`, or another network."""
        from bertclf._engine import Engine

        if self._engine.is_made_of(self.model_):
            return self._engine
        return Engine(self.model_, device=self._compute.device)

    def _scorer(self, held_out: LabelledTexts, state: dict[str, Any]) -> Callable[[npt.NDArray[np.float32]], float]:
        """Return a function from the logits of the validation texts to their score.

        The scorer gets a classifier as `state` leaves it, which knows those logits already. It is tried at once, on
        logits of zero, so that one that can't work is told before the training and not after its first epoch.
        """
        from sklearn.metrics import check_scoring

        from bertclf._progress import Trained
        from bertclf._random import undisturbed

        scorer = check_scoring(self, self.scoring)
        texts, labels = held_out.texts.as_list(), metric_labels(held_out.labels)
        weights = {} if held_out.weights is None else {"sample_weight": held_out.weights}
        untrained = Trained(history=[], best_epoch=None, optimizer_state={}, micro_batch_size=0)
        attributes = _fitted_attributes(state, untrained, n_iter=0) | {"classes_": metric_labels(state["classes_"])}

        def score(logits: npt.NDArray[np.float32]) -> float:
            """Return the score that the validation texts get with these logits."""
            classifier = object.__new__(_WithKnownLogits)
            classifier.__dict__.update(self.get_params(deep=False), **attributes)
            classifier.__dict__.update(_known_texts=texts, _known_logits=logits)
            with undisturbed(state["_compute"].device):
                return float(scorer(classifier, texts, labels, **weights))

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                score(np.zeros((len(held_out), len(state["classes_"])), dtype=np.float32))
        except Exception as error:
            given = " and sample_weight" if weights else ""
            raise ValueError(
                f"scoring={self.scoring!r} can't score the validation texts: {type(error).__name__}: {error} Pass a "
                f"scorer that suits the labels{given} and returns one number."
            ) from error
        return score

    def _check_parameters(self) -> None:
        """Raise if a parameter is not what it must be."""
        from bertclf._steps import check_schedule

        if not get_config()["skip_parameter_validation"]:
            self._validate_params()
            if isinstance(self.freeze, bool):
                raise InvalidParameterError(
                    "The 'freeze' parameter of BertSequenceClassifier must be an int in the range [0, inf) or a str "
                    f"among {{'encoder'}}. Got {self.freeze} instead. Pass 'encoder' to train the head alone."
                )
        check_schedule(self.lr_schedule)
        if isinstance(self.scoring, str):
            from sklearn.metrics import get_scorer

            get_scorer(self.scoring)

    def _check_thresholds(self, classes: Classes) -> None:
        """Raise if thresholds are to be sought where a text has one label."""
        if self.thresholds is not None and not classes.are_multilabel:
            raise ValueError(
                f"thresholds={self.thresholds!r} needs an indicator matrix as y, but there is one label a text. Pass "
                "thresholds=None, and for two classes wrap the classifier in sklearn.model_selection."
                "TunedThresholdClassifierCV."
            )

    def _check_fits_in_parts(self) -> None:
        """Raise if a parameter needs all texts at once."""
        if self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True: it makes one pass. Use fit.")
        for name in ("calibration", "thresholds"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"partial_fit does not support {name}={getattr(self, name)!r}: it holds out no texts. Pass "
                    f"{name}=None, or use fit."
                )
        if self.checkpoint is not None:
            raise ValueError(
                "partial_fit does not support checkpoint: it makes one pass. Pickle the classifier between calls, and "
                "pass checkpoint=None."
            )
        if isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight='balanced' is not supported for partial_fit, which does not know the texts to come. Pass "
                "the weights as a dict: sklearn.utils.class_weight.compute_class_weight returns them."
            )

    def _same_kind(self, texts: Texts, classes: Classes) -> Classes:
        """Return the classes of the last fit, or raise if training can't go on with such texts and classes."""
        if classes != self._classes:
            raise ValueError(
                f"The classes are {classes.described()}, but were {self._classes.described()} when "
                "BertSequenceClassifier was fitted before: a network that is trained on keeps its classes. Use a new "
                "classifier."
            )
        self._check_pairs(texts)
        return self._classes

    def _check_columns(self, X: Any, texts: Texts) -> None:
        """Raise if texts are of another kind than the fitted ones, or come in columns under other names."""
        self._check_pairs(texts)
        has_columns = len(getattr(X, "shape", ())) == 2
        if has_columns and getattr(self, "n_features_in_", None) is not None:
            validate_data(self, X, reset=False, skip_check_array=True)

    def _check_pairs(self, texts: Texts) -> None:
        """Raise if pairs come where single texts were fitted, or the reverse."""
        if texts.are_pairs != self._takes_pairs:
            n_fitted, n_given = (2, 1) if self._takes_pairs else (1, 2)
            raise ValueError(
                f"X has {n_given} text(s) a row, but BertSequenceClassifier was fitted on {n_fitted}: single texts "
                "and pairs can't be exchanged. Pass what fit was given."
            )

    def _load(self, classes: Classes) -> "Checkpoint":
        """Load the pretrained network with a new head for these classes, and its tokenizer."""
        from bertclf._checkpoint import load_checkpoint

        return load_checkpoint(
            self.model,
            revision=self.revision,
            labels=[str(label) for label in classes.values.tolist()],
            multilabel=classes.are_multilabel,
            pooling=self.pooling,
            dropout=None if self.dropout is None else float(self.dropout),
            verbose=bool(self.verbose),
        )

    def _copied(self) -> "Checkpoint":
        """Return a copy of the fitted network, to train on without harm to the fitted one."""
        from bertclf._calibration import cool_down
        from bertclf._checkpoint import Checkpoint

        network = copy.deepcopy(self.model_)
        if self.temperature_ != 1.0:
            cool_down(network, 1 / self.temperature_)  # the head as training left it
        return Checkpoint(network, self.tokenizer_)

    def _n_epochs(self, n_texts: int) -> int:
        """Return the most passes over so many texts."""
        auto = self.epochs == "auto"
        return automatic_epochs(n_texts=n_texts, batch_size=self.batch_size) if auto else int(self.epochs)

    def _smoothing(self, n_texts: int, classes: Classes, *, in_parts: bool) -> float:
        """Return the share of each target to spread; texts that come in parts may be few or many in the end."""
        if self.label_smoothing != "auto":
            return float(self.label_smoothing)
        if in_parts or classes.are_multilabel:
            return 0.0
        return automatic_label_smoothing(n_texts=n_texts, n_classes=len(classes.values))

    def _settings(
        self, *, epochs: int, width: int, label_smoothing: float, goes_on: bool, in_parts: bool
    ) -> "TrainingSettings":
        """Return how to train, every "auto" resolved."""
        from bertclf._steps import TrainingSettings

        rate = automatic_learning_rate(width) if self.learning_rate == "auto" else float(self.learning_rate)
        return TrainingSettings(
            epochs=epochs,
            batch_size=self.batch_size,
            learning_rate=rate,
            lr_schedule="constant" if in_parts else self.lr_schedule,
            warmup_ratio=0.0 if in_parts else float(self.warmup_ratio),
            weight_decay=float(self.weight_decay),
            max_grad_norm=None if self.max_grad_norm is None else float(self.max_grad_norm),
            label_smoothing=label_smoothing,
            layer_decay=float(self.layer_decay),
            freeze=self._frozen,
            probes=self.head_init == "probe" and not goes_on and not in_parts,
            n_iter_no_change=self.n_iter_no_change if self.early_stopping else None,
            watches_loss=self.scoring is None,
            calibrates=self.calibration is not None,
            seeks_thresholds=self.thresholds is not None,
        )

    def _labelled(
        self, texts: Texts, labels: npt.NDArray[Any], sample_weight: Any, *, classes: Classes
    ) -> tuple[LabelledTexts, npt.NDArray[np.float64]]:
        """Return the texts to train on with targets and weights, and what each class weighs."""
        labelled = label_texts(texts, labels, sample_weight, classes=classes)
        class_weights = read_class_weight(
            self.class_weight, classes=classes, targets=labelled.targets, weights=labelled.loss_weights
        )
        return without_weightless(weigh_classes(labelled, class_weights)), class_weights

    def _become(self, attributes: dict[str, Any]) -> None:
        """Take on the attributes of a fit, and forget what an earlier one left of columns."""
        self.__dict__.update(attributes)
        for name in COLUMN_ATTRIBUTES:
            if attributes[name] is None:
                self.__dict__.pop(name, None)  # a fit in another thread may have done so

    def _as_it_is(self) -> Self:
        """Return what to predict with: a fit that ends in another thread meanwhile changes nothing of it."""
        return copy.copy(self)

    def _take_on(self, checkpoint: "Checkpoint", compute: "Compute", *, engine: "Engine | None" = None) -> None:
        """Take on a network that was trained before and its tokenizer, and place it on a device."""
        from bertclf._engine import Engine

        compute.place(checkpoint.network)
        self._compute = compute
        self._engine = Engine(checkpoint.network, device=compute.device) if engine is None else engine
        self._frozen_part = None
        self.model_ = checkpoint.network
        self.tokenizer_ = checkpoint.tokenizer

    def _parameters_to_save(self) -> dict[str, Any]:
        """Return the parameters that a folder can hold and that mean something on another machine."""
        parameters = self.get_params(deep=False) | {"model": os.fspath(self.model)}
        kept = {name: value for name, value in parameters.items() if name not in PARAMETERS_OF_MACHINE}
        for name, value in list(kept.items()):
            try:
                encode(value)
            except TypeError as error:
                del kept[name]
                warnings.warn(
                    f"{name}={value!r} is not saved, since {error}: the loaded classifier will have the default. Set "
                    "it after loading, if you fit again.",
                    UserWarning,
                    stacklevel=3,
                )
        return kept

    @property
    def _has_callbacks(self) -> bool:
        """Whether anyone listens: contexts of callbacks would be kept for every batch until the fit ends."""
        return bool(getattr(self, "_skl_callbacks", None))

    def __copy__(self) -> Self:
        """Return a classifier that shares the fitted network: through a pickle, a copy would write all its weights."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(vars(self))
        return copied

    def __sklearn_is_fitted__(self) -> bool:
        """Tell whether a fit has succeeded."""
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Tags:
        """Describe the input to scikit-learn: one-dimensional, of strings."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_label = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return parameters and fitted state as plain Python, numpy and bytes, independent of the device."""
        state = dict(super().__getstate__())
        if self.__sklearn_is_fitted__():
            from bertclf._persistence import to_state
            from bertclf._process import compute_without_lost_threads

            compute_without_lost_threads()
            del state["_compute"]
            del state["_engine"], state["_frozen_part"]
            state["network_and_tokenizer"] = to_state(
                state.pop("model_"), state.pop("tokenizer_"), optimizer_state=state.pop("_optimizer_state")
            )
            state["bertclf_version"] = __version__
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Rebuild the network, on the device that `device` means on this machine."""
        state = dict(state)
        original = state.pop("bertclf_version", __version__)
        stored = state.pop("network_and_tokenizer", None)
        super().__setstate__(state)
        if stored is None:
            return
        from bertclf._device import compute_after_loading
        from bertclf._persistence import InconsistentBertclfVersionWarning, from_state
        from bertclf._process import compute_without_lost_threads

        compute_without_lost_threads()
        if original != __version__:
            warnings.warn(InconsistentBertclfVersionWarning(current=__version__, original=original), stacklevel=2)
        checkpoint, self._optimizer_state = from_state(stored)
        self._take_on(checkpoint, compute_after_loading(device=self.device, precision=self.precision))


class _WithKnownLogits(BertSequenceClassifier):
    """What a scorer gets after an epoch: the classifier as it is by then, with the logits of the validation texts."""

    def _logits(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the logits that are known of the validation texts, and those of other texts from the network."""
        return self._known_logits.copy() if X is self._known_texts else super()._logits(X)


def _tokenized(
    labelled: LabelledTexts, network: "Network", way: "Way", *, memory: "TextMemory | None"
) -> "LabelledTokens":
    """Return labelled texts as the network takes them."""
    from bertclf._steps import LabelledTokens

    tokens = _tokens_of(labelled.texts, network, way, memory=memory)
    return LabelledTokens(tokens, labelled.targets, mean_one(labelled.loss_weights))


def _tokens_of(texts: Texts, network: "Network", way: "Way", *, memory: "TextMemory | None") -> "TokenStore":
    """Return the tokens of texts, with segments if the network takes them."""
    from bertclf._network import takes_segments
    from bertclf._tokens import tokenize

    with_segments = takes_segments(network, way.tokenizer)
    return tokenize(texts.first, texts.second, way=way, with_segments=with_segments, memory=memory)


def _fitted_attributes(state: dict[str, Any], trained: "Trained", *, n_iter: int) -> dict[str, Any]:
    """Return all attributes of a fitted classifier: those that predicting needs, and those that tell of the training.

    Before the first epoch the history is empty.
    """
    history, best_epoch = trained.history, trained.best_epoch
    losses = [row["training_loss"] for row in history]
    scores = [row["validation_score"] for row in history]
    return state | {
        "n_iter_": n_iter,
        "history_": history,
        "loss_curve_": losses,
        "validation_scores_": None if best_epoch is None else scores,
        "best_validation_score_": None if best_epoch is None else scores[best_epoch - 1],
        "micro_batch_size_": trained.micro_batch_size,
        "temperature_": trained.temperature,
        "thresholds_": trained.thresholds,
        "best_loss_": None if best_epoch is not None else min(losses, default=None),
        "_optimizer_state": None,
    }


def _continued(row: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row of the history, counted on from the rows before it."""
    if not history:
        return row
    return row | {"epoch": len(history) + 1, "step": history[-1]["step"] + row["step"]}
