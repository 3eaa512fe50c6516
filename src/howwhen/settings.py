"""Settings: one class per step, saved beside the step's output.

The command line, the YAML file and the documentation are made from these classes, so a default
lives here and nowhere else. `preset` picks sizes for all steps at once; anything may be set over
it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from howwhen.errors import SettingsError
from howwhen.records import LadderRungName

Count = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Price = Annotated[float, Field(ge=0)]
Preset = Literal["smoke", "small", "paper"]
ConvertFormat = Literal["safetensors", "gguf", "saelens"]
"""What `howwhen convert` writes."""
ExportFormat = Literal["parquet", "arrow", "csv"]
"""What `howwhen export` writes."""
Size = Annotated[int, Field(gt=1)]
Method = Literal[
    "sae",
    "kmeans",
    "spherical",
    "mixture",
    "agglomerative",
    "pca-kmeans",
    "pca-spherical",
    "pca-mixture",
    "pca-agglomerative",
]
"""Top-K autoencoders, or a clustering (`pca-`: of principal components)."""
Form = Literal["linear", "network", "gated", "low-rank"]
"""How a steering vector depends on the residual it is added to."""


class _Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


def _or_none(value: Any) -> Any:
    """What stands for the absence of a text on the command line."""
    return None if value in ("", "none", "None", "null") else value


class JudgeSettings(_Settings):
    """What the steps that may ask a judge share; a judge is asked only where one is named."""

    judge_url: str | None = None
    """OpenAI-compatible endpoint of a judge, such as https://api.openai.com/v1; no judge there
    where absent."""
    judge_model: str | None = None
    """The endpoint's name of the judging model."""
    judge_key_variable: Annotated[str | None, BeforeValidator(_or_none)] = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; `none` where the endpoint wants none."""
    judge_prices: tuple[Price, Price] | None = None
    """What the endpoint charges per million tokens of prompts and of replies; without it the cost
    is not known."""
    judge_threads: Count = 8
    """Requests to the endpoint under way at once."""
    judge_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest silence of the endpoint."""

    @model_validator(mode="after")
    def _names_its_model(self) -> "JudgeSettings":
        if self.judge_url is not None and self.judge_model is None:
            raise ValueError("judge_url without judge_model; expected the name of a model with it")
        for name in ("judge_model", "judge_prices"):
            if self.judge_url is None and getattr(self, name) is not None:
                raise ValueError(f"{name} without judge_url; expected the address of an endpoint")
        return self


class CollectSettings(_Settings):
    """Collect: which problems, and how the thinking model answers them."""

    problems: str | None = None
    """JSONL file (gzip or not) with `question` and `answer` per line, a published set (`gsm8k`,
    `math500`, ...) or `hub:ID/CONFIG@SPLIT`; the pair's own problems where absent."""
    test_problems: str | None = None
    """The same, for the final measurement; a share of `problems` where absent."""
    traces: tuple[str, ...] | None = None
    """JSONL files (gzip or not) of answers already written, with `question` and `text` per line,
    read instead of asking the thinking model; all of them train, so `test_problems` must be given
    for the later steps."""
    limit: Count = 1000
    """Problems taken in all, before they are split (of each file, where there are `test_problems`);
    of more traces, so many drawn at random."""
    test_fraction: Fraction = 0.4
    """Share of the problems kept for the final measurement."""
    selection_fraction: Fraction = 0.1
    """Share of the problems kept for choosing among seeds."""
    seed: int = 0
    """Seed of the problems' order (of the pair's own problems, and of the traces drawn)."""
    max_new_tokens: Count = 1024
    """Longest answer, in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature of the thinking model; 0 is greedy."""
    batch_size: Count = 64
    """Problems answered at a time."""
    segmenter: Literal["rule", "sat"] = "rule"
    """What cuts the thinking into sentences: the paper's `rule` (after `. ! ? ;` and newlines), or
    `sat`, a model that finds sentences by meaning (Segment any Text)."""
    sat_model: str = "sat-3l-sm"
    """The model of `sat`: a name on the hub, or a local folder that also holds its tokenizer."""

    @model_validator(mode="after")
    def _has_one_source(self) -> "CollectSettings":
        if self.traces is not None and self.problems is not None:
            raise ValueError(
                f"problems {self.problems!r} and traces {', '.join(self.traces)!r}; expected one "
                "of them, as traces bring their questions along"
            )
        if self.traces == ():
            raise ValueError("traces without a file; expected one JSONL file or more")
        return self

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> "CollectSettings":
        if self.test_fraction + self.selection_fraction >= 1:
            raise ValueError(
                f"test_fraction {self.test_fraction} and selection_fraction "
                f"{self.selection_fraction} leave no problems to train on; "
                "their sum must be below 1"
            )
        return self


