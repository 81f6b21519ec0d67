"""The rows of an embedding table that are used: trained alone, they end where the whole table would."""

import copy

import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS
from torch import nn

from bertclf import BertSequenceClassifier, _training
from bertclf._checkpoint import load_checkpoint
from bertclf._embeddings import UsedRows
from bertclf._engine import Engine

CPU = torch.device("cpu")
USED = np.array([0, 2, 3, 7])
TABLE = "bert.embeddings.word_embeddings.weight"


@pytest.fixture
def table():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Embedding(9, 4, padding_idx=0)


@pytest.fixture
def network(spread_checkpoint):
    options = {"revision": None, "multilabel": False, "pooling": "auto", "dropout": 0.0, "verbose": False}
    with torch.random.fork_rng():
        return load_checkpoint(spread_checkpoint, labels=["a", "b"], **options).network


def test_vectors_and_gradients_are_those_of_the_table(table):
    rows = UsedRows(table, USED)
    token_ids = torch.tensor([[2, 7, 7], [3, 0, 2]])
    upstream = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows(token_ids), table(token_ids))
    rows(token_ids).backward(upstream)
    table(token_ids).backward(upstream)
    torch.testing.assert_close(rows.weight.grad, table.weight.grad[USED])
    assert (rows.weight.grad[0] == 0).all()


def test_a_table_without_padding_trains_every_row(table):
    table.padding_idx = None
    rows = UsedRows(table, USED)
    rows(torch.tensor([0])).sum().backward()
    assert rows.weight.grad[0].tolist() == [1.0] * 4


def test_the_table_has_no_new_values_before_they_are_put_back(table):
    before = table.weight.detach().clone()
    rows = UsedRows(table, USED)
    assert list(dict(rows.named_parameters())) == ["weight"]
    with torch.no_grad():
        rows.weight.add_(1)
    assert torch.equal(table.weight, before)
    rows.put_back(shrinkage=0.5)
    torch.testing.assert_close(table.weight[USED], before[USED] + 1)
    unused = [1, 4, 5, 6, 8]
    torch.testing.assert_close(table.weight[unused], before[unused] / 2)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("lr_schedule", ["linear", "constant", "reduce_lr_on_plateau"])
def test_training_the_used_rows_gives_the_weights_of_training_the_table(
    spread_checkpoint, network, monkeypatch, lr_schedule, early_stopping
):
    """Unused rows, which have no gradient, shrink under the weight decay as all others."""
    clf = BertSequenceClassifier(
        spread_checkpoint,
        epochs=3,
        batch_size=5,
        learning_rate=1e-2,
        lr_schedule=lr_schedule,
        weight_decay=0.3,
        dropout=0.0,
        precision="float32",
        early_stopping=early_stopping,
        random_state=0,
    )
    used = clf.fit(TEXTS * 2, LABELS * 2).model_.state_dict()
    make = _training._make_engine

    def make_with_whole_table(*given, **named):
        return make(*given, **named | {"whole_table": True})

    monkeypatch.setattr(_training, "_make_engine", make_with_whole_table)
    whole = clf.fit(TEXTS * 2, LABELS * 2).model_.state_dict()

    start = network.state_dict()[TABLE]
    unused = np.setdiff1d(np.arange(len(start)), [token for row in clf.tokenizer_(TEXTS)["input_ids"] for token in row])
    shrinkage = used[TABLE][unused].norm() / start[unused].norm()
    assert 0.9 < shrinkage < 0.999
    torch.testing.assert_close(used[TABLE][unused], whole[TABLE][unused], rtol=1e-5, atol=1e-7)
    for name, weight in used.items():
        if not name.endswith("key.bias"):  # its gradient is zero but for rounding, and AdamW divides that by its size
            torch.testing.assert_close(weight, whole[name], rtol=1e-3, atol=1e-3, msg=name)


def test_a_training_that_is_to_go_on_trains_the_table(spread_checkpoint):
    clf = BertSequenceClassifier(spread_checkpoint, epochs=1, random_state=0)
    clf.partial_fit(TEXTS, LABELS, classes=["fresh", "rotten"])
    assert clf._optimizer_state[f"{TABLE}:exp_avg"].shape == clf.model_.state_dict()[TABLE].shape


def set_max_norm(network):
    network.get_input_embeddings().max_norm = 1.0


def set_sparse(network):
    network.get_input_embeddings().sparse = True


def set_scale_of_gradient(network):
    network.get_input_embeddings().scale_grad_by_freq = True


def set_class(network):
    class Louder(nn.Embedding):
        def forward(self, token_ids):
            return 2 * super().forward(token_ids)

    network.get_input_embeddings().__class__ = Louder


def freeze_table(network):
    network.get_input_embeddings().weight.requires_grad_(False)


def use_twice(network):
    network.bert.other = nn.Linear(16, 1)
    network.bert.other.weight = network.get_input_embeddings().weight


@pytest.mark.parametrize(
    "change", [set_max_norm, set_sparse, set_scale_of_gradient, set_class, freeze_table, use_twice]
)
def test_a_table_with_another_use_or_settings_of_its_own_is_left_alone(network, change):
    def table_of(network):
        engine = Engine(network, device=CPU, token_ids=USED)
        return engine._padded.get_input_embeddings()

    assert isinstance(table_of(copy.deepcopy(network)), UsedRows)
    change(network)
    assert table_of(network).weight is network.get_input_embeddings().weight
