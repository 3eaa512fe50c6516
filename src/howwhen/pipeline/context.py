"""One run as every step sees it: pair, settings, folder, and typed readers of its records."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from howwhen.elicit.report import ElicitReport
from howwhen.errors import SettingsError
from howwhen.formats.safetensors import load_taxonomy
from howwhen.hybrid.guesses import Phrases
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel
from howwhen.pipeline.given import TRAINING, taxonomy_file
from howwhen.pipeline.store import RunFolder, StepFolder
from howwhen.probes import Taxonomy
from howwhen.progress import Reporter
from howwhen.records import Annotation, HybridSummary, Measurement, Problem, Rollout, Split
from howwhen.settings import RunSettings
from howwhen.zoo.pairs import Pair

HYBRID_SUMMARY = "summary.json"
"""File of the step hybrid with its summary."""
REPORT = "report.html"
"""File of the report in the folder of its step."""


def phrases_of(collected: StepFolder) -> Phrases:
    """The phrases of a finished collect step."""
    return Phrases(rollout.ids for rollout in collected.read_records("rollouts.jsonl", Rollout))


@dataclass(frozen=True)
class Run:
    """One pair's run in one folder."""

    pair: Pair
    settings: RunSettings
    folder: RunFolder
    reporter: Reporter

    def __post_init__(self) -> None:
        object.__setattr__(self, "pair", self.pair.placed(self.settings.models))

    def problems(self, *splits: Split) -> list[Problem]:
        """The run's problems of these splits, in order."""
        problems = self.folder.step("collect").read_records("problems.jsonl", Problem)
        return [problem for problem in problems if problem.split in splits]

    def rollouts(self) -> list[Rollout]:
        """The collected rollouts."""
        return self.folder.step("collect").read_records("rollouts.jsonl", Rollout)

    def phrases(self) -> Phrases:
        """What the collected rollouts say, to guess how other answers go on."""
        return phrases_of(self.folder.step("collect"))

    def taxonomy(self) -> Taxonomy:
        """The chosen taxonomy."""
        return self.folder.step("discover").read_taxonomy()

    def annotations(self) -> list[Annotation]:
        """Category of every sentence of every rollout, in order."""
        return self.folder.step("discover").read_records("annotations.jsonl", Annotation)

    def rollouts_with_questions(self) -> tuple[list[Rollout], list[str]]:
        """The collected rollouts, and the question that each answers."""
        question = {problem.id: problem.question for problem in self.problems(*Split)}
        rollouts = self.rollouts()
        return rollouts, [question[rollout.problem_id] for rollout in rollouts]

    def models(self) -> ModelPair:
        """Both models, as the run decodes with them."""
        hybrid = self.settings.hybrid
        return self.pair.models(hybrid.one_sided_tokens, hybrid.draft_model)

    @property
    def reader(self) -> LanguageModel:
        """The model whose activations are read to find the taxonomy."""
        return self.pair.reader(self.settings.discover.reader)

    @property
    def taxonomy_layers(self) -> tuple[int, ...]:
        """The blocks of the reader that are read."""
        discover = self.settings.discover
        if discover.taxonomy is not None:
            return (self.given_taxonomy.layer,)
        return self.pair.reading_layers(discover.reader, discover.layers)

    @cached_property
    def given_taxonomy(self) -> Taxonomy:
        """The taxonomy that the settings name.

        Raises:
            SettingsError: it is not there, or reads another model than this run does.
            StoreError: the file is damaged.
        """
        source = str(self.settings.discover.taxonomy)
        taxonomy = load_taxonomy(taxonomy_file(source))
        reader = self.settings.discover.reader or self.pair.thinking_source
        width = self.pair.reader_outline(self.settings.discover.reader).model.config.hidden_size
        if taxonomy.model != reader or len(taxonomy.mean) != width:
            raise SettingsError(
                f"the taxonomy {source} reads {taxonomy.model} (width {len(taxonomy.mean)}), but "
                f"this run reads {reader} (width {width}); expected a taxonomy of that model, or "
                "--discover.reader with the one that it reads"
            )
        return taxonomy

    @property
    def gate_layer(self) -> int:
        """The block of the thinking model that gates read.

        It is the taxonomy's own block. If another model read the sentences, it is the middle one of
        the blocks that would be read in the thinking model.
        """
        taxonomy, layers = self.taxonomy(), self.pair.chosen_taxonomy_layers
        is_own = taxonomy.model == self.pair.thinking_source
        return taxonomy.layer if is_own else layers[len(layers) // 2]

    @property
    def steer_layer(self) -> int:
        """The block whose output is steered."""
        chosen = self.settings.elicit.layer
        return self.pair.chosen_steer_layer if chosen is None else chosen

    @property
    def report(self) -> Path:
        """The report's page, which need not exist yet."""
        return self.folder.step("present").path / REPORT

    def elicit_report(self) -> ElicitReport:
        """How gates and trainings turned out."""
        return self.folder.step("elicit").read_record(TRAINING, ElicitReport)

    def hybrid_summary(self) -> HybridSummary:
        """What the hybrid did, in numbers."""
        return self.folder.step("hybrid").read_record(HYBRID_SUMMARY, HybridSummary)

    def measurement(self) -> Measurement:
        """The finished measurement."""
        return self.folder.step("measure").read_record("measurement.json", Measurement)