class DiscoverSettings(JudgeSettings):
    """Discover: who reads, the grid of taxonomies, which of them is taken, and who names it."""

    reader: str | None = None
    """Model whose activations are read: a hub id, a folder or an embedded name such as `smollm2`;
    the thinking model itself where absent."""
    layers: tuple[int, ...] | None = None
    """Blocks whose output is read (0-based); the pair's own, or six spread ones, where absent."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = ("sae",)
    """How categories are found; the taxonomy is chosen among those of the first, the others stand
    beside it for comparison."""
    sizes: Annotated[tuple[Size, ...], Field(min_length=1)] = (
        5,
        10,
        15,
        20,
        25,
        30,
        35,
        40,
        45,
        50,
    )
    """Numbers of categories tried."""
    ks: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 3)
    """Latents kept per sentence, tried with every size (`sae` only)."""
    pca_dimensions: Count = 32
    """Principal components that the methods `pca-...` cluster."""
    min_words: Count = 3
    """Shorter sentences are left out of the training."""
    steps: Count = 2000
    """Training steps of every autoencoder."""
    sentences_per_step: Count = 1024
    """Sentences in one training batch."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    """Adam's step size at the start; it falls linearly to 0."""
    seeds: Annotated[tuple[int, ...], Field(min_length=2)] = (0, 1)
    """Seeds of initialisation and batches; of an autoencoder's the one that explains most is kept,
    and how far they agree is reported."""
    chosen_layer: int | None = None
    """Choose only among taxonomies of this layer."""
    chosen_size: Size | None = None
    """Choose only among taxonomies of this size."""
    chosen_k: Count | None = None
    """Choose only among autoencoders of this k."""
    chosen_method: Method | None = None
    """Choose only among taxonomies of this method."""
    batch_tokens: Count = 8192
    """Tokens read at a time, padding included."""
    bfloat16: bool = False
    """Read with matrix products in bfloat16: up to twice as fast where the processor has
    instructions for it, and nearly the same directions."""
    judge_local: str | None = None
    """Hub id or folder of a model on this machine that is the judge instead of an endpoint."""
    judge_cells: Count = 8
    """Taxonomies that the judge names and scores: those with the best offline scores."""
    judge_repeats: Count = 3
    """How often the judge scores a taxonomy, each time on another sample."""
    judge_sentences: Count = 200
    """Sentences of one category that the judge is shown for a name, and in one sample of a score,
    at most."""

    @model_validator(mode="after")
    def _is_a_grid(self) -> "DiscoverSettings":
        for name in ("layers", "methods", "sizes", "ks", "seeds"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{name} {list(values)}; expected one or more, each once")
        wishes = {"layer": self.layers, "size": self.sizes, "k": self.ks, "method": self.methods}
        for name, values in wishes.items():
            wish = getattr(self, f"chosen_{name}")
            if wish is not None and values is not None and wish not in values:
                raise ValueError(
                    f"chosen_{name} {wish} is not in the grid; expected one of {list(values)}"
                )
        return self

    @model_validator(mode="after")
    def _has_one_judge(self) -> "DiscoverSettings":
        if self.judge_url is not None and self.judge_local is not None:
            raise ValueError("both judge_url and judge_local name a judge; expected one of them")
        return self


class ElicitSettings(_Settings):
    """Elicit: steering vectors by one of the two published methods, and the self-gate."""

    method: Literal["decision", "span"] = "decision"
    """`decision` (second version) trains at single positions where the base would go elsewhere;
    `span` (first version) on whole sentences, after a bias vector."""
    form: Form | None = None
    """How a vector depends on the residual: `network` (a learned coefficient; what `decision` has
    by default), `linear` (not at all; what `span` has by default), `gated` or `low-rank`."""
    gate: Literal["taxonomy", "probe", "clusters"] = "taxonomy"
    """What names a decision: the taxonomy itself, a probe for the category of the coming sentence,
    or clusters of the decisions."""
    objective: Literal["token", "distribution"] = "token"
    """Cross-entropy on the token the thinking model wrote, or on its twenty likeliest ones."""
    on_policy_rounds: Annotated[int, Field(ge=0)] = 0
    """How often the hybrid answers the training problems, and its own decisions are added to what
    is trained on (`decision` only)."""
    layer: int | None = None
    """Block whose output is steered (0-based); the pair's own, or the middle one, where absent."""
    hidden: Count = 64
    """Width of the coefficient network."""
    rank: Count = 4
    """Rank of the maps of the form `low-rank`."""
    sentences_per_category: Count = 256
    """Sentences of each category that `span` trains on, at most."""
    min_words: Count = 3
    """Shorter sentences are not trained on (`span` only)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Trainings, of which the one with the lowest selection loss is kept."""
    steps: Count = 1000
    """Most training steps per seed."""
    batch_size: Count = 32
    """Rollouts per step."""
    vector_learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    """AdamW's step size for the vectors."""
    network_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """AdamW's step size for everything else."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's weight decay."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training rollouts held out for early stopping."""
    validate_every: Count = 25
    """Steps between two looks at the validation loss."""
    patience: Count = 4
    """Looks without improvement before the training stops."""
    probe_steps: Count = 2000
    """Training steps of the self-gate's probe."""
    probe_hidden: Count = 128
    """Width of the probe."""

    @property
    def chosen_form(self) -> Form:
        """The form asked for, or the method's own."""
        return self.form or ("network" if self.method == "decision" else "linear")

    @model_validator(mode="after")
    def _fits_together(self) -> "ElicitSettings":
        if self.method == "span" and self.gate == "clusters":
            raise ValueError(
                "gate clusters names decisions, but method span trains on sentences; expected gate "
                "taxonomy or probe with it"
            )
        if self.method == "span" and (self.on_policy_rounds or self.objective != "token"):
            raise ValueError(
                "method span knows neither on_policy_rounds nor objective distribution; expected "
                "method decision with them"
            )
        return self


class HybridSettings(_Settings):
    """Hybrid: decoding the test problems on every rung of the ladder."""

    max_new_tokens: Count = 1024
    """Longest answer, in tokens."""
    batch_size: Count = 64
    """Problems decoded at a time."""
    cache_policy: Literal["transient", "persistent"] = "transient"
    """Whether the key-value cache keeps unsteered (`transient`) or steered states."""
    strength: Literal["learned", "fixed", "sweep"] | None = None
    """How strongly to steer: as the vectors' own coefficient says (`decision` by default), by the
    first of `strengths`, or by the best of all `strengths` and `windows` under the thinking model
    (`span` by default)."""
    strengths: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Multiples of what the vectors add, for `fixed` and `sweep`."""
    windows: tuple[int | Literal["answer", "everything"], ...] = (1,)
    """Last positions steered, for `fixed` and `sweep`: numbers, `answer` (all of the answer so far)
    or `everything` (the prompt too)."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature of the base; 0 is greedy. Both models share the random numbers."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus: tokens outside the likeliest ones of this mass are not drawn."""
    seed: int = 0
    """Seed of the sampling."""
    block_tokens: Count = 8
    """Longest block that the base drafts before the thinking model looks; 1 is stepwise. The tokens
    are the same."""
    one_sided_tokens: Literal["ban", "allow"] = "ban"
    """Tokens that only one model's tokenizer knows, such as `</think>`: never written in a hybrid
    answer, or written where the base can read them."""
    random_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every random rung."""
    samples: Count = 1
    """Answers drawn per problem; more than one needs a temperature."""
    rungs: tuple[LadderRungName, ...] | None = None
    """Rungs to decode beside `base`, `hybrid` and `thinking`; all where absent."""
    knock_outs: bool = False
    """Whether the hybrid is decoded once more without each of its categories, and with each
    alone."""
    guardrail_top_k: Count = 5
    """Tokens of the base that the guardrail lets the thinking model choose from."""

    @model_validator(mode="after")
    def _samples_differ(self) -> "HybridSettings":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples {self.samples} with temperature 0 would all be equal; expected a "
                "temperature above 0 with more than one sample"
            )
        return self


