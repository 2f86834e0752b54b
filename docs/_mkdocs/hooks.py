"""Makes one site of the pages in docs/ and those at the top of the repository.

On GitHub, pages link to each other and to source files by relative paths. A site holds only pages,
so a link to any other file becomes the file's path.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_FENCE_OR_LINK = re.compile(r"^```.*?^```$|\[([^\]]+)\]\(([^)\s#:]+)(#[^)\s]*)?\)", re.S | re.M)
_FILE = re.compile(r"^<!-- file: (\S+) -->\n```(\w+)$", re.M)
_RUN = re.compile(r"^<!-- run.* -->\n", re.M)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the top of the repository; the README is the site's first page."""
    for page in ROOT.glob("*.md"):
        files.append(File.generated(config, _uri(page), abs_src_path=str(page)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links at the site's pages, and show the names of files as titles."""
    source = Path(str(page.file.abs_src_path))
    markdown = _RUN.sub("", _FILE.sub(r'```\2 title="\1"', markdown))
    return _FENCE_OR_LINK.sub(lambda found: _link(found, source, page), markdown)


def _link(found: re.Match[str], source: Path, page: Page) -> str:
    text, target, anchor = found.groups()
    if target is None:
        return found[0]
    file = (source.parent / target).resolve()
    if file.suffix != ".md" or file.parent not in (ROOT, DOCS, DOCS / "api"):
        return f"{text} (`{file.relative_to(ROOT)}`)" if file.name != text else f"`{text}`"
    here = Path(page.file.src_uri).parent
    return f"[{text}]({os.path.relpath(_uri(file), here)}{anchor or ''})"


def _uri(page: Path) -> str:
    if page.parent != ROOT:
        return page.relative_to(DOCS).as_posix()
    return "index.md" if page.name == "README.md" else page.name.lower()
