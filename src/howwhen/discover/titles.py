"""Names for categories: by the phrases that set their sentences apart, or by a judge.

Both namers take the same material and return the same record, and every name says where it comes
from. A judge that names nothing usable leaves a category its offline name.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from string import Template
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from howwhen.errors import InputError
from howwhen.judge.endpoint import Judge, Request
from howwhen.judge.fencing import (
    FENCES,
    back_to_latex,
    code_of,
    cut_middle,
    fence,
    read_object,
    sendable,
)
from howwhen.settings import DiscoverSettings

PHRASES_PER_TITLE = 3
MAX_PHRASE_WORDS = 3
"""In words."""
BY_WORDS = "words"
"""What a name without a judge is named by."""
UNUSED, WORDLESS = "unused", "no words"
"""Titles of categories without sentences, and of those whose sentences hold no words."""


@dataclass(frozen=True)
class CategorisedSentences:
    """Sentences and the categories they fell into."""

    texts: Sequence[str]
    categories: Sequence[int]
    """Category of each sentence."""
    strengths: Sequence[float]
    """How strongly each sentence activates its own category."""
    size: int
    """Number of categories, unused ones included."""
    traces: Sequence[str] = ()
    """A few whole answers, so that a judge sees where such sentences stand."""

    def __post_init__(self) -> None:
        lengths = {len(self.texts), len(self.categories), len(self.strengths)}
        if len(lengths) > 1:
            raise InputError(
                f"{len(self.texts)} sentences have {len(self.categories)} categories and "
                f"{len(self.strengths)} strengths; expected one of each for every sentence"
            )
        if self.categories and not 0 <= min(self.categories) <= max(self.categories) < self.size:
            raise InputError(
                f"categories go from {min(self.categories)} to {max(self.categories)}; expected "
                f"numbers from 0 to {self.size - 1}"
            )

    def ranked(self) -> list[list[int]]:
        """For each category the indices of its sentences, strongest first."""
        order = np.lexsort((-np.asarray(self.strengths), np.asarray(self.categories, dtype=int)))
        counts = np.bincount(np.asarray(self.categories, dtype=int), minlength=self.size)
        return [part.tolist() for part in np.split(order, counts.cumsum()[:-1])]


@dataclass(frozen=True)
class Name:
    """What a category is called."""

    title: str
    description: str
    named_by: str
    """`words`, or the name of the judge."""
    typical: tuple[str, ...]
    """Its at most three strongest sentences that differ in more than numbers and spaces."""


class Naming(NamedTuple):
    """The names of all categories, and what it took to get them."""

    names: list[Name]
    unparsable: int = 0
    """Replies of the judge that were no name; each was asked for again, up to `DRAWS` times."""
    fell_back: tuple[int, ...] = ()
    """Categories whose draws were all unparsable; they keep their offline names."""


def name_by_words(assigned: CategorisedSentences) -> Naming:
    """Names without a judge or a network: characteristic phrases and typical sentences."""
    phrases = characteristic_phrases(assigned.texts, assigned.categories, assigned.size)
    both = zip(phrases, assigned.ranked(), strict=True)
    return Naming([_name_by_words(own, rows, assigned.texts) for own, rows in both])


def _name_by_words(phrases: Sequence[str], rows: Sequence[int], texts: Sequence[str]) -> Name:
    typical = _distinct(texts[row] for row in rows)
    if not rows:
        return Name(UNUSED, "No sentence falls into this category.", BY_WORDS, typical)
    if not phrases:
        return Name(WORDLESS, "Sentences of numbers and signs alone.", BY_WORDS, typical)
    quoted = ", ".join(f'"{phrase}"' for phrase in phrases)
    return Name(" · ".join(phrases), f"Sentences set apart by {quoted}.", BY_WORDS, typical)


TYPICAL = 3
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def _distinct(texts: Iterator[str]) -> tuple[str, ...]:
    """The first few that differ in more than numbers and spaces, each on one line."""
    seen: dict[str, str] = {}
    for text in texts:
        if len(seen) == TYPICAL:
            break
        line = " ".join(text.split())
        seen.setdefault(_NUMBER.sub("0", line.replace(" ", "")), line)
    return tuple(seen.values())


# --- Phrases ---------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W\d_][\w'-]*|[+*/=<>^]")
"""Words and operators; numbers say what a problem is about, not what a sentence does."""
CANDIDATES = 20
"""Best phrases of a category among which overlapping ones are settled."""
LONGER_SHARE = 0.5
"""A phrase gives way to a longer one around it that has at least this share of its weight."""


def characteristic_phrases(
    sentences: Sequence[str], categories: Sequence[int], size: int
) -> list[tuple[str, ...]]:
    """The most characteristic phrases of each of `size` categories, best first.

    They have up to three words and do not overlap. A phrase's weight in a category is class-based
    TF-IDF (Grootendorst 2022): its share of the category's phrases times its rarity, which is here
    the log of how much larger that share is than the phrase's share of all phrases. (The usual
    rarity, from counts alone, ranks "the" first wherever categories are few and large.) A category
    without sentences, or whose sentences hold no word, has none.
    """
    ranked = _rank(sentences, categories, size)
    return [_settle_overlaps(phrases)[:PHRASES_PER_TITLE] for phrases in ranked]


def _rank(
    sentences: Sequence[str], categories: Sequence[int], size: int
) -> list[list[tuple[str, float]]]:
    """The best few phrases of each category with their weights."""
    counts, vocabulary = _count_phrases(tuple(sentences))
    cells = (np.asarray(categories, dtype=int), np.arange(len(sentences)))
    belongs = csr_array((np.ones(len(sentences)), cells), shape=(size, len(sentences)))
    of_category = (belongs @ counts).tocsr()
    of_category.sort_indices()  # so that equal weights keep the order of appearance
    totals = np.asarray(of_category.sum(axis=1)).clip(min=1)
    overall = np.asarray(of_category.sum(axis=0)) / totals.sum()
    ranked = []
    for category, (start, end) in enumerate(
        zip(of_category.indptr, of_category.indptr[1:], strict=False)
    ):
        columns = of_category.indices[start:end]
        shares = of_category.data[start:end] / totals[category]
        weights = shares * np.log(shares / overall[columns])
        best = np.argsort(-weights, kind="stable")[:CANDIDATES]
        ranked.append([(vocabulary[columns[one]], float(weights[one])) for one in best])
    return ranked


@lru_cache(maxsize=2)
def _count_phrases(sentences: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    """A sparse table, sentences by phrases, and the phrases in order of appearance.

    It is kept, since every cell of a grid names the same sentences.
    """
    vocabulary: dict[str, int] = {}
    columns: list[int] = []
    ends = [0]
    for sentence in sentences:
        columns += [vocabulary.setdefault(phrase, len(vocabulary)) for phrase in _phrases(sentence)]
        ends.append(len(columns))
    shape = (len(sentences), len(vocabulary))
    counts = csr_array((np.ones(len(columns)), columns, ends), shape=shape)
    return counts, tuple(vocabulary)


def _phrases(sentence: str) -> Iterator[str]:
    """All runs of words that nothing but spaces separates, numbers and commas included."""
    runs: list[list[str]] = []
    end = -1
    for match in _WORD.finditer(sentence):
        if end < 0 or sentence[end : match.start()].strip():
            runs.append([])
        runs[-1].append(match[0])
        end = match.end()
    for run in runs:
        for length in range(1, min(MAX_PHRASE_WORDS, len(run)) + 1):
            for start in range(len(run) - length + 1):
                yield " ".join(run[start : start + length])


def _settle_overlaps(ranked: Sequence[tuple[str, float]]) -> tuple[str, ...]:
    """Of phrases that overlap, the best; or a longer one that contains it and is nearly as good.

    The longer one then takes the place of the one that it contains.
    """
    kept: list[tuple[str, float]] = []
    for phrase, weight in ranked:
        rivals = [entry for entry in kept if _overlap(entry[0], phrase)]
        if not rivals:
            kept.append((phrase, weight))
        elif _contains(phrase, rivals[0][0]) and weight >= LONGER_SHARE * rivals[0][1]:
            kept[kept.index(rivals[0])] = (phrase, rivals[0][1])
            kept = [entry for entry in kept if entry not in rivals[1:]]
    return tuple(phrase for phrase, _ in kept)


def _contains(phrase: str, part: str) -> bool:
    return f" {part} " in f" {phrase} "


def _overlap(one: str, other: str) -> bool:
    """Whether one contains the other, or the end of one is the start of the other."""
    a, b = one.split(), other.split()
    joined = any(a[-n:] == b[:n] or b[-n:] == a[:n] for n in range(1, min(len(a), len(b)) + 1))
    return joined or _contains(one, other) or _contains(other, one)


# --- A judge ---------------------------------------------------------------------------------

PROMPT = """Give a name to what some sentences have in common.

