"""Compare the speed of prediction with a pipeline of transformers, `Trainer`, skorch and sentence embeddings.

One network is fine-tuned on few rows and predicts the probabilities of other rows in every way, from texts to numbers:
each way tokenizes for itself, 64 tokens at most. `bertclf`, the pipeline, the batches sorted by length, `Trainer` and
skorch run the same weights, so their probabilities are compared as well. The embeddings are those of the checkpoint
before fine-tuning, with a logistic regression fitted on the embeddings of the same training rows.

The ways take turns with the matrix products of the network alone. The limit is the time that those of the real tokens
would take (2 operations a weight and token; in the last layer, where the first token of a text alone is looked at, keys
and values of all tokens and the rest of that one).

Ways whose package (accelerate for `Trainer`, skorch, sentence-transformers) isn't installed are left out.

    python examples/benchmarks/predict_speed.py --data train.jsonl --test test.jsonl
"""

import pickle
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import (
    BATCH_SIZE,
    MAX_LENGTH,
    MatrixWork,
    Way,
    beside_limit,
    best_dtype,
    classifier_of,
    count_tokens,
    device,
    is_installed,
    name_of,
    parsed,
    parser_of,
    rates_line,
    read,
    report,
    skorch_pipeline,
)
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline

OURS, PIPELINE, SORTED = "bertclf, float32", "pipeline, batches of 32", "batches of 32 by length"


def with_pipeline(folder):
    """Predict with the text-classification pipeline."""
    classify = pipeline("text-classification", str(folder), device=device(), batch_size=BATCH_SIZE, top_k=None)
    columns = classify.model.config.label2id

    def predict(texts):
        probabilities = np.empty((len(texts), len(columns)), dtype=np.float32)
        for row, scores in enumerate(classify(list(texts), truncation=True, max_length=MAX_LENGTH)):
            for score in scores:
                probabilities[row, columns[score["label"]]] = score["score"]
        return probabilities

    return predict


def by_length(tokenizer, network, *, dtype):
    """Predict in padded batches of texts of like length, as one would write it by hand."""

    def predict(texts):
        encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)
        order = np.argsort([len(ids) for ids in encoded["input_ids"]])[::-1]
        logits = torch.empty((len(texts), network.config.num_labels))
        autocast = torch.autocast(device().type, dtype=dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), autocast:
            for start in range(0, len(order), BATCH_SIZE):
                rows = order[start : start + BATCH_SIZE]
                chunk = {name: [values[row] for row in rows] for name, values in encoded.items()}
                batch = tokenizer.pad(chunk, return_tensors="pt").to(device())
                logits[torch.from_numpy(rows.copy())] = network(**batch).logits.float().cpu()
        return logits.softmax(dim=1).numpy()

    return predict


def with_trainer(tokenizer, network, *, scratch):
    """Predict with `Trainer.predict`, its batches as large as the others'."""
    settings = TrainingArguments(
        str(scratch),
        per_device_eval_batch_size=BATCH_SIZE,
        use_cpu=device().type == "cpu",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(network, settings, processing_class=tokenizer)

    def predict(texts):
        encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)
        rows = [{name: values[row] for name, values in encoded.items()} for row in range(len(texts))]
        return torch.from_numpy(trainer.predict(rows).predictions).softmax(dim=1).numpy()

    return predict


def with_skorch(tokenizer, network):
    """Predict with skorch and its Hugging Face tokenizer, which pads every text to 64 tokens."""
    fitted = skorch_pipeline(tokenizer, network)
    fitted[0].fit([])
    fitted[1].initialize()
    return fitted.predict_proba


