"""The six steps over a run folder: each reads its input, calls its stage, writes its output.

What a step computes stands in the step's own package; here is only the order, the files and the
counts. A finished step is skipped, a changed one runs again together with all that depends on it.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter

from howwhen.collect.problems import read_problems, split_problems
from howwhen.collect.rollouts import collect_rollouts
from howwhen.discover.activations import sentence_means
from howwhen.discover.sae import Shape
from howwhen.discover.taxonomy import CHOICE_RULE, Cell, Sentences, choose, discover_grid
from howwhen.elicit.agreement import gate_sentence_agreement
from howwhen.elicit.examples import DecisionExample, Teacher
from howwhen.elicit.objective import UnsteeredCache
from howwhen.elicit.vectors import Lesson, Training, choose_training, split_lesson, train_vectors
from howwhen.errors import SettingsError
from howwhen.hybrid.choice import (
    Base,
    Choice,
    Guardrail,
    RandomCategory,
    RandomPositions,
    RandomVectors,
    SharedVector,
    Steer,
    Takeover,
    Thinking,
    randomise,
)
from howwhen.hybrid.decoder import HybridModels, decode
from howwhen.measure.grade import open_grader
from howwhen.measure.ladder import GradedTrace, grade_trace, measure
from howwhen.present.report import ReportInput, make_report
from howwhen.progress import Reporter
from howwhen.records import (
    LADDER,
    HybridTrace,
    Measurement,
    Problem,
    Rollout,
    Rung,
    Split,
    Taxonomy,
    VectorSet,
)
from howwhen.residual import check_layer
from howwhen.settings import RunSettings
from howwhen.store import STEPS, Json, Key, RunFolder, Step, StepFolder
from howwhen.zoo.pairs import Pair

Item = TypeVar("Item")


def check_inputs(pair: Pair, settings: RunSettings) -> None:
    """Load the pair and the problems, and refuse now what would fail later; writes nothing.

    Raises:
        InputError: models, layers or problems that cannot be used.
    """
    split_problems(_draw_problems(pair, settings), settings.collect)
    pair.check()
    for layer in settings.discover.layers or ():
        check_layer(pair.thinking.model, layer)
    if settings.elicit.layer is not None:
        pair.base.check_steering(settings.elicit.layer)


@dataclass(frozen=True)
class Pipeline:
    """One pair's run in one folder."""

    pair: Pair
    settings: RunSettings
    folder: RunFolder
    reporter: Reporter

    def run(self) -> None:
        """Do every step; finished ones are kept."""
        check_inputs(self.pair, self.settings)
        for name in STEPS:
            self.do(name)

    def do(self, name: Step) -> None:
        """Do one step, unless it is done already with these settings and models.

        Raises:
            StoreError: an earlier step is missing or damaged.
        """
        step, key = self.folder.step(name), self._key(name)
        number = f"{STEPS.index(name) + 1}/{len(STEPS)} {name}"
        if step.digest == key.digest:
            step.check()
            self.reporter.say(f"{number}: already done")
            return
        if step.begin(key):
            self.reporter.say(f"{number}: settings or input changed, so it runs again")
        else:
            self.reporter.say(number)
        started = time.monotonic()
        counts = _BODIES[name](self, step)
        step.finish(key, counts)
        self.reporter.say(f"  done in {time.monotonic() - started:.0f} s")

    def problems(self, *splits: Split) -> list[Problem]:
        """The run's problems of these splits, in order."""
        everything = self.folder.step("collect").read_records("problems.jsonl", Problem)
        return [problem for problem in everything if problem.split in splits]

    def rollouts(self) -> list[Rollout]:
        """The collected rollouts."""
        return self.folder.step("collect").read_records("rollouts.jsonl", Rollout)

    def taxonomy(self) -> Taxonomy:
        """The chosen taxonomy."""
        return self.folder.step("discover").read_taxonomy()

    def measurement(self) -> Measurement:
        """The finished measurement."""
        step = self.folder.step("measure")
        return TypeAdapter(Measurement).validate_python(step.read_json("measurement.json"))

    def _key(self, name: Step) -> Key:
        uses = {"collect": ("thinking",), "discover": ("thinking",)}
        models = uses.get(name, ("base", "thinking") if name in ("elicit", "hybrid") else ())
        upstream: Json = {}
        for earlier in STEPS[: STEPS.index(name)]:
            folder = self.folder.step(earlier)
            folder.check()
            upstream[earlier] = folder.digest
        if name == "collect":
            upstream["problems"] = self._problems_digest()
        own: Json = getattr(self.settings, name).model_dump(mode="json")
        return Key(
            settings={**own, "pair": self.pair.name, **self._layers(name)},
            models={role: self._describe(role) for role in models},
            upstream=upstream,
        )

    def _describe(self, role: str) -> Json:
        model = getattr(self.pair, role)
        names = ("name", "revision", "fingerprint", "prompt")
        return {name: getattr(model, name) for name in names}

    def _layers(self, name: Step) -> Json:
        if name == "discover":
            layers = self.settings.discover.layers or self.pair.chosen_taxonomy_layers
            return {"layers": list(layers)}
        if name == "elicit":
            return {"layer": self._steer_layer()}
        return {}

    def _steer_layer(self) -> int:
        chosen = self.settings.elicit.layer
        return self.pair.chosen_steer_layer if chosen is None else chosen

    def _problems_digest(self) -> str:
        path = self.settings.collect.problems
        if path is None:
            return self.pair.name
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"

    def _collect(self, step: StepFolder) -> Json:
        settings = self.settings.collect
        problems = split_problems(_draw_problems(self.pair, self.settings), settings)
        step.write_records("problems.jsonl", problems)
        wanted = [problem for problem in problems if problem.split is not Split.TEST]
        with self.reporter.task("rollouts", len(wanted)) as advance:
            rollouts = step.grow_records(
                "rollouts.jsonl",
                Rollout,
                list(_batches(wanted, settings.batch_size)),
                lambda batch: collect_rollouts(self.pair.thinking, batch, settings),
                advance,
            )
        return {
            "problems": {s.value: sum(p.split is s for p in problems) for s in Split},
            "rollouts": len(rollouts),
            "rollouts_stopped": sum(rollout.finish == "stop" for rollout in rollouts),
            "tokens": sum(len(rollout.ids) for rollout in rollouts),
            "sentences": sum(len(rollout.spans) for rollout in rollouts),
        }

    def _discover(self, step: StepFolder) -> Json:
        layers = self.settings.discover.layers or self.pair.chosen_taxonomy_layers
        settings = self.settings.discover
        rollouts, questions = self._rollouts_with_questions()
        prompts = [self.pair.thinking.prompt_ids(question) for question in questions]
        means = sentence_means(self.pair.thinking, rollouts, prompts, layers, settings.batch_size)
        texts = [text for rollout in rollouts for text in rollout.sentences()]
        is_long = [len(text.split()) >= settings.min_words for text in texts]
        rows = [index for index, keep in enumerate(is_long) if keep]
        labels = self._labels(rollouts)
        sentences = Sentences(
            texts=[texts[row] for row in rows],
            means={layer: mean[rows] for layer, mean in means.items()},
            labels={level: [column[row] for row in rows] for level, column in labels.items()},
        )
        shapes = [Shape(size, k) for size in settings.sizes for k in settings.ks]
        name, report = self.pair.thinking.name, self.reporter.say
        cells = discover_grid(name, sentences, shapes, settings, report)
        chosen = choose(cells)
        taxonomy = cells[chosen].taxonomy
        categories = taxonomy.categorise(means[taxonomy.layer]).tolist()
        step.write_json("scores.json", [_cell_row(c, i == chosen) for i, c in enumerate(cells)])
        step.write_json("categories.json", _category_rows(taxonomy, texts, categories))
        step.write_json("assignments.json", categories)
        step.write_taxonomy(taxonomy)
        return {
            "sentences": len(texts),
            "sentences_kept": len(rows),
            "sentences_too_short": len(texts) - len(rows),
            "cells": len(cells),
            "cells_left_out": len(layers) * len(shapes) - len(cells),
            "choice_rule": CHOICE_RULE,
        }

    def _labels(self, rollouts: Sequence[Rollout]) -> dict[str, list[str | None]]:
        if self.pair.truth is None:
            return {}
        columns: dict[str, list[str | None]] = {}
        for rollout in rollouts:
            for level, labels in self.pair.truth(rollout.sentences()).items():
                columns.setdefault(level, []).extend(labels)
        return columns

    def _rollouts_with_questions(self) -> tuple[list[Rollout], list[str]]:
        question = {problem.id: problem.question for problem in self.problems(*Split)}
        rollouts = self.rollouts()
        return rollouts, [question[rollout.problem_id] for rollout in rollouts]

    def _elicit(self, step: StepFolder) -> Json:
        settings, taxonomy = self.settings.elicit, self.taxonomy()
        rollouts, questions = self._rollouts_with_questions()
        teacher = Teacher(self.pair.base, self.pair.thinking, taxonomy)
        examples = teacher.find_decisions(rollouts, questions, settings.batch_size)
        selection_ids = {problem.id for problem in self.problems(Split.SELECTION)}
        is_selection = [rollout.problem_id in selection_ids for rollout in rollouts]
        train = [e for e, chosen in zip(examples, is_selection, strict=True) if not chosen]
        selection = [e for e, chosen in zip(examples, is_selection, strict=True) if chosen]
        cache = UnsteeredCache(self.pair.base.model)
        summary = {
            name: self._train(step, name, split_lesson(train, selection, size, settings), cache)
            for name, size in (("vectors", taxonomy.size), ("shared", 1))
        }
        assignments = self.folder.step("discover").read_json("assignments.json")
        agreement = gate_sentence_agreement(rollouts, examples, assignments)
        step.write_json("training.json", {**summary, "gate_sentence_agreement": agreement})
        return {
            "rollouts": len(examples),
            "rollouts_without_decision": sum(not one.positions for one in examples),
            "decisions": sum(len(one.positions) for one in examples),
            "decisions_per_category": _decisions_per_category(examples, taxonomy),
        }

    def _train(self, step: StepFolder, name: str, lesson: Lesson, cache: UnsteeredCache) -> Json:
        settings = self.settings.elicit
        trainings = []
        for seed in settings.seeds:
            part = f"parts/{name}-{seed}"
            if not (step.path / f"{part}.json").exists():
                self._train_seed(step, part, lesson, seed, cache)
            notes = step.read_json(f"{part}.json")
            vectors = step.read_vectors(f"{part}.safetensors")
            losses = tuple(notes.pop("validation_losses"))
            trainings.append(Training(vectors=vectors, validation_losses=losses, **notes))
        best = choose_training(trainings)
        step.write_vectors(f"{name}.safetensors", best.vectors)
        return {
            "chosen_seed": best.seed,
            "seeds": [
                {key: value for key, value in vars(one).items() if key != "vectors"}
                for one in trainings
            ],
        }

    def _train_seed(
        self, step: StepFolder, part: str, lesson: Lesson, seed: int, cache: UnsteeredCache
    ) -> None:
        """Train one seed and write its part; the JSON file is written last and marks it done."""
        settings = self.settings.elicit
        layer = self._steer_layer()
        with self.reporter.task(part.removeprefix("parts/"), settings.steps) as advance:
            training = train_vectors(self.pair.base, lesson, layer, seed, settings, cache, advance)
        self.reporter.say(
            f"  {part.removeprefix('parts/')}: {training.steps} steps, validation loss "
            f"{training.validation_losses[0]:.3f} -> {min(training.validation_losses):.3f} nats, "
            f"selection loss {training.selection_loss:.3f}"
        )
        step.write_vectors(f"{part}.safetensors", training.vectors)
        notes = {key: value for key, value in vars(training).items() if key != "vectors"}
        step.write_json(f"{part}.json", notes)

    def _hybrid(self, step: StepFolder) -> Json:
        problems = self.problems(Split.TEST)
        elicited = self.folder.step("elicit")
        vectors = elicited.read_vectors("vectors.safetensors")
        shared = elicited.read_vectors("shared.safetensors")
        models = HybridModels(self.pair.base, self.pair.thinking, self.taxonomy())
        full = Steer(models.taxonomy, vectors)
        hybrid = self._decode(step, models, problems, full, 0)
        rate = _steered_fraction(hybrid)
        answers: Counter[Rung] = Counter({"hybrid": len(hybrid)})
        for choice, seed in self._controls(models.taxonomy, vectors, shared, rate):
            answers[choice.name] += len(self._decode(step, models, problems, choice, seed))
        if rate == 0:
            self.reporter.say("  WARNING: the hybrid never steered; base and thinking never differ")
        return {"problems": len(problems), "steered_fraction": rate, "answers": answers}

    def _controls(
        self, taxonomy: Taxonomy, vectors: VectorSet, shared: VectorSet, rate: float
    ) -> Iterator[tuple[Choice, int]]:
        """Every rung but the hybrid; random ones once per seed."""
        yield Base(), 0
        yield Guardrail(self.settings.hybrid.guardrail_top_k), 0
        yield SharedVector(taxonomy, shared), 0
        for seed in self.settings.hybrid.random_seeds:
            yield RandomCategory(taxonomy, vectors), seed
            yield RandomPositions(taxonomy, vectors, rate=rate), seed
            yield RandomVectors(taxonomy, randomise(vectors, seed)), seed
        yield Takeover(), 0
        yield Thinking(), 0

    def _decode(
        self,
        step: StepFolder,
        models: HybridModels,
        problems: Sequence[Problem],
        choice: Choice,
        seed: int,
    ) -> list[HybridTrace]:
        settings = self.settings.hybrid
        is_random = isinstance(choice, RandomCategory | RandomPositions | RandomVectors)
        label = f"{choice.name}, seed {seed}" if is_random else choice.name
        with self.reporter.task(label, len(problems)) as advance:
            return step.grow_records(
                _trace_file(choice.name, seed),
                HybridTrace,
                list(_batches(problems, settings.batch_size)),
                lambda batch: decode(models, batch, choice, settings, seed),
                advance,
            )

    def _measure(self, step: StepFolder) -> Json:
        gold = {problem.id: problem.answer for problem in self.problems(Split.TEST)}
        traces_of: dict[Rung, list[GradedTrace]] = {rung: [] for rung in LADDER}
        with open_grader(self.settings.measure.deadline_seconds) as grader:
            for file in sorted((self.folder.step("hybrid").path / "traces").glob("*.jsonl")):
                name = f"traces/{file.name}"
                for trace in self.folder.step("hybrid").read_records(name, HybridTrace):
                    grade = grader.grade(trace.text, trace.finish, gold[trace.problem_id])
                    traces_of[trace.rung].append(grade_trace(trace, grade))
        measurement = measure(traces_of, self.settings.measure)
        step.write_json(
            "measurement.json", TypeAdapter(Measurement).dump_python(measurement, mode="json")
        )
        for rung, traces in traces_of.items():
            step.write_records(f"grades/{rung}.jsonl", traces)
        return {"problems": measurement.n, "rungs": len(measurement.rungs)}

    def _present(self, step: StepFolder) -> Json:
        question = {problem.id: problem.question for problem in self.problems(Split.TEST)}
        discovered, elicited = self.folder.step("discover"), self.folder.step("elicit")
        traces = self.folder.step("hybrid").read_records(_trace_file("hybrid", 0), HybridTrace)
        shown = traces[: self.settings.present.examples]
        decisions = elicited.read_json("provenance.json")["counts"]["decisions_per_category"]
        report = make_report(
            ReportInput(
                title=f"How much of {self.pair.name} is in its base, waiting for the moment?",
                base=self.pair.base_source,
                thinking=self.pair.thinking_source,
                measurement=self.measurement(),
                confidence=self.settings.measure.confidence,
                cells=discovered.read_json("scores.json"),
                categories=discovered.read_json("categories.json"),
                training=elicited.read_json("training.json"),
                decisions_per_category=decisions,
                examples=[(question[trace.problem_id], trace) for trace in shown],
            )
        )
        step.write_text("report.md", report)
        return {"examples": len(shown)}


