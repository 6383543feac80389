"""Weight files: reading safetensors and pickles without running code from them, and exporting.

safetensors is the default. A pickle is read by `torch.load(weights_only=True)`, which builds tensors and
plain containers only; `argparse.Namespace` is allowed besides, because DINO- and MAE-style files hold one.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from fusmae_jax import installed
from fusmae_jax.config.build import from_dict, resolve, to_dict
from fusmae_jax.config.checks import check_model
from fusmae_jax.config.run import Model
from fusmae_jax.errors import InputError, raise_all
from fusmae_jax.input.contract import Contract
from fusmae_jax.interop.weights.importers import import_weights
from fusmae_jax.interop.weights.layouts import reference_rules
from fusmae_jax.interop.weights.rules import to_theirs

FORMAT = 'fusmae_jax/1'
# Keys under which training scripts save weights.
_WRAPPERS = ('model', 'state_dict', 'model_state_dict', 'mae_model')


def read_state(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Name -> numpy array of a .safetensors file, or of a PyTorch pickle (.pt, .pth, .bin).

    Nested dicts of a pickle (`teacher`, `student`) are joined by dots; a `model` or `state_dict` around
    the weights is removed; what is no tensor (epoch, arguments, optimizer) is left out.

    Raises:
        InputError: for a file that is missing, corrupt, or that would have to run code.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise InputError(f'{path}: no such weight file')
    if path.suffix == '.safetensors':
        try:
            return safetensors.numpy.load(path.read_bytes())
        except (safetensors.SafetensorError, TypeError, KeyError) as error:
            raise InputError(f'{path}: not a readable safetensors file ({error})') from error
    return _read_pickle(path)


def _read_pickle(path: epath.Path) -> dict[str, np.ndarray]:
    installed.need('parity', f'{path}: a PyTorch file')
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]), path.open('rb') as file:
            content = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # every kind of damage ends here, with its reason
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f'{path}: not loaded, no code in it was run. It is damaged, or holds more than tensors and plain '
            f'containers ({reason}). Save the bare state dict as .safetensors where the file comes from'
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    state: dict[str, np.ndarray] = {}
    problems: list[str] = []
    _collect(content, '', state, problems)
    raise_all(f'{path}: these tensors cannot be read', problems)
    if not state:
        raise InputError(f'{path}: holds no tensors')
    return state


def _collect(value: Any, path: str, state: dict[str, np.ndarray], problems: list[str]) -> None:
    """Puts every tensor of nested dicts under its dotted name."""
    import torch

    if isinstance(value, torch.Tensor):
        try:
            state[path] = value.detach().numpy()
        except TypeError as error:  # bfloat16 has no numpy type: saying so beats casting it
            problems.append(f'{path}: {error}')
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if not (path == '' and str(name).startswith('optimizer')):
                _collect(item, f'{path}.{name}' if path else str(name), state, problems)


def export(
    path: epath.PathLike, params: Mapping[str, Any], model: Model, contract: Contract | None = None
) -> None:
    """Writes parameters as safetensors with the PyTorch reference's names, and `<path>.json` beside it.

    The JSON holds the model settings, the bands and statistics that the inputs must have, and the input
    contract of the data that the model was trained on.

    Args:
        path: a name that ends in .safetensors; may be in a bucket.
        params: our parameters, nested.
        model: the resolved model settings.
        contract: of the training data; None when it is not known.
    """
    path = epath.Path(path)
    if path.suffix != '.safetensors':
        raise InputError(f'{path}: give a name that ends in .safetensors')
    state = to_theirs(reference_rules(model), params, f'{path}: parameters do not fit the model')
    sidecar = {
        'format': FORMAT,
        'model': to_dict(model),
        'inputs': {name: _inputs(model, name) for name in model.modalities},
        'contract': to_dict(contract) if contract else None,
    }
    path.write_bytes(safetensors.numpy.save(state, metadata={'format': 'pt', 'layout': FORMAT}))
    epath.Path(f'{path}.json').write_text(json.dumps(sidecar, indent=2))


def load(path: epath.PathLike) -> tuple[dict[str, Any], Model, dict[str, Any]]:
    """Parameters, model settings and the whole JSON of a file that `export` wrote."""
    sidecar = epath.Path(f'{path}.json')
    if not sidecar.is_file():
        raise InputError(f'{sidecar}: missing; `export` writes it beside the weights')
    try:
        content = json.loads(sidecar.read_text())
        file_format = content['format']
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise InputError(f'{sidecar}: not the JSON of an export ({error!r})') from error
    if file_format != FORMAT:
        raise InputError(f'{sidecar}: format {file_format!r}, this version reads {FORMAT!r}')
    model = resolve(from_dict(Model, content['model'], str(sidecar)))
    raise_all(f'{sidecar}: these settings cannot be used', check_model(model))
    params, _ = import_weights('fusmae', read_state(path), model)
    return params, model, content


def _inputs(model: Model, name: str) -> dict[str, Any]:
    """What the images of one modality must be: channel order, statistics, size."""
    from fusmae_jax.input.normalise import statistics  # brings jax in, which reading files does not need

    mean, std = statistics(model.modalities[name])
    return {
        'shape': [len(model.modalities[name].bands), *model.image_size],
        'bands': list(model.modalities[name].bands),
        'mean': mean.tolist(),
        'std': std.tolist(),
        'layout': 'channel, row, column; (value - mean) / std',
    }
