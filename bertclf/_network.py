"""Pooling and head: what turns the hidden states of an encoder into one row of logits a text."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

LARGEST_REAL_LIMIT = 1_000_000


class PooledClassifier(nn.Module):
    """An encoder, a pooling that is not its architecture's own, dropout and a linear head.

    It is called like the sequence-classification models of transformers.

    Parameters
    ----------
    encoder : PreTrainedModel
        The network without a head.
    pooling : {"cls", "mean", "last"}
        First token, mean over the tokens of the text, or last token.
    """

    def __init__(self, encoder: PreTrainedModel, pooling: str) -> None:
        super().__init__()
        self.config: PretrainedConfig = encoder.config
        self.pooling = pooling
        self.encoder = encoder
        self.dropout = nn.Dropout(_head_dropout(encoder.config))
        # Its weights are drawn by draw_new_head or loaded; to draw them here too would move torch's generator.
        self.classifier: nn.Linear = nn.utils.skip_init(nn.Linear, width(encoder), n_classes(encoder))  # type: ignore[no-untyped-call]

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        """Return an output whose `logits` have shape (n_texts, n_classes)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        pooled = pool(hidden, attention_mask, self.pooling)
        return SequenceClassifierOutput(logits=self.logits(pooled))

    def logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (n_texts, n_classes) of one vector a text."""
        logits: torch.Tensor = self.classifier(self.dropout(pooled))
        return logits


Network = PreTrainedModel | PooledClassifier


def n_classes(network: Network) -> int:
    """Return the number of columns of the logits."""
    return len(network.config.id2label or {})


def width(network: Network) -> int:
    """Return the size of the hidden state of one token."""
    return int(network.config.get_text_config().hidden_size)


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Reduce hidden states of shape (n_texts, n_tokens, width), padded on the right, to (n_texts, width)."""
    if pooling == "cls":
        return hidden[:, 0]
    lengths = attention_mask.sum(dim=1)
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    # Not a matrix product, which autocast would run in half precision.
    return (hidden.float() * attention_mask.unsqueeze(2)).sum(dim=1) / lengths.unsqueeze(1)


def own_pooling(config: PretrainedConfig) -> str | None:
    """Return the pooling of the architecture's own sequence-classification class, None if it has no name here.

    ModernBERT says it in its configuration; encoder-decoders pool in ways of their own, and XLNet the last position,
    padding or not; networks that are only ever trained to continue a text pool the last token; all others have a
    classification token in front.
    """
    if hasattr(config, "classifier_pooling"):
        return str(config.classifier_pooling)
    if config.is_encoder_decoder or config.model_type == "xlnet":
        return None
    return "last" if is_decoder(config) else "cls"


def is_decoder(config: PretrainedConfig) -> bool:
    """Tell whether a token sees only the tokens before it."""
    model_type = config.model_type
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def output_layer(network: Network) -> nn.Linear:
    """Return the layer that makes the logits: the last linear layer with one output a class."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    return [layer for layer in layers if layer.out_features == n_classes(network)][-1]


@torch.no_grad()
def draw_new_head(network: Network) -> None:
    """Draw the weights of the output layer anew, in the way of the architecture: normal, biases zero."""
    layer = output_layer(network)
    nn.init.normal_(layer.weight, std=getattr(network.config, "initializer_range", 0.02))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def override_dropout(config: PretrainedConfig, probability: float) -> None:
    """Set every dropout probability of a configuration, whatever the architecture calls it."""
    for name, value in config.to_dict().items():
        is_probability = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        if ("dropout" in name or name.endswith("pdrop")) and is_probability:
            setattr(config, name, probability)


def layers_of(network: Network) -> nn.ModuleList:
    """Return the layers of the encoder, from the lowest on; empty if there is no list of them, one entry a layer."""
    encoder = encoder_of(network)
    n_layers = encoder.config.get_text_config().num_hidden_layers
    stacks = [part for part in encoder.modules() if isinstance(part, nn.ModuleList) and len(part) == n_layers]
    return stacks[0] if len(stacks) == 1 else nn.ModuleList()


def encoder_of(network: Network) -> PreTrainedModel:
    """Return the network without its head."""
    encoder: Any = network.encoder if isinstance(network, PooledClassifier) else network.base_model
    return encoder  # type: ignore[no-any-return]


def freeze(network: Network, what: int | str) -> None:
    """Fix weights: those of the encoder, or all that its lowest layers depend on; and let go of all others.

    Parameters
    ----------
    network : Network
        The network, in evaluation mode.
    what : int or "encoder"
        Number of layers, 0 for none; or "encoder" for all but the head.

    Raises
    ------
    ValueError
        If there are not as many layers, or they can't be told apart.
    """
    network.requires_grad_(True)
    if what == "encoder":
        encoder_of(network).requires_grad_(False)
    elif what != 0:
        layers = layers_of(network)
        if not len(layers):
            raise ValueError(
                f"freeze={what!r} is not possible: {_undivided(network)} Pass 'encoder' to train the head alone, or 0 "
                "to train all."
            )
        if not isinstance(what, int) or what > len(layers):
            raise ValueError(
                f"freeze={what!r} is more than this checkpoint has, a {network.config.model_type} with {len(layers)} "
                "layers. Lower freeze, or pass 'encoder' to train the head alone."
            )
        for weight in _weights_below(network, layers[what - 1]):
            weight.requires_grad_(False)


def depths(network: Network) -> dict[str, int]:
    """Return how far below the head each weight is, by name: 0 above all layers, 1 in the highest of them.

    What the lowest layer depends on, the embeddings first of all, is one deeper than that layer; what stands between
    two layers is as deep as the higher one. Weights that are fixed and no part of a layer count as 0.

    Raises
    ------
    ValueError
        If the layers can't be told apart.
    """
    layers = layers_of(network)
    if not len(layers):
        raise ValueError(f"layer_decay is not possible: {_undivided(network)} Pass 1.0.")
    of_weight: dict[nn.Parameter, int] = {}
    for depth, layer in enumerate(reversed(layers), start=1):
        below = _weights_below(network, layer)
        of_weight |= dict.fromkeys([*layer.parameters(), *below], depth)
    lowest = set(layers[0].parameters())
    of_weight |= {weight: len(layers) + 1 for weight in below if weight not in lowest}
    return {name: of_weight.get(weight, 0) for name, weight in network.named_parameters()}


def _undivided(network: Network) -> str:
    """Return in words why the layers of a network can't be treated one by one."""
    return (
        f"the layers of this {network.config.model_type} can't be told apart, as where they share their weights, stand "
        "in two stacks, or aren't called one by one."
    )


