"""Check this package on a CUDA card, and compare it there with `Trainer` and `pipeline`.

It needs this checkout and its dependencies (`accelerate` for `Trainer`) and no network: checkpoints are built from
random weights in a temporary folder. The tiny architectures come from `tests/`, MiniLM from its pip package, both
where they are there. Times are medians of three runs, the sides in turn, with the device synchronised before the clock
is read. A part that fails shows its traceback and the others go on; the exit status is 1 if a check failed.

    python examples/benchmarks/gpu.py > gpu.md
"""

import argparse
import contextlib
import datetime
import functools
import gc
import importlib.util
import json
import math
import os
import pickle
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from minilm import PACKAGE, minilm_folder

from bertclf import BertSequenceClassifier, _kernels
from bertclf._budget import TokenBudget
from bertclf._checkpoint import load_checkpoint
from bertclf._device import Compute, choose_compute
from bertclf._encoding import Way
from bertclf._engine import Engine
from bertclf._groups import Pattern, in_groups
from bertclf._kernels import _efficient_takes, _flash_takes, _with_efficient, _with_flash
from bertclf._layout import Layout
from bertclf._steps import Descent, LabelledTokens, Optimization, TrainingSettings, classification_loss
from bertclf._tokens import tokenize

TESTS = Path(__file__).resolve().parents[2] / "tests"
BATCH_SIZE, LEARNING_RATE, LONGEST = 32, 5e-5, 128
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BERT_BASE = {"vocab_size": 30_522}
SMALL = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
KERNELS = {"flash": _with_flash, "efficient": _with_efficient, "groups": in_groups}
CHECKS, COMPARISONS = {}, {}


class Place:
    """Where this runs, how much, and the folder of what was built for it."""

    def __init__(self, arguments, folder):
        self.device = choose_compute(device=arguments.device, precision="float32").device
        self.is_cuda = self.device.type == "cuda"
        self.quick = arguments.quick
        self.deadline = time.perf_counter() + arguments.minutes * 60
        self.folder = folder

    @property
    def repeats(self):
        """Runs of each side."""
        return 1 if self.quick else 3

    def synchronize(self):
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def compute(self, dtype):
        """Return the device with a precision."""
        return Compute(self.device, dtype)

    @functools.cache  # noqa: B019
    def checkpoint(self, name):
        """Return the folder of a checkpoint: "base" has the shape of BERT-base, "small" two layers of it, 64 wide."""
        folder = self.folder / name
        if name in ("base", "small"):
            settings = BERT_BASE if name == "base" and self.is_cuda else SMALL
            config = transformers.BertConfig(**settings, max_position_embeddings=512)
            words = [f"w{number}" for number in range(config.vocab_size - len(SPECIAL))]
            vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, *words])}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                transformers.BertModel(config).save_pretrained(folder)
            transformers.BertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
        else:
            import tiny

            tiny.build(name, folder)
        return folder


def check(function):
    """Remember a function that raises where something is wrong and returns what it saw."""
    CHECKS[function.__name__] = function
    return function


def comparison(function):
    """Remember a function that returns a Markdown table."""
    COMPARISONS[function.__name__] = function
    return function


def random_texts(lengths, *, seed=0, n_words=900):
    """Return texts of these numbers of tokens, two special tokens included."""
    source = random.Random(seed)
    return [" ".join(f"w{source.randrange(n_words)}" for _ in range(length - 2)) for length in lengths]


def mixed_lengths(n_texts, *, seed=0):
    """Return lengths as texts of the web have them: many short, few long."""
    drawn = np.random.default_rng(seed).lognormal(3.7, 0.8, n_texts)
    return drawn.clip(5, 4 * LONGEST).astype(int).tolist()


def labels_of(texts):
    """Return two classes in turn."""
    return ["even" if number % 2 == 0 else "odd" for number in range(len(texts))]


def classifier(place, name="small", **changes):
    """Return a classifier on the device, without surprises in its settings."""
    settings = {
        "epochs": 1,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "warmup_ratio": 0.0,
        "label_smoothing": 0.0,
        "head_init": "random",
        "long_text": "truncate",
        "precision": "auto",
        "device": str(place.device),
        "random_state": 0,
    }
    return BertSequenceClassifier(str(place.checkpoint(name)), **(settings | changes))


