"""An encoder of fusmae_jax as a model of Copernicus-Bench: a file to copy into its folder `src`.

    python main.py export --checkpoint=runs/xae --to=torch --out=xae_torch

and, in the folder of the benchmark, where this file takes the place of its `main.py`,

    python src/fusmae_copernicus_bench.py model=fusmae dataset=cobench_eurosat_s1 task=classification ...

with src/configs/model/fusmae.yaml:

    defaults: [base_model]
    model_type: fusmae
    task: ${task}
    folder: xae_torch
    radar: by_level      # or by_name, for the row that takes the names as they stand
    freeze_backbone: true

The benchmark hands over z-scores; they are turned back into physical units, since the module has the
normalisation of its checkpoint inside. Its statistics of radar are those of another archive, the same for all
sets, so they say nothing about which channel is VV: with `by_level` the first images decide, as over land and
sea VV is the brighter one. `dataset_type: fusmae_both` gives Sentinel-1 and Sentinel-2 of BigEarthNet and of
DFC2020 together, which the benchmark has only one by one.
"""

import importlib.util
import pathlib
import runpy
from typing import Any

import torch
from foundation_models.lightning_task import LightningTask
from hydra.utils import to_absolute_path
from torch import Tensor, nn
from torch.nn import functional

RADAR = ('VV', 'VH')
# What the sets hold, where it is not backscatter in dB and digital numbers.
UNITS = {'cobench_lcz_s12': {'s2': 'reflectance'}, 'cobench_flood_s1': {'s1': 'linear'}}
USUAL = {'s1': 'dB', 's2': 'DN'}
# Within which the median of all pixels of the first images has to lie.
LEVELS = {'dB': (-45.0, -1.0), 'linear': (0.0, 2.0), 'DN': (15.0, 15e3), 'reflectance': (0.0, 1.5)}
DARKEST = 1e-7  # linear, less than any sensor sees; not measured is 0, but for the rounding of z-scores
PAIRED = ('cobench_bigearthnet_s12', 'cobench_dfc2020_s12')  # sets with both sensors of each place
SPLITS = ('train', 'val', 'test')


def plain(name: str) -> str:
    """A band as we call it: S2_B02 is B02."""
    return name.upper().removeprefix('S2_')


class Images(nn.Module):
    """Batches of the benchmark (b, channels, rows, columns) to images by sensor as the encoder takes them.

    Args:
        data: the configuration of a set: `band_names`, `band_stats`, `dataset_type`.
        contract: that of the exported encoder.
        radar: by_level or by_name.
        part: which of the images that lie behind one another in a batch: before or after a flood.

    Raises:
        ValueError: no band of the encoder is there.
    """

    exchanged: Tensor  # -1 until the first images were seen, then 0 or 1
    mean: Tensor
    std: Tensor

    def __init__(self, data: Any, contract: Any, radar: str = 'by_level', part: int = 0):
        super().__init__()
        names = [plain(name) for name in data.band_names]
        channels = slice(part * len(names), (part + 1) * len(names))
        for key, default in (('mean', 0.0), ('std', 1.0)):
            given = list(data.band_stats[key])[channels] if data.band_stats else [default] * len(names)
            self.register_buffer(key, torch.tensor(given)[:, None, None], persistent=False)
        self.register_buffer('exchanged', torch.tensor(0 if radar == 'by_name' else -1))
        self.title, self.names, self.bands = data.dataset_name, names, {}
        self.units = USUAL | UNITS.get(data.dataset_type, {})
        # Other sensors, such as a second orbit of radar, are in no set.
        for sensor in (name for name in contract['sensors'] if name in self.units):
            wanted = [plain(band) for band in contract['sensors'][sensor]['bands']]
            index = [names.index(band) if band in names else None for band in wanted]
            if any(i is not None for i in index):
                self.bands[sensor] = index
        if not self.bands:
            raise ValueError(f'{self.title}: {names} holds no band of {list(contract["sensors"])}')
        # The channels with VV and VH exchanged.
        self.other_order = list(range(len(names)))
        if all(name in names for name in RADAR):
            vv, vh = (names.index(name) for name in RADAR)
            self.other_order[vv], self.other_order[vh] = vh, vv
        self.wanted = {entry['sensor']: entry['unit'] for entry in contract['inputs'].values()}

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        """Images by sensor, NaN for bands that the set lacks."""
        values = samples.float() * self.std + self.mean
        if self.exchanged < 0:
            self._look(values)
        if self.exchanged > 0:
            values = values[:, self.other_order]
        images, absent = {}, torch.full_like(values[:, 0], torch.nan)
        for sensor, index in self.bands.items():
            x = torch.stack([absent if i is None else values[:, i] for i in index], 1)
            images[sensor] = converted(x, self.units[sensor], self.wanted[sensor])
        return images

    def _look(self, values: Tensor) -> None:
        """What the first images tell: whether units are those that are declared, and which channel is VV.

        Raises:
            ValueError: values of another unit.
        """
        for sensor, index in self.bands.items():
            low, high = LEVELS[self.units[sensor]]
            median = values[:, [i for i in index if i is not None]].nanmedian().item()
            if not low <= median <= high:
                raise ValueError(
                    f'{self.title}: the median of {sensor} is {median:.4g}, declared as {self.units[sensor]} '
                    f'({low:g} to {high:g}); see to band_stats and UNITS'
                )
        darker = False
        if all(name in self.names for name in RADAR):
            vv, vh = (values[:, self.names.index(name)].nanmean().item() for name in RADAR)
            darker = vv < vh
        self.exchanged.fill_(int(darker))


