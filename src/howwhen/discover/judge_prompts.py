"""What a judge is asked about a taxonomy: samples of sentences and names, and their prompts.

One draw has three kinds of questions, one for each of the paper's scores: which sentences belong to
a category, how well categories fit their sentences, how alike categories are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from string import Template
from typing import Literal, NamedTuple

import numpy as np

from howwhen.discover.titles import CategorisedSentences, Name, as_line
from howwhen.judge.endpoint import Request
from howwhen.judge.fencing import FENCES, code_of, fence
from howwhen.settings import DiscoverSettings

PromptKind = Literal["belong", "fit", "alike"]

PROMPTS: dict[PromptKind, str] = {
    "belong": """Find the sentences that belong to a category.

A category gathers sentences that do the same thing for the reasoning that they are part of. A sentence belongs if it does what the category says, whatever it is about. The sentences are taken out of worked answers to problems, and numbered. Any number of them may belong, or none. Lines that are too long are shown without their middle.

$fences

$material

Reply with exactly one JSON object and nothing else, in this form, with the numbers of all sentences that belong, and no others, in the list:
$form
""",  # noqa: E501 - a paragraph is a line
    "fit": """Rate how well categories describe sentences.

A category says what a sentence does for the reasoning that it is part of, whatever the sentence is about. The sentences are taken out of worked answers to problems, and numbered; below each stands the category that it was put into. Rate from 0 (the category says nothing of what the sentence does) to 10 (it says exactly what the sentence does). Lines that are too long are shown without their middle.

$fences

$material

Reply with exactly one JSON object and nothing else, in this form, with your rating in place of each 0:
$form
""",  # noqa: E501
    "alike": """Rate how similar the two categories of each pair are.

A category says what a sentence does for the reasoning that it is part of, whatever the sentence is about. The pairs are numbered. Rate from 0 (sentences of the one do something else than sentences of the other) to 10 (both say the same, perhaps in other words, so that nobody could tell which of the two a sentence belongs to). Lines that are too long are shown without their middle.

$fences

$material

Reply with exactly one JSON object and nothing else, in this form, with your rating in place of each 10:
$form
""",  # noqa: E501
}

TOP = 10
"""Best fit, and closest similarity."""
WORST: dict[PromptKind, int] = {"belong": 0, "fit": 0, "alike": TOP}
"""The worst mark of an item: not named, says nothing, the same. The form that a prompt shows holds
it, so that repeating the form is no success."""
ITEMS: dict[PromptKind, int] = {"belong": 25, "fit": 20, "alike": 25}
"""Most sentences or pairs in one request."""
OWN_IN = 5
"""One sentence in so many of a question who belongs is of the category itself."""


class JudgePrompt(NamedTuple):
    """One request, and what is needed to read its reply."""

    kind: PromptKind
    category: int | None
    """Whose sentences are asked for; None where the question is about several categories."""
    keys: tuple[int, ...]
    """For each item: whether it belongs (1 or 0), its category, or nothing (0)."""
    request: Request


class _Item(NamedTuple):
    key: int
    lines: tuple[str, ...]
    """The first is numbered; the others belong to it."""


@dataclass(frozen=True)
class PromptSample:
    """One sample of everything that is asked; equal draws ask the same."""

    assigned: CategorisedSentences
    names: Sequence[Name]
    settings: DiscoverSettings
    """`judge_sentences` is the maximum size of a sample; `seed` draws it."""
    number: int
    """Draws with different numbers have different samples and request new replies."""

    def prompts(self) -> list[JudgePrompt]:
        """All of them: of each used category who belongs, then what fits, then what is alike."""
        categories = np.asarray(self.assigned.categories, dtype=int)
        used = np.unique(categories).tolist()
        belong = [one for category in used for one in self._belong(category, categories)]
        return [*belong, *self._fit(categories), *self._alike(used)]

    def _belong(self, category: int, categories: np.ndarray) -> list[JudgePrompt]:
        """Sentences of a category among others, one in five where there are enough others."""
        random = self._random("belong", category)
        own = np.flatnonzero(categories == category)
        others = np.flatnonzero(categories != category)
        enough = min(self.settings.judge_sentences // OWN_IN, len(others) // (OWN_IN - 1))
        count = min(max(1, enough), len(own))
        more = min((OWN_IN - 1) * count, len(others))
        drawn = [*random.permutation(own)[:count], *random.permutation(others)[:more]]
        items = [
            _Item(int(categories[row] == category), (self.assigned.texts[row],))
            for row in random.permutation(drawn)
        ]
        return self._ask("belong", items, category)

    def _fit(self, categories: np.ndarray) -> list[JudgePrompt]:
        """Sentences of all categories, of each as many as its share of all sentences."""
        random = self._random("fit")
        shuffled = random.permutation(len(categories))
        strata = shuffled[np.argsort(categories[shuffled], kind="stable")]
        count = min(self.settings.judge_sentences, len(strata))
        places = (np.arange(count) + random.random()) * len(strata) / count
        items = []
        for row in random.permutation(strata[places.astype(int)]):
            owner = int(categories[row])
            items.append(_Item(owner, (self.assigned.texts[row], f"category: {self._name(owner)}")))
        return self._ask("fit", items)

    def _alike(self, used: Sequence[int]) -> list[JudgePrompt]:
        """All pairs of names, in random order and either way round."""
        random = self._random("alike")
        pairs = random.permutation(np.array([*combinations(used, 2)], dtype=int).reshape(-1, 2))
        turned = random.permuted(pairs, axis=1).tolist()
        items = [_Item(0, (self._name(one), f"and: {self._name(two)}")) for one, two in turned]
        return self._ask("alike", items)

    def _random(self, kind: PromptKind, category: int = 0) -> np.random.Generator:
        """One for each sample, so that none depends on another."""
        return np.random.default_rng(
            [self.settings.seeds[0], self.number, list(PROMPTS).index(kind), category]
        )

    def _name(self, category: int) -> str:
        return f"{self.names[category].title}: {self.names[category].description}"

    def _ask(
        self, kind: PromptKind, items: Sequence[_Item], category: int | None = None
    ) -> list[JudgePrompt]:
        """Questions about so many items as fit into a request."""
        head = "" if category is None else self._name(category)
        prompts = []
        for start in range(0, len(items), ITEMS[kind]):
            part = items[start : start + ITEMS[kind]]
            message = {"role": "user", "content": _write_prompt(kind, part, head)}
            keys = tuple(item.key for item in part)
            prompts.append(JudgePrompt(kind, category, keys, Request([message], self.number)))
        return prompts


def _write_prompt(kind: PromptKind, items: Sequence[_Item], head: str) -> str:
    code = code_of(head, *(line for item in items for line in item.lines))
    shown = "\n".join(_show(number, item, code) for number, item in enumerate(items, 1))
    material = fence("pairs" if kind == "alike" else "sentences", shown, code)
    if head:
        material = f"{fence('category', as_line(head, code), code)}\n\n{material}"
    ratings = {str(number): WORST[kind] for number in range(1, len(items) + 1)}
    return Template(PROMPTS[kind]).substitute(
        fences=Template(FENCES).substitute(code=code),
        material=material,
        form=json.dumps({"belong": []} if kind == "belong" else ratings),
    )


def _show(number: int, item: _Item, code: str) -> str:
    first, *others = (as_line(line, code) for line in item.lines)
    return "\n".join([f"[{number}] {first}", *(f"    {line}" for line in others)])