def loaded(place, name, *, dropout=0.0, pooling="auto"):
    """Return a checkpoint with a head for two classes, its network on the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checkpoint = load_checkpoint(
            place.checkpoint(name),
            revision=None,
            labels=["even", "odd"],
            multilabel=False,
            pooling=pooling,
            dropout=dropout,
            verbose=False,
        )
    checkpoint.network.to(place.device)
    return checkpoint


def store_of(checkpoint, texts, pairs=None):
    """Return the tokens of texts."""
    network, tokenizer = checkpoint.network, checkpoint.tokenizer
    segments = getattr(network.config, "type_vocab_size", 0) > 1
    limit = min(tokenizer.model_max_length, 512)
    return tokenize(texts, pairs, way=Way(tokenizer, limit, "truncate"), with_segments=segments)


def logits_and_gradients(engine, network, store, *, compute):
    """Return logits and gradients in one vector, of texts from the longest to the shortest."""
    rows = np.argsort(-store.lengths, kind="stable")
    network.zero_grad()
    with compute.autocast():
        logits = engine.logits(store, rows)
    targets = torch.arange(len(rows), device=compute.device) % 2
    weights = torch.ones(len(rows), device=compute.device)
    classification_loss(logits, targets, weights, label_smoothing=0.0).backward()
    gradients = [weight.grad.flatten() for weight in network.parameters() if weight.grad is not None]
    return torch.cat([logits.detach().float().flatten(), *gradients])


def distance(actual, expected):
    """Return the norm of the difference as a share of the norm."""
    return float((actual - expected).norm() / expected.norm())


@contextlib.contextmanager
def forced(*kernels):
    """Let attention use these kernels alone, whatever is best."""
    before = _kernels._RAGGED, _kernels.RAGGED_DEVICES
    _kernels._RAGGED = [pair for pair in before[0] if pair[0] in kernels]
    _kernels.RAGGED_DEVICES = {"cuda", "cpu"} if kernels else set()
    _kernels._works.cache_clear()
    try:
        yield
    finally:
        _kernels._RAGGED, _kernels.RAGGED_DEVICES = before
        _kernels._works.cache_clear()


def architectures(place):
    """Return names of checkpoints to check: the tests' tiny ones if they are there."""
    if not (TESTS / "tiny.py").exists() or importlib.util.find_spec("pytest") is None:
        return ["small"]
    names = ["small", "bert", "distilbert", "electra", "mpnet", "roberta", "albert", "modernbert", "gpt2", "deberta-v2"]
    return names[:4] if place.quick else names


def compared_with_padding(place, dtype, *, limit):
    """Compare the engine of each architecture with its padded network, on single texts and pairs."""
    texts = random_texts([6, 40, 12, 31, 5, 60, 22, 9], n_words=30)
    told, padded = [], []
    for name in architectures(place):
        checkpoint = loaded(place, name)
        for pairs in (None, list(reversed(texts))):
            store = store_of(checkpoint, texts, pairs)
            engines = [Engine(checkpoint.network, device=place.device, unpadded=way).train() for way in (True, False)]
            found = [
                logits_and_gradients(engine, checkpoint.network, store, compute=place.compute(dtype))
                for engine in engines
            ]
            apart = distance(*found)
            assert apart < limit, f"{name}, {'pairs' if pairs else 'single texts'}: {apart:.1e}"
            told.append(apart)
            if pairs is None and not engines[0].is_unpadded:
                padded.append(name)
    return f"{len(told)} comparisons, at most {max(told):.1e} apart; run padded: {', '.join(padded) or 'none'}"


@check
def float32_is_that_of_the_padded_network(place):
    """Logits and gradients of the engine are those of the padded network in float32."""
    return compared_with_padding(place, torch.float32, limit=2e-4)


@check
def bfloat16_is_near_the_padded_network(place):
    """Logits and gradients of the engine are near those of the padded network in bfloat16."""
    return compared_with_padding(place, torch.bfloat16, limit=0.1)


@check
def chosen_kernels(place):
    """Attention of BERT-like heads in half precision runs in kernels for ragged batches on a CUDA card."""
    layout = Layout(np.array([9, 4]), device=place.device)
    told = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        query = torch.zeros(13, 12, 64, dtype=dtype, device=place.device)
        for dropout, window in ((0.0, None), (0.1, None), (0.0, 5), (0.1, 5)):
            pattern = Pattern(layout, scaling=0.1, dropout=dropout, causal=False, window=window, one_query=False)
            kernel = _kernels.choose(query, pattern).__name__.removeprefix("_")
            told.append(f"{str(dtype).removeprefix('torch.')} {dropout} {window}: {kernel}")
            if place.is_cuda and window is None and dtype != torch.float32:
                assert kernel != "in_groups", told[-1]
    return "; ".join(told)


def attention_states(place, lengths, dtype, *, one_query=False, size=64, heads=4):
    """Return random queries, keys and values that want gradients."""
    generator = torch.Generator().manual_seed(0)
    rows = (len(lengths) if one_query else sum(lengths), sum(lengths), sum(lengths))
    drawn = (torch.randn(n, heads, size, generator=generator) for n in rows)
    return [states.to(place.device, dtype).requires_grad_() for states in drawn]


