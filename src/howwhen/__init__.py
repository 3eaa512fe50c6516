"""How much of a thinking model's ability is already in its base, waiting for the right moment?

Six steps, each a folder here, a command and a folder of a run:

- collect: the thinking model answers problems; its answers are cut into sentences
- discover: sparse autoencoders find categories of sentences without supervision
- elicit: a steering vector per category is trained in the frozen base model
- hybrid: the base writes every token, the thinking model says when a category is due
- measure: grades, the share of the accuracy gap recovered, and the ladder of controls
- present: the report

Paper: Venhoff, Arcuschin, Torr, Conmy, Nanda, "Base Models Know How to Reason, Thinking Models
Learn When" (arXiv 2510.07364).

    from pathlib import Path
    from howwhen import Pipeline, Reporter, find_pair, make_settings, open_run
    from howwhen.settings import PRESETS

    pair = find_pair("tally-rl")
    settings = make_settings(PRESETS["small"], pair.overrides)
    with open_run(Path("runs/mine")) as folder:
        pipeline = Pipeline(pair, settings, folder, Reporter())
        pipeline.run()
        print(pipeline.measurement().rungs["hybrid"].gap_recovered)
"""

from howwhen.errors import HowwhenError
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
    "find_pair",
    "make_settings",
    "open_run",
    "own_pair",
]
