"""The converters and the configurations, under names that nobody else has: `shipped.data`, `shipped.configs`.

In the repository they are the folders `data/` and `configs/` at its top, where people look for them and edit
them. Imported as `data` and `configs` they would meet folders of those names wherever the package is used,
and the first one on `sys.path` would win. So they are subpackages of this one: a wheel has them in this
folder (setup.py), and in a checkout, installed as editable or not, this package also looks beside
`fusmae_jax`. They thus always come from where `fusmae_jax` itself was imported.

Within `data/` imports are relative, and everywhere else they use these names: a module that were imported
under two names would exist twice, with two classes of each exception.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
CHECKOUT = not (_HERE / 'data').is_dir()
# The folder with `data/` and `configs/`.
ROOT = _HERE.parents[1] if CHECKOUT else _HERE

if CHECKOUT:
    __path__.append(str(ROOT))