def outputs_and_gradients(kernel, states, pattern):
    """Return what a kernel makes of queries, keys and values, and the gradients, as one float32 vector."""
    attended = kernel(*states, pattern)
    factors = torch.linspace(-1, 1, attended.numel(), device=attended.device).view_as(attended)
    gradients = torch.autograd.grad((attended.float() * factors).sum(), states)
    return torch.cat([each.detach().float().flatten() for each in (attended, *gradients)])


@check
def each_kernel_is_that_of_the_groups(place):
    """Each kernel, forced, gives outputs and gradients of the groups in float32."""
    lengths = [200, 65, 64, 17, 1]
    layout = Layout(np.array(lengths), device=place.device)
    told = []
    for changes in ({}, {"one_query": True}, {"causal": True}, {"window": 20}, {"causal": True, "window": 20}):
        settings = {"scaling": 0.125, "dropout": 0.0, "causal": False, "window": None, "one_query": False} | changes
        pattern = Pattern(layout, **settings)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            states = attention_states(place, lengths, dtype, one_query=pattern.one_query)
            whole = [each.detach().float().requires_grad_() for each in states]
            expected = outputs_and_gradients(in_groups, whole, pattern)
            ways = ["groups"]
            if place.is_cuda and _flash_takes(states[0], pattern):
                ways.append("flash")
            if place.is_cuda and _efficient_takes(states[0], pattern):
                ways.append("efficient")
            for name in ways:
                apart = distance(outputs_and_gradients(KERNELS[name], states, pattern), expected)
                limit = 1e-4 if dtype == torch.float32 else 0.03
                assert apart < limit, f"{name} in {dtype} with {changes}: {apart:.1e}"
                told.append(apart)
    return f"{len(told)} comparisons, at most {max(told):.1e} apart"


@check
def engine_with_each_kernel_is_that_of_the_padded_network(place):
    """Engines forced to one kernel give what the padded network gives, in training and in evaluation."""
    checkpoint = loaded(place, "small")
    store = store_of(checkpoint, random_texts([6, 140, 40, 12, 31, 5, 60, 22, 9]))
    told = []
    for dtype in (torch.bfloat16, torch.float32):
        compute = place.compute(dtype)
        padded = Engine(checkpoint.network, device=place.device, unpadded=False)
        expected = logits_and_gradients(padded, checkpoint.network, store, compute=compute)
        for name in KERNELS if place.is_cuda else ["groups"]:
            with forced(*([] if name == "groups" else [KERNELS[name]])):
                engine = Engine(checkpoint.network, device=place.device)
                assert engine.is_unpadded, name
                for mode in (True, False):
                    found = logits_and_gradients(engine.train(mode), checkpoint.network, store, compute=compute)
                    apart = distance(found, expected)
                    assert apart < (1e-4 if dtype == torch.float32 else 0.1), f"{name} in {dtype}: {apart:.1e}"
                    told.append(f"{name} {apart:.1e}")
    return ", ".join(told)


@check
def first_tokens_alone_change_nothing(place):
    """First tokens alone in the last layer give what the whole layer gives."""
    checkpoint = loaded(place, "small", pooling="cls")
    store = store_of(checkpoint, random_texts([6, 40, 12, 31, 5, 60]))
    told = []
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        found = []
        for alone in (True, False):
            engine = Engine(checkpoint.network, device=place.device, first_tokens_alone=alone)
            assert engine.is_unpadded
            found.append(logits_and_gradients(engine, checkpoint.network, store, compute=place.compute(dtype)))
        apart = distance(*found)
        assert apart < limit, f"{dtype}: {apart:.1e}"
        told.append(f"{apart:.1e}")
    return "apart by " + ", ".join(told)


@check
def dropout_drops_its_share(place):
    """Attention drops the share of the scores that it is asked to, and a gradient sees the same scores dropped."""
    lengths = [1] * 20_000 if place.is_cuda else [1] * 2000
    layout = Layout(np.array(lengths), device=place.device)
    pattern = Pattern(layout, scaling=1.0, dropout=0.25, causal=False, window=None, one_query=False)
    told = []
    dtypes = (torch.bfloat16, torch.float32) if place.is_cuda else (torch.float32,)
    for dtype in dtypes:
        for name, kernel in KERNELS.items():
            states = [torch.ones(len(lengths), 1, 8, device=place.device, dtype=dtype) for _ in range(3)]
            value = states[2].requires_grad_()
            with forced(*([] if name == "groups" else [kernel])):
                if _kernels.choose(value, pattern) is not kernel:
                    told.append(f"{name} is not taken in {dtype}")
                    continue
            attended = kernel(*states, pattern)
            (gradient,) = torch.autograd.grad(attended.sum(), value)
            assert torch.equal(gradient == 0, attended == 0), f"{name} in {dtype}: another mask in the gradient"
            share = float((attended == 0).float().mean())
            assert abs(share - 0.25) < 0.05, f"{name} in {dtype} drops {share:.3f}"
            assert abs(float(attended.detach().float().mean()) - 1) < 0.07, (
                f"{name} in {dtype} doesn't scale up the rest"
            )
            told.append(f"{name} {share:.3f}")
    return ", ".join(told)


