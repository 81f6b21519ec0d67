"""The engine against the plain padded network: the same logits, losses and gradients, of every architecture."""

import copy
import gc
import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from conftest import LABELS, TEXTS
from tiny import CONFIGS, POSITIONS, StandStill, build
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from bertclf import BertSequenceClassifier, _device, _engine, _unpadded
from bertclf._attention import UNPADDED
from bertclf._budget import TokenBudget
from bertclf._checkpoint import load_checkpoint
from bertclf._device import TOKENS_AT_ONCE, Compute
from bertclf._dropout import Dropout, KeepMasks
from bertclf._engine import Engine
from bertclf._network import PooledClassifier, takes_segments
from bertclf._steps import Descent, LabelledTokens
from bertclf._tokens import TokenStore

CPU = Compute(torch.device("cpu"), torch.float32)
UNPADDED_ARCHITECTURES = {"bert", "distilbert", "electra", "roberta", "xlm-roberta", "albert", "modernbert", "gpt2"}
PADDED_ARCHITECTURES = {"mpnet", "deberta-v2", "openai-gpt"}
FIRST_TOKENS_ALONE = {"bert", "distilbert", "electra", "roberta", "xlm-roberta"}
WITH_SEGMENTS = {"bert", "electra", "albert"}
DECODERS = {"gpt2", "openai-gpt"}
CASES = [
    (architecture, pooling)
    for architecture in CONFIGS
    for pooling in ("auto", "cls", "mean", "last")
    if not (architecture in DECODERS and pooling == "cls")
]

# One token, as many as there are positions, and more tokens in all than positions.
LENGTHS = [9, 1, POSITIONS, 17, 3, 3, 8, 30, 2, 12, 5, 1]

