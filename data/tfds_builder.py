"""The base class of the TFDS builders.

`python main.py convert` writes the same records faster and resumes; these classes are for those who build
with TFDS. They need no TensorFlow when built as ArrayRecord:

    builder = Builder(config=CONFIG, data_dir=OUT, file_format='array_record')
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=FOLDER))
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from fusmae_jax.config.build import from_dict
from fusmae_jax.errors import InputError

from . import records
from .records import Item, Record, Schema


@dataclasses.dataclass(eq=False)
class ArchiveConfig(tfds.core.BuilderConfig):
    """Settings of the archive, by the names of the builder module's `Archive`."""

    # Setting -> file or folder, relative to the manual directory.
    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # all other settings


class ArchiveBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A TFDS builder over a module of `BUILDERS` in `data/convert.py`.

    A subclass named `Builder` gives `MODULE`, `VERSION`, `RELEASE_NOTES`, `MANUAL_DOWNLOAD_INSTRUCTIONS`
    and its `BUILDER_CONFIGS`, all `ArchiveConfig`s.
    """

    MODULE: Any  # has `SCHEMA`, `Archive` and `source`

    def schema(self, archive: Any) -> Schema:
        """The schema of the records; for builders whose settings change it, to be overridden."""
        return self.MODULE.SCHEMA

    def _archive(self, root: str | os.PathLike[str] = '') -> Any:
        """The settings of the archive with its paths under `root`; raises InputError for unknown ones."""
        config = self.builder_config
        assert isinstance(config, ArchiveConfig)
        paths = {name: os.path.join(root, path) for name, path in config.paths.items()}
        title = f'{self.name}/{config.name}'
        return from_dict(self.MODULE.Archive, {**config.settings, **paths}, title)

    def _info(self) -> tfds.core.DatasetInfo:
        schema = self.schema(self._archive())
        return tfds.core.DatasetInfo(
            builder=self, features=records.features(schema), **records.dataset_info(schema)
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        source = self.MODULE.source(self._archive(dl_manager.manual_dir), on_error='fail')
        empty = [name for name, items in source.splits.items() if not items]
        if empty:
            raise InputError(f'{dl_manager.manual_dir}: split {empty[0]}: no record here belongs to it')
        return {
            name: self._generate_examples(items, source.read, source.schema)
            for name, items in source.splits.items()
        }

    def _generate_examples(
        self, items: Sequence[Item], read: Callable[[Item], Record], schema: Schema
    ) -> Iterator[tuple[str, Record]]:
        for item in items:
            yield item.key, records.read_checked(read, item, schema)
