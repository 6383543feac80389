"""Settings of what a run starts from: random weights, or those of another run or file."""

import dataclasses
from typing import Literal

from fusmae_jax.config.setting import setting


@dataclasses.dataclass(frozen=True)
class Init:
    """The weights before the first step; where the run has a checkpoint already, that is what counts."""

    # A run, one of its checkpoints, or a folder that `import` wrote; '' draws all weights.
    # `init.from` on a command line and `config.init['from']` in a file: in Python the word is taken.
    from_: str = setting('', path=True, key='from')
    # by_index: where source and run differ in depth, blocks are taken by their number; what the source lacks
    # is drawn, and what the run lacks is left
    depth: Literal['same', 'by_index'] = 'same'
    average: bool = False  # the average of the weights, of a run with train.ema
