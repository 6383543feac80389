"""Every command that has a configuration and a working directory gets as far as what it is asked to read."""

import subprocess
import sys

import pytest

import main
from fusmae_jax import lock

MISSING = '--config.data.path=nothing/here'
BANDS = ('--config.encoder.checkpoint=bands', '--config.encoder.baselines=()')


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (('linear_probe', MISSING, '--config.encoder.checkpoint=no/run'), 'nothing/here'),
        (('knn', MISSING, *BANDS), 'nothing/here'),
        (('finetune', MISSING), 'encoder.checkpoint'),
        (('reliance', MISSING, "--config.checkpoints=('no/run',)"), 'nothing/here'),
        (('import', '--config=configs/published.py:dino_mm', '--config.file=no.pth'), 'no.pth'),
        (('tables', "--config.run=('lunch',)"), 'lunch'),
        (('knn', '--profile=3'), '--profile means nothing here'),
    ],
)
def test_what_cannot_be_used_is_named(argv, message, tmp_path, capsys):
    assert main.main(['main.py', *argv, f'--workdir={tmp_path / "run"}']) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('command', main.COMMANDS)
def test_help_lists_what_a_command_takes(command, capsys):
    assert main.main(['main.py', command, '--help']) == 0
    first, *options = capsys.readouterr().out.splitlines()
    assert f'main.py {command}' in first and options
    assert all(len(line.split()) > 1 for line in options)  # each with its meaning


def test_help_of_a_second_word(capsys):
    assert main.main(['main.py', 'bench', 'input', '--help']) == 0
    assert '--threads' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('option', 'message'),
    [('--topology=v9:1x1', 'v9'), ('--topology=local --mfu=2', '--mfu=2'), ('--examples=x', '--examples=x')],
)
def test_a_plan_that_cannot_be_made(option, message, capsys):
    argv = ['main.py', 'plan', '--config=configs/demo.py', '--topology=local', *option.split()]
    assert main.main(argv) == 2
    assert message in capsys.readouterr().err


def test_the_window_of_a_profile_must_be_one(tmp_path, capsys):
    argv = ['main.py', 'pretrain', '--config=configs/demo.py', f'--workdir={tmp_path}', '--profile=9:3']
    assert main.main(argv) == 2
    assert '--profile=9:3' in capsys.readouterr().err


def test_the_heavy_packages_are_not_loaded_to_say_no():
    code = "import sys, main; main.main(['main.py', 'tables', '--lunch']); print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert '--lunch' in found.stderr and found.stdout.strip() == 'False'


def test_a_full_disk_is_one_sentence_in_every_command(monkeypatch, capsys):
    def full(arguments):
        raise OSError(28, 'No space left on device', 'out.tif')

    monkeypatch.setitem(main.COMMANDS, 'encode', full)
    assert main.main(['main.py', 'encode']) == 2
    assert capsys.readouterr().err.startswith('error: the disk is full (out.tif); ')


def test_a_working_directory_is_for_one_command_of_a_kind(tmp_path, capsys):
    arguments = ['main.py', 'knn', f'--workdir={tmp_path}', '--config.encoder.checkpoint=none']
    with lock.hold(tmp_path, 'the same command', '.knn.lock'):
        assert main.main(arguments) == 2
    assert 'is at work here' in capsys.readouterr().err
    assert main.main(arguments) == 2
    assert 'is at work here' not in capsys.readouterr().err
