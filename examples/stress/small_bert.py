"""A BERT of two layers with random weights, built offline in moments: what the stress scripts wear out."""

import string
from pathlib import Path

import torch
import transformers

LONGEST = 64
WORDS = (
    "a an and the it is was film plot joy dull fine long bore waste of time good bad great awful not very story actor "
    "scene love hate best worst i you we they what why how this that . , ! ?"
).split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def build(folder: Path) -> Path:
    """Write configuration, weights and tokenizer files into a folder and return it."""
    letters = string.ascii_lowercase
    pieces = dict.fromkeys([*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters)])
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(pieces), max_position_embeddings=LONGEST, **sizes)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizer(vocab=vocabulary, model_max_length=LONGEST).save_pretrained(folder)
    return folder
