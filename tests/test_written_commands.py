"""Every command that stands in the documentation can be given as it stands there."""

import re
import shlex
from pathlib import Path

import pytest

from fusmae_jax.cli import options  # whose commands the import registers
from fusmae_jax.config.files import load_config

ROOT = Path(__file__).parents[1]
FILES = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md')), *sorted(ROOT.glob('data/**/*.md'))]
FILES += [*sorted(ROOT.glob('benchmarks/**/*.md')), *sorted(ROOT.glob('configs/*.py'))]
START = re.compile(r'python main\.py ((?:[^\n`]*\\\n)*[^\n`]*)')


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
    if ' '.join(argv) in options.COMMANDS:  # named, not given
        return
    given = options.parse(argv)[1]
    if 'config' in given:
        load_config(given.config, given.config_settings)


def test_there_are_commands():
    assert len(list(commands())) > 50
