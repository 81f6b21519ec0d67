"""A network as training and prediction run it: the same weights, on tokens without padding where that is possible."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PretrainedConfig

from bertclf._batches import padded_batch
from bertclf._device import apart, n_idle_tokens
from bertclf._dropout import Dropout, KeepMasks
from bertclf._embeddings import UsedRows
from bertclf._head import Head
from bertclf._layout import Layout
from bertclf._network import Network, depths, encoder_of, n_classes, pool, width
from bertclf._tokens import TokenStore
from bertclf._trees import with_same_weights
from bertclf._unpadded import FlatNetwork

NOT_THROUGH_INTERFACE = "attention does not go through the interface of transformers, or only with a mask"
LONGEST_REASON = 120

_Part = TypeVar("_Part")


class Engine:
    """Runs a network on the windows of a token store, without dropout until `train` is called.

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
    why_padded : str or None
        Why texts are padded, None if they are not.
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
        self._parts = [
            (vars(module), dict(module._modules), vars(module).get("forward")) for module in network.modules()
        ]
        self._used_rows = None if token_ids is None else _used_rows(network, token_ids)
        exchanged = _cheap_dropout(network, masks)
        if self._used_rows is not None:
            exchanged[encoder_of(network).get_input_embeddings()] = self._used_rows
        self._padded: Any = with_same_weights(network, exchanged)
        self._padded.train(False)
        self._frozen = frozen
        self._flat: FlatNetwork | None = None
        self.why_padded: str | None = "asked for"
        if like is not None:
            self.why_padded = like.why_padded
            if like._flat is not None:
                alone = like._flat.first_tokens_alone
                self._flat = FlatNetwork(self._padded, first_tokens_alone=alone, frozen=frozen)
        elif unpadded:
            for alone in [True, False] if first_tokens_alone else [False]:
                self._flat, self.why_padded = self._tried(partial(self._make_flat, first_tokens_alone=alone))
                if self._flat is not None:
                    break
        self._head: Head | None = None
        if self._flat is None and frozen == "encoder":
            self._head, _ = self._tried(self._make_head)
        self.width = width(network)
        self.has_states = self._head is not None or (self._flat is not None and frozen != 0)

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

    def depths(self) -> dict[str, int]:
        """Return how far below the head each weight is, by its name in the network; see `_network.depths`."""
        return depths(self._padded)

    def is_made_of(self, network: Network) -> bool:
        """Tell whether this is the engine of a network, and no module or method of it was exchanged since."""
        return self._network() is network and all(
            now["_modules"] == modules and now.get("forward") is forward for now, modules, forward in self._parts
        )

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
        self, store: TokenStore, windows: npt.NDArray[np.int64], *, states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run some windows of a store; it is quicker if they come by length.

        Parameters
        ----------
        store : TokenStore
            The store.
        windows : ndarray of int64
            Which windows.
        states : Tensor or None, default=None
            What `states` returns for them, if that is known.

        Returns
        -------
        Tensor, shape (len(windows), n_classes)
            On the device.
        """
        if self._flat is not None:
            return self._flat.logits(store, windows, self._layout(store, windows), states=states)
        if self._head is not None:
            return self._head.logits(self.states(store, windows) if states is None else states)
        return self._padded_logits(store, windows)

    def states(self, store: TokenStore, windows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return what the frozen part makes of some windows: the only thing that the rest needs to know of them.

        Returns
        -------
        Tensor, shape (n_tokens, width), or if the encoder is frozen (len(windows), width)
            On the device.
        """
        if self._flat is not None:
            return self._flat.states(store, windows, self._layout(store, windows))
        if self._head is None:
            raise RuntimeError("There is no part to run apart: ask has_states.")
        with apart():
            return self._padded_states(self._head, store, windows)

    def n_states(self, store: TokenStore, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how many states some windows have."""
        return np.ones_like(windows) if self._frozen == "encoder" else store.lengths[windows]

    def _layout(self, store: TokenStore, windows: npt.NDArray[np.int64]) -> Layout:
        lengths = store.lengths[windows]
        n_idle = n_idle_tokens(int(lengths.sum()), self.device)
        return Layout(lengths, device=self.device, masks=self._masks, n_idle=n_idle)

    def _padded_logits(self, store: TokenStore, windows: npt.NDArray[np.int64]) -> torch.Tensor:
        batch = padded_batch(store, windows, pad_id=self._pad_id, device=self.device)
        logits: torch.Tensor = self._padded(**batch).logits
        return logits

    def _tried(self, make: Callable[[TokenStore], tuple[_Part, torch.Tensor]]) -> tuple[_Part | None, str | None]:
        """Try another way to the logits on two short texts.

        Parameters
        ----------
        make : callable
            Returns what the logits are to come from, and what it gives for all texts of a store.

        Returns
        -------
        made : object or None
            What was made; None if its logits are not those of the network with padding.
        why_not : str or None
            If they are not, why.
        """
        trial = self._two_short_texts()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            padded = self._padded_logits(trial, np.arange(2))
            try:
                made, logits = make(trial)
                difference = logits - padded
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever an architecture may raise that knows nothing of this way
                name = "" if isinstance(error, NotImplementedError) else f"{type(error).__name__}: "
                return None, f"{name}{error}".partition("\n")[0][:LONGEST_REASON]
        if difference.abs().max() > 1e-3 * padded.abs().max():
            return None, "the logits are others than with padding"
        return made, None

    def _make_flat(self, trial: TokenStore, *, first_tokens_alone: bool) -> tuple[FlatNetwork, torch.Tensor]:
        """Return the network without padding, in which all layers have to attend as they do with it."""
        flat = FlatNetwork(self._padded, first_tokens_alone=first_tokens_alone, frozen=self._frozen)
        rows = np.arange(2)
        layout = self._layout(trial, rows)
        logits = flat.logits(trial, rows, layout)
        if not _attended_as_with_a_mask(self._padded.config.get_text_config(), layout.sliding_windows):
            raise NotImplementedError(NOT_THROUGH_INTERFACE)
        return flat, logits

    def _make_head(self, trial: TokenStore) -> tuple[Head, torch.Tensor]:
        """Return the head by itself, which has to look at no more than one vector a text."""
        head = Head(self._padded)
        return head, head.logits(self._padded_states(head, trial, np.arange(2)))

    def _padded_states(self, head: Head, store: TokenStore, windows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return one vector a window, from a padded batch."""
        if head.pooling is None:
            raise NotImplementedError("it pools in a way of its own")
        batch = padded_batch(store, windows, pad_id=self._pad_id, device=self.device)
        return pool(head.encoder(**batch).last_hidden_state, batch["attention_mask"], head.pooling)

    def _two_short_texts(self) -> TokenStore:
        """Return texts of eight and of three tokens, all of which the network knows."""
        known = range(10) if self._used_rows is None else self._used_rows.token_ids[:10]
        token_ids = [number for number in known if number != self._pad_id] or [self._pad_id]
        return TokenStore(np.resize(token_ids, 8 + 3).astype(np.int32), np.array([0, 8, 8 + 3]), None)


def _attended_as_with_a_mask(config: PretrainedConfig, sliding_windows: list[int | None]) -> bool:
    """Tell whether all layers followed the layout, and knew by themselves how far a token sees.

    Some architectures put a sliding window, or blocks, in the attention mask alone, which a flat batch doesn't have.
    """
    kinds = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    has_windows = "sliding_attention" in kinds if kinds else bool(window)
    is_told = any(window is not None for window in sliding_windows)
    is_known = kinds <= {"full_attention", "sliding_attention"}
    return len(sliding_windows) == config.num_hidden_layers and is_known and (is_told or not has_windows)


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
