"""The settings classes of all commands and archives."""

from fusmae_jax.config.dino import Dino
from fusmae_jax.config.run import Config
from fusmae_jax.embed.settings import EncodeConfig
from fusmae_jax.eval.config import Knn, LinearProbe
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.eval.reliance.config import Reliance
from fusmae_jax.interop.weights.published_kinds import WeightFile
from fusmae_jax.shipped.data import convert
from fusmae_jax.tables.config import StudyArchive, Tables

KINDS = [Config, Dino, LinearProbe, Knn, Finetune, Reliance, WeightFile, EncodeConfig, Tables]
KINDS += [StudyArchive, convert.ConvertConfig]
KINDS += [convert.builder(name).Archive for name in convert.BUILDERS]