@check
def training_step_waits_for_nothing(place):
    """No training step waits for the device: torch raises where one does."""
    told = []
    for name in ("small", "modernbert") if "modernbert" in architectures(place) else ("small",):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            checkpoint = loaded(place, name, dropout=0.1)
            store = store_of(checkpoint, random_texts([20, 7, 9, 31] * 8, n_words=30))
            targets = np.arange(len(store)) % 2
            labelled = LabelledTokens(store, targets, np.ones(len(store), np.float32))
            settings = TrainingSettings(
                epochs=1,
                batch_size=8,
                learning_rate=1e-4,
                lr_schedule="linear",
                warmup_ratio=0.0,
                weight_decay=0.01,
                max_grad_norm=1.0,
                label_smoothing=0.1,
            )
            compute = place.compute(dtype)
            engine = Engine(checkpoint.network, device=place.device).train()
            optimization = Optimization(engine, settings, n_steps=4, compute=compute, state=None)
            descent = Descent(
                engine, labelled, None, optimization=optimization, budget=TokenBudget(1 << 16), compute=compute
            )
            for step in range(4):
                rows = np.arange(step * 8, step * 8 + 8)
                if place.is_cuda and step:  # the first step tries the kernels
                    torch.cuda.set_sync_debug_mode("error")
                try:
                    descent.step(rows)
                finally:
                    if place.is_cuda:
                        torch.cuda.set_sync_debug_mode("default")
        told.append(name)
    return ", ".join(told)


