"""How much of a thinking model's ability is already in its base, waiting for the right moment?

Six steps, each a folder here, a command and a folder of a run:

- collect: the thinking model answers problems; its answers are cut into sentences
- discover: sparse autoencoders find categories of sentences without supervision
- elicit: a steering vector per category is trained in the frozen base model
- hybrid: the base writes every token, the thinking model says when a category is due
- measure: grades, the share of the accuracy gap recovered, and the ladder of controls
- present: the report

The later version of the paper calls this constructive model diffing: vectors are reasoning
mechanisms, and the gate that says when each is due is a reasoning heuristic.

Paper: Venhoff, Arcuschin, Torr, Conmy, Nanda, "Base Models Know How to Reason, Thinking Models
Learn When" (arXiv 2510.07364).

    import howwhen as hw

    run = hw.run("tally-rl")
    print(run.measurement.rungs["hybrid"].gap_recovered)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from howwhen.errors import HowwhenError
    from howwhen.pipeline.notebook import answer, load, run
    from howwhen.pipeline.pipeline import Pipeline
    from howwhen.pipeline.store import open_run
    from howwhen.probes import Taxonomy
    from howwhen.progress import Reporter
    from howwhen.records import (
        Grade,
        HybridToken,
        HybridTrace,
        Measurement,
        Problem,
        Rollout,
        SentenceSpan,
    )
    from howwhen.settings import RunSettings, make_settings
    from howwhen.vectors import VectorSet
    from howwhen.zoo.pairs import Pair, find_pair, own_pair

__version__ = "0.1.0"
__all__ = [
    "Grade",
    "HowwhenError",
    "HybridToken",
    "HybridTrace",
    "Measurement",
    "Pair",
    "Pipeline",
    "Problem",
    "Reporter",
    "Rollout",
    "RunSettings",
    "SentenceSpan",
    "Taxonomy",
    "VectorSet",
    "answer",
    "find_pair",
    "load",
    "make_settings",
    "open_run",
    "own_pair",
    "run",
]
_MODULES = {
    "errors": ("HowwhenError",),
    "pipeline.notebook": ("answer", "load", "run"),
    "pipeline.pipeline": ("Pipeline",),
    "pipeline.store": ("open_run",),
    "probes": ("Taxonomy",),
    "progress": ("Reporter",),
    "records": (
        "Grade",
        "HybridToken",
        "HybridTrace",
        "Measurement",
        "Problem",
        "Rollout",
        "SentenceSpan",
    ),
    "settings": ("RunSettings", "make_settings"),
    "vectors": ("VectorSet",),
    "zoo.pairs": ("Pair", "find_pair", "own_pair"),
}
"""Public names by the module they come from, which is imported when a name is asked for."""


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(import_module(f"howwhen.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'howwhen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
