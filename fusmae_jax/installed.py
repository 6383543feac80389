"""What is installed here: under which name the command is called, and which optional packages are there.

Extras of pyproject.toml are named here by what they are for. An optional package is imported where it is
used, and `need` comes before it: once for a command in `cli.py`, and where a setting asks for more.
"""

import importlib.util
import sys
from importlib import metadata
from pathlib import Path

from fusmae_jax import shipped
from fusmae_jax.errors import InputError

# Extra -> the modules that it brings and this package imports.
_GEO, _PLOT = ('rasterio', 'pyarrow', 'zarr', 'numcodecs'), ('matplotlib',)
EXTRAS: dict[str, tuple[str, ...]] = {
    'geo': _GEO,
    'plot': _PLOT,
    'eval': (*_GEO, *_PLOT, 'scipy'),
    'convert': (*_GEO, *_PLOT, 'scipy', 'apache_beam', 'bigearthnet_common'),
    'parity': ('torch',),
    'export': ('flatbuffers', 'onnx', 'onnxruntime', 'huggingface_hub'),
    'wandb': ('wandb',),
    'mlflow': ('mlflow',),
}


def program() -> str:
    """What stands before the name of a command on this machine: `fusmae`, or `python main.py`."""
    called = Path(sys.argv[0]).stem if sys.argv else ''
    return 'python main.py' if shipped.CHECKOUT and called != 'fusmae' else 'fusmae'


def install(extra: str) -> str:
    """The command that installs an extra of this package."""
    try:
        metadata.distribution('fusmae-jax')
    except metadata.PackageNotFoundError:  # a checkout that nobody installed
        return f"pip install -e '{shipped.ROOT}[{extra}]'"
    return f"pip install 'fusmae-jax[{extra}]'"


def missing(extra: str, *modules: str) -> list[str]:
    """Of the modules of an extra, or of those named, the ones that are not installed."""
    return [name for name in modules or EXTRAS[extra] if importlib.util.find_spec(name) is None]


def need(extra: str, purpose: str, *modules: str) -> None:
    """Raises InputError if an extra, or of its modules those named, is not installed.

    Args:
        extra: a key of EXTRAS.
        purpose: what needs it, the subject of the message.
        modules: what is imported; all modules of the extra, if none is named.
    """
    if absent := missing(extra, *modules):
        raise InputError(f'{purpose} needs {", ".join(absent)}: {install(extra)}')
