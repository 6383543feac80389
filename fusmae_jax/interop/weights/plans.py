"""What the import of a foreign file is made of: the user's options, and a layout's plan for the file."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from fusmae_jax.config.run import Model
from fusmae_jax.interop.weights.rules import Rule, State


@dataclasses.dataclass(frozen=True)
class Options:
    """What a layout cannot know from the file."""

    channels: tuple[str, ...] = ()  # bands of a stacked projection, in the file's order
    adapters: Mapping[str, str] = dataclasses.field(default_factory=dict)  # MultiMAE: modality -> its task
    grid: tuple[int, int] = (0, 0)  # of the file's positional table; (0, 0) is square
    drop_positions: bool = False  # leave a learned table out when the model has sine-cosine positions
    outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)  # MultiMAE: modality -> its decoder
    decoders: bool = True  # MultiMAE: the file's decoders too, if the model has such
    branch: str = 'teacher'  # DINO-MM: 'teacher' or 'student'


@dataclasses.dataclass
class Plan:
    """What a layout makes of a file: rules for `state`, and what to do besides."""

    state: dict[str, np.ndarray]
    rules: list[Rule]
    ignore: tuple[str, ...] = ()  # regular expressions of names that may go unused
    table: str = ''  # name of the encoder's positional table in `state`
    decoder_table: str = ''
    grid: tuple[int, int] = (0, 0)  # of the tables, where the file says it
    cls_row: bool = False  # the tables start with a row for CLS
    notes: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


Layout = Callable[[State, Model, Options], Plan]