The sentences are taken out of worked answers to problems. They were put into one group without anyone reading them. Find out what they have in common in function: what a sentence does, at the point where it stands, for the reasoning that it is part of. What the sentences are about - the subject, the objects, the names and the numbers of the problems - differs from problem to problem and is not what is asked for.

$fences

$sentences
$traces
The sentences are sorted: the first are the most typical of the group, the last the least. If a few do not fit the rest, name what most of them do. Lines and texts that are too long are shown without their middle.

Reply with exactly one JSON object and nothing else. The title has at most six words; the description says in one or two sentences how to tell a sentence that belongs from one that does not:
{"title": "", "description": ""}
"""  # noqa: E501 - a paragraph is a line
"""What a judge is asked about one category. It is shown no category, neither of this taxonomy nor
as an example, lest it repeats it."""

_TRACES = """
So that you see how such reasoning looks as a whole, here are some answers. They need not contain sentences of the group.

{}
"""  # noqa: E501

DECILES = 10
"""The sentences shown are drawn in equal parts from tenths of the category, by strength."""
TRACES = 3
TRACE_CHARACTERS = 1_200
"""A longer trace is shown without its middle."""
LINE_CHARACTERS = 600
"""And so is a longer sentence."""
DRAWS = 3
"""Maximum number of replies requested until one is a name."""
TITLE_WORDS = 10
"""A longer title is no title; the judge is asked for six words."""
DESCRIPTION_CHARACTERS = 500
"""A longer description is none."""


def name_with_judge(
    assigned: CategorisedSentences, judge: Judge, settings: DiscoverSettings
) -> Naming:
    """Names by a judge, who sees the sentences of one category at a time and no other names.

    Args:
        assigned: the sentences; unused categories are not asked about.
        judge: who is asked.
        settings: at most `judge_sentences` of a category are shown; `seed` draws them.

    Raises:
        JudgeError: the judge gives no reply.
    """
    names = name_by_words(assigned).names
    missing = {
        category: _write_prompt(assigned, rows, settings, category)
        for category, rows in enumerate(assigned.ranked())
        if rows
    }
    unparsable = 0
    for repeat in range(DRAWS):
        asked = [Request([{"role": "user", "content": p}], repeat) for p in missing.values()]
        for category, reply in zip(list(missing), judge.ask_many(asked), strict=True):
            read = read_name(reply)
            if read is None:
                unparsable += 1
                continue
            title, description = read
            names[category] = replace(
                names[category], title=title, description=description, named_by=judge.model
            )
            del missing[category]
    return Naming(names, unparsable, tuple(missing))


def read_name(reply: str) -> tuple[str, str] | None:
    """Title and description in a judge's reply; None where it is not exactly one such object."""
    found = read_object(reply) or {}
    title, description = (found.get(key) for key in ("title", "description"))
    if not isinstance(title, str) or not isinstance(description, str):
        return None
    title, description = _printable(title), _printable(description)
    is_short = len(title.split()) <= TITLE_WORDS and len(description) <= DESCRIPTION_CHARACTERS
    return (title, description) if title and description and is_short else None


