"""The house keeps its order: imports run one way, files stay small, heavy packages stay out."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fusmae_jax import installed

ROOT = Path(__file__).parents[1]
# A room may import those that stand before it, and its own files.
ORDER = [
    'errors',
    'paths',
    'sensors',
    'storage',
    'shipped',
    'installed',
    'config',
    'parallel',
    'input',
    'geo',
    'models',
    'checkpoints',
    'train',
    'encoders',
    'pictures',
    'plan',
    'interop',
    'eval',
    'embed',
    'maps',
    'predict',
    'bench',
    'run',
    'export',
    'tables',
    'cli',
]
# Files of more than 400 lines, and why they are one subject.
LONG = {
    'fusmae_jax/cli.py': 'one function a command: it grows with them, and each is read alone',
    'fusmae_jax/export/torch_model.py': 'what a user of PyTorch gets as one file',
}
HOLDERS = ('fusmae_jax', 'data', 'configs', 'tests', 'benchmarks')
FILES = sorted((ROOT / 'fusmae_jax').rglob('*.py'))


def home(module: str) -> str:
    return module.split('.')[1] if '.' in module else ''


def imported(file: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f'{node.module}.{a.name}' for a in node.names] if node.module == 'fusmae_jax' else []
            modules |= set(names) or {node.module}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {name for name in modules if name.startswith('fusmae_jax.')}


def test_the_root_is_no_drawer():
    assert len([*(ROOT / 'fusmae_jax').glob('*.py')]) <= 8
    rooms = {path.stem for path in (ROOT / 'fusmae_jax').iterdir() if not path.name.startswith('_')}
    assert rooms - {'py'} == set(ORDER)


def test_converters_and_configurations_have_one_name():
    """Relative within `data/`, `fusmae_jax.shipped` elsewhere; in the package, for the command line alone."""
    bare = re.compile(r'^\s*(?:from|import) (?:data|configs)(?:\.[\w.]+)*(?: import |$)', re.MULTILINE)
    shipped = re.compile(r'^\s*(?:from|import) fusmae_jax\.shipped(?:\.| import )', re.MULTILINE)
    for file in (f for folder in HOLDERS for f in (ROOT / folder).rglob('*.py')):
        text, place = file.read_text(), file.relative_to(ROOT).parts
        assert not bare.search(text), file
        if place[0] == 'data' or (place[0] == 'fusmae_jax' and place[-1] != 'cli.py'):
            assert not shipped.search(text), file


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_run_one_way(file):
    parts = file.relative_to(ROOT / 'fusmae_jax').with_suffix('').parts
    if parts == ('__init__',):
        return
    rank = ORDER.index(parts[0])
    for module in imported(file):
        name = home(module)
        if not name.startswith('__'):
            assert ORDER.index(name) <= rank, f'{file.name} imports {module}, which stands after it'


@pytest.mark.parametrize(
    'file',
    [*FILES, *(f for folder in ('data', 'configs', 'tests') for f in (ROOT / folder).rglob('*.py'))],
    ids=str,
)
def test_files_stay_small(file):
    # An alarm, not a ruler: a file is split by subject.
    assert len(file.read_text().splitlines()) <= 400 or str(file.relative_to(ROOT)) in LONG


def test_importing_the_package_is_cheap_and_training_needs_no_other_framework():
    light = "import sys, fusmae_jax; print(sorted({'jax', 'torch', 'tensorflow'} & set(sys.modules)))"
    # jax imports flatbuffers, for jax.export, where it is installed, and needs scipy itself.
    optional = {name for names in installed.EXTRAS.values() for name in names} - {'flatbuffers', 'scipy'}
    heavy = (
        'import sys, fusmae_jax.run.demo, fusmae_jax.bench.step, fusmae_jax.encoders.load;'
        'import fusmae_jax.eval.leaks, fusmae_jax.eval.finetune.command, fusmae_jax.interop.compare;'
        'import fusmae_jax.interop.weights.published, fusmae_jax.shipped.data.stats_command;'
        f'print(sorted({optional | {"tensorflow", "transformers", "sklearn"}} & set(sys.modules)))'
    )
    for code in (light, heavy):
        done = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert done.stdout.strip() == '[]'


def test_no_builder_or_reader_loads_tensorflow_or_torch():
    code = (
        'import importlib, sys\n'
        'from fusmae_jax.shipped.data.convert import BUILDERS\n'
        'names = [*BUILDERS.values(), *(f".generate.{name}" for name in BUILDERS)]\n'
        'names += [f".{name}.{name}_dataset_builder" for name in BUILDERS]\n'
        'names += [".sharded", ".doctor.command", ".stats_command", "fusmae_jax.embed.run"]\n'
        'for name in names: importlib.import_module(name, "fusmae_jax.shipped.data")\n'
        'print(sorted({"torch", "tensorflow"} & set(sys.modules)))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == '[]', done.stderr[-2000:]


def test_the_tests_do_not_depend_on_the_shell():
    """Of several kinds: a cache, a type, a generator, a number of devices."""
    shell = {
        'JAX_COMPILATION_CACHE_DIR': '/nonexistent/cache',
        'JAX_ENABLE_X64': '1',
        'JAX_DEFAULT_PRNG_IMPL': 'rbg',
        'JAX_NUM_CPU_DEVICES': '3',
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    }
    code = (
        'import tests.conftest, jax; c = jax.config; '
        'print(c.jax_compilation_cache_dir, c.jax_enable_x64, c.jax_default_prng_impl, jax.device_count())'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, env=os.environ | shell
    )
    assert done.stdout.strip() == 'None False threefry2x32 8', done.stderr[-2000:]
