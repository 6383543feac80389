"""Commands: those in the documentation can be given, and each gets as far as what it is asked to read."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import main
from fusmae_jax import cli  # whose commands the import registers
from fusmae_jax.config import options
from fusmae_jax.config.files import load_config
from fusmae_jax.embed.settings import add_sensors
from fusmae_jax.parallel import lock

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
    assert main.main(['main.py', *command.split(), '--help']) == 0
    text = capsys.readouterr().out
    assert f'usage: python main.py {command} ' in text
    for option in main.COMMANDS[command].options:
        assert option.name in text or option.about['metavar'] in text
        assert option.about['help'].split()[0] in text


def test_help_names_all_commands(capsys):
    assert main.main(['main.py', '--help']) == 0
    text = capsys.readouterr().out
    assert all(f'  {name} ' in text for name in main.COMMANDS if name != 'bench')


def test_help_and_a_refusal_load_nothing_heavy():
    """Of every command, in one process: neither jax nor what reads data is loaded."""
    code = (
        'import contextlib, io, sys, main\n'
        'with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n'
        '    for name in main.COMMANDS:\n'
        "        assert main.main(['main.py', *name.split(), '--help']) == 0\n"
        "        assert main.main(['main.py', *name.split(), '--lunch=1']) == 2\n"
        "print(sorted({'jax', 'numpy', 'etils', 'ml_collections', 'tensorflow_datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('bench inptu --data=x', "no command 'bench inptu'; did you mean 'bench input'"),
        ('bench dispatch --config=configs/demo.py --device_batch=8', '--device_batch means nothing here'),
        (
            'bench --config=configs/demo.py --dispatch',
            "'--dispatch' is not an option of python main.py bench",
        ),
        (
            'bench race --config=configs/demo.py --device_batch=0',
            "--device_batch: '0' must be a whole number",
        ),
        ('doctor --html', '--html: expected one argument'),
        ('doctor', 'doctor: give a folder, a GeoTIFF'),
        ('stats --data=x y', "'y' means nothing here; options start with --"),
        ('stats --data=x --config.a=1', '--config.a means nothing here'),
        ('stats --data=x --processes=1.5', "--processes: '1.5' must be a whole number, at least 1"),
        ('compare --config=x --dtype=float3', "--dtype: 'float3'; did you mean 'float32'"),
        ('leaks --data=x', '--checkpoint=DIR is missing'),
        ('leaks --data=x --chekpoint=y', "'--chekpoint=y' is not an option of python main.py leaks; did you"),
        (
            'convert --config=configs/convert_sen12ms.py --beam.direct_num_workers=x',
            'direct_num_workers=x must',
        ),
        (
            'convert --config=configs/convert_sen12ms.py:foo',
            "convert_sen12ms.py takes no variant, found 'foo'",
        ),
        ('convert --config=configs/convert_bigearthnet_v2.py:x --workdir=w', "takes no variant, found 'x'"),
        (
            'encode --checkpoint=~nobody-here/run --out=x',
            '--checkpoint: ~nobody-here/run: ~nobody-here is no',
        ),
    ],
)
def test_what_a_command_does_not_take_is_one_sentence(line, message, capsys):
    assert main.main(['main.py', *line.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and 'Traceback' not in error


def test_words_and_options_may_stand_in_any_order():
    given = options.parse(['doctor', 'a.tif', '--json', 'b.tif', '--html=x.html'])[1]
    assert vars(given) == {'paths': ['a.tif', 'b.tif'], 'json': True, 'html': 'x.html'}


def test_settings_are_kept_apart_from_options():
    words = ['--config=c.py', '--config.a=(1, 2)', '--beam.x=1', '--config.b=c']
    assert vars(options.parse(['convert', *words])[1]) == {
        'config': 'c.py',
        'config_settings': ['a=(1, 2)', 'b=c'],
        'beam_settings': ['x=1'],
        'workdir': '',
    }


def test_the_home_folder_in_every_option_that_is_a_path(monkeypatch):
    monkeypatch.setenv('HOME', '/home/somebody')
    options = {o.name: o for command in main.COMMANDS.values() for o in command.options}
    paths = [o for o in options.values() if o.about.get('metavar', '')[:4] in ('DIR', 'FILE', 'PATH')]
    assert {o.name for o in paths} >= {'--workdir', '--config', '--out', '--s1', '--html', '--data', 'paths'}
    by_name = [option for option in paths if option.name.endswith('.KEY')]
    for option in paths:
        if option not in by_name:
            assert option.about['type']('~/x') == '/home/somebody/x', option.name
    assert {option.name for option in by_name} == {'--file.KEY', '--before.KEY'}
    assert cli.options.named(['a=~/x', 'b=y'], '--file.') == {'a': '/home/somebody/x', 'b': 'y'}


def test_a_terminal_without_the_letters_of_a_name_is_no_end(tmp_path):
    name = os.fsdecode(b'caf\xe9')
    for encoding in ('ascii', 'utf-8'):
        done = subprocess.run(
            [sys.executable, 'main.py', 'stats', f'--data={tmp_path / name}'],
            capture_output=True,
            env=os.environ | {'PYTHONIOENCODING': encoding},
        )
        assert done.returncode == 2 and b'caf\\xe9: this name is not UTF-8' in done.stderr
        assert b'Traceback' not in done.stderr


@pytest.mark.parametrize('buffered', [True, False])
@pytest.mark.parametrize('line', ['configs', '--help', 'encode --help'])
def test_a_reader_that_has_gone_is_no_traceback(line, buffered):
    """As behind `| head -0`: the other end of the pipe is closed before anything is written."""
    read, written = os.pipe()
    os.close(read)
    command = [sys.executable, *([] if buffered else ['-u']), 'main.py', *line.split()]
    done = subprocess.run(command, stdout=written, stderr=subprocess.PIPE)
    os.close(written)
    # argparse, which prints the help of a command, does not say that it could not.
    assert (done.returncode, done.stderr) == (0 if line == 'encode --help' else 141, b'')


def test_another_pipe_that_broke_is_not_taken_for_the_output(monkeypatch):
    def fail(words):
        raise BrokenPipeError('a socket')

    monkeypatch.setattr(cli, '_main', fail)
    with pytest.raises(BrokenPipeError, match='a socket'):
        cli.main(['fusmae', 'configs'])


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('--topology=v9:1x1', 'v9'),
        ('--topology=local --mfu=2', "--mfu: '2' must be a number in (0, 1]"),
        *((f'--topology=local --mfu={x}', f"--mfu: '{x}'") for x in ('40', '0', '40%', 'nan')),
        ('--examples=x', "--examples: 'x' must be a whole number"),
    ],
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
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert '--lunch' in done.stderr and done.stdout.strip() == 'False'


def test_a_full_disk_is_one_sentence_in_every_command(monkeypatch, capsys):
    def full(arguments):
        raise OSError(28, 'No space left on device', 'out.tif')

    command = options.COMMANDS['encode']._replace(run=full, options=())
    monkeypatch.setitem(options.COMMANDS, 'encode', command)
    assert main.main(['main.py', 'encode']) == 2
    assert capsys.readouterr().err.startswith('error: the disk is full (out.tif); ')


def test_a_working_directory_is_for_one_command_of_a_kind(tmp_path, capsys):
    arguments = ['main.py', 'knn', f'--workdir={tmp_path}', '--config.encoder.checkpoint=none']
    with lock.hold(tmp_path, 'the same command', '.knn.lock'):
        assert main.main(arguments) == 2
    assert 'is at work here' in capsys.readouterr().err
    assert main.main(arguments) == 2
    assert 'is at work here' not in capsys.readouterr().err


ROOT = Path(__file__).parents[1]
FILES = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md')), *sorted(ROOT.glob('data/**/*.md'))]
FILES += [*sorted(ROOT.glob('benchmarks/**/*.md')), *sorted(ROOT.glob('configs/*.py'))]
FILES += sorted(p for name in ('deploy', '.github') for p in (ROOT / name).rglob('*') if p.is_file())
# `model=fusmae` is an argument of somebody else's command.
START = re.compile(r'(?:python main\.py|(?<!=)\bfusmae) ((?:[^\n`]*\\\n)*[^\n`]*)')


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
    if ' '.join(argv) in cli.options.COMMANDS:  # named, not given
        return
    given = cli.options.parse(argv)[1]
    if 'config' in given:
        sensors = cli.options.named(vars(given).get('file_settings', ()), '--file.')
        prepare = functools.partial(add_sensors, sensors=sensors) if sensors else None
        load_config(given.config, given.config_settings, prepare)


def test_there_are_commands():
    assert len(list(commands())) > 50
