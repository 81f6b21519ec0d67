"""Load thousands of damaged and hostile model folders: each must be refused with ModelFileError, or do no harm.

Each mutant is a saved folder with something changed: bits flipped, files cut, swapped, linked or added, values, keys
and types in their JSON exchanged, headers of weights edited. More than half of them get their hashes made anew, so that
they get past the checks of damage. A mutant that loads must predict what the original does, if its hashes were not made
anew, and finite probabilities if they were. All the while an audit hook looks for foreign code, new processes, sockets,
pickles, and files outside the folder.

    python examples/stress/fuzz_models.py --mutants 2000 --seed 0
"""

import argparse
import collections
import copy
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import numpy as np
from conftest import LABELS, TEXTS
from tiny import build

from bertclf import BertSequenceClassifier, ModelFileError
from bertclf._folder import MANIFEST, MODEL_FILES, WEIGHTS
from bertclf._manifest import _hash_of

SECONDS_PER_MUTANT = 20
ROOT = Path(__file__).resolve().parents[2]
CANARY = "bertclf_canary"
PAYLOAD = f"__import__('os').system('touch {CANARY}')"


class Evil:
    """Runs a command where somebody unpickles it."""

    def __reduce__(self):
        """Return the command."""
        return os.system, (f"touch {CANARY}",)


PICKLE = pickle.dumps(Evil())

