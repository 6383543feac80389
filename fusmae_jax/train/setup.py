"""The setup of a run: everything that it is made of, built from a configuration and a contract."""

import dataclasses
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from fusmae_jax.config.run import MAX_STEPS, Config
from fusmae_jax.errors import InputError
from fusmae_jax.input.compatibility import settle
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.mixture import check_rows, row_counts
from fusmae_jax.installed import program
from fusmae_jax.parallel.mesh import check_batch, make_mesh
from fusmae_jax.train.objective import Objective
from fusmae_jax.train.recipes import Recipe, recipe_of
from fusmae_jax.train.state import Given, State, abstract_state, compute_dtype, init_state
from fusmae_jax.train.step import abstract_batch, lower_step, make_step


class Setup(NamedTuple):
    """The fixed parts of a run."""

    config: Config
    contract: Contract
    mesh: Mesh
    dtype: DTypeLike
    objective: Objective
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    total_steps: int
    notes: tuple[str, ...] = ()  # how the data differ from what the model expects, in words

    @property
    def recipe(self) -> Recipe:
        """What this kind of pretraining does differently from others."""
        return recipe_of(self.config)

    def abstract_state(self) -> State:
        """Shapes, types and shardings of the train state."""
        return abstract_state(self.objective, self.optimizer, self.mesh, bool(self.config.train.ema))

    def init_state(self, given: Given | None = None) -> State:
        """A fresh train state, with `given` parameters; every array is created where it lives."""
        ema, seed = bool(self.config.train.ema), self.config.seed
        return init_state(self.objective, self.optimizer, self.mesh, seed, ema, given)

    def lower(self, batch_size: int = 0) -> Any:
        """The lowered train step, for the configured batch size or another."""
        train = self.config.train
        step = make_step(
            self.objective, self.optimizer, self.schedule, self.config.seed, train.accumulation, train.ema
        )
        rows = row_counts(self.config.data, batch_size or train.batch_size)
        batch = abstract_batch(self.contract, self.objective.fields, rows, self.mesh)
        return lower_step(step, self.abstract_state(), batch, self.mesh)


def total_steps(config: Config, examples: int) -> int:
    """Steps of a run: `train.steps`, or as many as see `train.epochs` times all examples.

    Raises InputError for more than can be counted.
    """
    steps = config.train.steps or max(1, round(config.train.epochs * examples / config.train.batch_size))
    if steps > MAX_STEPS:
        raise InputError(
            f'train.epochs={config.train.epochs:g} of {examples:,} records are {steps:,} steps of '
            f'{config.train.batch_size}; more than {MAX_STEPS:,} cannot be counted'
        )
    return steps


def of_any_length(config: Config) -> Config:
    """The same run for what takes no step of its schedule, on records that may be few.

    A warm-up in steps would be longer than so many epochs of them.
    """
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=MAX_STEPS))


def make_setup(
    config: Config, contract: Contract, examples: int, devices: list[jax.Device] | None = None
) -> Setup:
    """Builds a run over a data set of `examples` records; raises InputError where the parts do not fit."""
    config, notes = _fit(config, contract)
    mesh = make_mesh(config.parallel, devices)
    accumulation = config.train.accumulation
    check_batch(config.train.batch_size, mesh, accumulation)
    check_rows(row_counts(config.data, config.train.batch_size), mesh.size * accumulation)
    dtype = compute_dtype(config)
    steps = total_steps(config, examples)
    parts = recipe_of(config).parts(config, contract, dtype, steps, examples)
    return Setup(config, contract, mesh, dtype, *parts, total_steps=steps, notes=notes)


def _fit(config: Config, contract: Contract) -> tuple[Config, tuple[str, ...]]:
    """The configuration settled for the data, and every difference between the two that was let through."""
    if contract.parts and config.data.stats == 'dataset':
        raise InputError(
            "data.stats='dataset': a mixture has several; set model.modalities.*.mean and .std from "
            f'`{program()} stats` of the set that they shall come from'
        )
    notes: list[str] = []
    for prefix, part in contract.each.items():
        where = f'{prefix}{part.dataset}' if prefix else config.data.path
        fitted = settle(config, part, config.data.accept, where)
        config, notes = fitted.config, notes + fitted.notes
    return config, tuple(dict.fromkeys(notes))
