"""Writing files so that they are whole or as they were."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> Path:
    """Write `text` aside and move it to `path`; a failure leaves nothing behind. Raises OSError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A model's sample may hold half a surrogate pair, which UTF-8 cannot.
        aside.write_text(text, encoding="utf-8", errors="replace")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path
