"""What this machine computes with, and what a pair needs of it: a part of `howwhen doctor`."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from howwhen.settings import ElicitSettings, HybridSettings
from howwhen.zoo.pairs import Pair

if TYPE_CHECKING:
    from howwhen.lm.models import LanguageModel

MEMORY = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
DRIVER = Path("/proc/driver/nvidia/version")
"""Where Linux tells the version of NVIDIA's driver."""
BFLOAT16_CAPABILITY = (8, 0)
"""From which on NVIDIA's GPUs compute in bfloat16."""
PAYS = 0.9
"""Share of the time in float32 below which bfloat16 is worth it on a CPU."""
REPEATS = 5
TOKENS, WIDTH, HIDDEN = 16, 1024, 4096
"""Shape of the product that is timed: a few tokens through one map of a small model."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    what: str
    found: str
    advice: str = ""
    """What to type; empty if nothing needs to be done."""
    is_broken: bool = False


def examine_hardware() -> Iterator[Finding]:
    """Processor, memory and GPUs."""
    import torch

    cores = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    ratio = bfloat16_ratio()
    saves = f"products in bfloat16 take {ratio:.2g} times as long as in float32"
    yield Finding("processor", f"{cores}; {saves}", "--dtype bfloat16" if ratio < PAYS else "")
    if all(name in os.sysconf_names for name in MEMORY):
        page, pages = map(os.sysconf, MEMORY)
        yield Finding("memory", _gigabytes(page * pages))
    yield from _examine_gpus()


def bfloat16_ratio() -> float:
    """Time of a product in bfloat16 on the CPU, over the time in float32: a median of pairs."""
    import torch

    factors = torch.randn(TOKENS, WIDTH), torch.randn(WIDTH, HIDDEN)
    halved = tuple(factor.bfloat16() for factor in factors)

    def seconds(one: Any, other: Any) -> float:
        started = time.perf_counter()
        for _ in range(REPEATS):
            one @ other
        return time.perf_counter() - started

    seconds(*factors), seconds(*halved)
    return median(seconds(*halved) / seconds(*factors) for _ in range(REPEATS))


def _examine_gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        if DRIVER.exists():
            driver = DRIVER.read_text().splitlines()[0]
            yield Finding(
                "GPU",
                f"{driver}; torch {torch.__version__} cannot use it",
                "pip install torch (a build for CUDA)",
            )
        else:
            yield Finding("GPU", "none; models run on the CPU")
        return
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        dtype = "" if (card.major, card.minor) >= BFLOAT16_CAPABILITY else "--dtype float16"
        yield Finding(
            f"cuda:{number}",
            f"{card.name}, {_gigabytes(free)} of {_gigabytes(total)} free, compute capability "
            f"{card.major}.{card.minor}, torch {torch.__version__} for CUDA {torch.version.cuda}",
            dtype,
        )


def examine_need(pair: Pair) -> list[Finding]:
    """What the models of a pair take in memory, from their files, and what training may add.

    Raises:
        ModelError: a model whose files are not to be had.
    """
    from howwhen.elicit.objective import training_bytes

    outlines = {"base": pair.base_outline, "thinking": pair.thinking_outline}
    if pair.draft_source is not None:
        outlines["draft model"] = pair.draft_outline(pair.draft_source)
    budgets = ElicitSettings()
    probe = budgets.probe_positions * probe_bytes(pair.base_outline)
    findings = [
        Finding(
            f"{pair.title}: {role}",
            f"{_gigabytes(weight_bytes(model))} of weights ({model.numerics['dtype']}, "
            f"{model.numerics['device']}), {state_bytes(model) / 1024:.3g} KiB of states per token",
        )
        for role, model in outlines.items()
    ]
    base, decoded = outlines["base"], HybridSettings()
    step = training_bytes(base, pair.chosen_steer_layer, budgets, ANSWER)
    logits = decoding_bytes(base, decoded)
    return [
        *findings,
        Finding(
            f"{pair.title}: elicit",
            f"by default about {_gigabytes(step)} beside the base's weights (answers of {ANSWER} "
            f"tokens), and in host memory up to {budgets.states_gib:g} GiB of states, then "
            f"{_gigabytes(probe)} for the self-gate",
        ),
        Finding(
            f"{pair.title}: hybrid",
            f"by default about {_gigabytes(logits)} for logits on each device, beside weights and "
            f"the states of {decoded.batch_size} answers",
        ),
    ]


ANSWER = 2000
"""Tokens of a long answer."""
LOGIT_COPIES = 5
"""Arrays of the size of a round's logits that exist at a time while it is decided what to write."""


def decoding_bytes(model: "LanguageModel", settings: HybridSettings) -> int:
    """About how much memory a round of decoding takes, beside weights and states."""
    positions = settings.batch_size * settings.block_tokens
    return LOGIT_COPIES * positions * model.vocabulary_size * 4


def probe_bytes(base: "LanguageModel") -> int:
    """Memory of what the self-gate reads at one position: the residuals of two layers."""
    width = int(base.model.config.get_text_config().hidden_size)
    return int(2 * width * base.model.dtype.itemsize)


def weight_bytes(model: "LanguageModel") -> int:
    """Memory of a model's weights, each counted once.

    A CPU keeps the output embedding of a model of half precision in float32 too.
    """
    held: int = sum(parameter.nbytes for parameter in model.model.parameters())
    head = model.model.get_output_embeddings()
    is_widened = model.numerics["device"] == "cpu" and model.numerics["dtype"] != "float32"
    return held + (4 * int(head.weight.numel()) if is_widened and head is not None else 0)


def state_bytes(model: "LanguageModel") -> int:
    """Memory of the keys and values of one token."""
    config = model.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * model.layer_count * heads * width * model.model.dtype.itemsize)


def _gigabytes(size: int) -> str:
    unit, name = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB")
    return f"{size / unit:.3g} {name}"
