import pytest

from bertclf._defaults import automatic_epochs, automatic_label_smoothing, automatic_learning_rate


@pytest.mark.parametrize(
    ("n_texts", "batch_size", "epochs"),
    [
        (1, 32, 20),
        (100, 32, 20),
        (960, 32, 10),
        (961, 32, 10),
        (3_200, 32, 3),
        (1_000_000, 32, 3),
        (960, 64, 20),
    ],
)
def test_little_data_gets_300_steps_within_3_to_20_epochs(n_texts, batch_size, epochs):
    assert automatic_epochs(n_texts=n_texts, batch_size=batch_size) == epochs


@pytest.mark.parametrize(("width", "learning_rate"), [(384, 1e-4), (768, 5e-5), (1024, 2e-5), (4096, 2e-5)])
def test_the_learning_rate_falls_with_the_width_of_the_network(width, learning_rate):
    assert automatic_learning_rate(width) == learning_rate


@pytest.mark.parametrize(
    ("n_texts", "n_classes", "label_smoothing"), [(100, 2, 0.05), (99, 2, 0.0), (3_849, 77, 0.0), (3_850, 77, 0.05)]
)
def test_targets_are_smoothed_from_50_texts_a_class_on(n_texts, n_classes, label_smoothing):
    assert automatic_label_smoothing(n_texts=n_texts, n_classes=n_classes) == label_smoothing