def as_line(text: str, code: str) -> str:
    """A text on one line, without its middle where it is long."""
    line = " ".join(sendable(text).split())
    shown, _ = cut_middle(line, LINE_CHARACTERS * 2 // 3, LINE_CHARACTERS // 3, code)
    return " ".join(shown.split())


def _write_prompt(
    assigned: CategorisedSentences, rows: Sequence[int], settings: DiscoverSettings, category: int
) -> str:
    random = np.random.default_rng([settings.seeds[0], category])
    texts = [assigned.texts[row] for row in _spread(rows, settings.judge_sentences, random)]
    drawn = random.permutation(len(assigned.traces))[:TRACES]
    traces = [sendable(assigned.traces[number]) for number in drawn]
    code = code_of(*texts, *traces)
    half = TRACE_CHARACTERS // 2
    shown = [
        fence(f"answer {number}", cut_middle(trace, half, half, code)[0], code)
        for number, trace in enumerate(traces, 1)
    ]
    return Template(PROMPT).substitute(
        fences=Template(FENCES).substitute(code=code),
        sentences=fence("sentences", "\n".join(f"- {as_line(one, code)}" for one in texts), code),
        traces=_TRACES.format("\n\n".join(shown)) if shown else "",
    )


def _spread(rows: Sequence[int], most: int, random: np.random.Generator) -> list[int]:
    """Rows drawn in equal parts from every tenth of the ranking, in its order; all where few."""
    if len(rows) <= most:
        return list(rows)
    tenths = np.array_split(np.arange(len(rows)), DECILES)
    shares = [len(part) for part in np.array_split(np.arange(most), DECILES)]
    drawn = [
        random.choice(tenth, min(share, len(tenth)), replace=False)
        for tenth, share in zip(tenths, shares, strict=True)
    ]
    return [rows[place] for place in np.sort(np.concatenate(drawn))]


def _printable(text: str) -> str:
    """On one line, without characters that a terminal would obey."""
    line = " ".join(back_to_latex(text).split())
    return "".join(character for character in line if character.isprintable())
