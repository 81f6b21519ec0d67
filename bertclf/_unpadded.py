"""A network on tokens without padding: all tokens of all texts one after the other, then one vector a text.

The layers of the encoder are called by its own code, which hands on to them, and to the attention in them, what it is
called with beside the tokens: the layout of the batch. Three kinds of layers talk to others through it. The last frozen
layer leaves its output in `layout.states`, from which the first one that is not frozen goes on; a last layer that
computes first tokens alone puts the keys and values of all tokens into a copy of it; and attention notes in
`layout.sliding_windows` that it followed it.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bertclf._attention import UNPADDED
from bertclf._batches import flat_batch
from bertclf._device import apart
from bertclf._head import Head
from bertclf._layout import Layout
from bertclf._network import layers_of, reserved_positions
from bertclf._tokens import TokenStore
from bertclf._trees import twin_of, with_same_weights

# What makes keys and values in a layer, by the names that BERT and its kin and DistilBERT give it.
KEYS_AND_VALUES = (("key", "value"), ("k_lin", "v_lin"))


class FlatNetwork:
    """A network in two parts: an encoder, which sees all tokens one after the other, and a head, which sees rows.

    Parameters
    ----------
    network : Network
        The network; its modules are used, but stay as they are.
    first_tokens_alone : bool
        Whether the last layer computes nothing but the first token of each text, where no other is looked at.
    frozen : int or "encoder"
        How many of the lowest layers are run apart, without dropout and gradients, or that the encoder is.
    """

    def __init__(self, network: Any, *, first_tokens_alone: bool, frozen: int | str) -> None:
        self.first_tokens_alone = first_tokens_alone
        self._head = head = Head(network)
        self._first_position = reserved_positions(network)
        self._frozen = frozen
        layers = [with_same_weights(layer) for layer in layers_of(network)]
        n_frozen = frozen if isinstance(frozen, int) else 0
        last = _first_token_alone(layers[-1]) if layers else None
        self._gives_firsts = (
            last is not None and first_tokens_alone and head.pooling == "cls" and n_frozen < len(layers)
        )
        if self._gives_firsts:
            layers[-1] = last
        self._lower = None
        if n_frozen:
            self._lower = _restacked(head.encoder, [*layers[: n_frozen - 1], _last_of_lower(layers[n_frozen - 1])])
            # One for each, since some encoders look up settings by the number of the layer.
            layers = [*map(_start_of_upper, layers[:n_frozen]), *layers[n_frozen:]]
        self._encoder = _restacked(head.encoder, layers)

    def train(self, mode: bool) -> None:
        """Turn dropout on or off, in all that is not frozen."""
        self._encoder.train(mode and self._frozen != "encoder")
        if self._lower is not None:
            self._lower.eval()  # what stands for its layers in the upper part shares their modules

    def logits(
        self,
        store: TokenStore,
        windows: npt.NDArray[np.int64],
        layout: Layout,
        *,
        states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logits of some windows, from the states that the frozen part gives them if they are known."""
        if states is None and self._frozen != 0:
            states = self.states(store, windows, layout)
        if self._frozen == "encoder" and states is not None:
            return self._head.logits(states)
        layout.states = states
        return self._head.logits(self._pooled(self._encoder, store, windows, layout))

    def states(self, store: TokenStore, windows: npt.NDArray[np.int64], layout: Layout) -> torch.Tensor:
        """Return what the frozen part makes of some windows."""
        with apart():
            if self._lower is None:
                return self._pooled(self._encoder, store, windows, layout)
            self._hidden(self._lower, store, windows, layout)
        if layout.states is None:
            raise NotImplementedError("A layer was passed over.")
        return layout.states[: layout.n_tokens]

    def _pooled(self, encoder: Any, store: TokenStore, windows: npt.NDArray[np.int64], layout: Layout) -> torch.Tensor:
        """Return one vector a window."""
        hidden = self._hidden(encoder, store, windows, layout)
        return hidden if self._gives_firsts else _pool(hidden, layout, self._head.pooling)

    def _hidden(self, encoder: Any, store: TokenStore, windows: npt.NDArray[np.int64], layout: Layout) -> torch.Tensor:
        """Return one vector a token, or those of the first tokens."""
        batch = flat_batch(
            store, windows, first_position=self._first_position, device=layout.device, n_idle=layout.n_idle
        )
        hidden: torch.Tensor = encoder(**batch, layout=layout, use_cache=False).last_hidden_state.squeeze(0)
        return hidden


