"""What the benchmarks share: rows, checkpoints, ways that take turns, the limit of the arithmetic, memory, tables."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from minilm import minilm_folder

from bertclf import BertSequenceClassifier

BATCH_SIZE, LEARNING_RATE, MAX_LENGTH = 32, 5e-5, 64
PACKAGES = ("torch", "transformers", "tokenizers", "scikit-learn", "accelerate", "skorch", "sentence-transformers")
MEBIBYTE = 2**20

# What makes keys and values in a layer: all that the last one needs of every token where only the first is looked at.
KEYS_AND_VALUES = {"key", "value", "k_lin", "v_lin"}

WORDS = (
    "a an and the it is was were not very this that of in on with for film story plot scene actor actress director "
    "music ending joke hour evening city family love friend war summer winter dull fine long slow quick bright dark "
    "warm cold brilliant charming tedious forgettable unforgettable melodramatic cinematography see watch like hate "
    "remember forget laugh cry leave stay nothing everything always never"
).split()


def parser_of(description, *, repeats=3):
    """Return a parser of the arguments that all benchmarks have, which show the docstring of the script as help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="rows to train on: JSON lines with text and label")
    parser.add_argument("--model", help="name on the Hugging Face Hub, or folder; default: the installed MiniLM")
    parser.add_argument("--repeats", type=int, default=repeats, help="turns, of which the median is shown")
    return parser


def parsed(parser, argv):
    """Return the arguments, with a model, and keep transformers from telling of its progress."""
    arguments = parser.parse_args(argv)
    arguments.model = arguments.model or str(minilm_folder())
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return arguments


def read(file, n_rows=None):
    """Return the texts and the labels of a file of JSON lines: all, or some drawn at random, always the same."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    if n_rows is not None:
        rows = random.Random(0).sample(rows, min(n_rows, len(rows)))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def long_texts(texts, *, n_texts, n_words):
    """Return texts of so many words, one after the other from other texts, which are begun anew at their end."""
    words = [word for text in texts for word in text.split()]
    starts = range(0, n_texts * n_words, n_words)
    return [" ".join(words[place % len(words)] for place in range(start, start + n_words)) for start in starts]


def random_texts(n_texts):
    """Return texts of 5 to 15 words; each is made alone, so that nothing large is freed before a measurement."""
    generator = random.Random(0)
    return [" ".join(generator.choices(WORDS, k=generator.randint(5, 15))) for _ in range(n_texts)]


def device():
    """Return the device that every way runs on."""
    name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name)


def has_bfloat16():
    """Tell whether the hardware multiplies bfloat16 matrices itself."""
    if device().type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device().type == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)


def best_dtype():
    """Return what `precision="auto"` of the classifier means here."""
    if has_bfloat16():
        return torch.bfloat16
    return torch.float16 if device().type == "cuda" else torch.float32


def load(model, *, n_classes):
    """Return tokenizer and network of a checkpoint, as tutorials load them."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=n_classes, dtype=torch.float32)
    return tokenizer, network


def classifier_of(model, **settings):
    """Return a classifier with the settings that all ways share; `pooling="cls"` makes the network theirs, too."""
    shared = {"pooling": "cls", "learning_rate": LEARNING_RATE, "warmup_ratio": 0.0, "batch_size": BATCH_SIZE}
    shared |= {"epochs": 1, "max_length": MAX_LENGTH, "precision": "float32", "random_state": 0}
    shared |= {"label_smoothing": 0.0, "head_init": "random", "long_text": "truncate"}
    return BertSequenceClassifier(model, **(shared | settings))


def is_installed(package, *, way):
    """Tell whether a package is there; if not, say that a way is left out."""
    found = importlib.util.find_spec(package.replace("-", "_")) is not None
    if not found:
        print(f"{way} is left out: {package} is not installed.", file=sys.stderr)
    return found


class Logits(nn.Module):
    """A network of transformers as skorch takes it: its output is the logits alone."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, **inputs):
        """Return logits of shape (n_texts, n_classes)."""
        return self.network(**inputs).logits


def skorch_pipeline(tokenizer, network, *, max_length=MAX_LENGTH, **settings):
    """Return a pipeline of skorch's Hugging Face tokenizer, which pads every text to `max_length`, and a network."""
    from sklearn.pipeline import make_pipeline
    from skorch import NeuralNetClassifier
    from skorch.hf import HuggingfacePretrainedTokenizer

    classifier = NeuralNetClassifier(
        Logits,
        module__network=network,
        criterion=nn.CrossEntropyLoss,
        batch_size=BATCH_SIZE,
        device=str(device()),
        verbose=0,
        **settings,
    )
    return make_pipeline(HuggingfacePretrainedTokenizer(tokenizer, max_length=max_length), classifier)


def in_turn(ways, *, repeats):
    """Call functions of the number of the turn in turn; yield name, result and seconds of each call."""
    for repeat in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            result = way(repeat)
            wait_for_device()
            seconds = time.perf_counter() - start
            print(f"{name}: {seconds:.2f} s", file=sys.stderr, flush=True)
            yield name, result, seconds


def medians(pairs):
    """Return the median of the values of each name, from pairs of a name and a value."""
    values = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: statistics.median(known) for name, known in values.items()}


