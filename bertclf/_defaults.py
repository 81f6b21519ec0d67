"""What `"auto"` means for the parameters that depend on the data and the network."""

import math

MIN_STEPS = 300
MIN_EPOCHS, MAX_EPOCHS = 3, 20

# Label smoothing, and of how many texts a class: chosen on held-out rows, see docs/accuracy.md.
SMOOTHING, SMOOTHED_FROM = 0.05, 50


def automatic_epochs(*, n_texts: int, batch_size: int) -> int:
    """Choose the number of epochs: as many as make 300 optimiser steps, but from 3 to 20.

    Parameters
    ----------
    n_texts : int
        Number of training texts.
    batch_size : int
        Texts per optimiser step.

    References
    ----------
    Devlin et al. (2019), "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", A.3:
    2 to 4 epochs on large sets.
    Mosbach et al. (2021), "On the Stability of Fine-tuning BERT": 20 epochs on sets of a few thousand texts.
    Zhang et al. (2021), "Revisiting Few-sample BERT Fine-tuning": more steps than three epochs give on little data.
    """
    steps_per_epoch = math.ceil(n_texts / batch_size)
    return min(max(math.ceil(MIN_STEPS / steps_per_epoch), MIN_EPOCHS), MAX_EPOCHS)


def automatic_learning_rate(width: int) -> float:
    """Choose the peak step size of AdamW: it falls with the size of the hidden state of one token.

    Parameters
    ----------
    width : int
        384 in MiniLM, 768 in BERT-base, 1024 in BERT-large.

    References
    ----------
    Devlin et al. (2019), as above: 2e-5 to 5e-5 for widths of 768 and 1024.
    Turc et al. (2019), "Well-Read Students Learn Better": rates from 3e-5 to 3e-4 for networks of 128 to 512.
    """
    return 2e-5 if width >= 1024 else 5e-5 if width >= 768 else 1e-4


def automatic_label_smoothing(*, n_texts: int, n_classes: int) -> float:
    """Choose the share of each target that is spread over all classes: none where there are few texts a class.

    A network that knows its texts by heart is surer of others than right; held back by smoothing it is right as often
    where classes have many texts, and less often where they have few.

    Parameters
    ----------
    n_texts, n_classes : int
        Number of training texts, and of their classes.

    References
    ----------
    Szegedy et al. (2016), "Rethinking the Inception Architecture for Computer Vision", section 7: 0.1.
    Müller et al. (2019), "When Does Label Smoothing Help?": less sure where wrong.
    """
    return SMOOTHING if n_texts >= SMOOTHED_FROM * n_classes else 0.0
