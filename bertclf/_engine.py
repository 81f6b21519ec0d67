"""A network as training and prediction run it: the same weights, on tokens without padding where that is possible."""

import copy
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from bertclf._attention import UNPADDED
from bertclf._batches import flat_batch, padded_batch
from bertclf._dropout import Dropout, KeepMasks
from bertclf._embeddings import UsedRows
from bertclf._layout import Layout
from bertclf._network import (
    Network,
    PooledClassifier,
    encoder_of,
    layers_of,
    n_classes,
    own_pooling,
    reserved_positions,
    width,
)
from bertclf._tokens import TokenStore

# What makes keys and values in a layer, by the names that BERT and its kin and DistilBERT give it.
KEYS_AND_VALUES = (("key", "value"), ("k_lin", "v_lin"))


class Engine:
    """Runs a network on the texts of a token store, without dropout until `train` is called.

    It works on a second tree of modules over the same weights, in which some modules are exchanged: the network itself
    stays as it is, and what trains the one trains the other. Where the attention of the network goes through the
    interface of transformers, texts are laid one after the other and no padding is computed; else they are padded.

    Parameters
    ----------
    network : Network
        Called like a sequence-classification model of transformers.
    device : torch.device
        Where the network is.
    masks : KeepMasks or None, default=None
        Source of the dropout masks in training; None leaves them to torch.
    token_ids : ndarray of int or None, default=None
        All tokens that will come, sorted: only their embeddings are trained, and `put_back` writes them into the
        network. None trains the whole table in place.
    unpadded : bool, default=True
        Whether to do without padding where possible; whether it is, is tried on two short texts.
    first_tokens_alone : bool, default=True
        Whether the last layer computes nothing but the first token of each text, where no other is looked at.
    frozen : int or "encoder", default=0
        How many of the lowest layers are fixed, or that all but the head is: these never drop anything, and what they
        make of a text can be kept, see `states`.

    Attributes
    ----------
    device : torch.device
        Where the network is.
    width : int
        Size of the hidden state of one token.
    has_states : bool
        Whether there is a frozen part whose output can be kept.
    """

    def __init__(
        self,
        network: Network,
        *,
        device: torch.device,
        masks: KeepMasks | None = None,
        token_ids: npt.NDArray[np.integer] | None = None,
        unpadded: bool = True,
        first_tokens_alone: bool = True,
        frozen: int | str = 0,
    ) -> None:
        self.device = device
        self._masks = masks
        self._pad_id: int = network.config.pad_token_id
        self._made_of = [weakref.ref(module) for module in network.modules()]
        self._used_rows = None if token_ids is None else _used_rows(network, token_ids)
        exchanged = _cheap_dropout(network, masks)
        if self._used_rows is not None:
            exchanged[encoder_of(network).get_input_embeddings()] = self._used_rows
        self._padded: Any = _shared(network, exchanged)
        self._padded.train(False)
        self._frozen = frozen
        self._flat = self._made_flat(first_tokens_alone=first_tokens_alone) if unpadded else None
        self.width = width(network)
        self.has_states = self._flat is not None and frozen != 0

    @property
    def is_unpadded(self) -> bool:
        """Whether texts are run without padding."""
        return self._flat is not None

    @property
    def n_classes(self) -> int:
        """Number of columns of the logits."""
        return n_classes(self._padded)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return what to train, by the names that the weights have in the network."""
        return {name: weight for name, weight in self._padded.named_parameters() if weight.requires_grad}

    def is_made_of(self, network: Network) -> bool:
        """Tell whether this is the engine of a network, and no module of it was exchanged since."""
        modules = list(network.modules())
        made_of = self._made_of
        return len(modules) == len(made_of) and all(ref() is it for ref, it in zip(made_of, modules, strict=True))

    def train(self, mode: bool = True) -> Self:
        """Turn dropout on or off, in all that is not frozen."""
        self._padded.train(mode)
        for module in self._padded.modules():
            weights = list(module.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                module.eval()
        if self._frozen != 0:
            for part in encoder_of(self._padded).children():
                if not any(True for _ in part.parameters()):  # dropout of the embeddings, where it is no part of them
                    part.eval()
        if self._flat is not None:
            self._flat.train(mode)
        return self

    def put_back(self, *, shrinkage: float) -> None:
        """Write embeddings that were trained apart into the network, and shrink all others by this factor."""
        if self._used_rows is not None:
            self._used_rows.put_back(shrinkage=shrinkage)

    def logits(
        self, store: TokenStore, rows: npt.NDArray[np.int64], *, states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run some texts of a store; it is quicker if they come by length.

        Parameters
        ----------
        store : TokenStore
            The store.
        rows : ndarray of int64
            Which texts.
        states : Tensor or None, default=None
            What `states` returns for them, if that is known.

        Returns
        -------
        Tensor, shape (len(rows), n_classes)
            On the device.
        """
        if self._flat is None:
            return self._padded_logits(store, rows)
        return self._flat.logits(store, rows, self._layout(store, rows), states=states)

    @torch.no_grad()
    def states(self, store: TokenStore, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return what the frozen part makes of some texts: the only thing that the rest needs to know of them.

        Returns
        -------
        Tensor, shape (n_tokens, width), or if the encoder is frozen (len(rows), width)
            On the device.
        """
        if self._flat is None:
            raise RuntimeError("There is no part to run apart: ask has_states.")
        return self._flat.states(store, rows, self._layout(store, rows))

    def rows_of_states(self, store: TokenStore) -> npt.NDArray[np.int64]:
        """Return where the states of each text begin, and those of the last end, if those of all are laid in a row."""
        return np.arange(len(store) + 1) if self._frozen == "encoder" else store.offsets

    def _layout(self, store: TokenStore, rows: npt.NDArray[np.int64]) -> Layout:
        return Layout(store.lengths[rows], device=self.device, masks=self._masks)

    def _padded_logits(self, store: TokenStore, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        batch = padded_batch(store, rows, pad_id=self._pad_id, device=self.device)
        logits: torch.Tensor = self._padded(**batch).logits
        return logits

    @torch.no_grad()
    def _made_flat(self, *, first_tokens_alone: bool) -> "_FlatNetwork | None":
        """Return the network for tokens without padding; None if it doesn't give what it gives with padding.

        It is tried on two short texts, and all its layers must attend within texts.
        """
        known = range(10) if self._used_rows is None else self._used_rows.token_ids[:10]
        token_ids = [number for number in known if number != self._pad_id] or [self._pad_id]
        store = TokenStore(np.resize(token_ids, 8 + 3).astype(np.int32), np.array([0, 8, 11]), None)
        layout = Layout(store.lengths, device=self.device)
        try:
            flat = _FlatNetwork(self._padded, first_tokens_alone=first_tokens_alone, frozen=self._frozen)
            unpadded = flat.logits(store, np.arange(2), layout)
        except Exception:  # whatever an architecture may raise that knows nothing of flat batches
            return None
        padded = self._padded_logits(store, np.arange(2))
        is_same = (unpadded - padded).abs().max() <= 1e-3 * padded.abs().max()
        all_attend = len(layout.seen_by) == self._padded.config.get_text_config().num_hidden_layers
        return flat if is_same and all_attend else None


class _FlatNetwork:
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
        is_pooled = isinstance(network, PooledClassifier)
        self._head = network
        self._name_of_encoder: str = "encoder" if is_pooled else network.base_model_prefix
        self._pooling: str | None = network.pooling if is_pooled else own_pooling(network.config)
        self._first_position = reserved_positions(network)
        encoder = getattr(network, self._name_of_encoder)
        self._pooler = _pooler(encoder)
        self._frozen = frozen
        layers = [_shared(layer) for layer in layers_of(network)]
        n_frozen = frozen if isinstance(frozen, int) else 0
        last = _first_token_alone(layers[-1]) if layers else None
        self._gives_firsts = (
            last is not None and first_tokens_alone and self._pooling == "cls" and n_frozen < len(layers)
        )
        if self._gives_firsts:
            layers[-1] = last
        self._lower = None
        if n_frozen:
            self._lower = _restacked(encoder, [*layers[: n_frozen - 1], _last_of_lower(layers[n_frozen - 1])])
            # One for each, since some encoders look up settings by the number of the layer.
            layers = [*map(_start_of_upper, layers[:n_frozen]), *layers[n_frozen:]]
        self._encoder = _restacked(encoder, layers)

    def train(self, mode: bool) -> None:
        """Turn dropout on or off, in all that is not frozen."""
        self._encoder.train(mode and self._frozen != "encoder")
        if self._lower is not None:
            self._lower.eval()  # what stands for its layers in the upper part shares their modules

    def logits(
        self,
        store: TokenStore,
        rows: npt.NDArray[np.int64],
        layout: Layout,
        *,
        states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logits of some texts, from the states that the frozen part gives them if they are known."""
        if states is None and self._frozen != 0:
            with torch.no_grad():
                states = self.states(store, rows, layout)
        if self._frozen == "encoder" and states is not None:
            return self._logits_of(states)
        layout.states = states
        return self._logits_of(self._pooled(self._encoder, store, rows, layout))

    def states(self, store: TokenStore, rows: npt.NDArray[np.int64], layout: Layout) -> torch.Tensor:
        """Return what the frozen part makes of some texts."""
        if self._lower is None:
            return self._pooled(self._encoder, store, rows, layout)
        self._hidden(self._lower, store, rows, layout)
        if layout.states is None:
            raise NotImplementedError("A layer was passed over.")
        return layout.states

    def _pooled(self, encoder: Any, store: TokenStore, rows: npt.NDArray[np.int64], layout: Layout) -> torch.Tensor:
        """Return one vector a text."""
        hidden = self._hidden(encoder, store, rows, layout)
        return hidden if self._gives_firsts else _pool(hidden, layout, self._pooling)

    def _hidden(self, encoder: Any, store: TokenStore, rows: npt.NDArray[np.int64], layout: Layout) -> torch.Tensor:
        """Return one vector a token, or those of the first tokens."""
        batch = flat_batch(store, rows, first_position=self._first_position, device=layout.device)
        hidden: torch.Tensor = encoder(**batch, layout=layout, use_cache=False).last_hidden_state[0]
        return hidden

    def _logits_of(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return the logits of one vector a text: the head takes it for a text of one token, of whatever pooling."""
        head: Any = copy.copy(self._head)
        head._modules = head._modules | {self._name_of_encoder: _Known(pooled[:, None], self._pooler)}
        one_token = torch.ones((len(pooled), 1), dtype=torch.int64, device=pooled.device)
        logits: torch.Tensor = head(input_ids=one_token, attention_mask=one_token).logits
        return logits


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

    def forward(hidden: torch.Tensor, *others: Any, layout: Layout, **named: Any) -> Any:
        output = layer(hidden, *others, layout=layout, **named)
        layout.states = (output if isinstance(output, torch.Tensor) else output[0])[0]
        return output

    return _with_forward(layer, forward)


def _start_of_upper(layer: nn.Module) -> nn.Module:
    """Return what stands for a frozen layer: the output of the last of them, if the layout knows it."""

    def forward(hidden: torch.Tensor, *_: Any, layout: Layout, **__: Any) -> torch.Tensor:
        return hidden if layout.states is None else layout.states[None].to(hidden.dtype)

    return _with_forward(layer, forward)


def _with_forward(layer: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """Return a layer that looks like another and does something else."""
    other = copy.copy(layer)
    other.forward = forward
    return other


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


def _shared(module: Any, exchanged: Mapping[nn.Module, nn.Module] | None = None) -> Any:
    """Copy a tree of modules, but not what they hold, with other modules in place of some."""
    copies: dict[nn.Module, nn.Module] = dict(exchanged or {})

    def copied(module: nn.Module) -> nn.Module:
        """Return the one copy of a module."""
        if module not in copies:
            copies[module] = copy.copy(module)
            children = module._modules.items()
            copies[module]._modules = {name: None if child is None else copied(child) for name, child in children}
        return copies[module]

    return copied(module)


def _restacked(encoder: Any, layers: list[nn.Module]) -> Any:
    """Return an encoder for tokens without padding, with these layers in place of its own, if it has a list of them."""
    stack = layers_of(encoder)
    restacked = _shared(encoder, {stack: nn.ModuleList(layers)} if layers else None)
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


def _used_rows(network: Network, token_ids: npt.NDArray[np.integer]) -> UsedRows | None:
    """Return the rows of the table that these tokens use; None if the table has another use, or settings of its own."""
    table = encoder_of(network).get_input_embeddings()
    if type(table) is not nn.Embedding or table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
        return None
    n_uses = sum(weight is table.weight for _, weight in network.named_parameters(remove_duplicate=False))
    return UsedRows(table, token_ids) if n_uses == 1 and table.weight.requires_grad else None


def _cheap_dropout(network: nn.Module, masks: KeepMasks | None) -> dict[nn.Module, nn.Module]:
    """Return all layers of dropout with what takes their place; none if torch is to draw the masks."""
    if masks is None:
        return {}
    return {layer: Dropout(layer.p, masks) for layer in network.modules() if type(layer) is nn.Dropout}


def _pooler(encoder: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return what an encoder makes of hidden states of shape (n_texts, n_tokens, width) beside them, if anything."""
    pooler = getattr(encoder, "pooler", None)
    if isinstance(pooler, nn.Linear):  # ALBERT
        return lambda hidden: encoder.pooler_activation(pooler(hidden[:, 0]))
    return pooler


def _pool(hidden: torch.Tensor, layout: Layout, pooling: str | None) -> torch.Tensor:
    """Reduce hidden states of shape (n_tokens, width) to (n_texts, width)."""
    if pooling == "cls":
        return hidden.index_select(0, layout.offsets[:-1])
    if pooling == "last":
        return hidden.index_select(0, layout.offsets[1:] - 1)
    if pooling != "mean":
        raise NotImplementedError(f"pooling={pooling!r}")
    sums = hidden.new_zeros((len(layout.lengths), hidden.shape[1]), dtype=torch.float32)
    return sums.index_add(0, layout.text_of_token, hidden.float()) / layout.offsets.diff().unsqueeze(1)
