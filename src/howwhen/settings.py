"""Settings: one class per step, saved with the step's output.

The command line, the YAML file and the documentation are made from these classes, so a default
lives here and nowhere else. A preset picks sizes for all steps at once; flags and files override
it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from howwhen.errors import SettingsError
from howwhen.records import LADDER, LadderRungName, PaperRungName

Count = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Price = Annotated[float, Field(ge=0)]
Gib = Annotated[float, Field(gt=0)]
Preset = Literal["smoke", "small", "paper"]
ConvertFormat = Literal["safetensors", "gguf", "saelens", "run", "published"]
"""What `howwhen convert` writes; the last two hold a taxonomy and its vectors together."""
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
"""Top-K sparse autoencoders, or a clustering (`pca-`: of principal components)."""
Compilation = Literal["trace", "inductor", "graphs"]
"""How passes of models are compiled."""
Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""Numbers that a model's weights and activations are held in."""
Attention = Literal["sdpa", "eager"]
"""Implementations of attention in transformers."""

GateKind = Literal["taxonomy", "probe", "clusters"]
"""The taxonomy itself, a probe for the next sentence's category, or clusters of
disagreements."""
Form = Literal["linear", "network", "gated", "low-rank"]
"""How a steering vector depends on the residual it is added to."""


def _check_device(value: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", value):
        raise ValueError("expected cpu, cuda or cuda:N (the GPU number N, from 0)")
    return value


Device = Annotated[str, AfterValidator(_check_device)]
"""`cpu`, `cuda`, `cuda:1`, ..."""


class _Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


def _or_none(value: Any) -> Any:
    """None for the words that mean "no text" on the command line."""
    return None if value in ("", "none", "None", "null") else value


class ModelSettings(_Settings):
    """Models: where each of them is, and in what precision it computes."""

    base_device: Device | None = None
    """Device of the base: cpu, cuda, cuda:1, ... Defaults to the first GPU, or the CPU if there is
    none."""
    thinking_device: Device | None = None
    """The same for the thinking model."""
    reader_device: Device | None = None
    """The same for `discover.reader`. Defaults to the thinking model's."""
    judge_device: Device | None = None
    """The same for `discover.judge_local`."""
    draft_device: Device | None = None
    """The same for `hybrid.draft_model`. Defaults to the base's."""
    dtype: Precision = "auto"
    """Numbers that weights and activations are held in. `auto` takes the checkpoint's own on a GPU,
    and float32 on a CPU."""
    attention: Attention | None = None
    """Implementation of attention. Defaults to the library's choice for the model."""
    device_map: Literal["auto"] | None = None
    """`auto` spreads each model over all GPUs (needs accelerate). Devices are not used then."""
    base_revision: str | None = None
    """Branch, tag or commit of the base on the hub. Defaults to the main branch."""
    thinking_revision: str | None = None
    """The same for the thinking model."""
    reader_revision: str | None = None
    """The same for `discover.reader`."""
    judge_revision: str | None = None
    """The same for `discover.judge_local`."""
    draft_revision: str | None = None
    """The same for `hybrid.draft_model`."""

    @model_validator(mode="after")
    def _is_mapped_or_placed(self) -> "ModelSettings":
        devices = [name for name in type(self).model_fields if name.endswith("_device")]
        given = [name for name in devices if getattr(self, name) is not None]
        if self.device_map is not None and given:
            raise ValueError(
                f"device_map {self.device_map} and {', '.join(given)}; expected one of them, as a "
                "device map chooses the devices"
            )
        return self


class JudgeSettings(_Settings):
    """Settings of the steps that can ask a judge. A judge is asked only if one is named."""

    judge_url: str | None = None
    """OpenAI-compatible endpoint of a judge, such as https://api.openai.com/v1. By default no
    endpoint is asked."""
    judge_model: str | None = None
    """The endpoint's name of the judging model."""
    judge_key_variable: Annotated[str | None, BeforeValidator(_or_none)] = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; `none` if the endpoint needs no key."""
    judge_prices: tuple[Price, Price] | None = None
    """Price per million tokens of prompts and of replies. Without it the cost is unknown."""
    judge_threads: Count = 8
    """Concurrent requests to the endpoint."""
    judge_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest time to wait for the endpoint, in seconds."""

    @model_validator(mode="after")
    def _names_its_model(self) -> "JudgeSettings":
        if self.judge_url is not None and self.judge_model is None:
            raise ValueError("judge_url without judge_model; expected the name of a model with it")
        for name in ("judge_model", "judge_prices"):
            if self.judge_url is None and getattr(self, name) is not None:
                raise ValueError(f"{name} without judge_url; expected the address of an endpoint")
        return self


def _as_sources(value: Any) -> Any:
    """One source as a tuple of one; None for the words that mean none."""
    value = _or_none(value)
    return (value,) if isinstance(value, str) else value


Sources = Annotated[tuple[str, ...], BeforeValidator(_as_sources), Field(min_length=1)]
"""One source of problems or several."""


class CollectSettings(_Settings):
    """Collect: which problems, and how the thinking model answers them."""

    problems: Sources | None = None
    """JSONL file (gzipped or not) with `question` and `answer` on each line, a published set
    (`gsm8k`, `math500`, ...) or `hub:ID/CONFIG@SPLIT`; `gsm8k[:500]` means the first 500. Several
    make a mix. Defaults to the pair's own problems."""
    selection_problems: Sources | None = None
    """The same, for selection among seeds. Defaults to a share of `problems`."""
    test_problems: Sources | None = None
    """The same, for the final measurement. Defaults to a share of `problems`."""
    traces: tuple[str, ...] | None = None
    """JSONL files (gzipped or not) of answers that exist already, with `question` and `text` on
    each line. They are read instead of asking the thinking model. All of them are used for
    training, so the later steps need `test_problems`."""
    limit: Count = 1000
    """Number of problems, before they are split, and of `selection_problems` and `test_problems`.
    Of a single file these are the first ones; of a mix and of traces this many are drawn at random.
    """
    test_limit: Count | None = None
    """The same for the problems of `test_problems`. Defaults to `limit`."""
    options: bool = True
    """Whether questions are asked with their options, where they have any."""
    test_fraction: Fraction = 0.4
    """Share of the problems kept for the final measurement."""
    selection_fraction: Fraction = 0.1
    """Share of the problems kept for selection among seeds."""
    seed: int = 0
    """Seed of the order of the problems, of the pair's own problems and of the traces drawn."""
    max_new_tokens: Count = 1024
    """Maximum length of an answer, in tokens."""
    temperature: Annotated[float, Field(ge=0)] | Literal["model"] = 0.0
    """Sampling temperature of the thinking model; 0 is greedy, `model` samples as its own
    generation config says."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling of the thinking model: only the most likely tokens with this total
    probability are drawn. With `temperature` as a number."""
    batch_size: Count = 64
    """Problems answered in one batch."""
    segmenter: Literal["rule", "sat"] = "rule"
    """How the thinking is split into sentences: by the paper's `rule` (after `. ! ? ;` and
    newlines), or by `sat`, a model that finds sentences by meaning (Segment any Text)."""
    sat_model: str = "sat-3l-sm"
    """Model of `sat`: a name on the hub, or a local folder that also holds its tokenizer."""

    @model_validator(mode="after")
    def _has_one_source(self) -> "CollectSettings":
        if self.traces is not None and self.problems is not None:
            raise ValueError(
                f"problems {', '.join(self.problems)!r} and traces {', '.join(self.traces)!r}; "
                "expected one of them, as traces bring their questions along"
            )
        if self.traces == ():
            raise ValueError("traces without a file; expected one JSONL file or more")
        return self

    @model_validator(mode="after")
    def _samples_in_one_way(self) -> "CollectSettings":
        if self.top_p < 1 and self.temperature in (0, "model"):
            raise ValueError(
                f"top_p {self.top_p} with temperature {self.temperature}; expected a temperature "
                "above 0 with it"
            )
        if self.test_limit is not None and self.test_problems is None:
            raise ValueError("test_limit without test_problems; expected both, or limit alone")
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
    """Discover: the model read, the grid of taxonomies, how one is chosen, and who names it."""

    taxonomy: str | None = None
    """A taxonomy that exists: the folder of another run, or a file of howwhen. It is taken as it
    is, with its titles, and no other is tried."""
    reader: str | None = None
    """Model whose activations are read: a hub id, a folder or an embedded name such as `smollm2`.
    Defaults to the thinking model."""
    layers: tuple[int, ...] | None = None
    """Blocks whose output is read (0-based). Defaults to the pair's own, or six evenly spread."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = ("sae",)
    """How categories are found. The taxonomy is chosen among those of the first method; the others
    are computed for comparison."""
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
    """Latents kept per sentence (the k of Top-K), tried with every size (`sae` only)."""
    pca_dimensions: Count = 32
    """Number of principal components that the `pca-...` methods cluster."""
    min_words: Count = 3
    """Sentences with fewer words are left out of the training."""
    trainer: Literal["clusters", "paper"] = "clusters"
    """How autoencoders are trained: from clusters of the sentences, in `steps`; or as in the
    `paper`, from random directions, in `epochs`."""
    steps: Count = 2000
    """Training steps of every autoencoder (trainer `clusters`)."""
    epochs: Count = 300
    """Maximum number of passes over the sentences (trainer `paper`)."""
    patience: Count = 10
    """Epochs without a lower training loss before the training stops (trainer `paper`)."""
    sentences_per_step: Count = 1024
    """Sentences in one training batch."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Adam's learning rate. Defaults to 0.01, decaying linearly to 0, for trainer `clusters`, and
    to 2e-4 / sqrt(size / 2^14) for trainer `paper`."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=2)] = (0, 1)
    """Seeds of initialisation and batches. The autoencoder that explains most variance is kept, and
    the agreement between seeds is reported."""
    chosen_layer: int | None = None
    """Choose only among taxonomies of this layer."""
    chosen_size: Size | None = None
    """Choose only among taxonomies of this size."""
    chosen_k: Count | None = None
    """Choose only among autoencoders of this k."""
    chosen_method: Method | None = None
    """Choose only among taxonomies of this method."""
    batch_tokens: Count = 8192
    """Tokens read in one batch, padding included."""
    bfloat16: bool = False
    """Read with matrix products in bfloat16: up to twice as fast on processors with instructions
    for it, with nearly the same directions."""
    judge_local: str | None = None
    """Hub id or folder of a local model that judges instead of an endpoint."""
    judge_cells: Count = 8
    """Number of taxonomies that the judge names and scores: those with the best offline scores."""
    judge_repeats: Count = 3
    """How often the judge scores a taxonomy, each time on a new sample."""
    judge_sentences: Count = 200
    """Maximum number of sentences of one category that the judge sees for a title, and in one
    sample of a score."""

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
    def _chooses_or_takes(self) -> "DiscoverSettings":
        names = [f"chosen_{name}" for name in ("layer", "size", "k", "method")]
        names += ["layers", "judge_url", "judge_local"]
        given = [name for name in names if getattr(self, name) is not None]
        if self.taxonomy is not None and given:
            raise ValueError(
                f"taxonomy {self.taxonomy!r} with {given[0]}; expected one of them, as nothing is "
                "searched, chosen or named where a taxonomy is given"
            )
        return self

    @model_validator(mode="after")
    def _has_one_judge(self) -> "DiscoverSettings":
        if self.judge_url is not None and self.judge_local is not None:
            raise ValueError("both judge_url and judge_local name a judge; expected one of them")
        return self


class ElicitSettings(_Settings):
    """Elicit: steering vectors by one of the two published methods, and the self-gate."""

    vectors: str | None = None
    """Vectors that exist: the folder of another run, with its gate and probe, or a file of howwhen.
    They are taken as they are, and nothing is trained."""
    method: Literal["decision", "span"] = "decision"
    """`decision` (second version) trains at single positions where the two models disagree; `span`
    (first version) trains on whole sentences, after a bias vector."""
    form: Form | None = None
    """How a vector depends on the residual: `network` (a coefficient network; the default of
    `decision`), `linear` (not at all; the default of `span`), `gated` or `low-rank`."""
    gate: GateKind = "taxonomy"
    """What gives a disagreement its category: the taxonomy itself, a probe for the category of the
    next sentence, or clusters of the disagreements."""
    objective: Literal["token", "distribution"] = "token"
    """Cross-entropy on the token the thinking model wrote, or on its twenty most likely tokens."""
    on_policy_rounds: Annotated[int, Field(ge=0)] = 0
    """Rounds in which the hybrid answers the training problems and the disagreements in its own
    answers are added to the training data (DAgger; `decision` only)."""
    layer: int | None = None
    """Block whose output is steered (0-based). Defaults to the pair's own, or the middle one."""
    part: Literal["answer", "thinking"] = "answer"
    """What of a rollout is trained on: all of it, or its thinking part alone. Sentences are always
    of the thinking part."""
    hidden: Count = 64
    """Width of the coefficient network."""
    rank: Count = 4
    """Rank of the maps of the `low-rank` form."""
    sentences_per_category: Count = 256
    """Maximum number of sentences per category that `span` trains on."""
    min_words: Count = 3
    """Sentences with fewer words are not trained on (`span` only)."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds of training, of which one is kept."""
    choose_by: Literal["loss", "gap"] = "loss"
    """What chooses among the seeds: the lowest loss on the selection rollouts, or the largest share
    of the gap that the hybrid recovers on the selection problems (paper, second version). The
    shared vector is chosen by its loss."""
    steps: Count = 1000
    """Maximum number of training steps per seed."""
    epochs: Count | None = None
    """The same in epochs, each as many steps as take in as many rollouts as there are. Overrides
    `steps`."""
    batch_size: Count = 32
    """Rollouts per step."""
    vector_learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    """AdamW's learning rate for the vectors."""
    network_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """AdamW's learning rate for everything else."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient of everything but the vectors; larger ones are scaled down."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's weight decay."""
    vector_start: Literal["zero", "unit"] = "zero"
    """What vectors start from: zero, or a random direction of norm 1 (paper, first version)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rates over the training: constant, or falling to 0 as a cosine (paper, first
    version)."""
    logit_scale: Annotated[float, Field(gt=0)] = 1.0
    """What the base's logits are multiplied by in the loss; 0.7 in the paper's first version."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training questions that early stopping looks at."""
    stop_by: Literal["held-out", "train", "selection"] = "held-out"
    """Whose loss stops the training and chooses its best state: of questions `held-out` from it, of
    as many that it is trained on too (`train`; paper, first version), or of the `selection`
    questions (paper, second version)."""
    validate_every: Count | Literal["epoch"] = 25
    """Steps between two evaluations of that loss; `epoch` for as many as take in as many rollouts
    as there are."""
    patience: Count = 4
    """Evaluations without improvement before the training stops."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Smallest fall of that loss, in nats, that counts as an improvement."""
    positions_per_category: Count | None = None
    """Maximum number of disagreements of one category that are trained on, or validated on, in a
    training answer, drawn at random if there are more (`decision` only); 64 in the paper's second
    version."""
    probe_steps: Count = 2000
    """Training steps of the self-gate's probe."""
    probe_hidden: Count = 128
    """Width of the probe."""
    positions_per_pass: Count = 16_384
    """Memory: positions of answers, padding included, that go through a model at a time. A batch
    with more is split, and its gradients are added up."""
    positions_per_answer: Count = 256
    """Memory: steered positions of an answer whose loss counts in one training step. Where there
    are more, they are drawn anew at each step."""
    logits_gib: Gib = 0.5
    """Memory: GiB for logits, which are computed for as many positions at a time as fit."""
    activations_gib: Gib = 2.0
    """Memory: GiB for what a training step keeps for its backward pass. With more, every block is
    computed again in the backward pass instead, with the same result."""
    states_gib: Gib = 4.0
    """Memory: GiB in the host's memory for the keys and values that training attends to. Answers
    whose states do not fit at the same time are trained on in turn, by all seeds together. Where
    not even a batch fits, all seeds draw from the same one."""
    validation_answers: Count = 64
    """Maximum number of questions held out for early stopping."""
    gate_decisions: Count = 50_000
    """Memory: disagreements that gates are fitted on and compared on, drawn at random if there are
    more."""
    probe_positions: Count = 400_000
    """Memory: positions of the answers that the self-gate learns from, drawn at random if there are
    more; each on-policy round adds as many. Their activations are held while it learns."""

    @property
    def chosen_form(self) -> Form:
        """The form that was set, or the method's default."""
        return self.form or ("network" if self.method == "decision" else "linear")

    @model_validator(mode="after")
    def _trains_or_takes(self) -> "ElicitSettings":
        names = ("layer", "form", "objective", "on_policy_rounds", "choose_by")
        fields = type(self).model_fields
        changed = [name for name in names if getattr(self, name) != fields[name].default]
        if self.vectors is not None and changed:
            raise ValueError(
                f"vectors {self.vectors!r} with {changed[0]}; expected one of them, as nothing is "
                "trained where vectors are given"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "ElicitSettings":
        if self.method == "span" and self.gate == "clusters":
            raise ValueError(
                "gate clusters groups disagreements, but method span trains on sentences; expected "
                "gate taxonomy or probe with it"
            )
        if self.part == "thinking" and self.on_policy_rounds:
            raise ValueError(
                "part thinking with on_policy_rounds: the hybrid's own answers have no thinking "
                "part; expected part answer with them"
            )
        if self.method == "span" and self.positions_per_category is not None:
            raise ValueError(
                "positions_per_category caps disagreements, but method span trains on sentences; "
                "expected sentences_per_category with it"
            )
        if self.method == "span" and (self.on_policy_rounds or self.objective != "token"):
            raise ValueError(
                "method span has neither on_policy_rounds nor objective distribution; expected "
                "method decision with them"
            )
        return self


Window = Count | Literal["answer", "everything"] | Annotated[str, Field(pattern=r"^text-[1-9]\d*$")]
"""Positions that are steered together."""


AskedRung = LadderRungName | PaperRungName | Literal["all", "paper"]
"""A rung that can be asked for, or a group of them."""


class HybridSettings(_Settings):
    """Hybrid: decoding the test problems on every rung of the ladder."""

    max_new_tokens: Count = 1024
    """Maximum length of an answer, in tokens."""
    batch_size: Count = 64
    """Problems decoded side by side; as answers end, the next problems take their places."""
    cache_policy: Literal["transient", "persistent"] = "transient"
    """Whether the key-value cache keeps unsteered (`transient`) or steered (`persistent`)
    states."""
    strength: Literal["learned", "fixed", "sweep"] | None = None
    """How strongly to steer (coefficient, alpha): by the learned coefficient (the default of
    `decision`), by the first of `strengths`, or by a sweep over all `strengths` and `windows` that
    keeps the token most likely under the thinking model (the default of `span`)."""
    strengths: Annotated[tuple[float, ...], Field(min_length=1)] = (
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
        1.0,
    )
    """Multiples of what the vectors add, for `fixed` and `sweep`."""
    windows: Annotated[tuple[Window, ...], Field(min_length=1)] | None = None
    """How many of the last positions are steered, for `fixed` and `sweep`: numbers of positions of
    the answer, `answer` (all of it so far), `everything` (the prompt too; the default of `span`) or
    `text-15` (the last 15 of prompt and answer). Defaults to 1 for `decision`."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature of the base; 0 is greedy. Both models share the random numbers."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: only the most likely tokens with this total probability are drawn."""
    thinking_temperature: Annotated[float, Field(ge=0)] | None = None
    """Sampling temperature of the rung `thinking`. Defaults to `temperature`."""
    thinking_top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """The same for `top_p`."""
    thinking_samples: Count | None = None
    """Answers per problem of the rung `thinking`. Defaults to `samples`."""
    seed: int = 0
    """Seed of the sampling."""
    block_tokens: Count = 16
    """Maximum number of tokens that are guessed, or written ahead by the base, before both models
    have read them (speculative decoding); 1 is token by token. The answers are the same."""
    compile: Compilation | None = None
    """Compile the passes of all models, decisions, and steering of single positions: `inductor`;
    `graphs` replays CUDA graphs too; `trace` generates no code but proves that it could be. Each
    number of answers, of tokens (1, 4, 16) and of columns (512, 2048, ...) is compiled once per
    process, and decisions once per rung, in half a minute or more. The answers are the same up
    to ties."""
    draft_model: Annotated[str | None, BeforeValidator(_or_none)] = None
    """A small third model of the same vocabulary, by hub id or folder, that writes ahead for both
    (speculative decoding). Defaults to the pair's; `none` to do without. The answers are the
    same."""
    one_sided_tokens: Literal["ban", "allow"] = "ban"
    """Tokens that only one tokenizer has, such as `</think>`: never written in a hybrid answer, or
    written if the base can read them."""
    random_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every random rung."""
    samples: Count = 1
    """Answers per problem; more than one needs a temperature above 0."""
    rungs: tuple[AskedRung, ...] | None = None
    """Rungs to decode in addition to `base`, `hybrid` and `thinking`: names, `all` of the ladder,
    or the ablations of the `paper`. By default those that the ladder needs most."""
    knock_outs: bool = False
    """Whether to decode the hybrid again without each of its categories, and with each alone."""
    budgets: bool = False
    """Whether to decode hybrid, self-gate and takeover again with smaller budgets: at the
    disagreements alone that matter most (budget curves)."""
    guardrail_top_k: Count = 5
    """Number of the base's most likely tokens that the rung `guardrail-only` lets the thinking
    model choose from."""
    logit_alpha: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the difference between the two models' logits that the rung `logit-difference` adds
    to the base's."""

    def of_rung(self, name: str) -> "HybridSettings":
        """The settings that a rung is decoded with."""
        if name != "thinking":
            return self
        own = {"temperature": self.thinking_temperature, "top_p": self.thinking_top_p}
        return self.model_copy(update={key: one for key, one in own.items() if one is not None})

    def samples_of(self, name: str) -> int:
        """How often each problem is answered on a rung."""
        if name != "thinking":
            return self.samples
        is_greedy = self.of_rung(name).temperature == 0
        return self.thinking_samples or (1 if is_greedy else self.samples)

    @model_validator(mode="after")
    def _names_rungs(self) -> "HybridSettings":
        if self.rungs is not None and "all" in self.rungs:
            others = [name for name in self.rungs if name in LADDER]
            if others:
                raise ValueError(
                    f"rungs all and {', '.join(others)}; expected all, or names of rungs"
                )
        return self

    @model_validator(mode="after")
    def _samples_differ(self) -> "HybridSettings":
        if self.thinking_top_p is not None and self.of_rung("thinking").temperature == 0:
            raise ValueError(
                f"thinking_top_p {self.thinking_top_p} with temperature 0; expected "
                "thinking_temperature above 0 with it"
            )
        for name, prefix in (("hybrid", ""), ("thinking", "thinking_")):
            samples = self.samples_of(name)
            if samples > 1 and self.of_rung(name).temperature == 0:
                raise ValueError(
                    f"{prefix}samples {samples} with {prefix}temperature 0 would all be equal; "
                    "expected a temperature above 0 with more than one sample"
                )
        return self


class MeasureSettings(JudgeSettings):
    """Measure: grading and intervals. A judge is reported next to the rules, which decide."""

    mode: Literal["flexible", "strict"] = "flexible"
    """Grading mode of the headline numbers; both are reported. `strict` accepts only an answer that
    is marked as one, `flexible` also reads the concluding sentence."""
    bootstrap_samples: Count = 10_000
    """Bootstrap samples behind every interval."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of every interval."""
    seed: Seed = 0
    """Seed of the bootstrap."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Longest time the grader may take for one answer, in seconds."""
    judge_repeats: Count = 3
    """How often each answer is judged. The majority counts, so the number must be odd."""
    judge_disputed: bool = False
    """Ask the judge only about answers that are disputed, and about a random sample of all. Sets
    `audit`."""
    judge_sample: Count = 100
    """Size of that sample."""
    audit: bool = False
    """Read every answer a second time, by Math-Verify's own rules, and report where the two readers
    differ (disputed answers)."""

    @model_validator(mode="after")
    def _has_a_majority(self) -> "MeasureSettings":
        if self.judge_repeats % 2 == 0:
            raise ValueError(
                f"judge_repeats {self.judge_repeats} may end in a tie; expected an odd number"
            )
        return self

    @model_validator(mode="after")
    def _judges_what_there_is(self) -> "MeasureSettings":
        if self.judge_disputed and self.judge_url is None:
            raise ValueError("judge_disputed without judge_url; expected an endpoint's address")
        return self

    @property
    def reads_twice(self) -> bool:
        """Whether every answer is read by a second reader."""
        return self.audit or self.judge_disputed


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
    models: ModelSettings = ModelSettings()
    """Where the models are."""

    @property
    def trains(self) -> bool:
        """Whether anything is found or trained. Where not, the test problems are all there is."""
        return self.discover.taxonomy is None or self.elicit.vectors is None

    @model_validator(mode="after")
    def _places_only_what_there_is(self) -> "RunSettings":
        sources = {
            "reader": ("discover.reader", self.discover.reader),
            "judge": ("discover.judge_local", self.discover.judge_local),
            "draft": ("hybrid.draft_model", self.hybrid.draft_model),
        }
        for role, (setting, source) in sources.items():
            for what in ("device", "revision"):
                if source is None and getattr(self.models, f"{role}_{what}") is not None:
                    raise ValueError(
                        f"models.{role}_{what} is set, but no model is named by {setting}"
                    )
        return self


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
            "sizes": (5, 10, 15, 20),
            "steps": 1000,
            "sentences_per_step": 512,
        },
        "elicit": {"seeds": (0, 1), "steps": 250, "probe_steps": 1000},
        "hybrid": {"max_new_tokens": 160, "batch_size": 256},
    },
    "paper": {
        "collect": {"limit": 12_000, "max_new_tokens": 2048},
        "elicit": {"hidden": 512},
        "hybrid": {"max_new_tokens": 2048},
    },
}