every_case = pytest.mark.parametrize(("architecture", "pooling"), CASES)
every_unpadded_architecture = pytest.mark.parametrize("architecture", sorted(UNPADDED_ARCHITECTURES))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A function from an architecture and settings to a checkpoint whose weights are spread: its tokens differ."""
    built = {}

    def folder_of(architecture, **changes):
        key = architecture, *changes.items()
        if key not in built:
            built[key] = tmp_path_factory.mktemp(architecture)
            build(architecture, built[key], initializer_range=0.3, **changes)
        return built[key]

    return folder_of


@pytest.fixture(scope="module")
def network_of(folder_of):
    """A function from an architecture, a pooling and settings to a network with a head, and its tokenizer."""
    loaded = {}

    def network_of(architecture, pooling="auto", dropout=0.0, **changes):
        key = architecture, pooling, dropout, *changes.items()
        if key not in loaded:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                loaded[key] = load_checkpoint(
                    folder_of(architecture, **changes),
                    revision=None,
                    labels=["a", "b", "c"],
                    multilabel=False,
                    pooling=pooling,
                    dropout=dropout,
                    verbose=False,
                )
        return loaded[key].network, loaded[key].tokenizer

    return network_of


def labelled(network, tokenizer, *, pairs=False, lengths=LENGTHS):
    """Return random tokens, never the padding token, with random targets and weights."""
    generator = np.random.default_rng(0)
    usable = [number for number in range(len(tokenizer)) if number != network.config.pad_token_id]
    segments = None
    if pairs and takes_segments(network, tokenizer):
        segments = np.concatenate([np.arange(length) >= length // 2 for length in lengths]).astype(np.uint8)
    tokens = TokenStore(generator.choice(usable, sum(lengths)).astype(np.int32), np.cumsum([0, *lengths]), segments)
    targets = generator.integers(3, size=len(lengths))
    return LabelledTokens(tokens, targets, generator.uniform(0.5, 2, len(lengths)).astype(np.float32))


def plain_batch(network, tokens, rows):
    """Return some texts as transformers wants them: padded on the right, with a mask."""
    parts = [slice(tokens.offsets[row], tokens.offsets[row + 1]) for row in rows]

    def padded(values, filler):
        return pad_sequence([torch.from_numpy(values[part]).long() for part in parts], True, filler)

    batch = {
        "input_ids": padded(tokens.ids, network.config.pad_token_id),
        "attention_mask": padded(np.ones(len(tokens.ids)), 0),
    }
    return batch if tokens.segments is None else batch | {"token_type_ids": padded(tokens.segments, 0)}


def plain_step(network, training, rows, *, compute=CPU):
    """Return logits, loss and gradients of the plain padded network."""
    network.train()
    with compute.autocast():
        logits = network(**plain_batch(network, training.tokens, rows)).logits.float()
    losses = cross_entropy(logits, torch.from_numpy(training.targets[rows]), reduction="none")
    loss = (losses * torch.from_numpy(training.weights[rows])).mean()
    loss.backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    network.zero_grad()
    network.eval()
    return logits.detach(), loss.item(), gradients


def step(engine, training, rows, *, max_tokens=10_000, compute=CPU):
    """Return what the engine gives for the logits, loss and gradients of a training step."""
    still = StandStill(engine)
    descent = Descent(
        engine.train(), training, None, optimization=still, budget=TokenBudget(max_tokens), compute=compute
    )
    loss, _ = descent.step(rows)
    gradients = still.gradients
    with torch.inference_mode(), compute.autocast():
        logits = engine.train(False).logits(training.tokens, rows)
    return logits.float(), loss.item(), gradients


def assert_agrees(found, expected, *, used=None, logits=1e-5, loss=1e-5, gradients=1e-4):
    """Check logits relative to the largest, and the gradient of each weight relative to the largest of all."""
    assert (found[0] - expected[0]).abs().max() <= logits * expected[0].abs().max()
    assert found[1] == pytest.approx(expected[1], rel=loss)
    largest = max(gradient.abs().max() for gradient in expected[2].values())
    assert found[2].keys() == expected[2].keys()
    for name, gradient in found[2].items():
        reference = expected[2][name]
        reference = reference if gradient.shape == reference.shape else reference[used]
        assert (gradient - reference).abs().max() <= gradients * largest, name


def test_every_tiny_architecture_is_expected_to_run_in_one_way():
    assert set(CONFIGS) == UNPADDED_ARCHITECTURES | PADDED_ARCHITECTURES
    assert not UNPADDED_ARCHITECTURES & PADDED_ARCHITECTURES


@every_case
def test_padding_is_done_without_where_attention_goes_through_the_interface(network_of, architecture, pooling):
    engine = Engine(network_of(architecture, pooling)[0], device=CPU.device)
    assert engine.is_unpadded == (architecture in UNPADDED_ARCHITECTURES)
    assert engine.n_classes == 3


@pytest.mark.parametrize("architecture", [*sorted(FIRST_TOKENS_ALONE), "albert"])
@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_the_last_layer_computes_first_tokens_alone_where_no_other_is_looked_at(network_of, architecture, pooling):
    network, tokenizer = network_of(architecture, pooling)
    training = labelled(network, tokenizer)
    rows = np.arange(len(LENGTHS))
    shapes = []
    wide = [module for module in network.modules() if isinstance(module, nn.Linear) and module.out_features == 32]
    handle = wide[-1].register_forward_hook(lambda module, args, output: shapes.append(output.shape[1]))
    try:
        Engine(network, device=CPU.device).logits(training.tokens, rows)
    finally:
        handle.remove()
    expected = len(rows) if architecture in FIRST_TOKENS_ALONE and pooling == "auto" else sum(LENGTHS)
    assert shapes[-1] == expected


@pytest.mark.parametrize(
    ("architecture", "pooling", "pairs"),
    [(*case, False) for case in CASES] + [(*case, True) for case in CASES if case[0] in WITH_SEGMENTS],
)
def test_logits_loss_and_gradients_are_those_of_the_plain_padded_network(network_of, architecture, pooling, pairs):
    network, tokenizer = network_of(architecture, pooling)
    training = labelled(network, tokenizer, pairs=pairs)
    rows = np.random.default_rng(1).permutation(len(LENGTHS))[:-1]
    used = np.unique(training.tokens.ids)
    expected = plain_step(network, training, rows)

    def engine(**choices):
        return Engine(network, device=CPU.device, **({"masks": KeepMasks(0), "token_ids": used} | choices))

    assert_agrees(step(engine(), training, rows), expected, used=used)
    assert_agrees(step(engine(), training, rows, max_tokens=70), expected, used=used)
    assert_agrees(step(engine(unpadded=False), training, rows), expected, used=used)
    assert_agrees(step(engine(unpadded=False), training, rows, max_tokens=70), expected, used=used)
    assert_agrees(step(engine(first_tokens_alone=False), training, rows), expected, used=used)
    assert_agrees(step(engine(token_ids=None), training, rows), expected)
    assert_agrees(step(engine(masks=None), training, rows), expected, used=used)
    assert_agrees(step(engine(masks=None, token_ids=None), training, rows[:1]), plain_step(network, training, rows[:1]))


@pytest.mark.parametrize("frozen", [0, 1, "encoder"])
@pytest.mark.parametrize(("architecture", "pooling"), CASES)
def test_idle_tokens_change_neither_logits_nor_gradients(network_of, monkeypatch, architecture, pooling, frozen):
    network, tokenizer = network_of(architecture, pooling)
    training, rows = labelled(network, tokenizer), np.arange(len(LENGTHS))
    expected = plain_step(network, training, rows)
    monkeypatch.setattr(_engine, "n_idle_tokens", lambda n_tokens, device: -n_tokens % 64)
    engine = Engine(network, device=CPU.device, masks=KeepMasks(0), frozen=frozen)
    if engine.is_unpadded:
        assert sum(LENGTHS) % 64
        assert engine._layout(training.tokens, rows).n_idle == -sum(LENGTHS) % 64
    if engine.has_states:
        states = engine.states(training.tokens, rows)
        assert len(states) == engine.n_states(training.tokens, rows).sum()
        found = engine.logits(training.tokens, rows, states=states)
        torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-5)
    else:
        assert_agrees(step(engine, training, rows), expected)


def test_in_autocast_a_cpu_gets_batches_of_a_multiple_of_tokens_unless_they_are_few(network_of, monkeypatch):
    network, tokenizer = network_of("bert")
    training, rows = labelled(network, tokenizer), np.arange(len(LENGTHS))
    engine, seen = Engine(network, device=CPU.device), []
    network.base_model.embeddings.register_forward_hook(lambda module, given, output: seen.append(output.shape[1]))
    with torch.no_grad():
        engine.logits(training.tokens, rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            engine.logits(training.tokens, rows)
            monkeypatch.setattr(_device, "FEW_TOKENS", sum(LENGTHS))
            engine.logits(training.tokens, rows)
    assert seen == [sum(LENGTHS), sum(LENGTHS), -(-sum(LENGTHS) // TOKENS_AT_ONCE) * TOKENS_AT_ONCE]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_lower_precision_agrees_loosely(network_of, architecture):
    compute = replace(CPU, dtype=torch.bfloat16)
    network, tokenizer = network_of(architecture)
    training = labelled(network, tokenizer, pairs=True)
    rows = np.arange(len(LENGTHS))
    found = step(Engine(network, device=CPU.device, masks=KeepMasks(0)), training, rows, compute=compute)
    assert {gradient.dtype for gradient in found[2].values()} == {torch.float32}
    for precision in (CPU, compute):
        expected = plain_step(network, training, rows, compute=precision)
        assert (found[0] - expected[0]).norm() <= 0.05 * expected[0].norm()
        assert found[1] == pytest.approx(expected[1], rel=0.05)
        trained = list(expected[2])
        ours, theirs = (torch.cat([step[2][name].flatten() for name in trained]) for step in (found, expected))
        assert (ours - theirs).norm() <= 0.15 * theirs.norm()


def test_texts_longer_than_the_window_of_modernbert_agree(network_of):
    network, tokenizer = network_of("modernbert", local_attention=8)
    assert "sliding_attention" in network.config.layer_types
    training = labelled(network, tokenizer)
    rows = np.arange(len(LENGTHS))
    engine = Engine(network, device=CPU.device, masks=KeepMasks(0))
    assert engine.is_unpadded
    expected = plain_step(network, training, rows)
    assert_agrees(step(engine, training, rows), expected)
    wide = network_of("modernbert", local_attention=200)[0]
    assert not torch.allclose(plain_step(wide, training, rows)[0], expected[0], rtol=0.01)


def test_tokens_of_gpt2_see_nothing_that_comes_after(network_of):
    network, tokenizer = network_of("gpt2")
    tokens = labelled(network, tokenizer, lengths=[6, 5]).tokens
    tokens.ids[6:11] = tokens.ids[:5]
    hidden = []
    handle = network.base_model.h[-1].register_forward_hook(
        lambda module, args, output: hidden.append(output[0] if isinstance(output, tuple) else output)
    )
    engine = Engine(network, device=CPU.device)
    with torch.inference_mode():
        engine.logits(tokens, np.arange(2))
    handle.remove()
    states = hidden[-1].flatten(0, -2)
    torch.testing.assert_close(states[:5], states[6:])


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "mpnet"])
def test_texts_come_in_the_order_of_the_rows(network_of, architecture):
    network, tokenizer = network_of(architecture)
    tokens = labelled(network, tokenizer).tokens
    engine = Engine(network, device=CPU.device)
    with torch.inference_mode():
        all_logits = engine.logits(tokens, np.arange(len(LENGTHS)))
        some = engine.logits(tokens, np.array([5, 2, 2, 0]))
    torch.testing.assert_close(some, all_logits[[5, 2, 2, 0]], rtol=1e-4, atol=1e-5)


# Dropout


@every_unpadded_architecture
def test_dropout_of_training_comes_from_the_masks_alone(network_of, architecture):
    network, tokenizer = network_of(architecture, dropout=0.2)
    tokens, rows = labelled(network, tokenizer).tokens, np.arange(len(LENGTHS))
    before = torch.get_rng_state()

    def logits(seed):
        return Engine(network, device=CPU.device, masks=KeepMasks(seed)).train().logits(tokens, rows)

    first = logits(0)
    assert torch.equal(first, logits(0))
    assert not torch.allclose(first, logits(1), rtol=0.01)
    assert torch.equal(torch.get_rng_state(), before)


@every_unpadded_architecture
def test_without_masks_dropout_comes_from_torch(network_of, architecture):
    network, tokenizer = network_of(architecture, dropout=0.2)
    tokens, rows = labelled(network, tokenizer).tokens, np.arange(len(LENGTHS))
    engine = Engine(network, device=CPU.device).train()

    def logits(seed):
        torch.manual_seed(seed)
        return engine.logits(tokens, rows)

    with torch.random.fork_rng():
        assert torch.equal(logits(0), logits(0))
        assert not torch.allclose(logits(0), logits(1), rtol=0.01)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("masks", [None, KeepMasks(0)], ids=["torch", "numpy"])
def test_nothing_is_dropped_out_of_training(network_of, architecture, masks):
    network, tokenizer = network_of(architecture, dropout=0.5)
    tokens, rows = labelled(network, tokenizer).tokens, np.arange(len(LENGTHS))
    engine = Engine(network, device=CPU.device, masks=masks)
    with torch.inference_mode():
        expected = network(**plain_batch(network, tokens, rows)).logits
        for _ in range(2):
            torch.testing.assert_close(engine.logits(tokens, rows), expected, rtol=1e-4, atol=1e-5)
            engine.train().train(False)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_dropout_layer_is_exchanged_and_keeps_its_probability(network_of, architecture):
    network = network_of(architecture, dropout=0.2)[0]
    engine = Engine(network, device=CPU.device, masks=KeepMasks(0))
    exchanged = [module.p for module in engine._padded.modules() if isinstance(module, Dropout)]
    assert exchanged == [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert set(exchanged) == {0.2}


@every_unpadded_architecture
def test_dropout_makes_the_loss_noisy_around_that_of_torch(network_of, architecture):
    """Means over many passes of the plain network and of the engine are the same within their standard errors."""
    network, tokenizer = network_of(architecture, dropout=0.1)
    tokens, rows = labelled(network, tokenizer, lengths=[20] * 40).tokens, np.arange(40)
    engine = Engine(network, device=CPU.device, masks=KeepMasks(0)).train()
    tokens.ids[:] = np.tile(tokens.ids[:20], 40)
    batch = plain_batch(network, tokens, rows)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        plain = torch.cat([network.train()(**batch).logits for _ in range(5)])
        network.eval()
    ours = torch.cat([engine.logits(tokens, rows).detach() for _ in range(5)])
    errors = torch.sqrt((plain.var(dim=0) + ours.var(dim=0)) / len(plain))
    assert ((plain.mean(dim=0) - ours.mean(dim=0)).abs() < 5 * errors).all()
    ratio = ours.std(dim=0) / plain.std(dim=0)  # 1.5 or so at twice the rate
    assert ((ratio > 0.75) & (ratio < 1.3)).all()


# The network stays what it is


def state_of(network):
    """Return what an engine may not touch."""
    return [
        (
            name,
            id(module),
            type(module),
            module.training,
            [(key, id(value)) for key, value in module._parameters.items()],
            [(key, id(value)) for key, value in module._modules.items()],
            id(getattr(module, "config", None)),
            len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks),
        )
        for name, module in network.named_modules()
    ]


@pytest.mark.parametrize("pooling", ["auto", "mean"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_network_is_untouched(network_of, architecture, pooling):
    network, tokenizer = network_of(architecture, pooling, dropout=0.1)
    training = labelled(network, tokenizer)
    before, config = state_of(network), network.config.to_dict()
    implementation = network.config._attn_implementation
    weights = {name: weight.clone() for name, weight in network.state_dict().items()}

    used = np.unique(training.tokens.ids)
    step(Engine(network, device=CPU.device, masks=KeepMasks(0), token_ids=used), training, np.arange(4))
    Engine(network, device=CPU.device).train()

    assert state_of(network) == before
    assert network.config.to_dict() == config
    assert network.config._attn_implementation == implementation != UNPADDED
    assert all(torch.equal(weight, weights[name]) for name, weight in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


def test_the_parts_of_a_composite_configuration_are_untouched():
    module = nn.Module()
    module.config = transformers.CLIPConfig(text_config={}, vision_config={}, attn_implementation="eager")
    original = module.config
    _unpadded._set_attention(module, UNPADDED)
    assert module.config.text_config._attn_implementation == UNPADDED
    assert original.text_config._attn_implementation == original._attn_implementation == "eager"


def test_steps_of_the_engine_train_the_network(network_of):
    network, tokenizer = network_of("bert")
    network = copy.deepcopy(network)
    training = labelled(network, tokenizer)
    engine = Engine(network, device=CPU.device)
    assert all(weight is engine.named_parameters()[name] for name, weight in network.named_parameters())
    before = engine.logits(training.tokens, np.arange(3)).detach()
    with torch.no_grad():
        network.classifier.bias += 1
    torch.testing.assert_close(engine.logits(training.tokens, np.arange(3)), before + 1)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_an_engine_keeps_no_dropped_network_alive(network_of, architecture):
    network = copy.deepcopy(network_of(architecture)[0])
    engine = Engine(network, device=CPU.device)
    dropped = weakref.ref(network)
    assert engine.is_made_of(network)
    del network
    gc.collect()
    assert dropped() is None


def test_an_engine_notices_an_exchanged_module_and_another_network(network_of):
    network = copy.deepcopy(network_of("bert")[0])
    engine = Engine(network, device=CPU.device)
    assert not engine.is_made_of(copy.deepcopy(network))
    assert not engine.is_made_of(network.bert)
    network.classifier = nn.Linear(16, 3)
    assert not engine.is_made_of(network)
    assert Engine(network, device=CPU.device).is_made_of(network)
    network.bert.encoder.layer[0].attention.self.query = nn.Linear(16, 16)
    network.add_module("more", nn.Identity())
    assert not engine.is_made_of(network)


@pytest.mark.parametrize("whole", [False, True], ids=["layer", "network"])
def test_the_classifier_predicts_with_what_was_put_in(folder_of, network_of, whole):
    clf = BertSequenceClassifier(folder_of("bert"), epochs=1, dropout=0.0, precision="float32", random_state=0)
    clf.fit(TEXTS[:6], list("abcabc"))
    before = clf.decision_function(TEXTS)
    if whole:
        clf.model_ = network_of("bert")[0]
    else:
        clf.model_.classifier = nn.Linear(16, 3)
    batch = clf.tokenizer_(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = clf.model_(**batch).logits.numpy()
    assert not np.allclose(expected, before, rtol=0.01)
    np.testing.assert_allclose(clf.decision_function(TEXTS), expected, rtol=1e-4, atol=1e-5)


# Networks that nobody knows


class Neighbours(nn.Module):
    """An encoder without attention, whose tokens mix with their neighbours."""

    config_class = transformers.BertConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask=None, position_ids=None, layout=None, use_cache=None):
        position_ids = torch.arange(input_ids.shape[1])[None] if position_ids is None else position_ids
        hidden = self.table(input_ids) + self.position_embeddings(position_ids)
        hidden = hidden if attention_mask is None else hidden * attention_mask.unsqueeze(2)
        mixed = hidden + nn.functional.pad(hidden, (0, 0, 0, 1))[:, 1:]
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=mixed)


class Strict(Neighbours):
    """One that raises on inputs that it doesn't know."""

    def forward(self, input_ids, attention_mask):
        return super().forward(input_ids, attention_mask)


