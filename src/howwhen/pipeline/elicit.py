"""Step 3: steering vectors, and the self-gate."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Literal, TypeVar

from howwhen.elicit.decisions import Decisions
from howwhen.elicit.examples import TrainingExample, thinking_of
from howwhen.elicit.gates import (
    LabelledDecisions,
    choose_gate,
    find_site,
    next_sentence_categories,
)
from howwhen.elicit.on_policy import train_at_disagreements
from howwhen.elicit.report import (
    ElicitReport,
    GateAgreement,
    ProbeScores,
)
from howwhen.elicit.self_gate import ProbeData, train_self_gate
from howwhen.elicit.spans import bias_example, span_examples, train_on_sentences
from howwhen.elicit.states import PrefixCache
from howwhen.elicit.training import (
    DataSplit,
)
from howwhen.hybrid.choice import Steer
from howwhen.hybrid.decoder import decode
from howwhen.lm.alignment import ModelPair
from howwhen.pipeline.context import Run
from howwhen.pipeline.decisions import FOLDER, Comparison, StoredDecisions, read_decisions
from howwhen.pipeline.fitting import Fitting
from howwhen.pipeline.given import GATE, SELF_GATE, TRAINING
from howwhen.pipeline.rungs import chosen_strength
from howwhen.pipeline.store import StepFolder
from howwhen.pipeline.taking import TakenCounts, take_vectors
from howwhen.pipeline.traces import grow_traces
from howwhen.probes import Gate
from howwhen.progress import Advance
from howwhen.records import HybridTrace, Problem, Rollout, Split
from howwhen.settings import ElicitSettings
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


def elicit(run: Run, step: StepFolder) -> ElicitCounts | TakenCounts:
    """Find disagreements, name them with a gate, train vectors and the self-gate.

    Where vectors are given, they are taken as they are.
    """
    settings = run.settings.elicit
    if settings.vectors is not None:
        return take_vectors(run, step, settings.vectors)
    answers = _read(run, step)
    gate, agreement = _choose_gate(run, answers)
    step.write_gate(GATE, gate)
    if not settings.on_policy_rounds:
        run.pair.release("base")
    run.pair.base.check_steering(run.steer_layer)
    named = answers.trained(_example(run, one, gate) for one in answers.found)
    states = PrefixCache(run.pair.base, run.steer_layer, settings.states_gib)
    fit = Fitting(run, step, states, gate)
    on_policy = _OnPolicy(run, step, gate)
    if settings.method == "span":
        data = _train_spans(run, answers, gate, fit)
    else:
        train, selection = answers.split(named)
        train = _capped(train, settings)
        data = train_at_disagreements(gate.size, train, selection, settings, fit, on_policy)
    if data.selection is data.validation and settings.stop_by != "selection":
        run.reporter.say(
            "  WARNING: no selection answer holds anything to steer, so validation chooses among "
            "the seeds"
        )
    fit.states.clear()
    per_category = _per_category(named, gate.size)
    step.write_record(
        TRAINING,
        ElicitReport(
            vectors=fit.summaries["vectors"],
            shared=fit.summaries["shared"],
            bias=fit.summaries.get("bias"),
            gate_sentence_agreement=agreement,
            self_gate=_train_self_gate(run, step, gate, answers, on_policy.found),
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
        rollouts=len(answers.found),
        rollouts_without_decision=sum(not steps for steps in answers.found.steps),
        decisions=sum(map(len, answers.found.steps)),
        decisions_unwritable=answers.found.unwritable,
        decisions_per_category=per_category,
        positions_trained_per_category=trained,
        categories_without_training=silent,
    )


@dataclass(frozen=True)
class _Answers:
    """The collected rollouts, as both models read them."""

    rollouts: Sequence[Rollout]
    found: StoredDecisions
    is_selection: Sequence[bool]
    """Whether a rollout answers a problem that chooses among the seeds."""
    trained_part: Literal["answer", "thinking"]
    """What of it is trained on."""

    def trained(self, examples: Iterable[TrainingExample]) -> list[TrainingExample]:
        """One example per rollout, with only that part of it that is trained on."""
        if self.trained_part == "answer":
            return list(examples)
        pairs = zip(self.rollouts, examples, strict=True)
        return [thinking_of(rollout, example) for rollout, example in pairs]

    def split(self, items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
        """One item per rollout: those to train on, and those of the selection problems."""
        pairs = list(zip(items, self.is_selection, strict=True))
        return [i for i, chosen in pairs if not chosen], [i for i, chosen in pairs if chosen]

    def part(self, *, is_selection: bool) -> Iterator[Decisions]:
        """Disagreements of the training answers, or of the selection problems' answers."""
        for one, chosen in zip(self.found, self.is_selection, strict=True):
            if chosen == is_selection:
                yield one


def _compare(
    run: Run, step: StepFolder, folder: str, label: str, compared: Comparison
) -> StoredDecisions:
    """Teacher-force answers, and report how far it is."""
    one_sided = run.settings.hybrid.one_sided_tokens
    outlines = ModelPair(run.pair.base_outline, run.pair.thinking_outline, one_sided)
    with run.reporter.task(label, len(compared.rollouts)) as advance:
        models = partial(run.pair.models, one_sided)
        return read_decisions(step, folder, outlines, models, compared, advance)


