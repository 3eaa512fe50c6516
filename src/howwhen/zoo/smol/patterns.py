"""Patterns of simple word problems, for more kinds of stories than SVAMP tells.

`data/patterns.tsv` holds one per line: a question with places for names and things, and the
equation of its answer. They were written for howwhen.
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
    """A question with places `{A}`, `{B}` (names), `{x}`, `{y}` (things), `{box}`, `{1box}`."""

    id: str
    text: str
    steps: tuple[Calculation, ...]

    def fill(self, rng: Random) -> WordProblem:
        """The problem with names and things drawn; its numbers are the pattern's."""
        one, other = rng.sample(_NAMES.split(), 2)
        thing, distractor = rng.sample(_THINGS.split(), 2)
        boxes = rng.choice(list(_CONTAINERS))
        places = {"A": one, "B": other, "x": thing, "y": distractor}
        question = self.text.format(**places, **{"box": boxes, "1box": _CONTAINERS[boxes]})
        return WordProblem(self.id, question, self.steps[-1].result, self.steps)


@lru_cache
def patterns() -> tuple[Pattern, ...]:
    """All of them, in the file's order."""
    rows = _FILE.read_text(encoding="utf-8").splitlines()
    found: list[Pattern] = []
    for number, row in enumerate(rows):
        text, equation = row.split("\t")
        steps = read_steps(equation)
        assert steps is not None, row  # the package's own file
        found.append(Pattern(f"pattern-{number}", text, steps))
    return tuple(found)
