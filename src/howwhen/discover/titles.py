"""Offline titles: the words that set a category's sentences apart (class-based TF-IDF)."""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

WORDS_PER_TITLE = 3
_WORD = r"(?u)[^\W\d_][\w'-]*|[+*/=<>^]"
"""Words and operators; numbers say what a problem is about, not what a sentence does."""


def characteristic_words(
    sentences: Sequence[str], categories: Sequence[int], size: int
) -> list[tuple[str, ...]]:
    """The most characteristic words of each of `size` categories, best first.

    A word's weight in a category is its share of the category's words times
    `log(1 + mean words per category / its count overall)` (Grootendorst 2022, c-TF-IDF). A
    category without sentences, or whose sentences hold no word, has none.
    """
    vectorizer = CountVectorizer(token_pattern=_WORD, lowercase=False)
    if not any(vectorizer.build_analyzer()(sentence) for sentence in sentences):
        return [()] * size
    counts = vectorizer.fit_transform(sentences)
    words = vectorizer.get_feature_names_out()
    of_category = np.zeros((size, len(words)))
    np.add.at(of_category, np.asarray(categories), counts.toarray())
    totals = of_category.sum(1, keepdims=True).clip(min=1)
    weight = of_category / totals * np.log1p(totals.mean() / of_category.sum(0).clip(min=1))
    ranked = np.argsort(-weight, axis=1, kind="stable")[:, :WORDS_PER_TITLE]
    return [
        tuple(str(words[word]) for word in row if weight[category, word] > 0)
        for category, row in enumerate(ranked)
    ]


def make_titles(sentences: Sequence[str], categories: Sequence[int], size: int) -> tuple[str, ...]:
    """One title per category, such as `plus · is`; an unused category says so."""
    used = set(categories)
    words = characteristic_words(sentences, categories, size)
    return tuple(
        " · ".join(words[category]) or ("no words" if category in used else "unused")
        for category in range(size)
    )
