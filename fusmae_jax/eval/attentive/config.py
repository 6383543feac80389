"""The settings of `attentive_probe`, and the impossible ones among them."""

import dataclasses
import functools

from fusmae_jax.config.run import MAX_SEED
from fusmae_jax.config.setting import setting
from fusmae_jax.encoders.settings import BANDS, PRIOR, RANDOM, EncoderSettings
from fusmae_jax.errors import raise_all
from fusmae_jax.eval.config import MAPS, Evaluation, HeadSettings, evaluation_problems, sweep_problems


@dataclasses.dataclass(frozen=True)
class AttentiveProbe(HeadSettings, Evaluation):
    """A linear head on what learned queries pick out of frozen tokens."""

    encoder: EncoderSettings = dataclasses.field(
        default_factory=functools.partial(EncoderSettings, baselines=(RANDOM, PRIOR))
    )
    queries: int = setting(4, least=1)  # each gives the head a mean of all tokens by weights of its own
    # Tokens with mean 0 and variance 1 over the labelled records
    standardise: bool = True
    # Of the initial heads; the batch order is the same for all
    head_seeds: tuple[int, ...] = setting((0, 1, 2), least=0, most=MAX_SEED)


def check(config: AttentiveProbe) -> None:
    """Raises InputError with every setting that is impossible whatever the data hold."""
    problems = evaluation_problems(config)
    if config.data.kind in MAPS:
        problems.append(f'data.kind={config.data.kind!r}: `dense_probe` takes maps of labels')
    else:
        problems += sweep_problems(config, ('learning_rates', 'weight_decays', 'head_seeds'))
    if BANDS in (config.encoder.checkpoint, *config.encoder.baselines):
        problems.append(f'encoder: {BANDS!r} has no tokens; `linear_probe` and `knn` take it')
    raise_all('config: these settings cannot be used', problems)