class MeasureSettings(JudgeSettings):
    """Measure: grading and intervals. A judge stands beside the rules, which stay the measure."""

    mode: Literal["flexible", "strict"] = "flexible"
    """Grading mode of the headline numbers; both are reported. `strict` takes only an answer that
    is marked as one, `flexible` also reads the sentence that concludes."""
    bootstrap_samples: Count = 10_000
    """Resamplings of the problems behind every interval."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Mass inside an interval."""
    seed: int = 0
    """Seed of the resampling."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Longest time the grader may take for one answer."""
    judge_repeats: Count = 3
    """How often each answer is judged; the majority counts, so it must be odd."""

    @model_validator(mode="after")
    def _has_a_majority(self) -> "MeasureSettings":
        if self.judge_repeats % 2 == 0:
            raise ValueError(
                f"judge_repeats {self.judge_repeats} may end in a tie; expected an odd number"
            )
        return self


class PresentSettings(_Settings):
    """Present: the report."""

    examples: Annotated[int, Field(ge=0)] = 3
    """Hybrid answers shown in full."""


class RunSettings(_Settings):
    """All six steps."""

    collect: CollectSettings = CollectSettings()
    """Step 1."""
    discover: DiscoverSettings = DiscoverSettings()
    """Step 2."""
    elicit: ElicitSettings = ElicitSettings()
    """Step 3."""
    hybrid: HybridSettings = HybridSettings()
    """Step 4."""
    measure: MeasureSettings = MeasureSettings()
    """Step 5."""
    present: PresentSettings = PresentSettings()
    """Step 6."""


