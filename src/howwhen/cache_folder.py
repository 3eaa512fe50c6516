"""Where what can be made again is kept: converted weights, and what passes cost on this machine."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$HOWWHEN_CACHE`, or `howwhen` in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "howwhen"
    return Path(os.environ.get("HOWWHEN_CACHE", default))
