"""Reading the tensors of `.pt` files without running their code.

A `.pt` file is a pickle, and a pickle can run code. `unpickle.py` opens it with `weights_only=True`
in a child process that can be killed, and refuses anything that is not a tensor.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load
from torch import Tensor

from howwhen.errors import InputError

DEADLINE_SECONDS = 120.0
SCRIPT = Path(__file__).with_name("unpickle.py")


def read_pickled_tensors(paths: Sequence[Path]) -> list[dict[str, Tensor]]:
    """Read the tensors of `.pt` files that hold flat dicts; numbers become tensors too.

    Raises:
        InputError: a file that is missing, damaged, or holds more than tensors.
    """
    for path in paths:
        if not path.is_file():
            raise InputError(f"there is no file {path}; expected a .pt file with a dict of tensors")
    child = _run_script(paths)
    if child.returncode:
        reason = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise InputError(
            f"refused: {reason or 'the process that read it died'}. howwhen reads tensors from "
            "pickles and nothing else, since a pickle can run code; ask for a safetensors file, or "
            "save the tensors alone"
        )
    contents: list[dict[str, Tensor]] = [{} for _ in paths]
    for name, tensor in load(child.stdout).items():
        number, _, key = name.partition("/")
        contents[int(number)][key] = tensor
    return contents


def _run_script(paths: Sequence[Path]) -> subprocess.CompletedProcess[bytes]:
    # -P keeps the script's own folder off the import path: its safetensors.py and gguf.py would
    # hide the packages of these names.
    command = [sys.executable, "-P", str(SCRIPT), *map(str, paths)]
    try:
        return subprocess.run(command, capture_output=True, timeout=DEADLINE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{paths[0]} did not load within {DEADLINE_SECONDS:.0f} s") from error