_BODIES: dict[Step, Callable[[Pipeline, StepFolder], Json]] = {
    "collect": Pipeline._collect,
    "discover": Pipeline._discover,
    "elicit": Pipeline._elicit,
    "hybrid": Pipeline._hybrid,
    "measure": Pipeline._measure,
    "present": Pipeline._present,
}


def _draw_problems(pair: Pair, settings: RunSettings) -> list[Problem]:
    collect = settings.collect
    if collect.problems is not None:
        return read_problems(collect.problems, collect.limit)
    if pair.draw_problems is not None:
        return pair.draw_problems(collect.limit, collect.seed)
    raise SettingsError(
        f"the pair {pair.name!r} has no problems of its own; type --problems FILE.jsonl "
        'with lines such as {"question": "What is 2 + 2?", "answer": "4"}'
    )


def _trace_file(rung: Rung, seed: int) -> str:
    return f"traces/{rung}-{seed}.jsonl"


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _steered_fraction(traces: Sequence[HybridTrace]) -> float:
    return sum(trace.decisions for trace in traces) / sum(len(trace.tokens) for trace in traces)


def _decisions_per_category(examples: Sequence[DecisionExample], taxonomy: Taxonomy) -> list[int]:
    every = [category for example in examples for category in example.categories]
    return [every.count(category) for category in range(taxonomy.size)]


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
