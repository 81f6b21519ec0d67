"""Compare the speed of training with the usual tutorial's loop, with `transformers.Trainer` and with skorch.

All ways fine-tune the same checkpoint on the same rows with the same settings (64 tokens at most, batches of 32,
AdamW at 5e-5, linear decay without warm-up). A run is timed whole, from the loading of the checkpoint to the last step;
predicting the test rows is not timed. The ways take turns, so that a change in the machine's speed meets all of them,
and so does what the machine multiplies at best, in the precision of each way: the limit is the time that the matrix
products of the real tokens would take at that rate (6 operations a weight and token; in the last layer, where the
first token of a text alone is looked at, keys and values of all tokens and the rest of that one).

`Trainer` needs accelerate; without it, or without skorch, that way is left out.

    python examples/benchmarks/train_speed.py --data train.jsonl --test test.jsonl
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from common import (
    BATCH_SIZE,
    LEARNING_RATE,
    MAX_LENGTH,
    MatrixWork,
    Way,
    beside_limit,
    best_dtype,
    classifier_of,
    count_tokens,
    device,
    has_bfloat16,
    is_installed,
    load,
    name_of,
    parsed,
    parser_of,
    rates_line,
    read,
    report,
    skorch_pipeline,
)
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from transformers import PrinterCallback, Trainer, TrainingArguments, get_linear_schedule_with_warmup

WARM_UP_ROWS = 2 * BATCH_SIZE


def predictor(tokenizer, network, classes):
    """Return a function from texts to labels."""

    def predict(texts):
        network.eval()
        logits = []
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH_SIZE):
                chunk = texts[start : start + BATCH_SIZE]
                batch = tokenizer(chunk, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
                logits.append(network(**batch.to(network.device)).logits.float().cpu())
        return classes[torch.cat(logits).argmax(dim=1).numpy()]

    return predict


def tutorial_loop(texts, labels, *, model, epochs, seed):
    """Train with the tutorial's loop: every text padded to 64 tokens, plain AdamW."""
    transformers.set_seed(seed)
    classes, targets = np.unique(labels, return_inverse=True)
    tokenizer, network = load(model, n_classes=len(classes))
    network.to(device())
    encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding="max_length", return_tensors="pt")
    rows = TensorDataset(encoded["input_ids"], encoded["attention_mask"], torch.from_numpy(targets))
    loader = DataLoader(rows, sampler=RandomSampler(rows), batch_size=BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, eps=1e-8)
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=epochs * len(loader))
    for _ in range(epochs):
        network.train()
        total_loss = 0.0
        for batch in loader:
            input_ids, mask, batch_targets = (tensor.to(device()) for tensor in batch)
            network.zero_grad()
            loss = network(input_ids, attention_mask=mask, labels=batch_targets).loss
            total_loss += loss.item()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return predictor(tokenizer, network, classes)


