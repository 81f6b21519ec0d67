"""Fine-tune pretrained transformers on raw text, as a scikit-learn classifier."""

from bertclf._classifier import BertSequenceClassifier
from bertclf._display import TrainingDisplay
from bertclf._files import ModelFileError
from bertclf._version import __version__

__all__ = ["BertSequenceClassifier", "ModelFileError", "TrainingDisplay", "__version__"]
