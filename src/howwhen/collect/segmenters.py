"""Segmenters by name: the paper's rule, and a model that finds sentences by meaning.

The model is one of the SaT family (Frohmann et al. 2024, "Segment any Text"), run by the library
`wtpsplit`. It only predicts probabilities. The cuts are made here, at offsets of the unchanged
text, so nothing is stripped or lost.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from howwhen.collect.sentences import Segmenter, cut_at, cut_sentences
from howwhen.errors import MissingExtraError, ModelError
from howwhen.settings import CollectSettings

_NEWLINES = re.compile(r"\n+")


@runtime_checkable
class SatModel(Protocol):
    """The part of `wtpsplit.SaT` that is used here."""

    def predict_proba(self, text_or_texts: str) -> Sequence[float]:
        """Probability that a sentence ends at each character; one number for a blank text."""


def find_segmenter(settings: CollectSettings) -> Segmenter:
    """The segmenter that the settings name. A model is loaded only once.

    Raises:
        MissingExtraError: the library that runs the model is not installed.
        ModelError: the model cannot be loaded.
    """
    return cut_sentences if settings.segmenter == "rule" else _sat_segmenter(settings.sat_model)


@lru_cache(maxsize=1)
def _sat_segmenter(model: str) -> Segmenter:
    return sat_segmenter(_load_sat(model), _threshold(model))


def sat_segmenter(segmenter: SatModel, threshold: float) -> Segmenter:
    """Cut where the probability is above the threshold, and at newlines.

    Newlines right after a cut belong to the sentence they end, as with the rule.
    """

    def cut(text: str) -> list[tuple[int, int]]:
        if not text.strip():
            return cut_at(text, [])
        probabilities = segmenter.predict_proba(text)
        likely = {index + 1 for index, value in enumerate(probabilities) if value > threshold}
        cuts = likely | {newlines.end() for newlines in _NEWLINES.finditer(text)}
        return cut_at(text, sorted(cut for cut in cuts if text[cut : cut + 1] != "\n"))

    return cut


def _load_sat(model: str) -> Any:
    """A model by its name on the hub, or from a folder that holds its tokenizer too."""
    try:
        from wtpsplit import SaT
    except ImportError as error:
        raise MissingExtraError(
            f"the segmenter sat runs {model} with the library `wtpsplit`; type "
            "`pip install 'howwhen[sat]'`, or use --collect.segmenter rule"
        ) from error
    local = {"tokenizer_name_or_path": model} if Path(model).is_dir() else {}
    try:
        return SaT(model, **local)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot load the sentence model {model!r}: {error}. Give a name such as sat-3l-sm, or "
            "a folder with the model and its tokenizer (--collect.sat-model)"
        ) from error


def _threshold(model: str) -> float:
    """The threshold that the model's authors recommend for it."""
    return 0.25 if "-sm" in Path(model).name else 0.025