def converted(x: Tensor, unit: str, wanted: str) -> Tensor:
    """Values in another unit of the same sensor.

    Raises:
        ValueError: none that they could be turned into.
    """
    if unit == wanted:
        return x
    if (unit, wanted) == ('linear', 'dB'):
        return torch.where(x > DARKEST, 10 * x.clamp_min(DARKEST).log10(), torch.nan)
    scale = {('reflectance', 'DN'): 1e4, ('DN', 'reflectance'): 1e-4}.get((unit, wanted))
    if scale is None:
        raise ValueError(f'images in {unit}, the encoder takes {wanted}')
    return x * scale


class Task(LightningTask):
    """A head over an exported encoder, which stays as it is unless `freeze_backbone` is false."""

    def __init__(self, args: Any, model_config: Any, data_config: Any, parts: int = 1):
        super().__init__(args, model_config, data_config)
        # Hydra changes the working directory; a path is one from where the command was given.
        self.encoder = load(pathlib.Path(to_absolute_path(model_config.folder)))
        self.width, self.frozen = self.encoder.model['width'], model_config.freeze_backbone
        radar = model_config.get('radar', 'by_level')
        self.images = nn.ModuleList(
            Images(data_config, self.encoder.contract, radar, part) for part in range(parts)
        )
        if self.frozen:
            self.freeze(self.encoder)

    def params_to_optimize(self) -> list[nn.Parameter]:
        """Of the head, or of all."""
        return [p for p in self.parameters() if p.requires_grad]

    def log_metrics(self, outputs: Any, targets: Tensor, prefix: str = 'train') -> None:
        """The loss and the two metrics of the task, under the names that the benchmark watches."""
        from util.misc import cls_metric, seg_metric

        single = self.model_config.task == 'classification'
        names = ('acc1', 'acc5') if single else ('miou', 'acc')
        metrics = (cls_metric if single else seg_metric)(self.data_config, outputs[0], targets)
        for name, value in zip(('loss', *names), (self.loss(outputs, targets), *metrics)):
            self.log(f'{prefix}_{name}', value, on_step=prefix == 'train', on_epoch=True, prog_bar=True)


