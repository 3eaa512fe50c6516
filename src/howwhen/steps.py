"""What each of the six steps does in a run folder: read input, call a stage, write output.

What a step computes stands in the step's own package. Here is only what it reads, writes and
counts; `pipeline` knows the order.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pydantic import TypeAdapter

from howwhen.alignment import ModelPair
from howwhen.collect.problems import read_problems, split_problems
from howwhen.collect.rollouts import collect_rollouts
from howwhen.discover.activations import sentence_means
from howwhen.discover.sae import Shape
from howwhen.discover.taxonomy import CHOICE_RULE, Cell, Sentences, choose, discover_grid
from howwhen.elicit.examples import Decisions, Example, find_decisions
from howwhen.elicit.gates import coming_categories, gate_sentence_agreement, make_gate
from howwhen.elicit.objective import UnsteeredStates
from howwhen.elicit.self_gate import observe, train_self_gate
from howwhen.elicit.spans import bias_examples, span_examples
from howwhen.elicit.vectors import (
    Lesson,
    Training,
    choose_training,
    new_vectors,
    split_lesson,
    train_vectors,
)
from howwhen.errors import SettingsError, SteeringError
from howwhen.hybrid.choice import (
    Base,
    BaseStepByStep,
    BiasOnly,
    Choice,
    Guardrail,
    RandomCategory,
    RandomPositions,
    RandomVectors,
    SelfGated,
    SharedVector,
    Steer,
    Takeover,
    Thinking,
    bias_alone,
    randomise,
)
from howwhen.hybrid.decoder import decode
from howwhen.hybrid.strength import LEARNED, Strength, fixed, sweep
from howwhen.measure.grade import open_grader
from howwhen.measure.ladder import GradedTrace, grade_trace, measure
from howwhen.present.report import ReportInput, make_report
from howwhen.progress import Reporter
from howwhen.records import (
    LADDER,
    Gate,
    GateKind,
    HybridTrace,
    Measurement,
    Problem,
    Rollout,
    Rung,
    SelfGate,
    Split,
    Taxonomy,
    VectorSet,
)
from howwhen.settings import (
    PRESETS,
    ElicitSettings,
    Form,
    HybridSettings,
    Preset,
    RunSettings,
    make_settings,
)
from howwhen.store import Json, RunFolder, Step, StepFolder
from howwhen.zoo.pairs import Pair

if TYPE_CHECKING:
    from howwhen.pipeline import Pipeline

Item = TypeVar("Item")
GATE_KINDS: tuple[GateKind, ...] = ("taxonomy", "probe", "clusters")


def collect(run: "Pipeline", step: StepFolder) -> Json:
    """The thinking model answers everything but the test problems."""
    settings = run.settings.collect
    problems = split_problems(draw_problems(run.pair, run.settings), settings)
    step.write_records("problems.jsonl", problems)
    wanted = [problem for problem in problems if problem.split is not Split.TEST]
    with run.reporter.task("rollouts", len(wanted)) as advance:
        rollouts = step.grow_records(
            "rollouts.jsonl",
            Rollout,
            list(batches(wanted, settings.batch_size)),
            lambda batch: collect_rollouts(run.pair.thinking, batch, settings),
            advance,
        )
    return {
        "problems": {s.value: sum(p.split is s for p in problems) for s in Split},
        "rollouts": len(rollouts),
        "rollouts_stopped": sum(rollout.finish == "stop" for rollout in rollouts),
        "tokens": sum(len(rollout.ids) for rollout in rollouts),
        "sentences": sum(len(rollout.spans) for rollout in rollouts),
    }


def discover(run: "Pipeline", step: StepFolder) -> Json:
    """Train the grid of taxonomies and choose one."""
    layers = run.settings.discover.layers or run.pair.chosen_taxonomy_layers
    settings = run.settings.discover
    rollouts, questions = run.rollouts_with_questions()
    prompts = [run.pair.thinking.prompt_ids(question) for question in questions]
    means = sentence_means(run.pair.thinking, rollouts, prompts, layers, settings.batch_size)
    texts = [text for rollout in rollouts for text in rollout.sentences()]
    is_long = [len(text.split()) >= settings.min_words for text in texts]
    rows = [index for index, keep in enumerate(is_long) if keep]
    labels = _labels(run, rollouts)
    sentences = Sentences(
        texts=[texts[row] for row in rows],
        means={layer: mean[rows] for layer, mean in means.items()},
        labels={level: [column[row] for row in rows] for level, column in labels.items()},
    )
    shapes = [Shape(size, k) for size in settings.sizes for k in settings.ks]
    name, report = run.pair.thinking.name, run.reporter.say
    cells = discover_grid(name, sentences, shapes, settings, report)
    chosen = choose(cells)
    taxonomy = cells[chosen].taxonomy
    scores = taxonomy.sae.scores(taxonomy.normalise(means[taxonomy.layer]))
    categories = scores.argmax(1).tolist()
    step.write_json("scores.json", [_cell_row(c, i == chosen) for i, c in enumerate(cells)])
    step.write_json("categories.json", _category_rows(taxonomy, texts, categories))
    step.write_json("assignments.json", categories)
    step.write_tensors("sentence_scores.safetensors", {"scores": scores}, {})
    step.write_taxonomy(taxonomy)
    return {
        "sentences": len(texts),
        "sentences_kept": len(rows),
        "sentences_too_short": len(texts) - len(rows),
        "cells": len(cells),
        "cells_left_out": len(layers) * len(shapes) - len(cells),
        "choice_rule": CHOICE_RULE,
    }


def _labels(run: "Pipeline", rollouts: Sequence[Rollout]) -> dict[str, list[str | None]]:
    if run.pair.truth is None:
        return {}
    columns: dict[str, list[str | None]] = {}
    for rollout in rollouts:
        for level, labels in run.pair.truth(rollout.sentences()).items():
            columns.setdefault(level, []).extend(labels)
    return columns


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
    probe, scores = train_self_gate(
        run.pair.base,
        tuple(sorted({run.steer_layer, run.pair.base.layer_count - 1})),
        gate.size,
        observe([*train, *practised], gate),
        observe(selection if any(one.positions for one in selection) else train, gate),
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
        found = find_decisions(models, taxonomy.layer, rollouts, questions, size)
        return cls(run, step, models, taxonomy, rollouts, found)

    def part(self, is_selection: bool) -> list[Decisions]:
        """Decisions of the selection problems' answers, or of the others'."""
        return self._only(self.found, is_selection)

    def _only(self, items: Sequence[Item], is_selection: bool) -> list[Item]:
        pairs = zip(items, self.is_selection, strict=True)
        return [item for item, chosen in pairs if chosen is is_selection]

    def choose_gate(self) -> Gate:
        """Fit every kind of gate on the training answers, compare them on the others, keep one."""
        assignments = self.run.folder.step("discover").read_json("assignments.json")
        coming = coming_categories(self.rollouts, self.found, assignments)
        train, selection = self._only(coming, False), self._only(coming, True)
        chosen: Gate | None = None
        for kind in GATE_KINDS:
            try:
                gate = make_gate(
                    kind, self.taxonomy, self.part(False), train, self.settings.seeds[0]
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
        choice = Steer(gate, vectors)
        with self.run.reporter.task(f"practice {number + 1}", len(problems)) as advance:
            traces = self.step.grow_records(
                f"practice-{number}.jsonl",
                HybridTrace,
                list(batches(problems, settings.batch_size)),
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


def hybrid(run: "Pipeline", step: StepFolder) -> Json:
    """Decode the test problems on every rung of the ladder."""
    problems, models = run.problems(Split.TEST), run.models()
    rungs = Rungs.read(run.pair, run.folder.step("elicit"), run.settings)
    traces = _decode(run, step, models, problems, rungs.full, 0)
    rate = _steered_fraction(traces)
    answers: Counter[Rung] = Counter({"hybrid": len(traces)})
    for choice, seed in rungs.controls(rate):
        answers[choice.name] += len(_decode(run, step, models, problems, choice, seed))
    if rate == 0:
        run.reporter.say("  WARNING: the hybrid never steered; base and thinking never differ")
    idle = _idle_decisions(traces, rungs.vectors)
    if idle:
        run.reporter.say(
            f"  WARNING: {idle} decisions of the hybrid met a category whose vector is zero"
        )
    return {
        "problems": len(problems),
        "steered_fraction": rate,
        "decisions_without_vector": idle,
        "answers": answers,
    }


@dataclass(frozen=True)
class Rungs:
    """The rungs of one run, made of what elicit left."""

    pair: Pair
    gate: Gate
    vectors: VectorSet
    shared: VectorSet
    probe: SelfGate
    strength: Strength
    settings: HybridSettings

    @classmethod
    def read(cls, pair: Pair, elicited: StepFolder, settings: RunSettings) -> "Rungs":
        """From a finished elicit step."""
        return cls(
            pair,
            elicited.read_gate("gate.safetensors"),
            elicited.read_vectors("vectors.safetensors"),
            elicited.read_vectors("shared.safetensors"),
            elicited.read_self_gate("self_gate.safetensors"),
            chosen_strength(settings),
            settings.hybrid,
        )

    @property
    def full(self) -> Steer:
        """The full hybrid."""
        return Steer(self.gate, self.vectors, self.strength)

    def controls(self, rate: float) -> Iterator[tuple[Choice, int]]:
        """Every rung but the hybrid; random ones once per seed."""
        gate, vectors, strength = self.gate, self.vectors, self.strength
        yield Base(), 0
        if self.pair.step_by_step_prompt is not None:
            yield BaseStepByStep(self.pair.step_by_step_prompt), 0
        yield Guardrail(self.settings.guardrail_top_k), 0
        if vectors.bias is not None:
            yield BiasOnly(gate, bias_alone(vectors), strength), 0
        yield SharedVector(gate, self.shared, strength), 0
        for seed in self.settings.random_seeds:
            yield RandomCategory(gate, vectors, strength), seed
            yield RandomPositions(gate, vectors, strength, rate=rate), seed
            yield RandomVectors(gate, randomise(vectors, seed), strength), seed
        yield SelfGated(self.probe, vectors, LEARNED if strength.is_sweep else strength), 0
        yield Takeover(), 0
        yield Thinking(), 0


def chosen_strength(settings: RunSettings) -> Strength:
    """The strength policy of a run: the one asked for, or the method's own."""
    hybrid_settings = settings.hybrid
    own = "learned" if settings.elicit.method == "decision" else "sweep"
    match hybrid_settings.strength or own:
        case "learned":
            return LEARNED
        case "fixed":
            return fixed(hybrid_settings.strengths[0], hybrid_settings.windows[0])
        case _:
            return sweep(hybrid_settings.strengths, hybrid_settings.windows)