def child(place, task, *arguments, environment=None):
    """Run a part of this script in a process of its own; return what it says last, from JSON."""
    command = [sys.executable, __file__, "--device", str(place.device), "--child", task, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | (environment or {}), timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def fit_with_less_memory(device, gigabytes, folder, weights):
    """Fit on long texts with at most so much memory of the device, 0 for all; keep the weights (a child's task)."""
    if float(gigabytes):
        total = torch.cuda.get_device_properties(torch.device(device)).total_memory
        torch.cuda.set_per_process_memory_fraction(float(gigabytes) * 1e9 / total, torch.device(device))
    texts = random_texts([LONGEST] * 512)
    model = BertSequenceClassifier(
        folder, epochs=1, batch_size=256, learning_rate=1e-4, dropout=0.0, precision="float32", device=device,
        head_init="random", label_smoothing=0.0, random_state=0,
    )  # fmt: skip
    model.fit(texts, labels_of(texts))
    # The gradient of a key's bias is nothing but rounding, which AdamW makes steps of.
    kept = {name: weight.cpu() for name, weight in model.model_.state_dict().items() if "key.bias" not in name}
    torch.save(kept, weights)
    return {"texts": model.micro_batch_size_, "gigabytes": torch.cuda.max_memory_allocated(torch.device(device)) / 1e9}


@check
def out_of_memory_is_recovered_from(place):
    """With too little memory the same weights come out, by smaller passes."""
    if not place.is_cuda:
        return "only on CUDA"
    files = [place.folder / "all_memory.pt", place.folder / "less_memory.pt"]
    folder = place.checkpoint("small")
    whole = child(place, "fit_with_less_memory", 0, folder, files[0])
    parts = child(place, "fit_with_less_memory", 0.6 * whole["gigabytes"], folder, files[1])
    sizes = whole["texts"], parts["texts"]
    assert sizes[1] < sizes[0], f"passes of {sizes}: there was enough memory, so nothing was checked"
    weights = [torch.cat([w.float().flatten() for w in torch.load(file).values()]) for file in files]
    apart = distance(*weights)
    assert apart < 3e-4, f"weights are {apart:.1e} apart"
    return f"passes of {sizes[0]} and of {sizes[1]} texts, weights {apart:.1e} apart"


@check
def memory_stays_flat(place):
    """Five fits of a cross-validation leave no memory of the device behind."""
    if not place.is_cuda:
        return "only on CUDA"
    texts = random_texts(mixed_lengths(320))
    labels = labels_of(texts)
    left = []
    for fold in range(5):
        held_out = slice(fold * 64, fold * 64 + 64)
        kept = [number for number in range(320) if not held_out.start <= number < held_out.stop]
        model = classifier(place).fit([texts[number] for number in kept], [labels[number] for number in kept])
        model.predict(texts[held_out])
        del model
        gc.collect()
        place.synchronize()
        left.append(torch.cuda.memory_allocated(place.device))
    assert left[-1] <= left[1], f"bytes after each fit: {left}"
    return f"bytes after each fit: {left}"


def predict_on_host(_, source, target):
    """Load a pickled classifier where no card is seen, predict, and pickle it again (a child's task)."""
    model = pickle.loads(Path(source).read_bytes())
    assert {weight.device.type for weight in model.model_.parameters()} == {"cpu"}
    Path(target).write_bytes(pickle.dumps(model))
    return model.predict_proba(random_texts([5, 30, 12])).tolist()


@check
def pickles_travel(place):
    """Fitted classifiers go from the card to a CPU and back."""
    texts = random_texts(mixed_lengths(96))
    model = classifier(place, device="auto" if place.is_cuda else "cpu", precision="float32")
    model.fit(texts, labels_of(texts))
    files = [place.folder / "from_card.pkl", place.folder / "from_host.pkl"]
    files[0].write_bytes(pickle.dumps(model))
    some = random_texts([5, 30, 12])
    expected = model.predict_proba(some)
    on_host = child(place, "predict_on_host", *files, environment={"CUDA_VISIBLE_DEVICES": ""})
    back = pickle.loads(files[1].read_bytes())
    assert next(back.model_.parameters()).device.type == place.device.type
    apart = max(np.abs(expected - on_host).max(), np.abs(expected - back.predict_proba(some)).max())
    assert apart < 1e-3, f"probabilities are {apart:.1e} apart"
    return f"probabilities at most {apart:.1e} apart"


@check
def seeds_reproduce_and_stay_inside(place):
    """Two fits of one seed agree, and the generators of the caller stay as they were."""
    texts = random_texts(mixed_lengths(256))
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(place.device)] if place.is_cuda else [])
    told = []
    for precision in ("float32", "bfloat16"):
        _kernels._works.cache_clear()
        found = []
        for _ in range(2):  # the first fit tries the kernels, the second knows them
            model = classifier(place, precision=precision, learning_rate=1e-3).fit(texts, labels_of(texts))
            found.append(model.decision_function(texts))
        apart = float(np.abs(found[0] - found[1]).max() / np.abs(found[0]).max())
        assert apart < (1e-3 if precision == "float32" else 0.1), f"{precision}: scores {apart:.1e} apart"
        told.append(f"{precision} {'equal in every bit' if apart == 0 else f'{apart:.1e} apart'}")
    after = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(place.device)] if place.is_cuda else [])
    assert all(torch.equal(*pair) for pair in zip(states, after, strict=True)), "a global generator was touched"
    return ", ".join(told)


@check
def trainings_end_where_those_on_a_cpu_do(place):
    """Without dropout, trainings of 32 steps in float32 end where those on a CPU do."""
    if not place.is_cuda:
        return "only on CUDA"
    texts = random_texts(mixed_lengths(256))
    others = random_texts(mixed_lengths(64, seed=1), seed=1, n_words=990)  # words that were not learnt among them
    told = []
    for settings in (
        {"pooling": "mean", "batch_size": 64, "epochs": 8, "max_grad_norm": None},
        {"pooling": "mean", "head_init": "probe", "epochs": 4, "label_smoothing": 0.05, "warmup_ratio": 0.1},
    ):
        common = {"precision": "float32", "dropout": 0.0, "learning_rate": 1e-3, "weight_decay": 0.1}
        on_card, on_cpu = (
            torch.from_numpy(
                classifier(place, device=device, **common, **settings)
                .fit(texts, labels_of(texts))
                .decision_function(texts + others)
            )
            for device in (str(place.device), "cpu")
        )
        apart = distance(on_card, on_cpu)
        assert on_cpu.std() > 0.1, "texts have nearly the same scores"
        assert apart < 1e-5, f"{settings}: scores {apart:.1e} apart"
        told.append(f"{apart:.1e}")
    return f"scores {' and '.join(told)} apart"


@check
def it_learns(place):
    """Networks of random weights learn to tell two words apart, in each precision."""
    texts = [f"w{number % 2} {text}" for number, text in enumerate(random_texts([8] * 256))]
    told = []
    for precision in ("float32", "bfloat16", "float16") if place.is_cuda else ("float32",):
        model = classifier(place, precision=precision, epochs=8 if place.is_cuda else 6, learning_rate=2e-3)
        accuracy = model.fit(texts, labels_of(texts)).score(texts, labels_of(texts))
        assert accuracy > 0.95, f"{precision}: accuracy {accuracy:.2f}"
        told.append(f"{precision} {accuracy:.2f}")
    return ", ".join(told)