def _probe_layers(run: Run) -> tuple[int, ...]:
    """The base's blocks that the self-gate reads."""
    return tuple(sorted({run.steer_layer, run.pair.base_outline.layer_count - 1}))


def _read(run: Run, step: StepFolder) -> _Answers:
    """Teacher-force every rollout."""
    rollouts, questions = run.rollouts_with_questions()
    compared = Comparison(
        rollouts, questions, run.gate_layer, _probe_layers(run), run.settings.elicit
    )
    found = _compare(run, step, FOLDER, "rollouts compared", compared)
    chosen = {problem.id for problem in run.problems(Split.SELECTION)}
    is_selection = [rollout.problem_id in chosen for rollout in rollouts]
    return _Answers(rollouts, found, is_selection, run.settings.elicit.part)


def _example(run: Run, found: Decisions, gate: Gate) -> TrainingExample:
    """Disagreements as training uses them, without distributions that it would not look at."""
    example = found.example(gate)
    is_soft = run.settings.elicit.objective == "distribution"
    return example if is_soft else replace(example, soft=None)


def _capped(examples: list[TrainingExample], settings: ElicitSettings) -> list[TrainingExample]:
    """The same with as many disagreements of a category in an answer as are trained on."""
    most, seed = settings.positions_per_category, settings.seeds[0]
    if most is None:
        return examples
    return [one.capped(most, Random(f"{seed}-{n}")) for n, one in enumerate(examples)]


def _choose_gate(run: Run, answers: _Answers) -> tuple[Gate, dict[str, GateAgreement]]:
    settings, taxonomy = run.settings.elicit, run.taxonomy()
    assignments = [annotation.category for annotation in run.annotations()]
    following = next_sentence_categories(answers.rollouts, answers.found.steps, assignments)
    train, heldout = (
        LabelledDecisions.draw(
            answers.part(is_selection=is_selection), categories, settings.gate_decisions
        )
        for is_selection, categories in zip((False, True), answers.split(following), strict=True)
    )
    site = find_site(taxonomy, run.pair.thinking_source, run.gate_layer, train.states)
    return choose_gate(settings.gate, taxonomy, site, train, heldout, settings.seeds[0])


@dataclass
class _OnPolicy:
    """Lets the hybrid answer the training problems."""

    run: Run
    step: StepFolder
    gate: Gate
    found: list[StoredDecisions] = field(default_factory=list)
    """Disagreements in the hybrid's answers of every round so far."""

    def __call__(self, number: int, vectors: VectorSet) -> list[TrainingExample]:
        """As `howwhen.elicit.on_policy.OnPolicyRound`."""
        run, problems = self.run, self.run.problems(Split.TRAIN)
        rung = Steer(self.gate, vectors, chosen_strength(run.settings))
        settings, phrases = run.settings.hybrid, run.phrases()

        with run.reporter.task(f"on-policy round {number + 1}", len(problems)) as advance:

            def decode_some(some: Sequence[Problem], ended: Advance) -> list[HybridTrace]:
                slots = settings.batch_size
                return decode(
                    run.models(), some, rung, settings, phrases=phrases, slots=slots, ended=ended
                )

            name = f"on-policy-{number}.jsonl"
            traces = grow_traces(
                self.step, name, problems, settings.batch_size, decode_some, advance
            )
        compared = Comparison(
            [Rollout(t.problem_id, t.ids, t.text, t.finish, ()) for t in traces],
            [problem.question for problem in problems],
            self.gate.layer,
            _probe_layers(run),
            run.settings.elicit,
            is_own=False,
        )
        folder = f"{FOLDER}-on-policy-{number}"
        found = _compare(run, self.step, folder, "answers compared", compared)
        self.found.append(found)
        return _capped([_example(run, one, self.gate) for one in found], run.settings.elicit)


def _train_spans(run: Run, answers: _Answers, gate: Gate, fit: Fitting) -> DataSplit:
    settings = run.settings.elicit
    tensors, _ = run.folder.step("discover").read_tensors("sentence_scores.safetensors")
    examples = span_examples(
        answers.rollouts,
        answers.found,
        tensors["scores"],
        settings.sentences_per_category,
        settings.min_words,
    )
    whole = answers.split(answers.trained(bias_example(one) for one in answers.found))
    return train_on_sentences(gate.size, whole, answers.split(examples), settings, fit)


def _train_self_gate(
    run: Run,
    step: StepFolder,
    gate: Gate,
    answers: _Answers,
    on_policy: Sequence[StoredDecisions],
) -> ProbeScores:
    train = ProbeData.of(answers.part(is_selection=False), gate)
    heldout = ProbeData.of(answers.part(is_selection=True), gate)
    if not heldout.decisions:
        heldout = train
        run.reporter.say(
            "  WARNING: no position drawn of the selection answers is a decision, so the "
            "self-gate's threshold and scores are those of the answers it was trained on"
        )
    for found in on_policy:
        train += ProbeData.of(found, gate)
    probe, scores = train_self_gate(
        run.pair.base.name, _probe_layers(run), gate.size, train, heldout, run.settings.elicit
    )
    step.write_gate(SELF_GATE, probe)
    return scores


def _per_category(examples: Sequence[TrainingExample], size: int) -> tuple[int, ...]:
    counts = Counter(category for example in examples for category in example.categories)
    return tuple(counts[category] for category in range(size))
