"""PyTorch: the encoder as a module in one file that needs torch alone, with its weights and its contract.

The file is `torch_model` as it stands; weights have the names of the PyTorch reference.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from fusmae_jax import storage
from fusmae_jax.config.run import Model, Preset
from fusmae_jax.encoders.inputs import describe
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.export.to_stablehlo import CONTRACT, WEIGHTS
from fusmae_jax.input.presets import preset_of
from fusmae_jax.installed import need
from fusmae_jax.interop.weights.layouts import reference_rules
from fusmae_jax.interop.weights.rules import to_theirs
from fusmae_jax.models.positions import sincos_2d

MODULE = 'fusmae_encoder.py'
LEFT_OUT = ('decoders.', 'xattn_decoder.')  # no feature passes them


def write(folder: epath.Path, model: Pretrained) -> dict[str, Any]:
    """Writes the folder; returns what its contract says."""
    check_installed()
    source = Path(__file__).with_name('torch_model.py').read_text()
    storage.write_text(folder / MODULE, source)
    storage.write_bytes(folder / WEIGHTS, safetensors.numpy.save(state_dict(model), {'format': 'pt'}))
    contract = {'format': 'fusmae_jax torch 1', 'call': f'load(FOLDER) of {MODULE}', **_contract(model)}
    storage.write_json(folder / CONTRACT, contract)
    return contract


def runner(folder: epath.Path) -> Any:
    """(sensors, images) -> features on the CPU, of what is stored in a folder."""
    torch = check_installed()
    encoder = _module(folder / MODULE).load(str(folder))

    def run(given: tuple[str, ...], images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {name: torch.from_numpy(np.moveaxis(x, -1, 1).copy()) for name, x in images.items()}
        with torch.no_grad():
            return {name: x.numpy() for name, x in encoder(tensors).items()}

    return run


def check_installed() -> Any:
    """The package torch; raises InputError where it is not installed."""
    need('parity', '--to=torch', 'torch')
    import torch

    return torch


def _module(file: epath.Path) -> ModuleType:
    """What was written, by its path, and not what it was written from."""
    spec = importlib.util.spec_from_file_location('exported_fusmae_encoder', file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def state_dict(model: Pretrained) -> dict[str, np.ndarray]:
    """The weights of the module; those of a convolution as a linear layer on flattened patches."""
    settings = model.config.model
    theirs = to_theirs(reference_rules(settings), model.params, 'parameters do not fit the model')
    state = {name: x for name, x in theirs.items() if not name.startswith(LEFT_OUT)}
    for name, x in state.items():
        # bands, rows, columns -> rows, columns, bands
        state[name] = x.transpose(0, 2, 3, 1).reshape(len(x), -1) if x.ndim == 4 else x
    table = state.get('pos_embed', sincos_2d(settings.grid, settings.width))
    state['pos_embed'] = table.reshape(settings.num_patches, settings.width)
    state['cls_token'] = state['cls_token'].reshape(-1)
    return {name: np.ascontiguousarray(x, np.float32) for name, x in state.items()}


def _contract(model: Pretrained) -> dict[str, Any]:
    """What `describe` says, and the settings of the module."""
    about, config, preset = describe(model), model.config, preset_of(model.config)
    plain = dataclasses.replace(preset, bands=0) == Preset(preset.name)
    for name, sensor in about['sensors'].items():
        clipped = not plain and name == preset.quantile_modality and preset.quantile_clip != (0, 1)
        sensor['resample'] = config.model.modalities[name].resample
        sensor['kind'] = {
            'clip_native': clipped and preset.quantile_grid == 'native',
            'clip_model': clipped and preset.quantile_grid == 'model',
            'bytes_native': not plain and name in preset.native_levels,
        }
    for entry in about['inputs'].values():
        b, rows, columns, bands = entry['shape']
        entry['shape'] = [b, bands, rows, columns]
    about['preset'] = {
        'resize': preset.resize,
        'quantile_clip': list(preset.quantile_clip),
        'scale': preset.scale,
        'levels': preset.levels,
        'bands': preset.bands,
        'clip': config.data.clip,
        'mean_2sigma': plain and config.data.normalisation == 'mean_2sigma',
    }
    return about | {'model': _settings(config.model)}


def _settings(model: Model) -> dict[str, Any]:
    return {
        'width': model.width,
        'depth': model.depth,
        'heads': model.heads,
        'hidden': int(model.width * model.mlp_ratio),
        'patch': model.patch_size,
        'grid': list(model.grid),
        'image_size': list(model.image_size),
        'fusion': model.fusion.encoder,
        'absent': model.fusion.absent,
        'shared_directions': model.fusion.shared_directions,
        'final_norm': model.final_norm,
        'cls': model.cls,
        'qkv_bias': model.numerics.qkv_bias,
        'norm_eps': model.numerics.norm_eps,
        'norm_variance': model.numerics.norm_variance,
        'gelu': 'tanh' if model.numerics.gelu == 'tanh' else 'none',
    }
