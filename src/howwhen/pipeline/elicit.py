"""Step 3: steering vectors, and the self-gate."""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from howwhen.elicit.examples import Decisions, TrainingExample, find_decisions
from howwhen.elicit.gates import (
    LabelledDecisions,
    choose_gate,
    find_site,
    next_sentence_categories,
)
from howwhen.elicit.objective import PrefixCache
from howwhen.elicit.on_policy import OnPolicy, train_at_disagreements
from howwhen.elicit.report import (
    ElicitReport,
    GateAgreement,
    ProbeScores,
    SeedTraining,
    TrainingSummary,
)
from howwhen.elicit.self_gate import label_positions, train_self_gate
from howwhen.elicit.spans import bias_examples, span_examples, train_on_sentences
from howwhen.elicit.training import (
    DataSplit,
    Report,
    Training,
    choose_training,
    new_vectors,
    train_seeds,
)
from howwhen.hybrid.choice import Steer
from howwhen.hybrid.decoder import decode
from howwhen.lm.alignment import ModelPair
from howwhen.pipeline.context import ELICIT_REPORT, Run
from howwhen.pipeline.rungs import chosen_strength
from howwhen.pipeline.store import StepFolder
from howwhen.probes import Gate
from howwhen.records import HybridTrace, Rollout, Split
from howwhen.settings import Form
from howwhen.vectors import VectorSet

Item = TypeVar("Item")


@dataclass(frozen=True)
class ElicitCounts:
    """What the step notes about its work."""

    rollouts: int
    rollouts_without_decision: int
    decisions: int
    """Disagreements of all rollouts that can be trained on."""
    decisions_unwritable: int
    """Disagreements left out because the base may not write their token."""
    decisions_per_category: tuple[int, ...]
    positions_trained_per_category: tuple[int, ...]
    categories_without_training: tuple[int, ...]


def elicit(run: Run, step: StepFolder) -> ElicitCounts:
    """Find disagreements, name them with a gate, train vectors and the self-gate."""
    models, answers = run.models(), _read(run)
    models.base.check_steering(run.steer_layer)
    gate, agreement = _choose_gate(run, answers)
    step.write_gate("gate.safetensors", gate)
    fit = _Fit(run, step, PrefixCache(run.pair.base, run.steer_layer))
    on_policy: list[Decisions] = []
    if run.settings.elicit.method == "span":
        data = _train_spans(run, answers, gate, fit)
    else:
        data, on_policy = train_at_disagreements(
            gate,
            answers.train,
            answers.selection,
            run.settings.elicit,
            fit,
            _on_policy(run, step, models, gate),
        )
    if data.selection is data.validation:
        run.reporter.say(
            "  WARNING: no selection answer holds anything to steer, so validation chooses among "
            "the seeds"
        )
    per_category = _per_category([one.example(gate) for one in answers.decisions], gate.size)
    step.write_record(
        ELICIT_REPORT,
        ElicitReport(
            vectors=fit.summaries["vectors"],
            shared=fit.summaries["shared"],
            bias=fit.summaries.get("bias"),
            gate_sentence_agreement=agreement,
            self_gate=_train_self_gate(run, step, gate, answers, on_policy),
            decisions_per_category=per_category,
        ),
    )
    trained = _per_category(data.train, gate.size)
    silent = tuple(category for category, count in enumerate(trained) if not count)
    if silent:
        run.reporter.say(
            f"  WARNING: nothing to train on for categories {list(silent)}; their vectors are zero"
        )
    return ElicitCounts(
        rollouts=len(answers.decisions),
        rollouts_without_decision=sum(not one.positions for one in answers.decisions),
        decisions=sum(len(one.positions) for one in answers.decisions),
        decisions_unwritable=sum(one.banned_targets for one in answers.decisions),
        decisions_per_category=per_category,
        positions_trained_per_category=trained,
        categories_without_training=silent,
    )