def _weights_below(network: Network, layer: nn.Module) -> list[nn.Parameter]:
    """Return the weights, not fixed ones, that the output of a layer depends on: its own and those of all before it."""
    outputs: list[torch.Tensor] = []
    handle = layer.register_forward_hook(
        lambda module, inputs, output: outputs.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    try:
        token_id = 0 if network.config.pad_token_id else 1
        last = network.config.get_text_config().eos_token_id  # BART and T5 refuse a text without it
        device = next(network.parameters()).device
        token_ids = torch.tensor([[token_id, token_id if last is None else last]], device=device)
        with torch.enable_grad():
            network(input_ids=token_ids, attention_mask=torch.ones_like(token_ids))
    finally:
        handle.remove()
    if not outputs:
        raise ValueError(
            f"freeze and layer_decay are not possible: {_undivided(network)} Pass 0 or 'encoder', and 1.0."
        )
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if not outputs[0].requires_grad:
        return []
    gradients = torch.autograd.grad(outputs[0].sum(), weights, allow_unused=True)
    return [weight for weight, gradient in zip(weights, gradients, strict=True) if gradient is not None]


def trained_weights(network: Network) -> dict[str, torch.Tensor]:
    """Return all that training changes in a network, each tensor once: weights that are not fixed, and buffers."""
    names = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    buffers = {name: values for name, values in network.state_dict().items() if name not in names}
    return {name: weight.detach() for name, weight in network.named_parameters() if weight.requires_grad} | buffers


def padding_matters(network: Network, token_ids: list[int]) -> bool:
    """Tell whether padding on the right changes the logits of a text, as it does where a network ignores the mask.

    The network must be on the CPU.
    """
    # The caller may be in autocast, or have set another device.
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu"):
        alone = torch.tensor([token_ids])
        padded = torch.nn.functional.pad(alone, (0, len(token_ids)), value=network.config.pad_token_id)
        mask = torch.nn.functional.pad(torch.ones_like(alone), (0, len(token_ids)))
        expected = network(input_ids=alone, attention_mask=torch.ones_like(alone)).logits
        difference = (network(input_ids=padded, attention_mask=mask).logits - expected).abs().max()
    return bool(difference > 1e-3 * expected.abs().max())


def takes_segments(network: Network, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the network has an embedding for the segment (first or second text of a pair) of a token."""
    config = network.config
    encoder = network.encoder if isinstance(network, PooledClassifier) else network
    if "token_type_ids" not in _inputs_of(type(encoder).forward):
        return False
    if hasattr(config, "type_vocab_size"):
        return bool(config.type_vocab_size > 1)
    return "token_type_ids" in tokenizer.model_input_names


@cache
def _inputs_of(forward: Callable[..., Any]) -> frozenset[str]:
    """Return the names of what a network can be called with."""
    return frozenset(inspect.signature(forward).parameters)


def length_limit(network: Network, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the longest input of a checkpoint in tokens, special tokens included; None if there is no limit."""
    limits = [tokenizer.model_max_length]
    positions = getattr(network.config, "max_position_embeddings", None)
    if positions is not None and positions > 0:
        limits.append(positions - reserved_positions(network))
    limit = min(limits)
    return int(limit) if limit < LARGEST_REAL_LIMIT else None


def reserved_positions(network: Network) -> int:
    """Return how many rows of the position table no token uses: RoBERTa and its kin count from padding_idx + 1."""
    for name, layer in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(layer, nn.Embedding):
            return 0 if layer.padding_idx is None else layer.padding_idx + 1
    return 0


def _head_dropout(config: PretrainedConfig) -> float:
    """Return the dropout before the head: what the configuration says of classifiers, else of hidden states."""
    names = ("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "hidden_dropout_prob", "dropout")
    values = (getattr(config, name, None) for name in names)
    return float(next((value for value in values if value is not None), 0.0))
