"""The settings classes of all commands and archives."""

import importlib

from docs.settings_page import COMMANDS
from fusmae_jax.config.dino import Dino
from fusmae_jax.tables.config import StudyArchive

KINDS = [getattr(importlib.import_module(module), name) for _, module, name, _ in COMMANDS]
KINDS += [Dino, StudyArchive]
