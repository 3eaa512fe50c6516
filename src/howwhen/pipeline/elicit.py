"""Step 3: steering vectors, and the self-gate."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, get_args

import torch

from howwhen.lm.alignment import ModelPair
from howwhen.formats.safetensors import Json
from howwhen.elicit.examples import Decisions, Example, find_decisions
from howwhen.elicit.gates import coming_categories, find_site, gate_sentence_agreement, make_gate
from howwhen.elicit.objective import UnsteeredStates
from howwhen.elicit.self_gate import observe, train_self_gate
from howwhen.elicit.spans import bias_examples, span_examples
from howwhen.elicit.training import Lesson, Training, choose_training, new_vectors, split_lesson, train_vectors
from howwhen.errors import SteeringError
from howwhen.hybrid.choice import Steer
from howwhen.hybrid.decoder import decode
from howwhen.probes import Gate, GateKind, Taxonomy
from howwhen.records import HybridTrace, Rollout, Split
from howwhen.settings import ElicitSettings, Form
from howwhen.pipeline.rungs import chosen_strength
from howwhen.pipeline.store import StepFolder

if TYPE_CHECKING:
    from howwhen.pipeline.pipeline import Pipeline

Item = TypeVar("Item")
GATE_KINDS: tuple[GateKind, ...] = get_args(GateKind)


def elicit(run: "Pipeline", step: StepFolder) -> Json:
    """Find decisions, name them with a gate, train vectors and the self-gate."""
    lab = _Lab.prepare(run, step)
    gate = lab.choose_gate()
    train, selection = lab.part(False), lab.part(True)
    if lab.settings.method == "span":
        trainings, lesson = lab.train_spans(gate)
    else:
        trainings, lesson = lab.train_decisions(gate, train, selection)
    practised = lab.practised
    chosen = selection if any(one.positions for one in selection) else train
    if lesson.selection is lesson.validation:
        run.reporter.say(
            "  WARNING: no selection answer holds anything to steer, so validation chooses among "
            "the seeds"
        )
    if chosen is train:
        run.reporter.say(
            "  WARNING: no selection answer holds a decision, so the self-gate's threshold and "
            "scores are those of the answers it was trained on"
        )
    probe, scores = train_self_gate(
        run.pair.base,
        tuple(sorted({run.steer_layer, run.pair.base.layer_count - 1})),
        gate.size,
        observe([*train, *practised], gate),
        observe(chosen, gate),
        lab.settings,
    )
    step.write_gate("self_gate.safetensors", probe)
    step.write_json(
        "training.json",
        {
            **trainings,
            "gate_sentence_agreement": lab.agreement,
            "self_gate": vars(scores),
        },
    )
    per_category = _positions_per_category(lesson.train, gate.size)
    silent = [category for category, count in enumerate(per_category) if not count]
    if silent:
        run.reporter.say(
            f"  WARNING: nothing to train on for categories {silent}; their vectors are zero"
        )
    return {
        "rollouts": len(lab.found),
        "rollouts_without_decision": sum(not one.positions for one in lab.found),
        "decisions": sum(len(one.positions) for one in lab.found),
        "decisions_unwritable": sum(one.unwritable for one in lab.found),
        "decisions_per_category": _positions_per_category(
            [one.example(gate) for one in lab.found], gate.size
        ),
        "positions_trained_per_category": per_category,
        "categories_without_training": silent,
    }


class _Lab:
    """The elicit step at work: its inputs, and one method per kind of training."""

    def __init__(
        self,
        run: "Pipeline",
        step: StepFolder,
        models: ModelPair,
        taxonomy: Taxonomy,
        rollouts: list[Rollout],
        found: list[Decisions],
    ) -> None:
        self.run, self.step, self.models = run, step, models
        self.taxonomy, self.rollouts, self.found = taxonomy, rollouts, found
        self.settings: ElicitSettings = run.settings.elicit
        self.states = UnsteeredStates(run.pair.base, run.steer_layer)
        chosen = {problem.id for problem in run.problems(Split.SELECTION)}
        self.is_selection = [rollout.problem_id in chosen for rollout in rollouts]
        self.practised: list[Decisions] = []
        self.agreement: Json = {}

    @classmethod
    def prepare(cls, run: "Pipeline", step: StepFolder) -> "_Lab":
        """Teacher-force every rollout."""
        rollouts, questions = run.rollouts_with_questions()
        models, taxonomy = run.models(), run.taxonomy()
        size = run.settings.elicit.batch_size
        with run.reporter.task("rollouts compared", len(rollouts)) as advance:
            found = find_decisions(
                models, run.gate_layer, rollouts, questions, size, report=advance
            )
        return cls(run, step, models, taxonomy, rollouts, found)

    def part(self, is_selection: bool) -> list[Decisions]:
        """Decisions of the selection problems' answers, or of the others'."""
        return self._only(self.found, is_selection)

    def _only(self, items: Sequence[Item], is_selection: bool) -> list[Item]:
        pairs = zip(items, self.is_selection, strict=True)
        return [item for item, chosen in pairs if chosen is is_selection]

    def choose_gate(self) -> Gate:
        """Fit every kind of gate on the training answers, compare them on the others, keep one."""
        assignments = [one.category for one in self.run.annotations()]
        coming = coming_categories(self.rollouts, self.found, assignments)
        train, selection = self._only(coming, False), self._only(coming, True)
        site = find_site(
            self.taxonomy, self.run.pair.thinking.name, self.run.gate_layer, self.part(False)
        )
        chosen: Gate | None = None
        for kind in GATE_KINDS:
            try:
                gate = make_gate(
                    kind, self.taxonomy, site, self.part(False), train, self.settings.seeds[0]
                )
            except SteeringError as error:
                if kind == self.settings.gate:
                    raise
                self.agreement[kind] = {"share": None, "decisions": 0, "why": str(error)}
                continue
            self.agreement[kind] = gate_sentence_agreement(gate, self.part(True), selection)
            chosen = gate if kind == self.settings.gate else chosen
        if chosen is None:
            raise RuntimeError(f"no gate of kind {self.settings.gate}")
        self.step.write_gate("gate.safetensors", chosen)
        return chosen

    def train_decisions(
        self, gate: Gate, train: list[Decisions], selection: list[Decisions]
    ) -> tuple[Json, Lesson]:
        """Second version: vectors where the base would go elsewhere, and one shared vector."""
        learned, chosen = ([one.example(gate) for one in part] for part in (train, selection))
        for number in range(self.settings.practice_rounds):
            lesson = split_lesson(learned, chosen, gate.size, self.settings)
            self.train(f"before-practice-{number}", lesson)
            fresh = self.practise(number, gate)
            self.practised += fresh
            learned = [*learned, *(one.example(gate) for one in fresh)]
        lesson = split_lesson(learned, chosen, gate.size, self.settings)
        shared = split_lesson(learned, chosen, 1, self.settings)
        return {
            "vectors": self.train("vectors", lesson),
            "shared": self.train("shared", shared),
        }, lesson

    def practise(self, number: int, gate: Gate) -> list[Decisions]:
        """Let the hybrid answer the training problems, and find the decisions of its answers."""
        problems = self.run.problems(Split.TRAIN)
        vectors = self.step.read_vectors(f"before-practice-{number}.safetensors")
        settings = self.run.settings.hybrid
        choice = Steer(gate, vectors, chosen_strength(self.run.settings))
        with self.run.reporter.task(f"practice {number + 1}", len(problems)) as advance:
            traces = self.step.grow_records(
                f"practice-{number}.jsonl",
                HybridTrace,
                problems,
                settings.batch_size,
                lambda batch: decode(self.models, batch, choice, settings),
                advance,
            )
        answers = [
            Rollout(t.problem_id, tuple(x.id for x in t.tokens), t.text, t.finish, ())
            for t in traces
        ]
        questions = [problem.question for problem in problems]
        layer, size = gate.layer, self.settings.batch_size
        return find_decisions(self.models, layer, answers, questions, size, is_own=False)

    def train_spans(self, gate: Gate) -> tuple[Json, Lesson]:
        """First version: a bias vector on whole answers, then vectors on whole sentences."""
        everything = bias_examples(self.part(False)), bias_examples(self.part(True))
        bias = self.train("bias", split_lesson(*everything, 1, self.settings), form="linear")
        direction = self.step.read_vectors("bias.safetensors").vectors[0]
        tensors, _ = self.run.folder.step("discover").read_tensors("sentence_scores.safetensors")
        settings = self.settings
        examples = span_examples(
            self.rollouts,
            self.found,
            tensors["scores"],
            settings.sentences_per_category,
            settings.min_words,
        )
        parts = self._only(examples, False), self._only(examples, True)
        lesson = split_lesson(*parts, gate.size, settings)
        shared = split_lesson(*parts, 1, settings)
        return {
            "bias": bias,
            "vectors": self.train("vectors", lesson, direction),
            "shared": self.train("shared", shared, direction),
        }, lesson

    def train(
        self,
        name: str,
        lesson: Lesson,
        bias: torch.Tensor | None = None,
        form: Form | None = None,
    ) -> Json:
        """Train every seed, keep the best, and return the account of all; finished seeds stay."""
        trainings = []
        for seed in self.settings.seeds:
            part = f"parts/{name}-{seed}"
            if not (self.step.path / f"{part}.json").exists():
                self._train_seed(part, lesson, seed, bias, form or self.settings.chosen_form)
            notes = self.step.read_json(f"{part}.json")
            vectors = self.step.read_vectors(f"{part}.safetensors")
            for key in ("losses", "validation_losses"):
                notes[key] = tuple(notes[key])
            trainings.append(Training(vectors=vectors, **notes))
        best = choose_training(trainings)
        self.step.write_vectors(f"{name}.safetensors", best.vectors)
        return {
            "chosen_seed": best.seed,
            "seeds": [
                {key: value for key, value in vars(one).items() if key != "vectors"}
                for one in trainings
            ],
        }

    def _train_seed(
        self, part: str, lesson: Lesson, seed: int, bias: torch.Tensor | None, form: Form
    ) -> None:
        """Train one seed and write its part; the JSON file is written last and marks it done."""
        base, label = self.run.pair.base, part.removeprefix("parts/")
        width = base.model.config.hidden_size
        settings = self.settings
        start = new_vectors(
            base.name, self.run.steer_layer, width, lesson.size, form, settings, seed
        )
        start = replace(start, bias=bias)
        with self.run.reporter.task(label, settings.steps) as advance:
            training = train_vectors(start, lesson, self.states, settings, seed, advance)
        looks = training.validation_losses
        self.run.reporter.say(
            f"  {label}: {training.steps} steps, validation loss {looks[0]:.3f} -> "
            f"{min(looks):.3f} nats, selection loss {training.selection_loss:.3f}"
        )
        self.step.write_vectors(f"{part}.safetensors", training.vectors)
        notes = {key: value for key, value in vars(training).items() if key != "vectors"}
        self.step.write_json(f"{part}.json", notes)


def _positions_per_category(examples: Sequence[Example], size: int) -> list[int]:
    every = Counter(category for example in examples for category in example.categories)
    return [every[category] for category in range(size)]