def _decode(
    run: "Pipeline",
    step: StepFolder,
    models: ModelPair,
    problems: Sequence[Problem],
    choice: Choice,
    seed: int,
) -> list[HybridTrace]:
    settings = run.settings.hybrid
    is_random = isinstance(choice, RandomCategory | RandomPositions | RandomVectors)
    label = f"{choice.name}, seed {seed}" if is_random else choice.name
    with run.reporter.task(label, len(problems)) as advance:
        return step.grow_records(
            trace_file(choice.name, seed),
            HybridTrace,
            list(batches(problems, settings.batch_size)),
            lambda batch: decode(models, batch, choice, settings, seed),
            advance,
        )


def measure_ladder(run: "Pipeline", step: StepFolder) -> Json:
    """Grade every trace and put all rungs on one scale."""
    gold = {problem.id: problem.answer for problem in run.problems(Split.TEST)}
    graded: dict[Rung, list[GradedTrace]] = {}
    with open_grader(run.settings.measure.deadline_seconds) as grader:
        for file in sorted((run.folder.step("hybrid").path / "traces").glob("*.jsonl")):
            name = f"traces/{file.name}"
            for trace in run.folder.step("hybrid").read_records(name, HybridTrace):
                grade = grader.grade(trace.text, trace.finish, gold[trace.problem_id])
                graded.setdefault(trace.rung, []).append(grade_trace(trace, grade))
    traces_of = {rung: graded[rung] for rung in LADDER if rung in graded}
    measurement = measure(traces_of, run.settings.measure)
    step.write_json(
        "measurement.json", TypeAdapter(Measurement).dump_python(measurement, mode="json")
    )
    for rung, traces in traces_of.items():
        step.write_records(f"grades/{rung}.jsonl", traces)
    return {"problems": measurement.n, "rungs": len(measurement.rungs)}