class Lonely(Neighbours):
    """One whose tokens don't mix: with and without padding is the same, but no layer attends through the interface."""

    def forward(self, input_ids, **inputs):
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=self.table(input_ids))


@pytest.mark.parametrize("encoder", [Neighbours, Strict, Lonely])
def test_a_network_of_an_unknown_kind_falls_back_to_padding(encoder):
    sizes = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_labels": 3, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PooledClassifier(encoder(transformers.BertConfig(**sizes, max_position_embeddings=64)), "mean")
        nn.init.normal_(network.classifier.weight)
        nn.init.normal_(network.classifier.bias)
    training = LabelledTokens(
        TokenStore(np.arange(1, 21, dtype=np.int32), np.array([0, 7, 8, 20]), None),
        np.array([0, 1, 2]),
        np.ones(3, np.float32),
    )
    used = np.unique(training.tokens.ids)
    engine = Engine(network, device=CPU.device, masks=KeepMasks(0), token_ids=used)
    assert not engine.is_unpadded
    network.dropout.p = 0.0
    engine = Engine(network, device=CPU.device, masks=KeepMasks(0), token_ids=used)
    rows = np.array([2, 0, 1])
    assert_agrees(step(engine, training, rows), plain_step(network, training, rows), used=used)


def bare(name, head="SequenceClassification", **settings):
    """Return a random network without a tokenizer, and labelled random tokens for it."""
    shared = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
    shared |= {"intermediate_size": 32, "pad_token_id": 0, "initializer_range": 0.3, "attention_dropout": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**(shared | settings))
        network = getattr(transformers, f"{name}For{head}")(config).eval()
    generator = np.random.default_rng(0)
    ids = generator.integers(4, 40, sum(LENGTHS)).astype(np.int32)
    tokens = TokenStore(ids, np.cumsum([0, *LENGTHS]), None)
    return network, LabelledTokens(tokens, generator.integers(3, size=len(LENGTHS)), np.ones(len(LENGTHS), np.float32))


