"""Every command that stands in the documentation can be given as it stands there."""

import re
import shlex
from pathlib import Path

import pytest

import main
from fusmae_jax.arguments import Arguments
from fusmae_jax.config_file import load_config

ROOT = Path(__file__).parents[1]
FILES = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md')), *sorted(ROOT.glob('data/**/*.md'))]
FILES += [*sorted(ROOT.glob('benchmarks/**/*.md')), *sorted(ROOT.glob('configs/*.py'))]
START = re.compile(r'python main\.py ((?:[^\n`]*\\\n)*[^\n`]*)')
# Where no file is named, what a command takes.
DEFAULTS = {
    name: f'configs/{name}.py' for name in ('linear_probe', 'knn', 'finetune', 'reliance', 'tables', 'encode')
}


def commands():
    """Of each file, the commands that name all they need; those with a `...` are only sketched."""
    for file in FILES:
        for words in START.findall(file.read_text()):
            line = re.sub(r'\\+\n', ' ', words).strip()  # a backslash is doubled in a docstring
            if line.count("'") % 2:  # the end of what is quoted for another machine
                line = line.removesuffix("'")
            argv = shlex.split(line, comments=True)
            if '...' not in line and not re.search(r'\b(COMMAND|FILE\.py|VARIANT|key=value)\b', line):
                yield pytest.param(argv, id=f'{file.relative_to(ROOT)}: {argv[0]}')


@pytest.mark.parametrize('argv', [*commands()])
def test_a_command_names_what_exists(argv):
    """The command, its options, the file of settings with its variant, and each setting."""
    assert argv[0] in main.COMMANDS
    arguments = Arguments(argv[1:])
    file = arguments.optional('config') or DEFAULTS.get(argv[0], '')
    settings = [word.removeprefix('--config.') for word in argv if word.startswith('--config.')]
    if file or settings:
        load_config(file, settings)


def test_there_are_commands():
    assert len(list(commands())) > 50
