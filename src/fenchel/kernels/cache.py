"""Where generated and compiled kernels are kept: FENCHEL_CACHE, else the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """The folder of the kernels; it need not exist yet."""
    root = os.environ.get("FENCHEL_CACHE")
    if root is None:
        root = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "fenchel")
    return Path(root) / "kernels"