def present(run: "Pipeline", step: StepFolder) -> Json:
    """Write the report."""
    question = {problem.id: problem.question for problem in run.problems(Split.TEST)}
    discovered, elicited = run.folder.step("discover"), run.folder.step("elicit")
    traces = run.folder.step("hybrid").read_records(trace_file("hybrid", 0), HybridTrace)
    shown = traces[: run.settings.present.examples]
    decisions = elicited.read_json("provenance.json")["counts"]["decisions_per_category"]
    report = make_report(
        ReportInput(
            title=f"How much of {run.pair.name} is in its base, waiting for the moment?",
            base=run.pair.base_source,
            thinking=run.pair.thinking_source,
            measurement=run.measurement(),
            confidence=run.settings.measure.confidence,
            cells=discovered.read_json("scores.json"),
            categories=discovered.read_json("categories.json"),
            training=elicited.read_json("training.json"),
            decisions_per_category=decisions,
            examples=[(question[trace.problem_id], trace) for trace in shown],
        )
    )
    step.write_text("report.md", report)
    return {"examples": len(shown)}


USUAL_RATE = 0.05
"""Share of tokens steered by the rung `random-positions` where no hybrid has been run."""


def ready_rung(
    pair: Pair, folder: RunFolder, preset: Preset, rung: Rung, reporter: Reporter
) -> tuple[Choice, Gate]:
    """A rung of a run folder, for answering questions of one's own.

    Where the folder has no vectors, its first three steps are run.

    Raises:
        SettingsError: this run has no such rung.
        SteeringError: the run is another pair's.
    """
    from howwhen.pipeline import Pipeline

    elicited = folder.step("elicit")
    settings = make_settings(PRESETS[preset], pair.overrides)
    if elicited.digest is None:
        for name in ("collect", "discover", "elicit"):
            Pipeline(pair, settings, folder, reporter).do(name)
    elicited.check()
    method = elicited.read_json("settings.json")["method"]
    settings = make_settings(settings.model_dump(), {"elicit": {"method": method}})
    rungs = Rungs.read(pair, elicited, settings)
    every = [rungs.full, *(choice for choice, _ in rungs.controls(USUAL_RATE))]
    for choice in every:
        if choice.name == rung:
            return choice, rungs.gate
    names = ", ".join(sorted({choice.name for choice in every}))
    raise SettingsError(f"the run {folder.root} has no rung {rung!r}; expected one of {names}")


