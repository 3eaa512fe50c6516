"""Patterns of simple word problems, for more kinds of stories than SVAMP has.

`data/patterns.tsv` holds one pattern per line: a question with placeholders for names and things,
and the equation of its answer. The patterns were written for howwhen.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from howwhen.zoo.smol.word_problems import Calculation, WordProblem, read_steps

_FILE = Path(__file__).parent / "data" / "patterns.tsv"
_NAMES = (
    "Adam Amy Anna Ben Bill Carla Dan Dora Ella Emil Eva Finn Gina Hugo Ida Ivan Jane Jim Julia "
    "Karl Lena Leo Lisa Mark Mary Mia Nick Nina Olga Omar Paula Peter Rita Rosa Sam Sara Tim Tom "
    "Vera Will Yuri Zoe"
)
_THINGS = (
    "apples balls bananas beads books bottles buttons candies cards carrots coins cookies crayons "
    "cups dolls eggs erasers flowers games kites lemons marbles muffins notebooks nuts oranges "
    "peaches pencils pens photos plates puzzles roses seeds shells shirts songs stamps stickers "
    "toys tomatoes"
)
_CONTAINERS = {
    "bags": "bag",
    "baskets": "basket",
    "boxes": "box",
    "crates": "crate",
    "jars": "jar",
    "packs": "pack",
}


@dataclass(frozen=True)
class Pattern:
    """A question with placeholders for names, things and containers, and its computations."""

    id: str
    text: str
    """Placeholders: names `{A}`, `{B}`, things `{x}`, `{y}`, containers `{box}`, one `{1box}`."""
    steps: tuple[Calculation, ...]

    def fill(self, rng: Random) -> WordProblem:
        """Draw names and things for the pattern. Its numbers stay the same."""
        name, other_name = rng.sample(_NAMES.split(), 2)
        thing, distractor = rng.sample(_THINGS.split(), 2)
        boxes = rng.choice(list(_CONTAINERS))
        words = {"A": name, "B": other_name, "x": thing, "y": distractor}
        question = self.text.format(**words, **{"box": boxes, "1box": _CONTAINERS[boxes]})
        return WordProblem(self.id, question, self.steps[-1].result, self.steps)


@lru_cache
def patterns() -> tuple[Pattern, ...]:
    """All patterns, in the file's order."""
    rows = _FILE.read_text(encoding="utf-8").splitlines()
    result: list[Pattern] = []
    for number, row in enumerate(rows):
        text, equation = row.split("\t")
        steps = read_steps(equation)
        assert steps is not None, row  # the package's own file
        result.append(Pattern(f"pattern-{number}", text, steps))
    return tuple(result)
