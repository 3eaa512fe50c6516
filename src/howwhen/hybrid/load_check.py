"""Whether a model that was just loaded can be read as `Streams` read it, tried on dummy prompts."""

import torch
from jaxtyping import Float
from torch import Tensor

from howwhen.errors import ModelError
from howwhen.hybrid.places import Places
from howwhen.hybrid.streams import open_streams
from howwhen.lm.models import LanguageModel


@torch.no_grad()
def check_streams(model: LanguageModel, layer: int) -> None:
    """Prove on dummy prompts that caching, masking, rolling back and branching change no logits.

    Raises:
        ModelError: a model whose attention cannot be masked column by column.
    """
    needs = "howwhen needs a decoder whose attention takes a mask and whose cache can be cropped"
    what = f"{model.name} ({type(model.model).__name__})"
    try:
        is_same = _is_same_with_a_cache(model, layer)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{what} cannot be read with a masked cache ({error}); {needs}") from error
    if not is_same:
        raise ModelError(f"{what} gives other logits with a masked cache than without; {needs}")


_TEXT = "Tom has 3 apples and buys 2 more apples, so he has 5 apples. Then he eats 1 apple."
"""Read to check a model: what comes first matters for what follows."""
CHECKED_TOKENS = {"cpu": 1100, "cuda": 8300}
"""By kind of device, the longest text that is read to check a model: enough for most windows."""


def _is_same_with_a_cache(model: LanguageModel, layer: int) -> bool:
    """Whether streams with many rolled back tokens read as plain passes do.

    The longer text crosses the window that the model's config names, or fills it where no answer
    may be longer.

    In half precision, kernels for other shapes give other logits. How far off logits are is
    therefore compared with what tokens that a mask should hide would do to them.
    """
    device = model.device
    ids = list(model.tokenizer(_TEXT, add_special_tokens=False)["input_ids"])
    longest = _checked_length(model)
    long, short = (ids * (longest // len(ids) + 1))[: longest - 2], ids[:3]
    streams = open_streams(model, [long, long], steer_layer=layer)
    streams.rollback([0, len(long) - len(short)])  # what lies behind is as much as can be
    following = [[prompt[-1], *ids[-3:-1]] for prompt in (long, short)]
    streams.extend(torch.tensor(following, device=device))
    streams.rollback([1, 2])
    streams.extend(torch.tensor([ids[-2:-1], ids[-1:]], device=device))
    nothing = torch.zeros(2, 2, 1, model.model.config.hidden_size, device=model.layer_device(layer))
    last = Places([0, 1], [length - 1 for length in streams.lengths], [1, 1], device)
    branched = streams.branch(last, nothing).logits
    for row, text in enumerate([[*long, *ids[-3:-1]], [*short, ids[-1]]]):
        plain = _last_logits(model, text)
        hidden = [*ids[3:8], *text][-(model.context or longest) :]
        strayed = _distance(_last_logits(model, hidden), plain)
        limit = 0.02 if model.rounding < 1e-4 else max(0.02, strayed / 3)
        found = [streams.logits[row, -1], *branched[row]]
        if max(_distance(logits, plain) for logits in found) > limit:
            return False
    return True


def _last_logits(model: LanguageModel, text: list[int]) -> Float[Tensor, " vocabulary"]:
    ids = torch.tensor([text], device=model.device)
    logits: Tensor = model.model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
    return logits


def _checked_length(model: LanguageModel) -> int:
    """Tokens of the longer text of the check: beyond a window, but within the context."""
    limit = CHECKED_TOKENS.get(model.device.type, CHECKED_TOKENS["cpu"])
    crossing = 0 if model.window is None else model.window + 4
    wanted = max(10, crossing if crossing <= limit else 0)
    return min(wanted, model.context or wanted)


def _distance(found: Tensor, expected: Tensor) -> float:
    """Of logits, relative to how far they spread."""
    spread = (expected - expected.mean()).norm()
    return float((found.to(expected.device) - expected).norm() / spread)
