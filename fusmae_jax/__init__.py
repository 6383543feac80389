"""Fus-MAE in JAX: masked autoencoding that fuses Sentinel-1 and Sentinel-2 by cross-attention."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusmae_jax.config.run import Config, Decoder, Fusion, Masking, Modality, Model, Numerics
    from fusmae_jax.encoders.load import SideBySide, load
    from fusmae_jax.encoders.pretrained import Embedding, Pretrained
    from fusmae_jax.errors import InputError
    from fusmae_jax.models.fusmae import FusMAE

__version__ = '0.1.0'

# Loaded on first use: a conversion's worker processes need neither jax nor flax.
_HOME = {
    'config.run': ('Config', 'Decoder', 'Fusion', 'Masking', 'Modality', 'Model', 'Numerics'),
    'errors': ('InputError',),
    'encoders.load': ('SideBySide', 'load'),
    'encoders.pretrained': ('Embedding', 'Pretrained'),
    'models.fusmae': ('FusMAE',),
}

__all__ = [
    'Config',
    'Decoder',
    'Embedding',
    'FusMAE',
    'Fusion',
    'InputError',
    'Masking',
    'Modality',
    'Model',
    'Numerics',
    'Pretrained',
    'SideBySide',
    'load',
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f'{__name__}.{module}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
