"""Eight fake devices, and typed shapes checked."""

import os

# A shell may set a cache, another generator of random numbers or 64 bits; tests, and the processes that they
# start, set what they need. It comes before jax is imported, which reads all this then.
# ruff: noqa: E402
for variable in [name for name in os.environ if name.startswith('JAX_') or name == 'XLA_FLAGS']:
    del os.environ[variable]

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
# Halves the time to compile; tests of the compiled program itself switch it off.
jax.config.update('jax_disable_most_optimizations', True)

with install_import_hook('fusmae_jax', 'beartype.beartype'):
    import fusmae_jax  # noqa: F401

pytest_plugins = ['tests.support.data_fixtures']


@pytest.fixture
def strict():
    """Our own float32 code must neither promote types nor stretch ranks silently."""
    with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
        yield
