"""The text that ships with the interpreter."""

from __future__ import annotations

import json

from fenchel.reproductions import corpus


def test_documents_are_real_and_large_enough() -> None:
    texts = corpus.documents()
    assert sum(len(text.encode()) for text in texts.values()) >= 2_000_000
    assert json.loads.__doc__ is not None
    first_line = json.loads.__doc__.strip().splitlines()[0]
    assert first_line in texts["json.__init__"] and "json.__init__.loads" in texts["json.__init__"]
    assert any(name.startswith("help(") for name in texts)
    assert not any(name.startswith(("test.", "site-packages")) for name in texts)
