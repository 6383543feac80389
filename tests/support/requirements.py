"""Writes requirements.txt, a full installation, from pyproject.toml: `make requirements`."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / 'requirements.txt'
FULL = ('geo', 'plot', 'convert', 'eval')  # extras without hardware or another framework
HEAD = """# A full installation, to run from a checkout: pip install -r requirements.txt.
# Written from pyproject.toml by `make requirements`; tests, PyTorch, TPUs and GPUs are extras there.
# requirements-lock.txt has versions that passed the tests.
"""


def project() -> dict:
    """The table `project` of pyproject.toml."""
    return tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def text() -> str:
    """The content of requirements.txt: the core, then what each extra adds."""
    extras = project()['optional-dependencies']
    parts = {'core': project()['dependencies']} | {name: extras[name] for name in FULL}
    lines, seen = [HEAD.rstrip()], set()
    for name, wanted in parts.items():
        new = [line for line in wanted if line not in seen and not line.startswith('fusmae-jax')]
        seen |= set(new)
        lines += [f'\n# {name}', *new]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    FILE.write_text(text())