def with_strength(choice: Choice, strength: float) -> Choice:
    """The same rung at another strength.

    Raises:
        SettingsError: a rung that does not steer.
    """
    if not isinstance(choice, Steer | SelfGated):
        raise SettingsError(f"the rung {choice.name} does not steer, so it has no strength")
    return replace(choice, strength=fixed(strength))


BODIES: dict[Step, Callable[["Pipeline", StepFolder], Json]] = {
    "collect": collect,
    "discover": discover,
    "elicit": elicit,
    "hybrid": hybrid,
    "measure": measure_ladder,
    "present": present,
}


def draw_problems(pair: Pair, settings: RunSettings) -> list[Problem]:
    """The run's problems: a file's, or the pair's own.

    Raises:
        SettingsError: a pair without problems of its own, and no file.
        ProblemError: a file that cannot be used.
    """
    chosen = settings.collect
    if chosen.problems is not None:
        return read_problems(chosen.problems, chosen.limit)
    if pair.draw_problems is not None:
        return pair.draw_problems(chosen.limit, chosen.seed)
    raise SettingsError(
        f"the pair {pair.name!r} has no problems of its own; type --problems FILE.jsonl "
        'with lines such as {"question": "What is 2 + 2?", "answer": "4"}'
    )


def trace_file(rung: Rung, seed: int) -> str:
    """Where the traces of a rung and seed are kept."""
    return f"traces/{rung}-{seed}.jsonl"


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Items in runs of `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _steered_fraction(traces: Sequence[HybridTrace]) -> float:
    return sum(trace.decisions for trace in traces) / sum(len(trace.tokens) for trace in traces)


def _idle_decisions(traces: Sequence[HybridTrace], vectors: VectorSet) -> int:
    """Decisions at which steering could do nothing: no vector, and no bias vector either."""
    if vectors.bias is not None:
        return 0
    trained = set(vectors.trained().tolist())
    return sum(
        token.is_decision and token.category not in trained
        for trace in traces
        for token in trace.tokens
    )


def _positions_per_category(examples: Sequence[Example], size: int) -> list[int]:
    every = Counter(category for example in examples for category in example.categories)
    return [every[category] for category in range(size)]


def _cell_row(cell: Cell, is_chosen: bool) -> dict[str, Any]:
    taxonomy, offline = cell.taxonomy, vars(cell.offline)
    row = {"layer": taxonomy.layer, "size": taxonomy.size, "k": taxonomy.sae.k, "fvu": cell.fvu}
    for level, scores in cell.truth.items():
        suffix = "" if level == next(iter(cell.truth)) else f"_{level}"
        row |= {f"nmi{suffix}": scores.nmi, f"purity{suffix}": scores.purity}
    return {**row, **offline, "chosen": is_chosen}


def _category_rows(
    taxonomy: Taxonomy, texts: Sequence[str], categories: Sequence[int]
) -> list[dict[str, Any]]:
    """Each category with its title, its share of the sentences and five examples."""
    rows = []
    for category, title in enumerate(taxonomy.titles):
        mine = [t.strip() for t, c in zip(texts, categories, strict=True) if c == category]
        examples = list(dict.fromkeys(mine))[:5]
        rows.append(
            {
                "category": category,
                "title": title,
                "sentences": len(mine),
                "share": len(mine) / len(texts),
                "examples": examples,
            }
        )
    return rows