@dataclass(frozen=True)
class _Answers:
    """The collected rollouts, as both models read them."""

    rollouts: Sequence[Rollout]
    decisions: Sequence[Decisions]
    is_selection: Sequence[bool]
    """Whether a rollout answers a problem that chooses among the seeds."""

    def split(self, items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
        """One item per rollout: those to train on, and those of the selection problems."""
        pairs = list(zip(items, self.is_selection, strict=True))
        return [i for i, chosen in pairs if not chosen], [i for i, chosen in pairs if chosen]

    @property
    def train(self) -> list[Decisions]:
        """Disagreements of the training answers."""
        return self.split(self.decisions)[0]

    @property
    def selection(self) -> list[Decisions]:
        """Disagreements of the selection problems' answers."""
        return self.split(self.decisions)[1]


def _read(run: Run) -> _Answers:
    """Teacher-force every rollout."""
    rollouts, questions = run.rollouts_with_questions()
    layer, size = run.gate_layer, run.settings.elicit.batch_size
    with run.reporter.task("rollouts compared", len(rollouts)) as advance:
        decisions = find_decisions(run.models(), layer, rollouts, questions, size, report=advance)
    chosen = {problem.id for problem in run.problems(Split.SELECTION)}
    return _Answers(rollouts, decisions, [rollout.problem_id in chosen for rollout in rollouts])


def _choose_gate(run: Run, answers: _Answers) -> tuple[Gate, dict[str, GateAgreement]]:
    settings, taxonomy = run.settings.elicit, run.taxonomy()
    assignments = [annotation.category for annotation in run.annotations()]
    categories = answers.split(
        next_sentence_categories(answers.rollouts, answers.decisions, assignments)
    )
    return choose_gate(
        settings.gate,
        taxonomy,
        find_site(taxonomy, run.pair.thinking_source, run.gate_layer, answers.train),
        LabelledDecisions(answers.train, categories[0]),
        LabelledDecisions(answers.selection, categories[1]),
        settings.seeds[0],
    )


def _on_policy(run: Run, step: StepFolder, models: ModelPair, gate: Gate) -> OnPolicy:
    """Lets the hybrid answer the training problems."""
    problems, settings = run.problems(Split.TRAIN), run.settings.hybrid

    def answer(number: int, vectors: VectorSet) -> list[Rollout]:
        rung = Steer(gate, vectors, chosen_strength(run.settings))
        with run.reporter.task(f"on-policy round {number + 1}", len(problems)) as advance:
            traces = step.grow_records(
                f"on-policy-{number}.jsonl",
                HybridTrace,
                problems,
                settings.batch_size,
                lambda batch: decode(models, batch, rung, settings),
                advance,
            )
        return [Rollout(t.problem_id, t.ids, t.text, t.finish, ()) for t in traces]

    return OnPolicy(models, [problem.question for problem in problems], answer)


def _train_spans(run: Run, answers: _Answers, gate: Gate, fit: "_Fit") -> DataSplit:
    settings = run.settings.elicit
    tensors, _ = run.folder.step("discover").read_tensors("sentence_scores.safetensors")
    examples = span_examples(
        answers.rollouts,
        answers.decisions,
        tensors["scores"],
        settings.sentences_per_category,
        settings.min_words,
    )
    whole = bias_examples(answers.train), bias_examples(answers.selection)
    return train_on_sentences(gate, whole, answers.split(examples), settings, fit)


def _train_self_gate(
    run: Run, step: StepFolder, gate: Gate, answers: _Answers, on_policy: Sequence[Decisions]
) -> ProbeScores:
    heldout = answers.selection
    if not any(one.positions for one in heldout):
        heldout = answers.train
        run.reporter.say(
            "  WARNING: no selection answer holds a decision, so the self-gate's threshold and "
            "scores are those of the answers it was trained on"
        )
    base = run.pair.base
    probe, scores = train_self_gate(
        base,
        tuple(sorted({run.steer_layer, base.layer_count - 1})),
        gate.size,
        label_positions([*answers.train, *on_policy], gate),
        label_positions(heldout, gate),
        run.settings.elicit,
    )
    step.write_gate("self_gate.safetensors", probe)
    return scores


@dataclass
class _Fit:
    """Trains every seed, writes each as soon as it is finished, and reads those that were."""

    run: Run
    step: StepFolder
    states: PrefixCache
    summaries: dict[str, TrainingSummary] = field(default_factory=dict)
    """By name of the vectors."""

    def __call__(
        self, name: str, data: DataSplit, /, bias: Tensor | None = None, form: Form | None = None
    ) -> VectorSet:
        """As `howwhen.elicit.training.Fit`."""
        settings, base = self.run.settings.elicit, self.run.pair.base
        width = base.model.config.hidden_size

        def start(seed: int) -> VectorSet:
            chosen = form or settings.chosen_form
            layer = self.states.layer
            vectors = new_vectors(base.name, layer, width, data.size, chosen, settings, seed)
            return replace(vectors, bias=bias)

        def progress(seed: int) -> AbstractContextManager[Report]:
            return self.run.reporter.task(f"{name}-{seed}", settings.steps)

        trainings = train_seeds(
            start,
            data,
            self.states,
            settings,
            load=lambda seed: self._load(name, seed),
            save=lambda training: self._save(name, training),
            progress=progress,
        )
        best = choose_training(trainings)
        self.step.write_vectors(f"{name}.safetensors", best.vectors)
        notes = tuple(training.notes for training in trainings)
        self.summaries[name] = TrainingSummary(best.seed, notes)
        return best.vectors

    def _load(self, name: str, seed: int) -> Training | None:
        part = f"parts/{name}-{seed}"
        if not (self.step.path / f"{part}.json").exists():
            return None
        notes = self.step.read_record(f"{part}.json", SeedTraining)
        return Training(**vars(notes), vectors=self.step.read_vectors(f"{part}.safetensors"))

    def _save(self, name: str, training: Training) -> None:
        """Write a finished seed; the JSON file is written last and marks it as done."""
        losses = training.validation_losses
        self.run.reporter.say(
            f"  {name}-{training.seed}: {training.steps} steps, validation loss {losses[0]:.3f} -> "
            f"{min(losses):.3f} nats, selection loss {training.selection_loss:.3f}"
        )
        part = f"parts/{name}-{training.seed}"
        self.step.write_vectors(f"{part}.safetensors", training.vectors)
        self.step.write_record(f"{part}.json", training.notes)


def _per_category(examples: Sequence[TrainingExample], size: int) -> tuple[int, ...]:
    counts = Counter(category for example in examples for category in example.categories)
    return tuple(counts[category] for category in range(size))
