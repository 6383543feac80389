"""Eight fake devices, and typed shapes checked."""

import os
import sys
from importlib import metadata
from pathlib import Path

from packaging.version import Version

# A shell may set a cache, another generator of random numbers or 64 bits; tests, and the processes that they
# start, set what they need. It comes before jax is imported, which reads all this then.
# ruff: noqa: E402
for variable in [name for name in os.environ if name.startswith('JAX_') or name == 'XLA_FLAGS']:
    del os.environ[variable]

# Where bytecode is not kept, each process that a test starts would compile the package anew.
os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
sys.dont_write_bytecode = False

# Most of the suite's time is compiling for the CPU: emitters of fusions that go through MLIR, and code that
# is split for threads, cost three times what these do. Processes that tests start inherit them.
FLAGS = ['--xla_cpu_parallel_codegen_split_count=1', '--xla_cpu_prefer_vector_width=128']
if Version(metadata.version('jaxlib')) < Version('0.12'):  # which ends a process that gives it this flag
    FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join(FLAGS)

import jax
import pytest
from jax._src.interpreters.partial_eval import DynamicJaxprTracer
from jaxtyping import install_import_hook

import tests.support.typed  # noqa: F401  # by its name below

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
# Less of LLVM: machine code is slower and sooner there. The passes over HLO, which tests of the compiled
# program look at, stay as in a run.
jax.config.update('jax_disable_most_optimizations', True)

# Flax asks each traced weight for its sharding, and is told by an error that there is none. To write into it
# where the weight came from is a third of the time that tracing a model takes.
if hasattr(DynamicJaxprTracer, '_origin_msg'):  # private to jax: where it is gone, tests only take longer
    DynamicJaxprTracer._origin_msg = lambda self: ''

# For the whole session: the package imports its modules when they are first used.
CHECKED = ['fusmae_jax.models', 'fusmae_jax.train', 'fusmae_jax.input']
install_import_hook(CHECKED, 'tests.support.typed.checked')

ROOT = Path(__file__).parents[1]
pytest_plugins = ['tests.support.data_fixtures']


# What takes longest comes first: a worker that begins with it at the end leaves the other without work.
LONGEST = (
    'run/test_end_to_end',
    'models/test_model',
    'train/test_step',
    'eval/test_features',
    'eval/test_finetune_command',
    'tables/test_tables',
    'test_stored',
)


def pytest_collection_modifyitems(items):
    """Files in this order; `--no-loadscope-reorder` keeps it where several workers share them."""

    def rank(item):
        name = str(item.path.relative_to(ROOT / 'tests').with_suffix(''))
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)


@pytest.fixture
def strict():
    """Our own float32 code must neither promote types nor stretch ranks silently."""
    with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
        yield


DEVICES = {'devices': jax.devices, 'local_devices': jax.local_devices}


@pytest.fixture(scope='module')
def one_device():
    """One device of the eight for what runs in this process: programs for one are compiled twice as fast."""
    with pytest.MonkeyPatch.context() as patch:
        for name, function in DEVICES.items():
            patch.setattr(jax, name, lambda *a, function=function, **k: function(*a, **k)[:1])
        yield


@pytest.fixture
def all_devices(monkeypatch):
    """All eight again, for one test of a module that has `one_device`."""
    for name, function in DEVICES.items():
        monkeypatch.setattr(jax, name, function)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A small converted archive with labels and scenes, for the tests of probes; read-only."""
    from tests.support.probe_fixtures import archive

    return archive(tmp_path_factory.mktemp('data'))
