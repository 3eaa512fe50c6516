"""Script for a child process: reads `.pt` files and writes their tensors to standard output.

Usage: python -P unpickle.py FILE... > tensors.safetensors. Keys are `NUMBER/KEY`, where NUMBER
counts the files. It imports torch and nothing of howwhen, so that the process starts quickly.
"""

import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save


def main(paths: list[str]) -> int:
    """Write the tensors of all files to standard output, or the reason not to standard error."""
    tensors = {}
    for number, path in enumerate(paths):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - the parent process raises with this reason
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
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if forbidden:
        return f"its pickle asks for {forbidden[1]}, which is no tensor"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _refuse(path: str, reason: str) -> int:
    sys.stderr.write(f"{Path(path).name}: {reason}")
    return 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
