"""Clones of the benchmarks that the marker `bench_peers` compares with; none is part of this project."""

import os
from pathlib import Path

import pytest


def clone(name: str) -> Path:
    """The folder of a clone below $PEERS; the test is skipped without it."""
    folder = Path(os.environ.get('PEERS', '')) / name
    if not os.environ.get('PEERS') or not folder.is_dir():
        pytest.skip(f'PEERS must name a folder with a clone of {name}')
    return folder
