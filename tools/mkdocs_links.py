"""mkdocs hook: links from docs/ to files elsewhere in the repository become links to their page at `repo_url`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Rewrite `](../path#anchor)`. Raises FileNotFoundError for a link to a file that does not exist."""
    root = Path(config.config_file_path).parent

    def replace(match: re.Match[str]) -> str:
        if not (root / match[1]).exists():
            raise FileNotFoundError(f"{match[0]}: no such file in the repository")
        return f"]({config.repo_url}/blob/main/{match[1]}{match[2] or ''})"

    return re.sub(r"\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)", replace, markdown)
