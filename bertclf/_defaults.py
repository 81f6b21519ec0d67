"""What `"auto"` means for the parameters that depend on the data and the network."""

import math

MIN_STEPS = 300
MIN_EPOCHS, MAX_EPOCHS = 3, 20


def automatic_settings(*, n_texts: int, batch_size: int, width: int) -> tuple[int, float]:
    """Choose the number of epochs and the peak learning rate.

    Little data gets as many epochs as make 300 optimiser steps, but never more than 20; more data gets 3. The learning
    rate falls with the width of the network.

    Parameters
    ----------
    n_texts : int
        Number of training texts.
    batch_size : int
        Texts per optimiser step.
    width : int
        Size of the hidden state of one token (384 in MiniLM, 768 in BERT-base, 1024 in BERT-large).

    Returns
    -------
    epochs : int
        From 3 to 20.
    learning_rate : float
        Peak step size of AdamW.

    References
    ----------
    Devlin et al. (2019), "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", A.3:
    2 to 4 epochs and rates of 2e-5 to 5e-5 on large sets.
    Mosbach et al. (2021), "On the Stability of Fine-tuning BERT": 20 epochs on sets of a few thousand texts.
    Zhang et al. (2021), "Revisiting Few-sample BERT Fine-tuning": more steps than three epochs give on little data.
    Turc et al. (2019), "Well-Read Students Learn Better": rates from 3e-5 to 3e-4 for networks of 128 to 512.
    """
    steps_per_epoch = math.ceil(n_texts / batch_size)
    epochs = min(max(math.ceil(MIN_STEPS / steps_per_epoch), MIN_EPOCHS), MAX_EPOCHS)
    learning_rate = 2e-5 if width >= 1024 else 5e-5 if width >= 768 else 1e-4
    return epochs, learning_rate