class _FirstTokenAlone(nn.Module):
    """A layer that looks at all tokens and computes the first of each text.

    The layer is run on the first tokens, and its attention gets the keys and values of all tokens.

    Parameters
    ----------
    layer : Module
        The layer.
    key, value : Module
        What makes keys and values from hidden states in it.
    """

    def __init__(self, layer: nn.Module, *, key: nn.Module, value: nn.Module) -> None:
        super().__init__()
        self._layer = layer
        self._key = key
        self._value = value

    def forward(self, hidden: torch.Tensor, *others: Any, layout: Layout, **named: Any) -> torch.Tensor:
        """Return hidden states of shape (1, n_texts, width) for those of all tokens, (1, n_tokens, width)."""
        layout_of_firsts = layout.seen_by_firsts(self._key(hidden), self._value(hidden))
        firsts = hidden.index_select(1, layout.offsets[:-1])
        rows: torch.Tensor = self._layer(firsts, *others, layout=layout_of_firsts, **named)
        return rows


def _first_token_alone(layer: nn.Module) -> nn.Module | None:
    """Return what computes the first token alone in place of a layer; None if it makes keys in an unknown way."""
    parts = {name.rsplit(".", 1)[-1]: part for name, part in layer.named_modules()}
    for key, value in KEYS_AND_VALUES:
        if key in parts and value in parts:
            return _FirstTokenAlone(layer, key=parts[key], value=parts[value])
    return None


def _last_of_lower(layer: nn.Module) -> nn.Module:
    """Return what does as a layer does, and leaves its output with the layout."""

    def forward(hidden: torch.Tensor, *others: Any, layout: Layout | None = None, **named: Any) -> Any:
        """Return what the layer returns."""
        if layout is None:
            raise NotImplementedError("layers are called without what attention would need")
        output = layer(hidden, *others, layout=layout, **named)
        layout.states = (output if isinstance(output, torch.Tensor) else output[0])[0]
        return output

    return _with_forward(layer, forward)


def _start_of_upper(layer: nn.Module) -> nn.Module:
    """Return what stands for a frozen layer: the output of the last of them, if the layout knows it."""

    def forward(hidden: torch.Tensor, *_: Any, layout: Layout, **__: Any) -> torch.Tensor:
        """Return that output, or else what came in."""
        return hidden if layout.states is None else layout.with_idle(layout.states)[None].to(hidden.dtype)

    return _with_forward(layer, forward)


def _with_forward(layer: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """Return a layer that looks like another and does something else."""
    other = twin_of(layer)
    other.forward = forward
    return other


def _restacked(encoder: Any, layers: list[nn.Module]) -> Any:
    """Return an encoder for tokens without padding, with these layers in place of its own, if it has a list of them."""
    stack = layers_of(encoder)
    restacked = with_same_weights(encoder, {stack: nn.ModuleList(layers)} if layers else None)
    restacked.pooler = None
    _set_attention(restacked, UNPADDED)
    return restacked


def _set_attention(encoder: Any, name: str) -> None:
    """Give all modules of an encoder a configuration of their own with another implementation of attention."""
    config = copy.deepcopy(encoder.config)  # with its parts, which are given the implementation as well
    config._attn_implementation = name
    for module in encoder.modules():
        if module.__dict__.get("config") is not None:
            module.config = config


def _pool(hidden: torch.Tensor, layout: Layout, pooling: str | None) -> torch.Tensor:
    """Reduce hidden states of shape (n_tokens, width) to (n_texts, width)."""
    if pooling == "cls":
        return hidden.index_select(0, layout.offsets[:-1])
    if pooling == "last":
        return hidden.index_select(0, layout.offsets[1:] - 1)
    if pooling != "mean":
        raise NotImplementedError("it pools in a way of its own")
    if len(layout.lengths) == 1:
        return hidden[: layout.n_tokens].float().mean(dim=0, keepdim=True)
    sums = hidden.new_zeros((len(layout.lengths), hidden.shape[1]), dtype=torch.float32)
    tokens = hidden[: layout.n_tokens].float()
    return sums.index_add(0, layout.text_of_token, tokens) / layout.offsets.diff().unsqueeze(1)
