"""Asks what the web pages ask, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memlens.web.library import Library
from memlens.web.questions import answer
from memlens.web.scan import Folder

__all__ = ["Pages"]


class Pages:
    """Questions about the runs in a folder."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.library = Library([Folder(folder)], **options)
        self.library.search(wait=True)

    def ask(self, name: str, status: int = 200, **given: Any) -> Any:
        """An answer, which has to have this status. `from_` stands for `from`."""
        texts = {key.rstrip("_"): str(value) for key, value in given.items()}
        found, content = answer(self.library, name, texts)
        assert found == status, content
        assert len(content) <= 200_000
        return json.loads(content)
