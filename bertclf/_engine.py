"""A network as training and prediction run it: the same weights, on tokens without padding where that is possible."""

import weakref
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bertclf._batches import padded_batch
from bertclf._dropout import Dropout, KeepMasks
from bertclf._embeddings import UsedRows
from bertclf._layout import Layout
from bertclf._network import Network, encoder_of, n_classes, width
from bertclf._tokens import TokenStore
from bertclf._trees import with_same_weights
from bertclf._unpadded import FlatNetwork


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
        Whether to do without padding where possible.
    like : Engine or None, default=None
        An engine of the same network, which knows whether that is possible. None tries it on two short texts.
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
        like: Self | None = None,
        first_tokens_alone: bool = True,
        frozen: int | str = 0,
    ) -> None:
        self.device = device
        self._masks = masks
        self._pad_id: int = network.config.pad_token_id
        self._network = weakref.ref(network)
        self._children = [(module._modules, dict(module._modules)) for module in network.modules()]
        self._used_rows = None if token_ids is None else _used_rows(network, token_ids)
        exchanged = _cheap_dropout(network, masks)
        if self._used_rows is not None:
            exchanged[encoder_of(network).get_input_embeddings()] = self._used_rows
        self._padded: Any = with_same_weights(network, exchanged)
        self._padded.train(False)
        self._frozen = frozen
        self._flat = None
        if unpadded and (like is None or like.is_unpadded):
            self._flat = self._made_flat(first_tokens_alone=first_tokens_alone, is_tried=like is not None)
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
        return self._network() is network and all(now == then for now, then in self._children)

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
    def _made_flat(self, *, first_tokens_alone: bool, is_tried: bool) -> FlatNetwork | None:
        """Return the network for tokens without padding; None if it doesn't give what it gives with padding.

        It is tried on two short texts, and all its layers must attend within texts.
        """
        if is_tried:
            return FlatNetwork(self._padded, first_tokens_alone=first_tokens_alone, frozen=self._frozen)
        known = range(10) if self._used_rows is None else self._used_rows.token_ids[:10]
        token_ids = [number for number in known if number != self._pad_id] or [self._pad_id]
        store = TokenStore(np.resize(token_ids, 8 + 3).astype(np.int32), np.array([0, 8, 11]), None)
        layout = Layout(store.lengths, device=self.device)
        try:
            flat = FlatNetwork(self._padded, first_tokens_alone=first_tokens_alone, frozen=self._frozen)
            unpadded = flat.logits(store, np.arange(2), layout)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever an architecture may raise that knows nothing of flat batches
            return None
        padded = self._padded_logits(store, np.arange(2))
        is_same = (unpadded - padded).abs().max() <= 1e-3 * padded.abs().max()
        all_attend = len(layout.seen_by) == self._padded.config.get_text_config().num_hidden_layers
        return flat if is_same and all_attend else None


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