def test_windows_that_stand_in_the_mask_alone_are_not_done_without():
    settings = {"num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    settings |= {"shared_expert_intermediate_size": 16, "max_window_layers": 2, "sliding_window": 4}
    for is_windowed in (False, True):
        network, training = bare("Qwen2Moe", use_sliding_window=is_windowed, **settings)
        engine = Engine(network, device=CPU.device)
        assert engine.is_unpadded != is_windowed
        assert (engine.why_padded is not None) == is_windowed
        assert_agrees(
            step(engine, training, np.arange(len(LENGTHS))), plain_step(network, training, np.arange(len(LENGTHS)))
        )


@pytest.mark.parametrize("name", ["Qwen2", "Mistral"])
def test_windows_that_layers_tell_of_are_followed(name):
    network, training = bare(
        name, num_key_value_heads=1, sliding_window=4, use_sliding_window=True, max_window_layers=0
    )
    engine = Engine(network, device=CPU.device)
    assert engine.is_unpadded
    rows = np.arange(len(LENGTHS))
    assert_agrees(step(engine, training, rows), plain_step(network, training, rows))


def test_all_tokens_are_computed_where_first_ones_alone_can_not_be():
    network, training = bare(
        "Esm",
        position_embedding_type="rotary",
        mask_token_id=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    engine = Engine(network, device=CPU.device)
    assert engine.is_unpadded
    rows = np.arange(len(LENGTHS))
    assert_agrees(step(engine, training, rows), plain_step(network, training, rows))


def test_why_texts_are_padded_is_told(checkpoints, capsys):
    for name in ("bert", "mpnet"):
        BertSequenceClassifier(checkpoints(name), epochs=1, verbose=1).fit(TEXTS[:4], list("abab"))
        assert ("texts are padded: " in capsys.readouterr().out) == (name == "mpnet")


# Casts


def test_a_cast_made_for_frozen_layers_keeps_no_gradient_from_the_others():
    """What frozen layers are run with, and trained layers use as well, is cast for each of them."""
    network, training = bare("OPT", word_embed_proj_dim=8, ffn_dim=32, dropout=0.0, do_layer_norm_before=False)
    for weight in network.model.decoder.layers[0].parameters():
        weight.requires_grad_(False)
    compute, rows = replace(CPU, dtype=torch.bfloat16), np.arange(len(LENGTHS))
    engine = Engine(network, device=CPU.device, frozen=1)
    if not engine.has_states:
        pytest.skip("the installed transformers runs OPT with a mask alone")
    with compute.autocast():
        engine.states(training.tokens, rows)
        engine.logits(training.tokens, rows, states=engine.states(training.tokens, rows)).sum().backward()
    assert network.model.decoder.project_out.weight.grad.abs().max() > 0


def test_a_fit_within_autocast_of_the_caller_is_the_same(folder_of):
    def fit():
        clf = BertSequenceClassifier(
            folder_of("bert"),
            epochs=3,
            batch_size=4,
            learning_rate=1e-2,
            precision="bfloat16",
            early_stopping=True,
            validation_fraction=0.2,
            random_state=0,
        )
        return clf.fit(TEXTS, LABELS).loss_curve_

    expected = fit()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fit() == expected


# What the caller has set, and what was put in


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.device("meta")])
def test_a_fit_in_a_mode_of_the_caller_is_the_same(folder_of, mode):
    def fit():
        clf = BertSequenceClassifier(folder_of("bert"), epochs=1, batch_size=4, warm_start=True, random_state=0)
        clf.fit(TEXTS, LABELS).fit(TEXTS, LABELS).partial_fit(TEXTS, LABELS)
        return pickle.loads(pickle.dumps(clf)).predict_proba(TEXTS)

    expected = fit()
    with mode():
        np.testing.assert_array_equal(fit(), expected)