def with_embeddings(model, texts, labels):
    """Predict with a logistic regression on the embeddings of sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    embedder = SentenceTransformer(model, device=str(device()))
    embedder.max_seq_length = MAX_LENGTH
    embed = partial(embedder.encode, batch_size=BATCH_SIZE, show_progress_bar=False)
    regression = LogisticRegression(max_iter=1000).fit(embed(texts), labels)
    return lambda texts: regression.predict_proba(embed(texts))


def all_ways(classifier, folder, *, model, training):
    """Return a function from texts to probabilities, and its precision, for each way that is installed."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder).to(device())
    network.eval()
    ways = {
        PIPELINE: (with_pipeline(folder), torch.float32),
        SORTED: (by_length(tokenizer, network, dtype=torch.float32), torch.float32),
    }
    if is_installed("accelerate", way="Trainer"):
        ways["Trainer.predict"] = with_trainer(tokenizer, network, scratch=folder), torch.float32
    if is_installed("skorch", way="skorch"):
        ways["skorch"] = with_skorch(tokenizer, network), torch.float32
    if is_installed("sentence-transformers", way="Embeddings"):
        ways["embeddings and logistic regression"] = with_embeddings(model, *training), torch.float32
    ways[OURS] = classifier.predict_proba, torch.float32
    if (dtype := best_dtype()) != torch.float32:
        # A pickle, loaded with another precision, holds the same weights.
        other = pickle.loads(pickle.dumps(classifier.set_params(precision="auto")))
        ways[f"{SORTED}, {name_of(dtype)}"] = by_length(tokenizer, network, dtype=dtype), dtype
        ways['bertclf, precision="auto"'] = other.predict_proba, dtype
    return ways


def main(argv=None):
    """Run every way in turn and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--test", type=Path, required=True, help="rows to predict, in the same form")
    parser.add_argument("--train-rows", type=int, default=400, help="rows to fine-tune on, always the same")
    parser.add_argument("--rows", type=int, default=1000, help="rows to predict, always the same")
    arguments = parsed(parser, argv)
    training = read(arguments.data, arguments.train_rows)
    texts, labels = read(arguments.test, arguments.rows)
    classifier = classifier_of(arguments.model).fit(*training)

    with tempfile.TemporaryDirectory() as folder:
        classifier.model_.save_pretrained(folder)
        classifier.tokenizer_.save_pretrained(folder)
        ways = all_ways(classifier, Path(folder), model=arguments.model, training=training)
        for predict, _ in ways.values():  # once untimed, so that what happens on first use is charged to none
            predict(texts[: 2 * BATCH_SIZE])

        def run(predict, _):
            return predict(texts)

        work = MatrixWork.of(classifier.model_, first_token_alone=True)
        turns = {name: Way(partial(run, predict), dtype) for name, (predict, dtype) in ways.items()}
        seconds, results, rates = beside_limit(turns, work=work, training=False, repeats=arguments.repeats)

    n_tokens = count_tokens(texts, classifier.tokenizer_)
    operations = work.operations(n_tokens=n_tokens, n_texts=len(texts), training=False)
    probabilities = {name: result[0] for name, result in results.items()}
    report(
        f"{len(texts)} texts, {n_tokens / len(texts):.1f} tokens a text, medians of {arguments.repeats}; matrix "
        f"products: {rates_line(rates)}.",
        [
            "way",
            "median seconds",
            "texts/s",
            "times the pipeline's speed",
            "times the speed by length",
            "share of the arithmetic limit",
            "largest difference in a probability",
            "accuracy",
        ],
        [
            [
                name,
                f"{median:.2f}",
                f"{len(texts) / median:.0f}",
                f"{seconds[PIPELINE] / median:.2f}",
                f"{seconds[SORTED] / median:.2f}",
                f"{operations / rates[turns[name].dtype] / median:.0%}",
                "" if "embeddings" in name else f"{np.abs(probabilities[name] - probabilities[OURS]).max():.1e}",
                f"{np.mean(classifier.classes_[probabilities[name].argmax(axis=1)] == np.asarray(labels)):.3f}",
            ]
            for name, median in seconds.items()
        ],
    )


if __name__ == "__main__":
    main()
