"""Run as a script, in a process of its own: reads `.pt` files and writes their tensors.

Usage: python unpickle.py FILE... > tensors.safetensors. Keys are `NUMBER/KEY`, NUMBER counting the
files. It imports torch and nothing of howwhen, so that the process starts fast.
"""

import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save


def main(paths: list[str]) -> int:
    """Write every file's tensors to standard output, or the reason why not to standard error."""
    tensors = {}
    for number, path in enumerate(paths):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - the parent raises with what is said here
            return _refuse(path, _reason(error))
        if not isinstance(content, dict):
            return _refuse(path, f"it holds {type(content).__name__}, expected a dict of tensors")
        for key, value in content.items():
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            # A copy: safetensors refuses tensors that share memory, as tied ones do.
            tensors[f"{number}/{key}"] = tensor.detach().clone(
                memory_format=torch.contiguous_format
            )
    sys.stdout.buffer.write(save(tensors))
    return 0


def _reason(error: Exception) -> str:
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if wanted:
        return f"its pickle asks for {wanted[1]}, which is no tensor"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _refuse(path: str, why: str) -> int:
    sys.stderr.write(f"{Path(path).name}: {why}")
    return 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
