"""What is installed: the wheel, names that clash with nobody, extras, and the command from any folder."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fusmae_jax import cli, installed, shipped
from fusmae_jax.config import catalogue
from fusmae_jax.config.files import load_config
from fusmae_jax.errors import InputError
from fusmae_jax.run import demo
from tests.support import requirements

ROOT = Path(__file__).parents[1]
EXTRAS = requirements.project()['optional-dependencies']
# The name of a distribution, where it is not that of its module.
MODULE = {
    'apache-beam': 'apache_beam',
    'bigearthnet-common': 'bigearthnet_common',
    'mlflow-skinny': 'mlflow',
}
OPTIONAL = {name for names in installed.EXTRAS.values() for name in names} | {'sklearn', 'transformers'}


def distributions(extra):
    """Of an extra, with those that it names in turn."""
    for line in EXTRAS[extra]:
        wanted = Requirement(line)
        if wanted.name == 'fusmae-jax':
            yield from (name for inner in wanted.extras for name in distributions(inner))
        else:
            yield wanted.name


def run(code, folder, **environment):
    """The output of a program in another folder, which has nothing but this checkout on its path."""
    variables = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
    done = subprocess.run([sys.executable, *code], capture_output=True, text=True, cwd=folder, env=variables)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A folder with packages of the user that have the names of our folders."""
    for name in shipped.ROOT / 'data', shipped.ROOT / 'configs':
        (tmp_path / name.name).mkdir()
        (tmp_path / name.name / '__init__.py').write_text('raise SystemExit("a module of the user")')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_data_of_the_user_is_not_taken_for_ours(foreign):
    code = 'import sys, fusmae_jax.shipped.data.bigearthnet_mm.schema\n'
    code += 'from fusmae_jax.config.files import load_config\n'
    code += 'load_config("configs/tables.py"); load_config("configs/gpu_8.py")\n'
    code += 'print({"data", "configs"} & set(sys.modules))'
    assert run(['-c', code], foreign).stdout.strip() == 'set()'


def test_another_checkout_on_the_path_brings_its_own(tmp_path):
    """Converters and configurations come from beside the `fusmae_jax` that was imported."""
    for folder in ('fusmae_jax', 'fusmae_jax/shipped', 'data', 'configs'):
        (tmp_path / folder).mkdir()
    for file in ('fusmae_jax/__init__.py', 'data/__init__.py', 'configs/__init__.py'):
        (tmp_path / file).touch()
    text = (ROOT / 'fusmae_jax/shipped/__init__.py').read_text()
    (tmp_path / 'fusmae_jax/shipped/__init__.py').write_text(text)
    code = 'from fusmae_jax.shipped import configs, data; print(configs.__file__, data.__file__)'
    out = run(['-c', code], '/', PYTHONPATH=str(tmp_path)).stdout.split()
    assert out == [f'{tmp_path}/configs/__init__.py', f'{tmp_path}/data/__init__.py']


@pytest.fixture
def wheel(tmp_path_factory):
    pytest.importorskip('setuptools', minversion='77')
    out = tmp_path_factory.mktemp('wheel')
    build = [sys.executable, '-c', f'import setuptools.build_meta as b; b.build_wheel({str(out)!r})']
    source = tmp_path_factory.mktemp('source')
    for name in ('fusmae_jax', 'data', 'configs', 'pyproject.toml', 'setup.py', 'README.md', 'LICENSE'):
        (source / name).symlink_to(ROOT / name)
    done = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob('*.whl'))


def test_the_wheel_holds_all_and_nothing_else(wheel, tmp_path):
    names = set(zipfile.ZipFile(wheel).namelist())
    want = {str(file.relative_to(ROOT)) for file in (ROOT / 'fusmae_jax').rglob('*.py')}
    for folder in ('data', 'configs'):
        files = [*(ROOT / folder).rglob('*.py'), *(ROOT / folder).rglob('*.md')]
        want |= {f'fusmae_jax/shipped/{file.relative_to(ROOT)}' for file in files}
    assert {name for name in names if '.dist-info/' not in name} == want | {'fusmae_jax/py.typed'}
    # As it would be installed: unpacked, on the path.
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        'from fusmae_jax import shipped; from fusmae_jax.shipped.data import convert; print(convert.__file__)'
    )
    out = run(['-c', code], '/', PYTHONPATH=str(tmp_path)).stdout.strip()
    assert out == f'{tmp_path}/fusmae_jax/shipped/data/convert.py'


def test_requirements_are_those_of_the_package():
    assert requirements.FILE.read_text() == requirements.text(), 'make requirements'


def test_the_lock_fits_the_package():
    lines = (ROOT / 'requirements-lock.txt').read_text().splitlines()
    locked = {
        Requirement(line).name.lower().replace('_', '-'): line.split('==')[1]
        for line in lines
        if '==' in line
    }
    wanted = [
        *requirements.project()['dependencies'],
        *(x for name in requirements.FULL for x in EXTRAS[name]),
    ]
    for line in (line for line in wanted if not line.startswith('fusmae-jax')):
        wish = Requirement(line)
        assert wish.specifier.contains(locked[wish.name.lower().replace('_', '-')]), line


@pytest.mark.parametrize('extra', installed.EXTRAS)
def test_an_extra_brings_what_its_commands_import(extra):
    brought = {MODULE.get(name, name) for name in distributions(extra)}
    assert {*installed.EXTRAS[extra]} <= brought