def wait_for_device():
    """Wait until a GPU has done what it was given."""
    if device().type == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Way:
    """One side of a comparison: a function of the number of the turn, and the precision of its matrix products."""

    run: Callable
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class MatrixWork:
    """What a network multiplies: the shapes of the linear layers of its stack, and the weights each token meets.

    `per_token` weights are met by every token, `per_text` weights by one token of a text. Attention, which multiplies
    tokens by tokens and has no weights, is left out: it is little in short texts.
    """

    shapes: list[tuple[int, int]]
    per_token: int
    per_text: int

    @classmethod
    def of(cls, network, *, first_token_alone):
        """Count the weights, with pooling by the first token those of the last layer only where they are needed."""
        n_layers = network.config.num_hidden_layers
        stacks = (part for part in network.modules() if isinstance(part, nn.ModuleList) and len(part) == n_layers)
        stack = next(stacks)
        of_tokens = {part for part in stack.modules() if isinstance(part, nn.Linear)}
        if first_token_alone:
            named = {part: name.rsplit(".", 1)[-1] for name, part in stack[-1].named_modules()}
            if KEYS_AND_VALUES & set(named.values()):
                of_tokens -= {part for part, name in named.items() if name not in KEYS_AND_VALUES}
        of_texts = [part for part in network.modules() if isinstance(part, nn.Linear) and part not in of_tokens]
        return cls(
            shapes=[tuple(part.weight.shape) for part in stack.modules() if isinstance(part, nn.Linear)],
            per_token=sum(part.weight.numel() for part in of_tokens),
            per_text=sum(part.weight.numel() for part in of_texts),
        )

    def operations(self, *, n_tokens, n_texts, training):
        """Return the multiplications and additions of a pass over texts: forward, and in training backward as well."""
        return (6 if training else 2) * (self.per_token * n_tokens + self.per_text * n_texts)

    def rate(self, dtype, *, training, seconds=1.0):
        """Measure the operations per second of products of these shapes, and of nothing else.

        Each layer is multiplied with 1,024 tokens on a CPU and 16,384 elsewhere: about as many as are quickest there.
        """
        n_tokens = 1024 if device().type == "cpu" else 16_384
        options = {"dtype": dtype, "device": device()}
        weights = [torch.randn(shape, **options) for shape in self.shapes]
        hidden = {size: torch.randn(n_tokens, size, **options) for shape in self.shapes for size in shape}

        def multiply_all():
            for weight in weights:
                outputs, inputs = weight.shape
                torch.mm(hidden[inputs], weight.t())
                if training:  # the gradients of the input and of the weights
                    torch.mm(hidden[outputs], weight)
                    torch.mm(hidden[outputs].t(), hidden[inputs])
            wait_for_device()

        with torch.inference_mode():
            multiply_all()
            start, elapsed, n_passes = time.perf_counter(), 0.0, 0
            while not n_passes or elapsed < seconds:
                multiply_all()
                n_passes += 1
                elapsed = time.perf_counter() - start
        factor = 6 if training else 2
        return factor * n_tokens * n_passes * sum(weight.numel() for weight in weights) / elapsed


def beside_limit(ways, *, work, training, repeats):
    """Run ways in turn with the matrix products of a network alone, in the precision of each.

    Returns
    -------
    seconds : dict of str to float
        Median of each way.
    results : dict of str to list
        What each way returned in each turn.
    rates : dict of dtype to float
        Median operations per second of the matrix products.
    """
    dtypes = {f"matrix products, {name_of(way.dtype)}": way.dtype for way in ways.values()}
    products = {name: lambda _, dtype=dtype: work.rate(dtype, training=training) for name, dtype in dtypes.items()}
    measured = list(in_turn({name: way.run for name, way in ways.items()} | products, repeats=repeats))
    return (
        medians((name, seconds) for name, _, seconds in measured if name in ways),
        {way: [result for name, result, _ in measured if name == way] for way in ways},
        medians((dtypes[name], rate) for name, rate, _ in measured if name in dtypes),
    )


def rates_line(rates):
    """Return what the hardware multiplies, in words."""
    return ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name_of(dtype)}" for dtype, rate in rates.items())


def name_of(dtype):
    """Return the name of a precision, without the library's."""
    return str(dtype).removeprefix("torch.")


def count_tokens(texts, tokenizer, *, max_length=MAX_LENGTH):
    """Return the number of tokens of texts, without padding."""
    return sum(map(len, tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]))


def peak_bytes():
    """Return the most memory that the process has had so far: on a GPU that of torch, else the largest resident set."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not the peak of getrusage where this is known: under Linux that begins with the peak of the parent process.
    if (known := _of_status("VmHWM")) is not None:
        return known
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes():
    """Return the memory of the process, of the kind of `peak_bytes`; its peak where the system doesn't tell."""
    if device().type == "cuda":
        return torch.cuda.memory_allocated()
    known = _of_status("VmRSS")
    return peak_bytes() if known is None else known


def _of_status(name):
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def in_fresh_process(script, *options, threads=None):
    """Run a script in a new process, on so many cores, and return the JSON in the last line that it prints."""
    names = () if threads is None else ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = os.environ | {name: str(threads) for name in names}
    command = [sys.executable, str(script), *map(str, options)]
    run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def processor():
    """Return the name of the processor, and of the GPU if there is one."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or platform.machine()}"
    return f"{name}, {torch.cuda.get_device_name()}" if device().type == "cuda" else name


def versions():
    """Return the version of Python and of each package that is installed."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def report(about, header, rows):
    """Print machine and versions, a line of what was measured, and a Markdown table."""
    print(f"{processor()}; {device().type}, {torch.get_num_threads()} thread(s); {versions()}.\n{about}\n")
    print(f"| {' | '.join(header)} |", "|---" * len(header) + "|", sep="\n")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