class Classification(Task):
    """A linear layer on standardised pooled features."""

    def __init__(self, args: Any, model_config: Any, data_config: Any):
        super().__init__(args, model_config, data_config)
        linear = nn.Linear(self.width, data_config.num_classes)
        nn.init.normal_(linear.weight, std=0.01)
        self.head = nn.Sequential(nn.BatchNorm1d(self.width, affine=False, eps=1e-6), linear)
        self.criterion = nn.MultiLabelSoftMarginLoss() if data_config.multilabel else nn.CrossEntropyLoss()

    def forward(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the features that they come from."""
        with torch.set_grad_enabled(not self.frozen and torch.is_grad_enabled()):
            features = self.encoder(self.images[0](samples))['pooled']
        return self.head(features), features

    def loss(self, outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Of the logits."""
        return self.criterion(outputs[0], labels)


class Segmentation(Task):
    """UPerNet on the maps after four blocks, as the benchmark has it for other encoders."""

    def __init__(self, args: Any, model_config: Any, data_config: Any, parts: int = 1):
        super().__init__(args, model_config, data_config, parts)
        from mmseg.models.decode_heads import FCNHead, UPerHead
        from mmseg.models.necks import Feature2Pyramid

        depth, classes = self.encoder.model['depth'], data_config.num_classes
        self.layers = [max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4)]
        # Statistics over devices exist where there are several.
        common = {
            'num_classes': classes,
            'dropout_ratio': 0.1,
            'norm_cfg': {'type': 'SyncBN' if args.num_gpus > 1 else 'BN', 'requires_grad': True},
            'align_corners': False,
        }
        self.neck = Feature2Pyramid(embed_dim=self.width, rescales=[4, 2, 1, 0.5])
        self.decoder = UPerHead(
            in_channels=[self.width] * 4,
            in_index=[0, 1, 2, 3],
            pool_scales=(1, 2, 3, 6),
            channels=512,
            **common,
        )
        self.aux_head = FCNHead(
            in_channels=self.width, in_index=2, channels=256, num_convs=1, concat_input=False, **common
        )
        self.criterion = nn.CrossEntropyLoss(ignore_index=data_config.ignore_index)

    def maps(self, samples: Tensor) -> list[Tensor]:
        """(b, width, rows, columns) after each of four blocks."""
        return self.encoder.features(self.images[0](samples), self.layers)

    def forward(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of each pixel, of the decoder and of the auxiliary head."""
        with torch.set_grad_enabled(not self.frozen and torch.is_grad_enabled()):
            maps = self.maps(samples)
        pyramid, size = self.neck(maps), samples.shape[2:]
        main, other = (
            functional.interpolate(head(pyramid), size, mode='bilinear', align_corners=False)
            for head in (self.decoder, self.aux_head)
        )
        return main, other

    def loss(self, outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """That of the decoder and 0.4 of that of the auxiliary head."""
        return self.criterion(outputs[0], labels) + 0.4 * self.criterion(outputs[1], labels)


class Change(Segmentation):
    """The maps after an event minus those before it; both lie behind one another in a batch."""

    def __init__(self, args: Any, model_config: Any, data_config: Any):
        super().__init__(args, model_config, data_config, parts=2)

    def maps(self, samples: Tensor) -> list[Tensor]:
        """Differences (b, width, rows, columns)."""
        before, after = (
            self.encoder.features(images(part), self.layers)
            for images, part in zip(self.images, samples.chunk(2, 1))
        )
        return [y - x for x, y in zip(before, after)]


def FusMAEModel(args: Any, model_config: Any, data_config: Any) -> Task:  # noqa: N802  # as the others are called
    """The model for a task; raises NotImplementedError for regression, whose sets are of other sensors."""
    tasks = {'classification': Classification, 'segmentation': Segmentation, 'changedetection': Change}
    if args.task not in tasks:
        raise NotImplementedError(f'task={args.task}: this model has heads for {", ".join(tasks)}')
    return tasks[args.task](args, model_config, data_config)


class Pairs(torch.utils.data.Dataset):
    """Sentinel-1 and Sentinel-2 of each place, channels one behind the other, in their own units."""

    def __init__(self, one: Any, other: Any, flips: bool):
        if len(one) != len(other):
            raise ValueError(f'{len(one)} images of one sensor, {len(other)} of the other')
        self.sets, self.flips = (one, other), flips

    def __len__(self) -> int:
        return len(self.sets[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        both = [one[index] for one in self.sets]
        target = both[0]['label' if 'label' in both[0] else 'mask']
        axes = [axis for axis in (-1, -2) if self.flips and torch.rand(()) < 0.5]
        image = torch.cat([one['image'] for one in both]).flip(axes)
        target = target.flip(axes) if 'mask' in both[0] else target
        return image, target, torch.as_tensor(both[0]['meta'])


class Both:
    """`dataset_type: fusmae_both`: the set of PAIRED that `of` names, with the bands of both sensors."""

    def __init__(self, config: Any):
        self.config = config
        if config.of not in PAIRED or config.band_stats:
            raise ValueError(f'of={config.of}: one of {PAIRED}, with band_stats: null')

    def create_dataset(self) -> list[Pairs]:
        """Training, validation and test."""
        if self.config.of == PAIRED[0]:
            from datasets.cobench_bigearthnets12_wrapper import CoBenchBigEarthNetS12 as Single
        else:
            from datasets.cobench_dfc2020s12_wrapper import CoBenchDFC2020S12 as Single
        names = list(self.config.band_names)
        bands = {'s1': [n for n in names if n in RADAR], 's2': [n for n in names if n not in RADAR]}
        if names != bands['s1'] + bands['s2'] or not all(bands.values()):
            raise ValueError(f'band_names={names}: those of Sentinel-1, then those of Sentinel-2')
        pairs = []
        for split in SPLITS:
            each = [Single(self.config.data_path, split, bands=b, modality=m) for m, b in bands.items()]
            pairs.append(Pairs(*each, flips=split == 'train'))
        return pairs


def load(folder: pathlib.Path) -> Any:
    """The module that `export --to=torch` wrote, with its weights."""
    file = folder / 'fusmae_encoder.py'
    spec = importlib.util.spec_from_file_location('fusmae_encoder', file)
    if spec is None or spec.loader is None or not file.is_file():
        raise FileNotFoundError(f'{folder}: no fusmae_encoder.py; write it with export --to=torch')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder)


def register() -> None:
    """Makes `model_type: fusmae` and `dataset_type: fusmae_both` known to the benchmark."""
    import factory

    factory.model_registry['fusmae'] = FusMAEModel
    factory.dataset_registry['fusmae_both'] = Both


def run() -> None:
    """The command line of the benchmark, with these models known."""
    register()
    # As a script, not as a module: Hydra looks for the configuration beside what is run.
    runpy.run_path(str(pathlib.Path(__file__).with_name('main.py')), run_name='__main__')


if __name__ == '__main__':
    run()
