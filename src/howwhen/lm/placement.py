"""Where a model is put, and in what precision it computes. Nothing heavy is imported before use."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from howwhen.errors import ModelError
from howwhen.settings import Attention, ModelSettings, Precision

if TYPE_CHECKING:
    import torch

Role = Literal["base", "thinking", "reader", "judge", "draft"]
"""What a model does in a run."""


@dataclass(frozen=True)
class Placement:
    """How to load one model. The defaults are those of `ModelSettings`."""

    device: str | None = None
    """None for the first GPU, or the CPU if there is none."""
    dtype: Precision = "auto"
    attention: Attention | None = None
    device_map: Literal["auto"] | None = None
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    @classmethod
    def of(cls, settings: ModelSettings, role: Role) -> "Placement":
        """That of a role."""
        device = getattr(settings, f"{role}_device")
        if device is None and role in ("reader", "draft"):
            device = settings.thinking_device if role == "reader" else settings.base_device
        return cls(
            device,
            settings.dtype,
            settings.attention,
            settings.device_map,
            getattr(settings, f"{role}_revision"),
        )

    def find_device(self) -> "torch.device":
        """The device meant; with a device map that of the first block.

        Raises:
            ModelError: this machine, or this torch, does not have it.
        """
        import torch

        if self.device is None or self.device_map is not None:
            return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        device = torch.device(self.device)
        if device.type == "cuda":
            _check_gpu(device)
            return torch.device("cuda", device.index or 0)
        return device

    def find_dtype(self, config: Any) -> "torch.dtype":
        """The type of number that weights and activations are held in.

        Args:
            config: of the checkpoint.
        """
        import torch

        own = getattr(config, "dtype", None) or torch.float32
        if self.dtype != "auto":
            chosen: torch.dtype = getattr(torch, self.dtype)
            return chosen
        is_quantised = getattr(config, "quantization_config", None) is not None
        is_on_cpu = self.find_device().type == "cpu"
        return torch.float32 if is_on_cpu and not is_quantised else own


def _check_gpu(device: "torch.device") -> None:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        found = ", ".join(f"cuda:{number}" for number in range(count)) or "no GPU"
        raise ModelError(
            f"there is no {device}: torch {torch.__version__} finds {found} here. Choose another "
            "device, such as cpu; `howwhen doctor` shows what this machine has"
        )