def test_a_method_that_was_exchanged_is_what_predicts(folder_of):
    clf = BertSequenceClassifier(folder_of("bert"), epochs=1, random_state=0).fit(TEXTS, LABELS)
    before = clf.decision_function(TEXTS)
    head = clf.model_.classifier
    forward = head.forward
    head.forward = lambda hidden: -forward(hidden)
    np.testing.assert_allclose(clf.decision_function(TEXTS), -before, rtol=1e-5, atol=1e-6)
    del head.forward
    np.testing.assert_array_equal(clf.decision_function(TEXTS), before)


def test_parametrized_weights_predict(folder_of):
    class Negative(nn.Module):
        """Minus one times a weight."""

        def forward(self, weight):
            return -weight

    clf = BertSequenceClassifier(folder_of("bert"), epochs=1, random_state=0).fit(TEXTS, LABELS)
    nn.init.zeros_(clf.model_.classifier.bias)
    before = clf.decision_function(TEXTS)
    nn.utils.parametrize.register_parametrization(clf.model_.classifier, "weight", Negative())
    np.testing.assert_allclose(clf.decision_function(TEXTS), -before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_a_head_with_other_outputs_is_refused(folder_of, n_outputs):
    clf = BertSequenceClassifier(folder_of("bert"), epochs=1, random_state=0).fit(TEXTS, LABELS)
    clf.model_.classifier = nn.Linear(16, n_outputs)
    with pytest.raises(ValueError, match=f"model_ gives {n_outputs} logits a text, but there are 2 classes"):
        clf.predict_proba(TEXTS)


@pytest.mark.parametrize(("architecture", "frozen"), [("mpnet", 0), ("mpnet", 1), ("deberta-v2", 2)])
def test_the_reason_for_padding_is_one_line(network_of, architecture, frozen):
    reason = Engine(network_of(architecture)[0], device=CPU.device, frozen=frozen).why_padded
    assert reason
    assert len(reason) <= 120
    assert "\n" not in reason
    assert "forward()" not in reason or frozen == 0
