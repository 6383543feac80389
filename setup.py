"""What a wheel holds: the package, and `data/` and `configs/` under the names of `fusmae_jax/shipped`.

Everything else about the distribution stands in pyproject.toml, which has no way to rename what it finds.
"""

from setuptools import find_packages, setup

FOLDERS = ('data', 'configs')

shipped = find_packages(include=[pattern for name in FOLDERS for pattern in (name, f'{name}.*')])
setup(
    packages=[
        *find_packages(include=['fusmae_jax', 'fusmae_jax.*']),
        *(f'fusmae_jax.shipped.{name}' for name in shipped),
    ],
    package_dir={f'fusmae_jax.shipped.{name}': name for name in FOLDERS},
    package_data={'fusmae_jax': ['py.typed'], 'fusmae_jax.shipped.data': ['README.md', '*/README.md']},
    include_package_data=False,
)
