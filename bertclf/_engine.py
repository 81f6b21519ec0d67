"""A network as training and prediction run it: the same weights, on tokens without padding where that is possible."""

import copy
import weakref
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from bertclf._attention import UNPADDED, Layout
from bertclf._batches import flat_batch, padded_batch
from bertclf._dropout import Dropout, KeepMasks
from bertclf._embeddings import UsedRows
from bertclf._network import Network, PooledClassifier, n_classes, own_pooling, reserved_positions
from bertclf._tokens import TokenStore

# What makes keys and values in a layer, by the names that BERT and its kin and DistilBERT give it.
KEYS_AND_VALUES = (("key", "value"), ("k_lin", "v_lin"))

Replacement = Callable[[nn.Module], nn.Module | None]


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
    ) -> None:
        self._device = device
        self._masks = masks
        self._pad_id: int = network.config.pad_token_id
        self._made_of = [weakref.ref(module) for module in network.modules()]
        self._used_rows = None if token_ids is None else _used_rows(network, token_ids)
        exchanged = {} if self._used_rows is None else {_token_table(network): self._used_rows}
        self._padded: Any = _shared(network, lambda module: exchanged.get(module) or _cheap_dropout(module, masks))
        self._padded.train(False)
        self._flat = self._made_flat(first_tokens_alone=first_tokens_alone) if unpadded else None

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
        return dict(self._padded.named_parameters())

    def is_made_of(self, network: Network) -> bool:
        """Tell whether this is the engine of a network, and no module of it was exchanged since."""
        modules = list(network.modules())
        made_of = self._made_of
        return len(modules) == len(made_of) and all(ref() is it for ref, it in zip(made_of, modules, strict=True))

    def train(self, mode: bool = True) -> Self:
        """Turn dropout on or off."""
        self._padded.train(mode)
        if self._flat is not None:
            self._flat.train(mode)
        return self

    def put_back(self, *, shrinkage: float) -> None:
        """Write embeddings that were trained apart into the network, and shrink all others by this factor."""
        if self._used_rows is not None:
            self._used_rows.put_back(shrinkage=shrinkage)

    def logits(self, store: TokenStore, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Run some texts of a store; it is quicker if they come by length.

        Returns
        -------
        Tensor, shape (len(rows), n_classes)
            On the device.
        """
        if self._flat is None:
            return self._padded_logits(store, rows)
        return self._flat.logits(store, rows, Layout(store.lengths[rows], device=self._device, masks=self._masks))

    def _padded_logits(self, store: TokenStore, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        batch = padded_batch(store, rows, pad_id=self._pad_id, device=self._device)
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
        layout = Layout(store.lengths, device=self._device)
        try:
            flat = _FlatNetwork(self._padded, first_tokens_alone=first_tokens_alone)
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
    """

    def __init__(self, network: Any, *, first_tokens_alone: bool) -> None:
        is_pooled = isinstance(network, PooledClassifier)
        self._head = network
        self._name_of_encoder: str = "encoder" if is_pooled else network.base_model_prefix
        self._pooling: str | None = network.pooling if is_pooled else own_pooling(network.config)
        self._first_position = reserved_positions(network)
        encoder = getattr(network, self._name_of_encoder)
        self._pooler = _pooler(encoder)
        exchanged = _only_first_token(encoder) if first_tokens_alone and self._pooling == "cls" else {}
        self._gives_firsts = bool(exchanged)
        self._encoder: Any = _shared(encoder, exchanged.get)
        self._encoder.pooler = None
        _set_attention(self._encoder, UNPADDED)

    def train(self, mode: bool) -> None:
        """Turn dropout on or off."""
        self._encoder.train(mode)

    def logits(self, store: TokenStore, rows: npt.NDArray[np.int64], layout: Layout) -> torch.Tensor:
        """Return the logits of some texts."""
        batch = flat_batch(store, rows, first_position=self._first_position, device=layout.device)
        hidden = self._encoder(**batch, layout=layout, use_cache=False).last_hidden_state[0]
        return self._logits_of(hidden if self._gives_firsts else _pool(hidden, layout, self._pooling))

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


def _shared(
    module: Any, replacement: Replacement = lambda _: None, seen: dict[nn.Module, nn.Module] | None = None
) -> Any:
    """Copy a tree of modules, but not what they hold, and exchange those for which there is a replacement."""
    seen = {} if seen is None else seen
    if module not in seen:
        other = replacement(module)
        seen[module] = copy.copy(module) if other is None else other
        if other is None:
            children = module._modules.items()
            seen[module]._modules = {
                name: None if child is None else _shared(child, replacement, seen) for name, child in children
            }
    return seen[module]


def _set_attention(encoder: Any, name: str) -> None:
    """Give all modules of an encoder a configuration of their own with another implementation of attention."""
    config = copy.copy(encoder.config)
    config._attn_implementation = name
    for module in encoder.modules():
        if module.__dict__.get("config") is not None:
            module.config = config


def _token_table(network: Network) -> nn.Module:
    """Return the embedding table of the tokens."""
    encoder = network.encoder if isinstance(network, PooledClassifier) else network
    table: nn.Module = encoder.get_input_embeddings()
    return table


def _used_rows(network: Network, token_ids: npt.NDArray[np.integer]) -> UsedRows | None:
    """Return the rows of the table that these tokens use; None if the table has another use, or settings of its own."""
    table = _token_table(network)
    if type(table) is not nn.Embedding or table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
        return None
    n_uses = sum(weight is table.weight for _, weight in network.named_parameters(remove_duplicate=False))
    return UsedRows(table, token_ids) if n_uses == 1 and table.weight.requires_grad else None


def _cheap_dropout(module: nn.Module, masks: KeepMasks | None) -> nn.Module | None:
    """Return what replaces a dropout layer, None for anything else."""
    return Dropout(module.p, masks) if masks is not None and type(module) is nn.Dropout else None


def _pooler(encoder: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return what an encoder makes of hidden states of shape (n_texts, n_tokens, width) beside them, if anything."""
    pooler = getattr(encoder, "pooler", None)
    if isinstance(pooler, nn.Linear):  # ALBERT
        return lambda hidden: encoder.pooler_activation(pooler(hidden[:, 0]))
    return pooler  # type: ignore[no-any-return]


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


def _only_first_token(encoder: Any) -> dict[nn.Module, nn.Module]:
    """Return the last layer of an encoder and what replaces it, nothing if keys and values are made in unknown ways."""
    stacks = [
        module
        for module in encoder.modules()
        if isinstance(module, nn.ModuleList) and len(module) == encoder.config.num_hidden_layers
    ]
    if len(stacks) != 1:
        return {}
    layer = _shared(stacks[0][-1])
    parts = {name.rsplit(".", 1)[-1]: part for name, part in layer.named_modules()}
    for key, value in KEYS_AND_VALUES:
        if key in parts and value in parts:
            return {stacks[0][-1]: _FirstTokenAlone(layer, key=parts[key], value=parts[value])}
    return {}
