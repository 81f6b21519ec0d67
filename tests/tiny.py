"""Tiny random checkpoints: each architecture with two layers, 16 wide, its tokenizer, and steps that move nothing."""

from pathlib import Path

import torch
import transformers
from conftest import WORDS

WIDTH, LAYERS, HEADS, POSITIONS = 16, 2, 2, 64
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]


def build(name: str, folder: Path, **settings: object) -> None:
    """Write config, safetensors weights and tokenizer files of one architecture into a folder."""
    tokenizer = TOKENIZERS[name]()
    config = CONFIGS[name](tokenizer)
    config.update(settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _wordpiece(cls: type) -> transformers.PreTrainedTokenizerBase:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return cls(vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))}, model_max_length=POSITIONS)


def _byte_level(cls: type, **tokens: object) -> transformers.PreTrainedTokenizerBase:
    from tokenizers.pre_tokenizers import ByteLevel

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate([*special, *sorted(ByteLevel.alphabet())])}
    return cls(vocab=vocab, merges=[], model_max_length=POSITIONS, **tokens)


def _unigram(cls: type, special: list[str], **tokens: object) -> transformers.PreTrainedTokenizerBase:
    pieces = [(piece, 0.0) for piece in special]
    pieces += [(f"▁{word}", -2.0) for word in WORDS] + [("▁", -3.0)] + [(letter, -5.0) for letter in LETTERS]
    return cls(vocab=pieces, model_max_length=POSITIONS, **tokens)


def _openai_gpt() -> transformers.PreTrainedTokenizerBase:
    pieces = ["<unk>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS), *".,!?"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return transformers.OpenAIGPTTokenizer(vocab=vocab, merges=[], model_max_length=POSITIONS)


def _deberta() -> transformers.PreTrainedTokenizerBase:
    """The class with the template that checkpoints bring along: transformers 5.3 makes none by itself, 5.4 does."""
    from tokenizers.processors import TemplateProcessing

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer = _unigram(transformers.DebertaV2Tokenizer, special, unk_id=3)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def _modernbert() -> transformers.PreTrainedTokenizerBase:
    """ModernBERT has no tokenizer class of its own: a fast tokenizer with byte-level pieces and BERT's template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {p: i for i, p in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


_SENTENCEPIECE = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "<pad>", "unk_token": "<unk>"}

TOKENIZERS = {
    "bert": lambda: _wordpiece(transformers.BertTokenizer),
    "distilbert": lambda: _wordpiece(transformers.DistilBertTokenizer),
    "electra": lambda: _wordpiece(transformers.ElectraTokenizer),
    "mpnet": lambda: _mpnet(),
    "roberta": lambda: _byte_level(transformers.RobertaTokenizer),
    "xlm-roberta": lambda: _unigram(transformers.XLMRobertaTokenizer, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
    "albert": lambda: _unigram(transformers.AlbertTokenizer, ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
    "deberta-v2": _deberta,
    "modernbert": _modernbert,
    "gpt2": lambda: _byte_level(transformers.GPT2Tokenizer),
    "openai-gpt": _openai_gpt,
}


def _mpnet() -> transformers.PreTrainedTokenizerBase:
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    pieces = [*special, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return transformers.MPNetTokenizer(vocab=vocab, model_max_length=POSITIONS)


def _bert_like(cls: type, **more: object):
    def config(tokenizer: transformers.PreTrainedTokenizerBase) -> transformers.PretrainedConfig:
        settings = {
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": 2 * WIDTH,
            "max_position_embeddings": POSITIONS,
            "pad_token_id": tokenizer.pad_token_id,
        }
        return cls(**(settings | more))

    return config


def _gpt_like(cls: type):
    def config(tokenizer: transformers.PreTrainedTokenizerBase) -> transformers.PretrainedConfig:
        sizes = {"n_positions": POSITIONS, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        return cls(vocab_size=len(tokenizer), **sizes, **ends)

    return config


# RoBERTa and its kin count positions from padding_idx + 1, so their tables are that much longer.
_OFFSET = {"max_position_embeddings": POSITIONS + 2}

CONFIGS = {
    "bert": _bert_like(transformers.BertConfig),
    "distilbert": lambda tokenizer: transformers.DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=WIDTH,
        n_layers=LAYERS,
        n_heads=HEADS,
        hidden_dim=2 * WIDTH,
        max_position_embeddings=POSITIONS,
    ),
    "electra": _bert_like(transformers.ElectraConfig, embedding_size=8),
    "mpnet": _bert_like(transformers.MPNetConfig, **_OFFSET),
    "roberta": _bert_like(transformers.RobertaConfig, **_OFFSET, type_vocab_size=1),
    "xlm-roberta": _bert_like(transformers.XLMRobertaConfig, **_OFFSET, type_vocab_size=1),
    "albert": _bert_like(transformers.AlbertConfig, embedding_size=8, classifier_dropout_prob=0.1),
    "deberta-v2": _bert_like(
        transformers.DebertaV2Config,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        type_vocab_size=0,
        pooler_hidden_size=WIDTH,
    ),
    "modernbert": lambda tokenizer: transformers.ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    ),
    "gpt2": _gpt_like(transformers.GPT2Config),
    "openai-gpt": _gpt_like(transformers.OpenAIGPTConfig),
}


class StandStill:
    """An optimisation that keeps the gradients and leaves the weights where they are."""

    add_gradient = staticmethod(torch.autograd.backward)

    def __init__(self, engine, *, label_smoothing=0.0):
        self.label_smoothing = label_smoothing
        self.weights = engine.named_parameters()
        self.gradients = {}

    def forget_gradient(self):
        for weight in self.weights.values():
            weight.grad = None

    def step(self):
        self.gradients = {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}
        self.forget_gradient()
