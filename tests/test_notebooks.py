"""Notebooks: valid, without outputs, with code that compiles and commands that can be given.

`make notebooks` runs them.
"""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

from fusmae_jax import cli
from fusmae_jax.config.files import load_config

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / 'notebooks').glob('*.ipynb'))


def cells(file):
    """(kind, source) of each cell."""
    return [(cell['cell_type'], ''.join(cell['source'])) for cell in json.loads(file.read_text())['cells']]


def test_there_are_four():
    assert [file.name[0] for file in FILES] == ['1', '2', '3', '4']


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_a_notebook_is_valid_and_holds_no_outputs(file):
    notebook = json.loads(file.read_text())
    assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 5)
    assert notebook['metadata']['kernelspec']['name'] == 'python3'
    ids = [cell['id'] for cell in notebook['cells']]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r'[\w-]{1,64}', name) for name in ids)
    for cell in notebook['cells']:
        assert set(cell) == {'cell_type', 'id', 'metadata', 'source'} | (
            {'execution_count', 'outputs'} if cell['cell_type'] == 'code' else set()
        )
        assert not cell.get('outputs') and cell.get('execution_count') is None and not cell['metadata']


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_code_compiles(file):
    code = [text for kind, text in cells(file) if kind == 'code' and not text.startswith('%%')]
    assert code
    for text in code:
        ast.parse(text)


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_commands_in_cells_can_be_given(file):
    """A shell cell of several commands must stop at the first that fails."""
    shell = [text for kind, text in cells(file) if kind == 'code' and text.startswith('%%')]
    assert shell
    for text in shell:
        first, _, script = text.partition('\n')
        lines = script.replace('\\\n', ' ').strip().splitlines()
        assert first == ('%%bash' if len(lines) == 1 else '%%bash -e')
        for line in lines:
            name, *words = shlex.split(line.partition(' > ')[0])
            assert name in ('fusmae', 'mkdir')
            if name == 'fusmae':
                given = cli.options.parse(words)[1]
                if 'config' in given and given.config:
                    load_config(given.config, given.config_settings)