def merge(lower: Overrides, upper: Overrides) -> Overrides:
    """`lower` overridden by `upper`, section by section. An empty section overrides nothing.

    Raises:
        SettingsError: a section that holds something other than settings.
    """
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key) or {}
        if isinstance(value, Mapping | None) and isinstance(below, Mapping):
            merged[key] = {**below, **(value or {})}
        elif key in RunSettings.model_fields:
            raise SettingsError(
                f"setting {key}: found {value!r}, expected settings of {key} by name"
            )
        else:
            merged[key] = value  # refused by validation, with the names there are
    return merged


_RENAMED = {
    "collect": {"cutter": "segmenter"},
    "elicit": {"practice_rounds": "on_policy_rounds"},
}
"""Settings that had another name, by section. The old one still works in files."""


def _with_new_names(layer: Overrides) -> Overrides:
    renamed = dict(layer)
    for section, names in _RENAMED.items():
        if isinstance(values := renamed.get(section), Mapping):
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


def read_prompt(value: str) -> str:
    """A prompt as given, or the one in a file after `@`, without its last line break.

    Raises:
        SettingsError: the file cannot be read.
    """
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"cannot read a prompt from {value[1:]}: {error}; expected a text file with "
            "{question} in it after the @"
        ) from error


def read_template_arguments(value: str) -> dict[str, Any]:
    """Template arguments from JSON, or from a file of JSON after `@`.

    Raises:
        SettingsError: it is no JSON object, or the file cannot be read.
    """
    try:
        content = Path(value[1:]).read_text() if value.startswith("@") else value
        found = json.loads(content)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"cannot read template arguments from {value!r}: {error}; expected a JSON object such "
            "as '{\"enable_thinking\": true}', or @FILE.json"
        ) from error
    if not isinstance(found, dict):
        raise SettingsError(
            f"template arguments {value!r} are no JSON object; expected names with values, such as "
            "'{\"enable_thinking\": true}'"
        )
    return found


def make_settings(*layers: Overrides) -> RunSettings:
    """Settings from overrides. Later ones override earlier ones.

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
    """What is wrong with the settings, one clause per mistake."""
    return "; ".join(_explain(one) for one in error.errors())


def _explain(error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    if error["type"] == "value_error":  # a sentence of ours
        words = str(error["ctx"]["error"])
        return f"setting {'.'.join(path)}: {words}" if path else words
    if error["type"] != "extra_forbidden":
        return f"setting {'.'.join(path)}: {error['msg']}, found {error['input']!r}"
    section = type(getattr(RunSettings(), path[0])) if len(path) > 1 else RunSettings
    return f"unknown setting {'.'.join(path)!r}; expected one of: {', '.join(section.model_fields)}"