Overrides = dict[str, Any]
"""Nested settings as plain data, as read from YAML or made by a preset."""

PRESETS: dict[Preset, Overrides] = {
    "smoke": {
        "collect": {"limit": 60, "max_new_tokens": 160},
        "discover": {"sizes": (5, 10), "steps": 100},
        "elicit": {"seeds": (0,), "steps": 10, "validate_every": 5, "probe_steps": 50},
        "hybrid": {"max_new_tokens": 160, "random_seeds": (0,)},
        "measure": {"bootstrap_samples": 1000},
    },
    "small": {
        "collect": {"limit": 1000, "max_new_tokens": 160, "batch_size": 256},
        "discover": {
            "sizes": (5, 10, 15, 20, 25, 30),
            "steps": 1000,
            "sentences_per_step": 512,
        },
        "elicit": {"steps": 250, "probe_steps": 1000},
        "hybrid": {"max_new_tokens": 160, "batch_size": 256},
    },
    "paper": {"collect": {"limit": 12_000, "max_new_tokens": 2000}},
}


def merge(lower: Overrides, upper: Overrides) -> Overrides:
    """`upper` laid over `lower`, section by section."""
    merged = dict(lower)
    for key, value in upper.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = merge(merged[key], value)
        merged[key] = value
    return merged


_RENAMED = {
    "collect": {"cutter": "segmenter"},
    "elicit": {"practice_rounds": "on_policy_rounds"},
}
"""Settings that had another name, by section. The old one still works in files."""


def _with_new_names(layer: Overrides) -> Overrides:
    renamed = dict(layer)
    for section, names in _RENAMED.items():
        if isinstance(values := renamed.get(section), dict):
            renamed[section] = {names.get(key, key): value for key, value in values.items()}
    return renamed


def read_config(path: Path) -> Overrides:
    """Overrides from a YAML file.

    Raises:
        SettingsError: the file is missing, or is no YAML mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot read settings from {path}: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(
            f"{path} holds {type(content).__name__}; expected sections such as\n"
            "collect:\n  limit: 100"
        )
    return content


def make_settings(*layers: Overrides) -> RunSettings:
    """Settings from overrides, later ones over earlier ones.

    Raises:
        SettingsError: an unknown key, a wrong type or an impossible value.
    """
    merged: Overrides = {}
    for layer in layers:
        merged = merge(merged, _with_new_names(layer))
    try:
        return RunSettings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """What is wrong with the settings, found and expected, one clause per mistake."""
    return "; ".join(_explain(one) for one in error.errors())


def _explain(error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    if error["type"] != "extra_forbidden":
        return f"setting {'.'.join(path)}: {error['msg']}, found {error['input']!r}"
    section = type(getattr(RunSettings(), path[0])) if len(path) > 1 else RunSettings
    return f"unknown setting {'.'.join(path)!r}; expected one of: {', '.join(section.model_fields)}"
