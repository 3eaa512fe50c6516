"""Step 3: steering vectors, and the self-gate."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar, get_args

import torch

from howwhen.elicit.examples import Decisions, TrainingExample, find_decisions
from howwhen.elicit.gates import (
    find_site,
    gate_sentence_agreement,
    make_gate,
    next_sentence_categories,
)
from howwhen.elicit.objective import PrefixCache
from howwhen.elicit.self_gate import label_positions, train_self_gate
from howwhen.elicit.spans import bias_examples, span_examples
from howwhen.elicit.training import (
    DataSplit,
    Training,
    choose_training,
    new_vectors,
    split_examples,
    train_vectors,
)
from howwhen.errors import SteeringError
from howwhen.formats.safetensors import Json
from howwhen.hybrid.choice import Steer
from howwhen.hybrid.decoder import decode
from howwhen.lm.alignment import ModelPair
from howwhen.pipeline.context import Run
from howwhen.pipeline.rungs import chosen_strength
from howwhen.pipeline.store import StepFolder
from howwhen.probes import Gate, GateKind, Taxonomy
from howwhen.records import HybridTrace, Rollout, Split
from howwhen.settings import ElicitSettings, Form

Item = TypeVar("Item")
GATE_KINDS: tuple[GateKind, ...] = get_args(GateKind)


def elicit(run: Run, step: StepFolder) -> Json:
    """Find decisions, name them with a gate, train vectors and the self-gate."""
    lab = _Lab.prepare(run, step)
    gate = lab.choose_gate()
    train, selection = lab.part(False), lab.part(True)
    if lab.settings.method == "span":
        trainings, data = lab.train_spans(gate)
    else:
        trainings, data = lab.train_decisions(gate, train, selection)
    on_policy = lab.on_policy
    chosen = selection if any(one.positions for one in selection) else train
    if data.selection is data.validation:
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
        label_positions([*train, *on_policy], gate),
        label_positions(chosen, gate),
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
    per_category = _positions_per_category(data.train, gate.size)
    silent = [category for category, count in enumerate(per_category) if not count]
    if silent:
        run.reporter.say(
            f"  WARNING: nothing to train on for categories {silent}; their vectors are zero"
        )
    return {
        "rollouts": len(lab.found),
        "rollouts_without_decision": sum(not one.positions for one in lab.found),
        "decisions": sum(len(one.positions) for one in lab.found),
        "decisions_unwritable": sum(one.banned_targets for one in lab.found),
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
        run: Run,
        step: StepFolder,
        models: ModelPair,
        taxonomy: Taxonomy,
        rollouts: list[Rollout],
        found: list[Decisions],
    ) -> None:
        self.run, self.step, self.models = run, step, models
        self.taxonomy, self.rollouts, self.found = taxonomy, rollouts, found
        self.settings: ElicitSettings = run.settings.elicit
        self.states = PrefixCache(run.pair.base, run.steer_layer)
        chosen = {problem.id for problem in run.problems(Split.SELECTION)}
        self.is_selection = [rollout.problem_id in chosen for rollout in rollouts]
        self.on_policy: list[Decisions] = []
        self.agreement: Json = {}

    @classmethod
    def prepare(cls, run: Run, step: StepFolder) -> "_Lab":
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
        next_categories = next_sentence_categories(self.rollouts, self.found, assignments)
        train, selection = self._only(next_categories, False), self._only(next_categories, True)
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
    ) -> tuple[Json, DataSplit]:
        """Second version: vectors where the base would go elsewhere, and one shared vector."""
        learned, chosen = ([one.example(gate) for one in part] for part in (train, selection))
        for number in range(self.settings.on_policy_rounds):
            data = split_examples(learned, chosen, gate.size, self.settings)
            self.train(f"before-on-policy-{number}", data)
            fresh = self.on_policy_round(number, gate)
            self.on_policy += fresh
            learned = [*learned, *(one.example(gate) for one in fresh)]
        data = split_examples(learned, chosen, gate.size, self.settings)
        shared = split_examples(learned, chosen, 1, self.settings)
        return {
            "vectors": self.train("vectors", data),
            "shared": self.train("shared", shared),
        }, data

    def on_policy_round(self, number: int, gate: Gate) -> list[Decisions]:
        """Let the hybrid answer the training problems, and find the decisions of its answers."""
        problems = self.run.problems(Split.TRAIN)
        vectors = self.step.read_vectors(f"before-on-policy-{number}.safetensors")
        settings = self.run.settings.hybrid
        rung = Steer(gate, vectors, chosen_strength(self.run.settings))
        with self.run.reporter.task(f"on-policy round {number + 1}", len(problems)) as advance:
            traces = self.step.grow_records(
                f"on-policy-{number}.jsonl",
                HybridTrace,
                problems,
                settings.batch_size,
                lambda batch: decode(self.models, batch, rung, settings),
                advance,
            )
        answers = [
            Rollout(t.problem_id, tuple(x.id for x in t.tokens), t.text, t.finish, ())
            for t in traces
        ]
        questions = [problem.question for problem in problems]
        layer, size = gate.layer, self.settings.batch_size
        return find_decisions(self.models, layer, answers, questions, size, is_own=False)

    def train_spans(self, gate: Gate) -> tuple[Json, DataSplit]:
        """First version: a bias vector on whole answers, then vectors on whole sentences."""
        everything = bias_examples(self.part(False)), bias_examples(self.part(True))
        bias = self.train("bias", split_examples(*everything, 1, self.settings), form="linear")
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
        data = split_examples(*parts, gate.size, settings)
        shared = split_examples(*parts, 1, settings)
        return {
            "bias": bias,
            "vectors": self.train("vectors", data, direction),
            "shared": self.train("shared", shared, direction),
        }, data

    def train(
        self,
        name: str,
        data: DataSplit,
        bias: torch.Tensor | None = None,
        form: Form | None = None,
    ) -> Json:
        """Train every seed, keep the best, and return the account of all; finished seeds stay."""
        trainings = []
        for seed in self.settings.seeds:
            part = f"parts/{name}-{seed}"
            if not (self.step.path / f"{part}.json").exists():
                self._train_seed(part, data, seed, bias, form or self.settings.chosen_form)
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
        self, part: str, data: DataSplit, seed: int, bias: torch.Tensor | None, form: Form
    ) -> None:
        """Train one seed and write its part; the JSON file is written last and marks it done."""
        base, label = self.run.pair.base, part.removeprefix("parts/")
        width = base.model.config.hidden_size
        settings = self.settings
        start = new_vectors(base.name, self.run.steer_layer, width, data.size, form, settings, seed)
        start = replace(start, bias=bias)
        with self.run.reporter.task(label, settings.steps) as advance:
            training = train_vectors(start, data, self.states, settings, seed, advance)
        evaluations = training.validation_losses
        self.run.reporter.say(
            f"  {label}: {training.steps} steps, validation loss {evaluations[0]:.3f} -> "
            f"{min(evaluations):.3f} nats, selection loss {training.selection_loss:.3f}"
        )
        self.step.write_vectors(f"{part}.safetensors", training.vectors)
        notes = {key: value for key, value in vars(training).items() if key != "vectors"}
        self.step.write_json(f"{part}.json", notes)


def _positions_per_category(examples: Sequence[TrainingExample], size: int) -> list[int]:
    every = Counter(category for example in examples for category in example.categories)
    return [every[category] for category in range(size)]
