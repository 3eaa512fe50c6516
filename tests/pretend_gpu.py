"""A GPU that is not there: real values on the CPU, in tensors whose device says `cuda:0`.

It runs the package's code as a GPU would take it. Tensors on different devices cannot meet, CPU
generators cannot fill GPU tensors, and `numpy()` is refused. Each point at which the host would
wait for the device is counted, by line of the package, and so is each kernel that would be
launched. Nothing is said of kernels, rounding, memory or speed.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode

from howwhen.lm.models import LanguageModel
from howwhen.lm.residual import find_blocks

aten = torch.ops.aten
CPU = torch.device("cpu")
CROSSES_DEVICES = {aten.copy_.default, aten._to_copy.default}
INDEXES = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
"""A GPU tensor takes CPU indices, which are copied while the host waits."""
WAITS = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.unique_dim.default,
}
"""Their result, or its size, is read by the host."""
LAUNCHES_NOTHING = {
    aten._unsafe_view.default,
    aten.alias.default,
    aten.as_strided.default,
    aten.detach.default,
    aten.expand.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.squeeze.dim,
    aten.t.default,
    aten.transpose.int,
    aten.unbind.int,
    aten.unsqueeze.default,
    aten.view.default,
}
FACTORIES: dict[Any, bool] = {
    torch.arange: False,
    torch.empty: False,
    torch.eye: False,
    torch.full: False,
    torch.linspace: False,
    torch.ones: False,
    torch.rand: False,
    torch.randint: False,
    torch.randn: False,
    torch.scalar_tensor: True,
    torch.tensor: True,
    torch.zeros: False,
}
"""Whether their values come from the host."""
RANDOM = {"bernoulli_", "exponential_", "multinomial", "normal_", "rand", "randint", "uniform_"}


class DeviceError(RuntimeError):
    """What a real GPU would refuse."""


class PretendTensor(Tensor):
    """Values on the CPU, and the device they pretend to be on."""

    content: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls: type["PretendTensor"], real: Tensor, place: torch.device) -> "PretendTensor":
        made: PretendTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            layout=real.layout,
            device=CPU,
            requires_grad=real.requires_grad,
        )
        made.content, made.place = real.detach(), place
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def data_ptr(self) -> int:
        return self.content.data_ptr()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({self.content!r}, {self.place})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return args[0].place
        tensors = list(_tensors((args, kwargs)))
        place = _check_places(func, args, tensors)
        _count(func, args, tensors)
        result = func(*_mapped(args, _real), **_mapped(kwargs, _real))
        if _returns_its_first(func, args, result):
            return args[0]
        return _mapped(result, lambda value: _placed(value, place))


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nested lists, tuples and dicts with all that they hold changed."""
    if isinstance(value, list | tuple):
        return type(value)([_mapped(part, change) for part in value])
    if isinstance(value, dict):
        return {name: _mapped(part, change) for name, part in value.items()}
    return change(value)


def _real(value: Any) -> Any:
    return value.content if isinstance(value, PretendTensor) else value


def _placed(value: Any, place: torch.device) -> Any:
    is_bare = isinstance(value, Tensor) and not isinstance(value, PretendTensor)
    return PretendTensor(value, place) if is_bare else value


def place_of(tensor: Tensor) -> torch.device:
    return tensor.place if isinstance(tensor, PretendTensor) else CPU


def _check_places(func: Any, args: Any, tensors: Sequence[Tensor]) -> torch.device:
    """The device of the result. Scalars of the CPU may meet any device."""
    own = [t for t in tensors if isinstance(t, PretendTensor)]
    places = {place_of(tensor) for tensor in tensors if tensor.dim() or place_of(tensor) != CPU}
    if func in INDEXES and place_of(args[0]) != CPU:
        index = list(_tensors(args[1]))
        others = {place_of(args[0])} | {place_of(t) for t in args[2:3] if t.dim()}
        if len({*others, *(place_of(t) for t in index if place_of(t) != CPU)}) == 1:
            return place_of(args[0])
    if func not in CROSSES_DEVICES and len(places) > 1:
        raise DeviceError(
            f"expected all tensors on the same device, found {sorted(map(str, places))} in {func} "
            f"at {line_of_package()}"
        )
    return place_of(args[0]) if func is aten.copy_.default else own[0].place


def _returns_its_first(func: Any, args: Any, result: Any) -> bool:
    return bool(func._schema.is_mutable) and args and result is _real(args[0])