def with_trainer(texts, labels, *, model, epochs, seed, **tuned):
    """Train with `Trainer`, its defaults changed by `tuned`, without saving and reporting."""
    transformers.set_seed(seed)
    classes, targets = np.unique(labels, return_inverse=True)
    tokenizer, network = load(model, n_classes=len(classes))
    encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": int(target)}
        for ids, mask, target in zip(encoded["input_ids"], encoded["attention_mask"], targets, strict=True)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        settings = TrainingArguments(
            scratch,
            num_train_epochs=epochs,
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=BATCH_SIZE,
            use_cpu=device().type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            **tuned,
        )
        trainer = Trainer(network, settings, train_dataset=rows, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return predictor(tokenizer, network, classes)


def tuned_trainer(texts, labels, **settings):
    """Train with `Trainer` and all that makes it faster here: batches by length, fused AdamW, bfloat16."""
    return with_trainer(
        texts,
        labels,
        train_sampling_strategy="group_by_length",
        optim="adamw_torch_fused",
        bf16=has_bfloat16(),
        **settings,
    )


def with_skorch(texts, labels, *, model, epochs, seed):
    """Train with skorch and its Hugging Face tokenizer, which pads every text to 64 tokens."""
    from skorch.callbacks import GradientNormClipping, LRScheduler

    transformers.set_seed(seed)
    classes, targets = np.unique(labels, return_inverse=True)
    tokenizer, network = load(model, n_classes=len(classes))
    n_steps = epochs * -(-len(texts) // BATCH_SIZE)
    decay = LRScheduler(
        torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 - step / n_steps, step_every="batch"
    )
    pipeline = skorch_pipeline(
        tokenizer,
        network,
        optimizer=torch.optim.AdamW,
        lr=LEARNING_RATE,
        max_epochs=epochs,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=[decay, GradientNormClipping(1.0)],
    )
    pipeline.fit(texts, targets)
    return lambda texts: classes[pipeline.predict(texts)]


def ours(texts, labels, *, model, epochs, seed, precision="float32"):
    """Train with `BertSequenceClassifier`."""
    classifier = classifier_of(model, epochs=epochs, precision=precision, random_state=seed)
    return classifier.fit(texts, labels).predict


TUTORIAL, TRAINER = "tutorial's loop", "Trainer, defaults"


def all_ways():
    """Return each way that is installed and the precision of its matrix products, by its name in the table."""
    dtype = torch.bfloat16 if has_bfloat16() else torch.float32
    ways = {TUTORIAL: (tutorial_loop, torch.float32)}
    if is_installed("accelerate", way="Trainer"):
        ways[TRAINER] = with_trainer, torch.float32
        ways[f"Trainer, tuned ({name_of(dtype)}, by length, fused)"] = tuned_trainer, dtype
    if is_installed("skorch", way="skorch"):
        ways["skorch"] = with_skorch, torch.float32
    ways["bertclf, float32"] = ours, torch.float32
    if best_dtype() != torch.float32:
        ways['bertclf, precision="auto"'] = partial(ours, precision="auto"), best_dtype()
    return ways


def main(argv=None):
    """Run every way in turn and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--test", type=Path, required=True, help="test rows, in the same form")
    parser.add_argument("--rows", type=int, default=1600, help="training rows, drawn at random, always the same")
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parsed(parser, argv)
    texts, labels = read(arguments.data, arguments.rows)
    test_texts, test_labels = read(arguments.test)
    model, epochs = arguments.model, arguments.epochs
    ways = all_ways()

    # One short run of each way: what is imported, compiled or cached on first use is charged to none.
    for train, _ in ways.values():
        train(texts[:WARM_UP_ROWS], labels[:WARM_UP_ROWS], model=model, epochs=1, seed=0)

    def run(train, seed):
        return train(texts, labels, model=model, epochs=epochs, seed=seed)

    tokenizer, network = load(model, n_classes=len(set(labels)))
    work = MatrixWork.of(network, first_token_alone=True)
    turns = {name: Way(partial(run, train), dtype) for name, (train, dtype) in ways.items()}
    seconds, predictors, rates = beside_limit(turns, work=work, training=True, repeats=arguments.repeats)

    n_texts, n_tokens = epochs * len(texts), epochs * count_tokens(texts, tokenizer)
    operations = work.operations(n_tokens=n_tokens, n_texts=n_texts, training=True)
    accuracies = {
        name: [np.mean(predict(test_texts) == np.asarray(test_labels)) for predict in predictors[name]] for name in ways
    }
    report(
        f"{len(texts)} texts, {n_tokens / n_texts:.1f} tokens a text, {epochs} epoch(s), batches of {BATCH_SIZE}, "
        f"medians of {arguments.repeats}; matrix products: {rates_line(rates)}.",
        [
            "way",
            "median seconds",
            "texts/s",
            "times Trainer's speed",
            "times the tutorial's speed",
            "share of the arithmetic limit",
            "accuracy",
        ],
        [
            [
                name,
                f"{median:.1f}",
                f"{n_texts / median:.0f}",
                f"{seconds[TRAINER] / median:.2f}" if TRAINER in seconds else "",
                f"{seconds[TUTORIAL] / median:.2f}",
                f"{operations / rates[turns[name].dtype] / median:.0%}",
                f"{np.mean(accuracies[name]):.3f}",
            ]
            for name, median in seconds.items()
        ],
    )


if __name__ == "__main__":
    main()