@check
def minilm_runs(place):
    """MiniLM, where its package is installed, gives the padded network's logits."""
    if importlib.util.find_spec(PACKAGE) is None:
        return "not installed"
    model = BertSequenceClassifier(str(minilm_folder()), epochs=1, device=str(place.device), precision="float32")
    texts = ["a fine film", "a dull film", "the worst plot of all, and far too long"] * 4
    model.fit(texts, [0, 1, 1] * 4)
    padded = Engine(model.model_, device=place.device, unpadded=False)
    store = tokenize(texts, None, way=Way(model.tokenizer_, 64, "truncate"), with_segments=True)
    with torch.inference_mode():
        expected = padded.logits(store, np.arange(len(texts))).softmax(dim=1).cpu().numpy()
    apart = float(np.abs(model.predict_proba(texts) - expected).max())
    assert apart < 1e-4, f"probabilities are {apart:.1e} apart"
    return f"probabilities at most {apart:.1e} apart"


def seconds_of(place, work):
    """Return the seconds of a piece of work, the device's included."""
    place.synchronize()
    start = time.perf_counter()
    work()
    place.synchronize()
    return time.perf_counter() - start


def in_turn(place, ways):
    """Run each way as often as asked, in turn; return by name medians of what each returns, or why there are none."""
    found, failed = {name: [] for name in ways}, {}
    for _ in range(place.repeats):
        for name, way in ways.items():
            if name in failed or time.perf_counter() > place.deadline:
                continue
            try:
                found[name].append(way())
            except Exception as error:
                traceback.print_exc()
                failed[name] = f"failed: {type(error).__name__}"
    return {
        name: failed.get(name) or tuple(map(statistics.median, zip(*rows, strict=True))) or "no time left"
        for name, rows in found.items()
    }


def table(header, rows):
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