class Ledger:
    """What a device had to do, until it is cleared."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        """By line of the package and operation."""
        self.reads: Counter[str] = Counter()
        """Those at which the host wants a result, and not just to hand something over."""
        self.launches = 0

    def clear(self) -> None:
        self.waits.clear()
        self.reads.clear()
        self.launches = 0


LEDGER = Ledger()


def line_of_package() -> str:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if "/howwhen/" in file and "site-packages" not in file:
            return f"{file.rpartition('/howwhen/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _wait(what: str, *, is_read: bool = True) -> None:
    place = f"{line_of_package()} {what}"
    LEDGER.waits[place] += 1
    LEDGER.reads[place] += is_read


def _count(func: Any, args: Any, tensors: Sequence[Tensor]) -> None:
    if func in INDEXES:
        for index in _tensors(args[1]):
            if index.dtype in (torch.bool, torch.uint8):
                _wait("index by truth values")
            elif place_of(index) == CPU:
                _wait("index from the CPU", is_read=False)
    if func in WAITS:
        _wait(func.__name__)
    if func is aten.copy_.default and place_of(args[0]) != place_of(args[1]) and args[1].dim():
        _wait("copy_ between devices", is_read=place_of(args[0]) == CPU)
    LEDGER.launches += func not in LAUNCHES_NOTHING


class PretendMode(TorchFunctionMode):
    """Makes and moves pretend tensors where code asks for a device."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("to", "cpu", "cuda", "type_as") and args and isinstance(args[0], Tensor):
            return _move(name, args, kwargs)
        if name in ("tolist", "numpy") and args and isinstance(args[0], PretendTensor):
            if name == "numpy":
                raise DeviceError(f"numpy() of a GPU tensor at {line_of_package()}")
            _wait(name)
            return getattr(args[0].content, name)()
        if name in RANDOM and args and isinstance(args[0], PretendTensor) and "generator" in kwargs:
            raise DeviceError(f"a CPU generator for a GPU tensor at {line_of_package()}")
        if func is torch.autograd.backward:
            # What a backward pass computes again must be watched too, so the mode stays on.
            ((loss,),) = args
            with self:
                _engine_run_backward(
                    (loss,),
                    (torch.ones_like(loss),),
                    False,
                    False,
                    (),
                    allow_unreachable=True,
                    accumulate_grad=True,
                )
            return None
        if name == "mm" and "out_dtype" in kwargs:
            dtype = kwargs.pop("out_dtype")
            return func(*(arg.to(dtype) for arg in args), **kwargs)
        place = kwargs.get("device")
        if place is None or torch.device(place) == CPU:
            return func(*args, **kwargs)
        del kwargs["device"]
        if FACTORIES.get(func):
            _wait("values from the host", is_read=False)
        return _placed(func(*args, **kwargs), torch.device(place))


def _move(name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """`to` and its relatives: another device, another type of number, or both."""
    tensor: Tensor = args[0]
    place = {"cpu": CPU, "cuda": torch.device("cuda:0")}.get(name, kwargs.get("device"))
    dtype = kwargs.get("dtype")
    for arg in args[1:]:
        if isinstance(arg, Tensor):
            place, dtype = place_of(arg), arg.dtype
        elif isinstance(arg, torch.dtype):
            dtype = arg
        elif isinstance(arg, str | torch.device):
            place = torch.device(arg)
    if place is not None and torch.device(place) != place_of(tensor):
        place = torch.device(place)
        _wait(f"to {place}", is_read=place == CPU)
        moved: Tensor = _Moved.apply(tensor, place)  # type: ignore[no-untyped-call]
        tensor = moved
    return tensor if dtype is None or dtype == tensor.dtype else tensor.type(dtype)


class _Moved(torch.autograd.Function):
    """A copy on another device, whose gradient goes back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, place: torch.device) -> Tensor:
        ctx.place = place_of(tensor)
        return _copied(tensor, place)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _copied(gradient, ctx.place), None


def _copied(tensor: Tensor, place: torch.device) -> Tensor:
    real: Tensor = _real(tensor)
    return real.view_as(real) if place == CPU else PretendTensor(real, place)


def put(module: nn.Module, place: torch.device) -> None:
    """Move a module's weights, for good."""
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None:
                moved = PretendTensor(_real(weight.data), place)
                part._parameters[name] = nn.Parameter(moved, requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = PretendTensor(_real(buffer), place)


def split(model: LanguageModel, first: torch.device, second: torch.device) -> None:
    """Put the second half of a model's blocks, its last norm and its head on another device.

    As accelerate does it, whatever enters a block, the norm or the head is moved to its device, and
    logits come back to the device of the token ids.
    """
    whole, blocks = model.model, find_blocks(model.model)
    half = len(blocks) // 2
    put(whole, first)
    for module in (*blocks, whole.base_model.norm, whole.get_output_embeddings()):
        place = first if any(module is block for block in blocks[:half]) else second
        put(module, place)
        module.register_forward_pre_hook(_bring_to(place), with_kwargs=True)
    whole.register_forward_hook(lambda _module, _args, output: _brought(output, first))


def _brought(output: Any, place: torch.device) -> Any:
    """What a whole model returns, on the device of what it got."""
    output.logits = output.logits.to(place)
    return output


def _bring_to(place: torch.device) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Any:
        def bring(value: Any) -> Any:
            return value.to(place) if isinstance(value, Tensor) else value

        return _mapped(args, bring), _mapped(dict(kwargs), bring)

    return hook


@contextmanager
def pretending() -> Iterator[Ledger]:
    """Within the context, code can ask for devices that say `cuda:N`."""
    LEDGER.clear()
    with pytest.MonkeyPatch.context() as patch, PretendMode():
        fork = torch.random.fork_rng
        patch.setattr(
            torch.random, "fork_rng", lambda devices=None, enabled=True, **_: fork([], enabled)
        )
        yield LEDGER
