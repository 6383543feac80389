"""What an export is made of: an encoder by its path, and what is known of where it comes from."""

from typing import Any, NamedTuple

import jax
from etils import epath

from fusmae_jax.checkpoints.checkpoints import open_step
from fusmae_jax.config.build import build
from fusmae_jax.encoders import hub, single_file, store
from fusmae_jax.encoders.load import load_one, local
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.run import model_card
from fusmae_jax.train.recipes import recipe_of


class Source(NamedTuple):
    """An encoder with its history."""

    model: Pretrained
    dtype: str  # of its matrix products on an accelerator
    card: dict[str, Any]  # the essentials of its model card, as JSON holds them
    text: str  # the model card of its run; '' where there is none
    seen: bytes | None  # the records that it learned from, as a checkpoint stores them


def open_source(path: str) -> Source:
    """Opens what `fusmae_jax.load` opens, but for several encoders side by side; raises InputError."""
    model = load_one(path)
    about = _model(model)
    if hub.is_hub(path) or single_file.is_single_file(path):
        opened = single_file.read(local(path))
        return Source(model, str(model.dtype), opened.card, '', None)
    if store.is_imported(path):
        imported = store.read(path).about
        return Source(
            model, 'float32', about | {'source': imported, 'untouched': imported['untouched']}, '', None
        )
    checkpoints, step = open_step(path)
    try:
        meta, seen = checkpoints.meta(step), checkpoints.seen(step)
        file = epath.Path(checkpoints.directory).parent / model_card.FILE
    finally:
        checkpoints.close()
    config = build(meta['config'])
    recipe = recipe_of(config)
    card = about | {
        'title': recipe.title(config),
        'objective': recipe.describe(config),
        'step': step,
        'loss': meta.get('loss'),
        'best_val': meta.get('best_val'),
        'split': config.data.train_split,
        'versions': meta.get('versions', {}),
    }
    return Source(model, meta['dtype'], card, file.read_text() if file.is_file() else '', seen)


def _model(model: Pretrained) -> dict[str, Any]:
    """What the encoder itself says."""
    config, contract = model.config, model.contract
    return {
        'title': config.name,
        'model': f'ViT-{config.model.size} ({config.model.width} wide, {config.model.depth} deep, '
        f'{config.model.heads} heads)',
        'parameters': sum(x.size for x in jax.tree.leaves(model.params['encoder'])),
        'data': {
            name.rstrip('/') or part.dataset: {'version': part.version, 'fingerprint': part.fingerprint}
            for name, part in contract.each.items()
            if part.dataset
        },
    }
