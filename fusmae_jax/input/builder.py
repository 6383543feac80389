"""The TFDS builder of a converted data set, the one door to it, opened only where its files name no code.

TFDS imports the module of every class that `features.json` names. A data set comes from anywhere, so what its
two metadata files may say is checked before TFDS acts on it: the three feature classes that a conversion
writes, ArrayRecord shards, and files that lie in the folder itself.
"""

import json
import re
from typing import Any

from etils import epath

from fusmae_jax.errors import InputError

FEATURES = 'features.json'
_CORE = 'tensorflow_datasets.core.features'
_WHOLE = f'{_CORE}.features_dict.FeaturesDict'
_FIELDS = (f'{_CORE}.tensor_feature.Tensor', f'{_CORE}.text_feature.Text')
_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]*')
_SPLIT = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_-]*')
_DTYPE = re.compile(r'bool|u?int(8|16|32|64)|float(16|32|64)')


def open_builder(path: epath.PathLike) -> Any:
    """The TFDS builder of the data set in a folder; nothing that the folder holds is imported or executed.

    Raises:
        InputError: metadata files that are missing, damaged, or say what no conversion writes.
    """
    import tensorflow_datasets as tfds

    folder = epath.Path(path)
    try:
        _check_info(folder)
        _check_features(folder)
        return tfds.builder_from_directory(path)
    except InputError:
        raise
    except Exception as error:  # TFDS has a class of its own for each file that can be missing or broken
        raise InputError(f'{path}: TFDS cannot read this folder ({error}); convert it again') from error


def split_name(name: str, where: object) -> str:
    """The name of a split, which becomes part of file names; raises InputError if it could lead elsewhere."""
    if not _SPLIT.fullmatch(name):
        raise InputError(f'{where}: {name!r} is no name of a split; it has letters, digits, _ and - alone')
    return name


def _check_info(folder: epath.Path) -> None:
    from tensorflow_datasets.core import dataset_info, naming

    file = dataset_info.dataset_info_path(folder)
    info = dataset_info.read_proto_from_builder_dir(folder)
    if info.module_name:
        raise _refusal(file, 'moduleName', info.module_name)
    if info.file_format != 'array_record':
        raise _refusal(file, 'fileFormat', info.file_format)
    if not _NAME.fullmatch(info.name):
        raise _refusal(file, 'name', info.name)
    for split in info.splits:
        split_name(split.name, file)
        # Any other template could name files outside the folder.
        if split.filepath_template not in ('', naming.DEFAULT_FILENAME_TEMPLATE):
            raise _refusal(file, f'filepathTemplate of {split.name}', split.filepath_template)


def _check_features(folder: epath.Path) -> None:
    from google.protobuf import json_format
    from tensorflow_datasets.core.proto import feature_pb2

    file = folder / FEATURES
    # As TFDS parses it, so that no other spelling of a key gets past.
    whole = json_format.ParseDict(json.loads(file.read_text()), feature_pb2.Feature())
    if whole.python_class_name != _WHOLE or whole.WhichOneof('content') != 'features_dict':
        raise _refusal(file, 'pythonClassName', whole.python_class_name)
    for name, feature in whole.features_dict.features.items():
        if feature.python_class_name not in _FIELDS:
            raise _refusal(file, f'{name}: pythonClassName', feature.python_class_name)
        content = feature.WhichOneof('content')
        if content not in ('tensor', 'text'):
            raise _refusal(file, f'{name}: content', str(content))
        # What NumPy does not know, TFDS would ask TensorFlow about.
        if content == 'tensor' and not _DTYPE.fullmatch(feature.tensor.dtype):
            raise _refusal(file, f'{name}: dtype', feature.tensor.dtype)


def _refusal(file: epath.Path, field: str, value: str) -> InputError:
    return InputError(
        f'{file}: {field}: {value!r} is nothing that a conversion writes, and nothing was loaded; take the '
        'data set from whoever converted it, or convert it yourself'
    )
