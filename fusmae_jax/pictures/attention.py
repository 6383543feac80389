"""A picture of attention maps: the images, the patch that looks, and where it looks."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_NAME = 28  # letters of the end of a record's name
_TITLES = {'s1': 'Sentinel-1', 's2': 'Sentinel-2'}


class Look(NamedTuple):
    """One line of the picture: a patch of one sensor, and its maps in some blocks."""

    name: str  # of the record
    modality: str  # of the patch
    images: Mapping[str, np.ndarray]  # modality -> (rows, columns, 3), 0 to 1
    blocks: Mapping[
        str, Mapping[str, np.ndarray]
    ]  # title of a block -> modality -> (rows, columns) of patches


def attention_figure(looks: Sequence[Look], patch: tuple[int, int], title: str) -> np.ndarray:
    """A grid as uint8 (rows, columns, 3): a line a look, first the images, then its maps.

    Each map goes from 0 (dark) to its own maximum; above it stands its share of all attention.

    Args:
        looks: of models with the same blocks and sensors.
        patch: row and column of the patch that looks, which is outlined.
        title: above everything.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    from PIL import Image

    sensors, blocks = list(looks[0].images), list(looks[0].blocks)
    columns = len(sensors) * (1 + len(blocks))
    fig, axes = plt.subplots(
        len(looks),
        columns,
        figsize=(1.35 * columns + 0.3, 1.6 * len(looks) + 0.5),
        squeeze=False,
        layout='constrained',
    )
    for line, look in zip(axes, looks):
        for axis, sensor in zip(line, sensors):
            axis.imshow(look.images[sensor], interpolation='nearest')
            axis.set_title(_TITLES.get(sensor, sensor), fontsize=7)
            if sensor == look.modality:
                _outline(
                    axis, patch, look.images[sensor].shape, next(iter(look.blocks.values()))[sensor].shape
                )
        for i, (block, maps) in enumerate(look.blocks.items(), 1):
            for axis, sensor in zip(line[i * len(sensors) :], sensors):
                share = float(maps[sensor].sum())
                axis.set_title(f'{block}: {sensor} {share:.0%}', fontsize=7)
                # Without a share there is nothing to see, not an even map.
                axis.imshow(maps[sensor], vmin=0, vmax=max(float(maps[sensor].max()), 1e-9), cmap='magma')
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(f'a patch of {look.modality}', fontsize=7)
        line[0].set_xlabel(look.name[-_NAME:], fontsize=5)
    fig.suptitle(title, fontsize=9)
    out = io.BytesIO()
    fig.savefig(out, format='png', dpi=90)
    plt.close(fig)
    return np.asarray(Image.open(out).convert('RGB'))


def _outline(axis: Any, patch: tuple[int, int], image: Sequence[int], grid: Sequence[int]) -> None:
    from matplotlib.patches import Rectangle

    height, width = image[0] / grid[0], image[1] / grid[1]
    corner = patch[1] * width - 0.5, patch[0] * height - 0.5
    # Red on dark, so that it is seen on any ground.
    for color, linewidth in (('black', 3.2), ('red', 1.4)):
        outline = Rectangle(corner, width, height, fill=False, color=color, linewidth=linewidth)
        axis.add_patch(outline)