NASTY_VALUES = [
    None, True, False, 0, 1, -1, 2, 7, 64, 10**6, 10**9, 2**31, 2**63, -(2**40), 10**30, 0.5, -1.5, 1e308,
    "", "x", "../x", "/etc/passwd", "\x00", "\ud800", "a" * 10_000, PAYLOAD, "os", "eval", "gelu", "relu", "float16",
    "bert", "gpt2", "t5", "albert", "AutoTokenizer", "AutoModel", "pipeline", "BertTokenizer", "GPT2Tokenizer",
    "RagTokenizer", "LlamaTokenizer", "TokenizersBackend", "single_label_classification", "<U9", "object", "|V8",
    [], [None], [1, 2], ["a", "b"], [[[]]], {}, {"a": 1}, {"__type": "AddedToken", "content": "x"},
    {"float": "nan"}, {"pairs": [[1, 2]]}, {"pairs": 3}, {"": {"": {"": []}}},
]  # fmt: skip
NASTY_KEYS = {
    "auto_map": {"AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None], "AutoConfig": "evil.Config"},
    "_attn_implementation_internal": "someone/kernel",
    "attn_implementation": "someone/kernel",
    "_attn_implementation": {"": "someone/kernel"},
    "trust_remote_code": True,
    "tokenizer_file": "/etc/passwd",
    "vocab_file": "../secret",
    "gguf_file": "model.gguf",
    "name_or_path": "someone/model",
    "_name_or_path": "someone/model",
    "init_inputs": ["/etc/passwd"],
    "tokenizer_class": "AutoTokenizer",
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "text_config": {"model_type": "bert", "hidden_size": 10**9},
    "num_labels": 10**9,
    "hidden_size": 10**9,
    "num_hidden_layers": 10**7,
    "n_layer": 9_999,
    "max_position_embeddings": 2**30,
    "vocab_size": 10**12,
    "return_dict": False,
    "torchscript": True,
    "dtype": "float64",
    "to_dict": "x",
    "__class__": "x",
    "get_text_config": 1,
    "model_max_length": 0,
    "chat_template": "{{ " + PAYLOAD + " }}",
    "extra_special_tokens": {"a": "b"},
    "added_tokens_decoder": {"99999999": {"content": "x"}},
    "additional_special_tokens": ["a"],
    "from_slow": True,
    "backend": "sentencepiece",
    "normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
    "truncation": {"max_length": 2, "stride": 1, "strategy": "LongestFirst", "direction": "Left"},
    "padding": {"strategy": {"Fixed": 10**6}, "direction": "Left", "pad_id": 9, "pad_type_id": 3, "pad_token": "x"},
    "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
    "type_id": 7,
    "id": 10**6,
    "ids": [10**6],
}
STRAY_FILES = {
    "evil.py": b"import os\nos.system('touch bertclf_canary')\n",
    "modeling_bert.py": b"raise SystemExit\n",
    "adapter_config.json": json.dumps({"peft_type": "LORA", "base_model_name_or_path": "someone/model"}).encode(),
    "adapter_model.safetensors": b"",
    "pytorch_model.bin": PICKLE,
    "model.pkl": PICKLE,
    "README.md": b"# A model\n",
    "tokenizer.model": b"\x0a\x0b",
    "special_tokens_map.json": b'{"tokenizer_file": "/etc/passwd", "unk_token": {"content": "x"}}',
    "added_tokens.json": b'{"x": 1000000}',
    "vocab.txt": b"a\nb\n",
    "vocab.json": b'{"a": 0}',
    "merges.txt": b"#version\na b\n",
    "spiece.model": PICKLE,
    "chat_template.jinja": ("{{ " + PAYLOAD + " }}").encode(),
    "model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}',
    "generation_config.json": b'{"trust_remote_code": true}',
}


class Watch:
    """An audit hook, which can't be taken off, that listens while it is told to and keeps what it should not hear."""

    FORBIDDEN = (
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.fork",
        "os.posix_spawn",
        "pickle.find_class",
        "socket.",
    )
    CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.symlink", "os.link", "os.truncate")

    def __init__(self, *folders):
        installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
        self.own = tuple(os.path.realpath(folder) + os.sep for folder in folders)
        self.readable = (*self.own, *(os.path.realpath(path) + os.sep for path in (*installed, sys.prefix, ROOT)))
        self.listens, self.heard = False, []
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if not self.listens:
            return
        self.listens = False  # what is done here is not to be heard
        try:
            if self._is_wrong(event, arguments):
                self.heard.append(f"{event}{arguments!r}"[:300])
        finally:
            self.listens = True

    def _is_wrong(self, event, arguments):
        if event.startswith(self.FORBIDDEN):
            return True
        if event == "open":
            return self._opens_wrongly(*arguments)
        if event in self.CHANGES:
            is_relative = any(isinstance(argument, int) and argument > 2 for argument in arguments[1:])
            return not is_relative and not self._is_in(arguments[0], self.own)
        if event == "compile":
            source, name = arguments
            return CANARY in str(source) or not self._is_code(name)
        if event == "exec":
            return not self._is_code(arguments[0].co_filename)
        if event == "import" and arguments[1]:
            return not self._is_in(arguments[1], self.readable)
        return False

    def _opens_wrongly(self, path, mode, flags):
        if isinstance(path, int):
            return False
        if mode is None and os.fsdecode(path) in MODEL_FILES:
            return False  # relative to the handle of the folder
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return not self._is_in(path, self.own if writes else (*self.readable, "/proc/", "/sys/", "/dev/null"))

    def _is_code(self, name):
        name = os.fsdecode(name or "")
        return name.startswith("<") or (self._is_in(name, self.readable) and not self._is_in(name, self.own))

    def _is_in(self, path, folders):
        path = os.path.abspath(os.fsdecode(path))
        return f"{os.path.realpath(path)}{os.sep}".startswith(folders) or path.startswith(folders)


class Mutator:
    """Changes the files of a saved folder at random, always in the same way for the same seed and number."""

    def __init__(self, files, generator):
        self.files = dict(files)
        self.random = generator
        self.made = []  # functions that make what is no file with content, in the folder
        self.log = []
        self.is_hashed = False

    def mutate(self):
        """Change one thing or some, and perhaps make the hashes anew."""
        ways = {
            self.edit_json: 12,
            self.edit_tokenizer: 4,
            self.edit_header: 3,
            self.change_bytes: 6,
            self.swap_files: 1,
            self.add_file: 2,
            self.replace_by_link: 1,
            self.remove_file: 1,
            self.edit_list: 2,
        }
        for _ in range(self.random.choice([1, 1, 1, 2, 3])):
            self.random.choices(list(ways), weights=list(ways.values()))[0]()
        if self.random.random() < 0.65:
            self.hash_anew()

    def write(self, folder, outside):
        """Write the mutant."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        for make in self.made:
            make(folder, outside)

    def pick(self):
        """Return the name of a file."""
        return self.random.choice(sorted(self.files))

    def change_bytes(self):
        """Flip, cut, delete, repeat or insert bytes of a file."""
        name = self.pick()
        content = bytearray(self.files[name])
        way = self.random.choice(["flip", "flip", "cut", "delete", "repeat", "insert", "zero", "pickle", "empty"])
        start = self.random.randrange(len(content) + 1)
        stop = min(len(content), start + self.random.choice([1, 8, 100]))
        if way == "flip" and content:
            for _ in range(self.random.choice([1, 1, 8])):
                content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        elif way == "cut":
            del content[start:]
        elif way == "delete":
            del content[start:stop]
        elif way == "repeat":
            content[start:start] = content[start:stop]
        elif way == "insert":
            content[start:start] = self.random.randbytes(self.random.choice([1, 8, 64]))
        elif way == "zero":
            content[start:stop] = bytes(stop - start)
        else:
            content = bytearray(PICKLE if way == "pickle" else b"")
        self.files[name] = bytes(content)
        self.log.append(f"{way} {name} at {start}")

    def edit_json(self, names=None):
        """Exchange, delete or add something in a JSON file."""
        names = names or [name for name in sorted(self.files) if name.endswith(".json")]
        if not names:
            return
        name = self.random.choice(names)
        try:
            content = json.loads(self.files[name])
        except (ValueError, RecursionError):
            return
        content = self.edited(content, name)
        text = json.dumps(content)
        if self.random.random() < 0.02:
            text = "[" * 100_000 + text + "]" * 100_000
        self.files[name] = text.encode()

    def edit_tokenizer(self):
        """Edit the tokenizer, which has most to be edited."""
        self.edit_json([name for name in ("tokenizer.json",) if name in self.files])

    def edit_header(self):
        """Edit the header of the weights."""
        content = self.files.get(WEIGHTS, b"")
        length = int.from_bytes(content[:8], "little")
        try:
            header = json.loads(content[8 : 8 + length])
        except (ValueError, RecursionError):
            return
        edited = json.dumps(self.edited(header, WEIGHTS)).encode()
        announced = self.random.choice([len(edited)] * 6 + [0, 2**63, len(edited) + 1, 10**8])
        self.files[WEIGHTS] = announced.to_bytes(8, "little") + edited + content[8 + length :]

    def edited(self, content, name):
        """Return a JSON value with something changed at a random place."""
        content = copy.deepcopy(content)
        parent, key, value = None, None, content
        while isinstance(value, (dict, list)) and value and (parent is None or self.random.random() < 0.75):
            parent, key = value, self.random.choice(sorted(value) if isinstance(value, dict) else range(len(value)))
            value = parent[key]
        if parent is None:
            return self.random.choice(NASTY_VALUES)
        way = self.random.choice(["value", "value", "value", "near", "near", "delete", "add", "add", "rename", "other"])
        self.log.append(f"{way} {name} {str(key)[:40]}")
        if way == "value":
            parent[key] = self.random.choice(NASTY_VALUES)
        elif way == "near":
            parent[key] = self.near(value)
        elif way == "delete":
            del parent[key]
        elif way == "add" and isinstance(parent, dict):
            added = self.random.choice(sorted(NASTY_KEYS))
            self.log[-1] += f" {added}"
            parent[added] = NASTY_KEYS[added]
        elif way == "rename" and isinstance(parent, dict):
            parent[self.random.choice(["", "x", *NASTY_KEYS])] = parent.pop(key)
        elif way == "other":
            other = self.random.choice(sorted(parent) if isinstance(parent, dict) else range(len(parent)))
            parent[key] = copy.deepcopy(parent[other])
        return content

    def near(self, value):
        """Return a value of the same type that differs a little."""
        if isinstance(value, bool):
            return not value
        if isinstance(value, (int, float)):
            return value + self.random.choice([-1, 1, 10, -value, value, 1000 * value])
        if isinstance(value, str):
            return self.random.choice([value + "x", value[:-1], value[::-1], value.upper(), value * 3])
        if isinstance(value, list):
            return self.random.choice([value + value, value[::-1], value[:-1], [value]])
        return {} if value else {"x": 1}

    def swap_files(self):
        """Exchange the contents of two files."""
        first, second = self.pick(), self.pick()
        self.files[first], self.files[second] = self.files[second], self.files[first]
        self.log.append(f"swap {first} {second}")

    def add_file(self):
        """Add a file, and perhaps list it in the manifest."""
        name = self.random.choice(sorted(STRAY_FILES))
        self.files[name] = STRAY_FILES[name]
        self.log.append(f"add {name}")
        if self.random.random() < 0.6:
            self.list_file(name)

    def list_file(self, name, path=None):
        """List a file in the manifest."""
        try:
            manifest = json.loads(self.files[MANIFEST])
            content = self.files[name]
            manifest["files"][path or name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        self.files[MANIFEST] = json.dumps(manifest).encode()

    def edit_list(self):
        """List a file under a path that leads elsewhere."""
        name = self.pick()
        path = self.random.choice(["../{}", "/etc/{}", "./{}", "x/../{}", "{}\x00", "{}/", "C:\\{}", "..", "", "~/{}"])
        self.list_file(name, path.format(name))
        self.log.append(f"list {path.format(name)}")

    def replace_by_link(self):
        """Put a link, a folder, a pipe or a hard link in the place of a file."""
        name = self.pick()
        content = self.files.pop(name)
        way = self.random.choice(["symlink", "hard link", "folder", "pipe", "dangling", "loop"])

        def make(folder, outside):
            target = outside / f"target of {name}"
            target.write_bytes(content)
            if way == "symlink":
                (folder / name).symlink_to(target)
            elif way == "hard link":
                (folder / name).hardlink_to(target)
            elif way == "folder":
                (folder / name).mkdir()
            elif way == "pipe":
                os.mkfifo(folder / name)
            else:
                (folder / name).symlink_to(folder / name if way == "loop" else outside / "nothing")

        self.made.append(make)
        self.log.append(f"{way} {name}")

    def remove_file(self):
        """Leave a file out, and perhaps out of the manifest too."""
        name = self.pick()
        del self.files[name]
        self.log.append(f"remove {name}")

    def hash_anew(self):
        """Make sizes and hashes in the manifest anew, as somebody would who means harm."""
        try:
            manifest = json.loads(self.files[MANIFEST])
            for name, entry in manifest["files"].items():
                if name in self.files:
                    content = self.files[name]
                    entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest.pop("sha256", None)
            self.files[MANIFEST] = json.dumps(manifest | {"sha256": _hash_of(manifest)}).encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return
        self.is_hashed = True
        self.log.append("hashed anew")


def originals(folder):
    """Return the files, the texts and the probabilities of each saved classifier that mutants are made of."""
    found = []
    for name, settings in {"bert": {}, "gpt2": {"pooling": "mean"}, "xlm-roberta": {}}.items():
        build(name, folder / name)
        classifier = BertSequenceClassifier(folder / name, epochs=1, random_state=0, **settings).fit(TEXTS, LABELS)
        classifier.set_params(model="a-checkpoint").save_pretrained(folder / f"saved {name}")
        saved = {file.name: file.read_bytes() for file in (folder / f"saved {name}").iterdir()}
        found.append((saved, classifier.predict_proba(TEXTS[:4])))
    return found


def run_one(number, *, seed, bases, scratch, watch):
    """Load one mutant; return what came of it and what was changed."""
    generator = random.Random(f"{seed}-{number}")
    files, expected = generator.choice(bases)
    mutant = Mutator(files, generator)
    mutant.mutate()
    folder, outside = scratch / "mutant", scratch.parent / "outside"
    for place in (folder, outside):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    mutant.write(folder, outside)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_MUTANT)
    watch.heard.clear()
    watch.listens = True
    try:
        classifier = BertSequenceClassifier.from_pretrained(folder, device="cpu")
        pairs = list(zip(TEXTS, TEXTS, strict=True))
        probabilities = classifier.predict_proba((pairs if classifier._takes_pairs else TEXTS)[:4])
    except ModelFileError as error:
        outcome = "refused" if str(folder) in str(error) else f"FAILED: names no file: {error}"
    except BaseException:
        if sys.exc_info()[0] is KeyboardInterrupt:
            raise
        outcome = f"FAILED: {traceback.format_exc()}"
    else:
        if np.array_equal(probabilities, expected):
            outcome = "loaded, predicts the same"
        elif not mutant.is_hashed:
            outcome = "FAILED: it predicts otherwise, and nobody noticed the damage"
        elif probabilities.ndim == 2 and np.isfinite(probabilities).all():
            outcome = "loaded with hashes made anew, predicts otherwise"
        else:
            outcome = f"FAILED: it predicts {probabilities}"
    finally:
        watch.listens = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    if watch.heard:
        outcome = f"FAILED: {watch.heard}"
    if Path(CANARY).exists():
        outcome = "FAILED: a command was run"
    return outcome, mutant.log


def parsed(argv):
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the one mutant to load, and to show")
    return parser.parse_args(argv)


def main(argv=None):
    """Load the mutants and count what came of them; return the number of failures."""
    arguments = parsed(argv)

    def too_slow(*_):
        raise TimeoutError(f"It took more than {SECONDS_PER_MUTANT} seconds.")

    signal.signal(signal.SIGALRM, too_slow)
    warnings.simplefilter("ignore")
    counts, start = collections.Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as workplace:
        scratch = Path(workplace) / "scratch"
        scratch.mkdir()
        bases = originals(Path(workplace))
        here, temporary = os.getcwd(), tempfile.tempdir
        tempfile.tempdir = str(scratch)
        os.chdir(scratch)
        try:
            watch = Watch(scratch)
            numbers = range(arguments.mutants) if arguments.only is None else [arguments.only]
            for number in numbers:
                outcome, log = run_one(number, seed=arguments.seed, bases=bases, scratch=scratch, watch=watch)
                counts[outcome.split(":")[0]] += 1
                if outcome.startswith("FAILED") or arguments.only is not None:
                    print(f"--seed {arguments.seed} --only {number}: {'; '.join(log)}\n{outcome}", flush=True)
        finally:
            tempfile.tempdir = temporary
            os.chdir(here)
    seconds = time.monotonic() - start
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    print(
        f"seed {arguments.seed}: {counts.total()} mutants in {seconds:.0f} s: {outcomes}; {counts['FAILED']} failures"
    )
    return counts["FAILED"]


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
