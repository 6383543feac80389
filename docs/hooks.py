"""Hooks of mkdocs: pages from outside docs/, and links that are right in the repository and on the site."""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import settings_page

ROOT = Path(__file__).parents[1]
# Pages that stand outside docs/, by their place on the site.
OUTSIDE = {
    'design.md': 'ARCHITECTURE.md',
    'changelog.md': 'CHANGELOG.md',
    'archives/index.md': 'data/README.md',
    'archives/bigearthnet_mm.md': 'data/bigearthnet_mm/README.md',
    'archives/bigearthnet_v2.md': 'data/bigearthnet_v2/README.md',
    'archives/sen12ms.md': 'data/sen12ms/README.md',
    'archives/sen1floods11.md': 'data/sen1floods11/README.md',
    'archives/ssl4eo_s12.md': 'data/ssl4eo_s12/README.md',
    'archives/geobench2.md': 'data/geobench2/README.md',
    'archives/paired_folder.md': 'data/paired_folder/README.md',
    'results/cpu_two_cores.md': 'benchmarks/results/cpu_two_cores.md',
}
PAGES = {path: page for page, path in OUTSIDE.items()}
LINK = re.compile(r'(!?)\[([^]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)')


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages from outside docs/, and the one that is generated."""
    from mkdocs.structure.files import File  # a test reads this file where mkdocs is not installed

    for page, path in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    files.append(File.generated(config, 'configuration.md', content=settings_page.text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the site has them: to pages by their place there, to files that are no page as words."""
    place = page.file.src_uri
    return LINK.sub(lambda match: _link(match, place), markdown)


def _link(match: re.Match[str], place: str) -> str:
    image, words, target, anchor = match.groups(default='')
    folder = posixpath.dirname(OUTSIDE.get(place, f'docs/{place}'))
    path = posixpath.normpath(posixpath.join(folder, target))
    if path in PAGES:
        there = PAGES[path]
    elif path.startswith('docs/'):
        there = path.removeprefix('docs/')
    elif (ROOT / path).exists():
        return words if '`' in words else f'`{words}`'
    else:
        return match[0]  # mkdocs says that it leads nowhere
    relative = os.path.relpath(there, posixpath.dirname(place) or '.')
    return f'{image}[{words}]({relative}{anchor})'