def test_commands_need_extras_that_there_are():
    assert {command.needs for command in cli.options.COMMANDS.values()} - {''} <= set(installed.EXTRAS)


# Rooms whose subject is a package that is optional; who comes to them has asked `installed.need`.
ROOMS = {
    'rasterio': ('fusmae_jax/geo', 'fusmae_jax/embed', 'fusmae_jax/maps', 'fusmae_jax/predict', 'data'),
    'pyarrow': ('fusmae_jax/embed',),
    'scipy': ('data/doctor', 'fusmae_jax/eval'),
    'torch': ('fusmae_jax/interop/reference', 'fusmae_jax/export/torch_model.py'),
}


def test_optional_packages_are_imported_where_they_are_used():
    """At the top of a module only in the rooms that are about them."""
    for file in (f for folder in ('fusmae_jax', 'data', 'configs') for f in (ROOT / folder).rglob('*.py')):
        names = [
            name.split('.')[0]
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, 'level', 0)
            for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        ]
        for name in OPTIONAL.intersection(names):
            assert str(file.relative_to(ROOT)).startswith(ROOMS.get(name, ())), f'{file}: {name}'


@pytest.fixture
def core_only(monkeypatch):
    """As if nothing optional were installed."""
    there = importlib.util.find_spec
    hidden = lambda name, *more: None if name in OPTIONAL else there(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, 'find_spec', hidden)


@pytest.mark.parametrize(
    ('line', 'extra'),
    [
        ('demo', 'convert'),
        ('convert --config=configs/convert_bigearthnet_mm.py:example', 'convert'),
        ('encode --s1=a.tif --checkpoint=run --out=e.tif', 'geo'),
        ('doctor x.tif', 'convert'),
        ('reconstruct --workdir=run', 'plot'),
        ('leaks --checkpoint=run --data=set', 'eval'),
        ('compare --config=configs/demo.py', 'parity'),
    ],
)
def test_a_command_names_the_extra_that_it_needs(line, extra, core_only, capsys):
    assert cli.main(['fusmae', *line.split()]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and f' {line.split()[0]} needs ' in error
    assert f"[{extra}]'" in error and 'pip install' in error


def test_a_checkout_that_nobody_installed_is_installed_from_its_folder(core_only, monkeypatch):
    """The name of the package on an index may be anybody's."""

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, 'distribution', absent)
    with pytest.raises(InputError, match=re.escape(f"x needs rasterio: pip install -e '{ROOT}[geo]'")):
        installed.need('geo', 'x', 'rasterio')


def test_the_demo_keeps_to_its_folder(foreign, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(
        demo, 'pretrain', lambda config, folder: given.append((config.data.path, folder)) or 0
    )
    monkeypatch.setattr(demo, 'reconstruct', lambda folder: given.append(folder) or 3)
    assert demo.demo('there', convert=lambda values: given.append(values['output']) or 0) == 3
    assert given == ['there/data', ('there/data/bigearthnet_mm/1.0.0', 'there'), 'there']
    monkeypatch.setattr(demo, 'reconstruct', lambda folder: 0)
    (foreign / 'there/data/bigearthnet_mm/1.0.0').mkdir(parents=True)
    assert demo.demo('there', convert=given.append) == 0 and len(given) == 4
    assert 'picture      there/reconstruction.png' in capsys.readouterr().out


def test_help_names_the_command_as_it_was_called(monkeypatch, capsys):
    for called, name in (('/usr/bin/fusmae', 'fusmae'), ('main.py', 'python main.py')):
        monkeypatch.setattr(sys, 'argv', [called])
        assert cli.main([called, '--help']) == 0 and cli.main([called, 'encode', '--help']) == 0
        out = capsys.readouterr().out
        assert f'usage: {name} COMMAND' in out and f'usage: {name} encode' in out


def test_a_configuration_comes_from_the_package_where_there_is_none(foreign, capsys):
    assert load_config('configs/demo.py')['name'] == 'demo'
    assert str(ROOT / 'configs' / 'demo.py') in capsys.readouterr().err
    assert cli.main(['fusmae', 'configs', '--copy=demo']) == 0
    text = (foreign / 'configs/demo.py').read_text()
    (foreign / 'configs/demo.py').write_text(text.replace("name = 'demo'", "name = 'mine'"))
    capsys.readouterr()
    assert load_config('configs/demo.py')['name'] == 'mine'
    assert capsys.readouterr().err == ''
    with pytest.raises(InputError, match=r"did you mean 'configs/pretrain.py'\?"):
        load_config('configs/pretrian.py')


def test_configurations_are_listed_and_copied_but_never_over_another(foreign, capsys):
    assert cli.main(['fusmae', 'configs']) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split() for line in lines if line.startswith('configs/')]
    assert {words[0] for words in listed} == {f'configs/{name}.py' for name in catalogue.shipped_files()}
    assert all(len(words) > 4 for words in listed)
    (foreign / 'mine').mkdir()
    (foreign / 'mine/knn.py').write_text('kept')
    assert cli.main(['fusmae', 'configs', '--copy=configs/knn.py', '--to=mine']) == 2
    assert 'is there already' in capsys.readouterr().err
    assert (foreign / 'mine/knn.py').read_text() == 'kept'
    assert cli.main(['fusmae', 'configs', '--copy=nkn']) == 2
    assert "did you mean 'knn'?" in capsys.readouterr().err
