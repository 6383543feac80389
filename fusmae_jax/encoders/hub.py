"""Encoders on the Hugging Face hub: `hf://ORG/NAME`, `hf://ORG/NAME@REVISION`.

A repository holds one file of `encoders.single_file`. Cache, tokens, mirrors and offline mode are those of
huggingface_hub, with its own environment variables.
"""

import re
from typing import Any, NamedTuple

from etils import epath

from fusmae_jax.errors import InputError
from fusmae_jax.installed import need

SCHEME = 'hf://'
FILE = 'model.safetensors'
_ADDRESS = re.compile(r'hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?')


class Repository(NamedTuple):
    """A model repository, and the branch, tag or commit of it that is meant; '' is the default branch."""

    name: str
    revision: str


def is_hub(path: epath.PathLike) -> bool:
    """Whether a path is an address on the hub."""
    return str(path).startswith(SCHEME)


def parse(address: str) -> Repository:
    """The repository that an address names; raises InputError for one that names none."""
    matched = _ADDRESS.fullmatch(address)
    if not matched:
        raise InputError(
            f'{address}: not an address on the hub; write hf://ORG/NAME or hf://ORG/NAME@REVISION'
        )
    return Repository(matched[1], matched[2] or '')


def library() -> Any:
    """The package huggingface_hub; raises InputError where it is not installed."""
    need('export', 'hf://', 'huggingface_hub')
    import huggingface_hub

    return huggingface_hub


def fetch(path: epath.PathLike) -> str:
    """The file of an address, in the cache of huggingface_hub; downloaded only if it is not there.

    Raises:
        InputError: no such repository, revision or file; no network and nothing in the cache.
    """
    hub, repository = library(), parse(str(path))
    try:
        return hub.hf_hub_download(repository.name, FILE, revision=repository.revision or None)
    except Exception as error:
        if not is_refusal(error):
            raise
        raise InputError(
            f'{path}: {FILE} could not be had ({reason(error)}); check the name, the revision and your '
            'access, or without a network fill the cache first'
        ) from error


def is_refusal(error: Exception) -> bool:
    """Whether an error is one of the hub, its library or the network."""
    libraries = ('huggingface_hub', 'httpx', 'requests')
    return isinstance(error, OSError | ValueError) or type(error).__module__.startswith(libraries)


def reason(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).split('\n')[0]
