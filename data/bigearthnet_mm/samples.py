"""The six real pairs that ship with bigearthnet-common, as arrays to try an encoder on."""

import tempfile
from importlib import util
from pathlib import Path

import numpy as np

from fusmae_jax.export.parity import Samples

from .schema import GROUPS


def six_pairs() -> Samples | None:
    """The images of the six pairs by record field; None where the package with them is not installed."""
    if util.find_spec('bigearthnet_common') is None:
        return None
    from . import lists
    from .archive import read_images, read_metadata

    images = []
    with tempfile.TemporaryDirectory() as folder:
        s1_root, s2_root = lists.unpack_examples(Path(folder))
        for s1_folder in sorted(s1_root.iterdir()):
            partner = s2_root / read_metadata(s1_folder)['corresponding_s2_patch']
            images.append(read_images(s1_folder, partner)[0])
    arrays = {field: np.stack([image[field] for image in images]) for field in GROUPS}
    return Samples('six real BigEarthNet-MM pairs', arrays, GROUPS)
