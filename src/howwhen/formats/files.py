"""TODO."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from howwhen.errors import MissingExtraError, SteeringError, StoreError
from howwhen.vectors import MODULATIONS, VectorSet
from howwhen.probes import Clusters, Sae, Taxonomy


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