@functools.cache
def matrix_rate(device, dtype):
    """Return the operations a second in products of large matrices: what the card gives, not what its maker says."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    rates = []
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(10):
            left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rates.append(10 * 2 * size**3 / (time.perf_counter() - start))
    return max(rates)


def trained_by_us(place, texts, *, precision):
    """Return the seconds of the second of two epochs of ours, and the most memory of the fit, in GB."""
    reset_memory(place)
    model = classifier(place, "base", epochs=2, precision=precision, pooling="cls").fit(texts, labels_of(texts))
    return model.history_[1]["training_seconds"], most_memory(place)


def trained_by_trainer(place, texts, **tuned):
    """Return the same of `Trainer`, its defaults changed by `tuned`; compilation falls into the first epoch."""
    reset_memory(place)
    folder = place.checkpoint("base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    encoded = tokenizer(texts, truncation=True, max_length=512)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": number % 2}
        for number, (ids, mask) in enumerate(zip(encoded["input_ids"], encoded["attention_mask"], strict=True))
    ]
    marks = []

    class Clock(transformers.TrainerCallback):
        """Reads the clock where an epoch begins or ends."""

        def on_epoch_begin(self, *_, **__):
            place.synchronize()
            marks.append(time.perf_counter())

        on_epoch_end = on_epoch_begin

    with tempfile.TemporaryDirectory() as scratch:
        settings = transformers.TrainingArguments(
            scratch,
            num_train_epochs=2,
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=BATCH_SIZE,
            use_cpu=not place.is_cuda,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
            **tuned,
        )
        trainer = transformers.Trainer(
            network, settings, train_dataset=rows, processing_class=tokenizer, callbacks=[Clock()]
        )
        trainer.remove_callback(transformers.PrinterCallback)
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
    return marks[3] - marks[2], most_memory(place)


def reset_memory(place):
    """Forget how much memory was used."""
    gc.collect()
    if place.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place.device)


def most_memory(place):
    """Return the most memory used since, in GB."""
    return torch.cuda.max_memory_allocated(place.device) / 1e9 if place.is_cuda else math.nan


TUNED = {"bf16": True, "train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"}


def training_ways(place, texts):
    """Return ways to train on texts: ours first, and what `Trainer` is without and with settings for speed."""
    ways = {
        'bertclf, precision="bfloat16"': lambda: trained_by_us(place, texts, precision="bfloat16"),
        "Trainer, defaults (float32)": lambda: trained_by_trainer(place, texts),
        "Trainer, bfloat16, by length, fused": lambda: trained_by_trainer(place, texts, **TUNED),
    }
    if place.is_cuda:
        ways['bertclf, precision="float32"'] = lambda: trained_by_us(place, texts, precision="float32")
    return ways


def training_table(place, texts, ways):
    """Return a table of ways to train on texts, and of the share of the matrix rate that each reaches."""
    network = transformers.AutoModel.from_pretrained(place.checkpoint("base"))
    in_layers = sum(weight.numel() for weight in network.encoder.parameters())
    n_tokens = sum(len(text.split()) + 2 for text in texts)
    operations = 6 * in_layers * n_tokens
    found = in_turn(place, ways)
    (ours, *_) = found.values()
    peak = matrix_rate(place.device, torch.bfloat16)
    rows = []
    for name, result in found.items():
        if isinstance(result, str) or isinstance(ours, str):
            rows.append([name, result, "", "", "", ""])
            continue
        seconds, memory = result
        rate = operations / seconds
        times = seconds / ours[0]
        n_steps = math.ceil(len(texts) / BATCH_SIZE)
        cells = [f"{1000 * seconds / n_steps:.1f}", f"{n_tokens / seconds:,.0f}", f"{rate / peak:.1%}", f"{times:.2f}"]
        rows.append([name, *cells, f"{memory:.2f}"])
    header = ["way", "ms a step", "tokens/s", "of the bfloat16 matrix rate", "time, ours = 1", "most memory, GB"]
    note = (
        f"{len(texts)} texts, {n_tokens} tokens, batches of {BATCH_SIZE}, the second of two epochs. "
        f"Matrices: {peak / 1e12:.0f} TFLOP/s."
    )
    return f"{note}\n\n{table(header, rows)}"


DROPOUTS = {"": 0.0, ", dropout": 0.1}


@comparison
def attention_alone(place):
    """Attention of 12 heads of 64 in bfloat16 over 32 texts of 128 tokens, forward and backward.

    Where the first number is well below the second, the device waits for the host.
    """
    lengths = [LONGEST] * 32 if place.is_cuda else [16] * 4
    layout = Layout(np.array(lengths), device=place.device)
    states = attention_states(place, lengths, torch.bfloat16, heads=12)
    gradient = torch.ones_like(states[0])
    kernels = KERNELS if place.is_cuda else {"groups": in_groups}
    ways = {f"{name}{told}": (kernel, share) for name, kernel in kernels.items() for told, share in DROPOUTS.items()}

    def timed(kernel, dropout):
        """Return milliseconds of the device's events and of the whole, each for one run of twenty."""
        pattern = Pattern(layout, scaling=0.125, dropout=dropout, causal=False, window=None, one_query=False)

        def run(times):
            for _ in range(times):
                torch.autograd.grad(kernel(*states, pattern), states, gradient)

        run(3)
        whole = 1000 * seconds_of(place, lambda: run(20)) / 20
        if not place.is_cuda:
            return math.nan, whole
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run(20)
            place.synchronize()
        return sum(event.self_device_time_total for event in profile.key_averages()) / 20 / 1000, whole

    found = in_turn(place, {name: functools.partial(timed, *way) for name, way in ways.items()})
    rows = [[name, *([r, ""] if isinstance(r, str) else (f"{ms:.3f}" for ms in r))] for name, r in found.items()]
    return table(["way", "ms of kernels", "ms in all"], rows)


def pipeline_of(place, dtype):
    """Return the pipeline of transformers over the shape of BERT-base."""
    folder = place.checkpoint("base")
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return transformers.pipeline("text-classification", model=network, tokenizer=tokenizer, device=place.device)


