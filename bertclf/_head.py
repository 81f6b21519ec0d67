"""The head of a network by itself: from one vector a text to logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from bertclf._network import PooledClassifier, encoder_of, own_pooling
from bertclf._trees import twin_of


class Head:
    """What a network does with the one vector a text that its pooling leaves.

    Parameters
    ----------
    network : Network
        The network; its modules are used, but stay as they are.

    Attributes
    ----------
    encoder : Module
        The network without its head.
    pooling : str or None
        "cls", "mean" or "last"; None where the pooling of the architecture has no such name.
    """

    def __init__(self, network: Any) -> None:
        is_pooled = isinstance(network, PooledClassifier)
        self._network = network
        self._name_of_encoder: str = "encoder" if is_pooled else network.base_model_prefix
        self.encoder: Any = encoder_of(network)
        self.pooling: str | None = network.pooling if is_pooled else own_pooling(network.config)
        self._pooler = _pooler(self.encoder)

    def logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return the logits of one vector a text: the head takes it for a text of one token, of whatever pooling."""
        if isinstance(self._network, PooledClassifier):
            return self._network.logits(pooled)
        network = twin_of(self._network)
        network._modules = network._modules | {self._name_of_encoder: _Known(pooled[:, None], self._pooler)}
        one_token = torch.ones((len(pooled), 1), dtype=torch.int64, device=pooled.device)
        logits: torch.Tensor = network(input_ids=one_token, attention_mask=one_token).logits
        return logits


class _Known(nn.Module):
    """Stands for an encoder whose output is known, of shape (n_texts, 1, width)."""

    def __init__(self, hidden: torch.Tensor, pooler: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        super().__init__()
        self._hidden = hidden
        self._pooler = pooler

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Return what is known."""
        pooled = None if self._pooler is None else self._pooler(self._hidden)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=self._hidden, pooler_output=pooled)


def _pooler(encoder: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return what an encoder makes of hidden states of shape (n_texts, n_tokens, width) beside them, if anything."""
    pooler = getattr(encoder, "pooler", None)
    if isinstance(pooler, nn.Linear):  # ALBERT
        return lambda hidden: encoder.pooler_activation(pooler(hidden[:, 0]))
    return pooler