@comparison
def prediction(place):
    """Prediction in the shape of BERT-base on mixed lengths, and the latency of one text of 20 tokens."""
    n_texts = 64 if not place.is_cuda else 1024 if place.quick else 4096
    texts, (one,) = random_texts(mixed_lengths(n_texts)), random_texts([20])
    ours = classifier(place, "base", precision="bfloat16", pooling="cls").fit(texts[:64], labels_of(texts[:64]))
    pipes = {dtype: pipeline_of(place, dtype) for dtype in (torch.float32, torch.bfloat16)}
    batch = pipes[torch.float32].tokenizer(one, return_tensors="pt").to(place.device)
    network = pipes[torch.bfloat16].model.eval()

    def bare():
        """Run the network alone on tokens that lie on the device."""
        with torch.inference_mode():
            network(**batch).logits.float().cpu()

    many = {
        'bertclf, precision="bfloat16"': lambda: ours.predict_proba(texts),
        "pipeline, batch_size=32": lambda: pipes[torch.float32](texts, batch_size=32, truncation=True),
        "pipeline, batch_size=32, bfloat16": lambda: pipes[torch.bfloat16](texts, batch_size=32, truncation=True),
    }
    single = {
        'bertclf, precision="bfloat16"': lambda: ours.predict_proba([one]),
        "pipeline, batch_size=32": lambda: pipes[torch.float32](one),
        "pipeline, batch_size=32, bfloat16": lambda: pipes[torch.bfloat16](one),
        "the bare network, bfloat16": bare,
    }

    def latency(work):
        """Return the median milliseconds of one text."""
        return 1000 * statistics.median(seconds_of(place, work) for _ in range(50 if place.is_cuda else 3))

    for work in (*many.values(), *single.values()):
        work()
    seconds = in_turn(place, {name: lambda work=work: (seconds_of(place, work),) for name, work in many.items()})
    latencies = in_turn(place, {name: lambda work=work: (latency(work),) for name, work in single.items()})
    rows = []
    for name, one_text in latencies.items():
        found = seconds.get(name, "")
        rate = found if isinstance(found, str) else f"{n_texts / found[0]:,.0f}"
        rows.append([name, rate, one_text if isinstance(one_text, str) else f"{one_text[0]:.2f}"])
    return f"{n_texts} texts\n\n{table(['way', 'texts/s', 'ms for one text'], rows)}"


def n_training_texts(place):
    """Return how many texts to train on."""
    return 64 if not place.is_cuda else 512 if place.quick else 1024


@comparison
def training_at_128_tokens(place):
    """Training in the shape of BERT-base, all texts of 128 tokens."""
    texts = random_texts([LONGEST] * n_training_texts(place))
    return training_table(place, texts, training_ways(place, texts))


@comparison
def training_on_mixed_lengths(place):
    """Training in the shape of BERT-base, many short texts and few long ones."""
    texts = random_texts(mixed_lengths(n_training_texts(place)))
    return training_table(place, texts, training_ways(place, texts))


@comparison
def training_compiled_at_128_tokens(place):
    """Training in the shape of BERT-base beside a compiled `Trainer`, all texts of 128 tokens."""
    if not place.is_cuda:
        return "only on CUDA"
    texts = random_texts([LONGEST] * n_training_texts(place))
    (ours, *_) = training_ways(place, texts).items()
    compiled = "Trainer, bfloat16, by length, fused, compiled"
    rival = functools.partial(trained_by_trainer, place, texts, torch_compile=True, **TUNED)
    return training_table(place, texts, dict([ours, (compiled, rival)]))


CHILDREN = {function.__name__: function for function in (fit_with_less_memory, predict_on_host)}


def machine(place):
    """Return what this ran on."""
    lines = [f"- {datetime.date.today().isoformat()}, {platform.system()}, Python {platform.python_version()}"]
    lines.append(f"- torch {torch.__version__}, transformers {transformers.__version__}")
    if place.is_cuda:
        properties = torch.cuda.get_device_properties(place.device)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            driver = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
            lines.append(f"- driver {driver}, CUDA {torch.version.cuda}")
        lines.append(
            f"- {properties.name}, {properties.total_memory / 1e9:.0f} GB, sm_{properties.major}{properties.minor}"
        )
    return "\n".join(lines)


def sentence(function):
    """Return the first line of a docstring."""
    return function.__doc__.splitlines()[0]


def main(argv=None):
    """Run the checks, then the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", choices=["checks", "comparisons"], help="default: both")
    parser.add_argument("--quick", action="store_true", help="one run of each side, fewer texts and architectures")
    parser.add_argument("--minutes", type=float, default=7.5, help="after these no comparison is begun or repeated")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if arguments.child:
        task, *rest = arguments.child
        print(json.dumps(CHILDREN[task](arguments.device, *rest)))
        return

    checks = {} if arguments.only == "comparisons" else CHECKS
    comparisons = {} if arguments.only == "checks" else COMPARISONS
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(arguments, Path(folder))
        print(f"# On {place.device}\n\n{machine(place)}\n", flush=True)
        for name, function in checks.items():
            start = time.perf_counter()
            try:
                told = function(place)
            except Exception:
                failed.append(name)
                told = f"FAILED\n\n```\n{traceback.format_exc()}```\n"
            print(f"- {sentence(function)} {told} ({time.perf_counter() - start:.0f} s)", flush=True)
        for function in comparisons.values():
            print(f"\n## {sentence(function)}\n", flush=True)
            if time.perf_counter() > place.deadline:
                print("Left out: no time.", flush=True)
                continue
            try:
                print(function(place), flush=True)
            except Exception:
                print(f"```\n{traceback.format_exc()}```", flush=True)
    print(f"\n{len(checks) - len(failed)} of {len(checks)} checks passed.")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
