"""Frozen configuration dataclasses of a pretraining run.

Fields hold the paper's values or, where the paper is silent, the choice of its code lineage; a comment
names the alternative. `config.build.build` makes a checked Config from an ml_collections file.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from fusmae_jax.config.dino import Dino
from fusmae_jax.config.setting import SPARSE, setting
from fusmae_jax.config.start import Init

MAX_SEED = 2**32 - 1  # jax keeps 32 bits of a seed: another one would give the numbers of a smaller one
MAX_STEPS = 2**31 - 1  # steps are counted in int32
# name: (width, depth, heads) of the encoder, as in ViT and MAE.
SIZES: dict[str, tuple[int, int, int]] = {
    'tiny': (32, 3, 2),  # for tests
    'S': (384, 12, 6),
    'B': (768, 12, 12),  # the paper's, by its code lineage
    'L': (1024, 24, 16),
    'H': (1280, 32, 16),  # in MAE with 14 px patches
}

# A modality names its parameters and its fields in a batch, so it may not be called like a part of the model,
# or like a method of the containers that hold modules by modality.
RESERVED = frozenset(
    [
        *('shared', 'stack', 'cls', 'blocks', 'absent'),
        *('clear', 'copy', 'eval', 'get', 'items', 'iter_children', 'iter_modules', 'keys', 'perturb', 'pop'),
        *('popitem', 'set_attributes', 'setdefault', 'sow', 'train', 'update', 'values'),
    ]
)


@dataclasses.dataclass(frozen=True)
class Modality:
    """One sensor as the model sees it: its channels in order and how they come onto the model grid."""

    bands: tuple[str, ...] = ()
    sensor: str = ''  # key of sensors.SENSORS for statistics; '' takes mean and std below
    resample: Literal['bilinear', 'bicubic', 'opencv_cubic'] = 'bicubic'  # opencv: `input.resample`
    loss_weight: float = setting(1.0, least=0)  # weight of this sensor's mean squared error in the sum
    mean: tuple[float, ...] = ()  # one a band, in `unit`; replaces the table of the sensor
    std: tuple[float, ...] = setting((), above=0)
    unit: str = ''  # of mean, std and what the model sees; '' takes the sensor's, or else that of the data
    statistics_from: str = ''  # where mean and std come from, in words; filled in


def _paper_modalities() -> dict[str, Modality]:
    return {
        's1': Modality(bands=('VV', 'VH'), sensor='s1', resample='bilinear'),
        's2': Modality(
            bands=('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12'),
            sensor='s2',
        ),
    }


@dataclasses.dataclass(frozen=True)
class Fusion:
    """Where the sensors meet (section 3 of the paper)."""

    # Block 1: XAttnEncoder, eqs (2)-(3), or plain self-attention; stack: all bands in one token (SatViT).
    encoder: Literal['xae', 'none', 'stack'] = 'xae'
    # XAttnDecoder, eqs (10)-(11), on the latents; multimae: decoders that attend to all sensors' tokens.
    decoder: Literal['xad', 'none', 'multimae'] = 'none'
    # What takes the place of a sensor that is not there
    absent: Literal['self', 'bypass', 'zero_image'] = 'self'
    shared_directions: bool = False  # one cross-attention for all directions instead of one each


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The light decoder; there is one for each modality."""

    width: int = setting(256, least=1)  # MultiMAE; 512 in MAE
    depth: int = setting(2, least=0)  # MultiMAE; 8 in MAE
    heads: int = setting(8, least=1)  # MultiMAE; 16 in MAE
    cls: bool = False  # True passes the CLS token through the decoder, as MAE does
    final_norm: bool = True


@dataclasses.dataclass(frozen=True)
class Numerics:
    """The choices in which frameworks silently differ."""

    gelu: Literal['exact', 'tanh'] = 'exact'
    norm_eps: float = setting(1e-6, above=0)  # MAE, MultiMAE; PyTorch's own default is 1e-5
    norm_variance: Literal['two_pass', 'fast'] = 'two_pass'  # 'fast' is E[x^2] - E[x]^2
    matmul_precision: Literal['default', 'high', 'highest'] = 'default'
    qkv_bias: bool = True


@dataclasses.dataclass(frozen=True)
class Model:
    """Encoder, fusion and decoders."""

    modalities: Mapping[str, Modality] = dataclasses.field(default_factory=_paper_modalities)
    image_size: tuple[int, int] = setting((224, 224), least=1)  # rows, columns of the model grid, in pixels
    patch_size: int = setting(16, least=1)
    size: str = 'B'  # tiny | S | B | L | H; fills the three fields below where they are 0
    width: int = setting(0, least=0)
    depth: int = setting(0, least=0)  # block 1 included
    heads: int = setting(0, least=0)
    mlp_ratio: float = setting(4.0, above=0)
    positions: Literal['sincos', 'learned'] = 'sincos'  # fixed 2-D sine-cosine, or a trained table
    final_norm: bool = True  # LayerNorm after the last encoder block (MAE); MultiMAE has none
    fusion: Fusion = dataclasses.field(default_factory=Fusion)
    decoder: Decoder = dataclasses.field(default_factory=Decoder)
    numerics: Numerics = dataclasses.field(default_factory=Numerics)
    # The stacked blocks as a loop (True: short compile) or one after the other (False, auto: faster step).
    scan: Literal['auto', True, False] = 'auto'
    remat: Literal['none', 'full', 'dots'] = 'none'  # recompute blocks in the backward pass
    # What computes residual sums with their LayerNorm. auto: a fused kernel in bfloat16 on a GPU, plain
    # operations elsewhere.
    norm: Literal['auto', 'xla', 'pallas'] = dataclasses.field(default='auto', metadata=SPARSE)
    # What computes attention. auto: as for `norm`, and cuDNN for more than 256 keys where it is installed.
    attention: Literal['auto', 'xla', 'cudnn', 'pallas'] = dataclasses.field(default='auto', metadata=SPARSE)
    # Type of the residual stream where products are in bfloat16: bfloat16 moves less, and rounds every sum
    residual_dtype: Literal['float32', 'bfloat16'] = dataclasses.field(default='float32', metadata=SPARSE)
    # False: no CLS token among those of the blocks (SatViT); imported encoders of stacked sensors alone
    cls: bool = dataclasses.field(default=True, metadata=SPARSE)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along rows and columns."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one sensor."""
        return self.grid[0] * self.grid[1]

    def patch_dim(self, modality: str) -> int:
        """Numbers in one flattened patch (rows, columns, bands) of a modality."""
        return self.patch_size**2 * len(self.modalities[modality].bands)


# Strategies whose counts vary from sample to sample: they draw one sequence of slots over all sensors.
JOINT = ('dirichlet', 'modality', 'joint_uniform')


@dataclasses.dataclass(frozen=True)
class Masking:
    """Section 3.3 of the paper, and the masks of MultiMAE."""

    # Fixed counts a sensor: independent, consistent. Counts that vary from sample to sample while their total
    # is fixed: joint_uniform (all patches of all sensors drawn from one urn), dirichlet (random shares),
    # modality (a whole sensor hidden at times, else equal shares).
    strategy: Literal['independent', 'consistent', 'joint_uniform', 'dirichlet', 'modality'] = 'independent'
    ratio: float = setting(0.75, above=0, below=1)
    # Share of the masked patches that the decoders predict in training, drawn anew for each sample: less work
    # and memory for a noisier gradient (CrossMAE). Validation and pictures always predict all. Not with
    # masks whose counts vary.
    decode_ratio: float = setting(1.0, above=0, most=1, sparse=True)
    # With dirichlet: of each sensor's share; 1 makes all shares equally likely
    concentration: float = setting(1.0, above=0)
    # With modality: probability that one of the sensors is hidden as a whole
    hide: float = setting(0.5, least=0, most=1)


@dataclasses.dataclass(frozen=True)
class Loss:
    """Mean squared error over the masked patches of each sensor, summed over the sensors."""

    norm_pix: bool = False  # True: targets normalised patch by patch (MAE); the paper's text has plain MSE
    # How the errors of the sensors are weighed: loss_weight alone, or also the inverse of a variance that is
    # learned for each of them (`train/balance.py`), so that none counts more because it is harder to predict
    balance: Literal['fixed', 'uncertainty'] = dataclasses.field(default='fixed', metadata=SPARSE)
    balance_rate: float = setting(0.01, above=0, most=1, sparse=True)  # of a step of the log-variances


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random geometry of a training sample, shared by all sensors."""

    crop: bool = True  # random resized crop; MultiMAE's default
    crop_scale: tuple[float, float] = setting((0.2, 1.0), above=0, most=1)  # share of the image area
    crop_ratio: tuple[float, float] = setting((0.75, 4 / 3), above=0)  # width / height
    hflip: float = setting(0.5, least=0, most=1)  # probability
    vflip: float = setting(0.0, least=0, most=1)


@dataclasses.dataclass(frozen=True)
class MixturePart:
    """One data set of a mixture."""

    path: str = setting('', path=True)
    train_split: str = 'train'
    val_split: str = ''
    weight: float = setting(1.0, above=0)  # share of each batch, relative to the others


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the records come from and how they are normalised."""

    path: str = setting('', path=True)  # a folder written by `convert`: <name>/<version> with features.json
    train_split: str = 'train'  # 'all_minus_val_test' is every BigEarthNet-MM pair outside val and test
    val_split: str = ''  # '' turns validation off
    mixture: Mapping[str, MixturePart] = dataclasses.field(
        default_factory=dict
    )  # several sets instead of `path`
    # mean_2sigma: [mean - 2 std, mean + 2 std] to [-1, 1]
    normalisation: Literal['zscore', 'mean_2sigma'] = 'zscore'
    # config: mean and std of the sensor table or the modality; dataset: measured while converting
    stats: Literal['config', 'dataset'] = 'config'
    # Bands that the data lack: refuse, fill with the mean, or take them out of the model
    absent_bands: Literal['error', 'mean', 'drop'] = 'error'
    accept: tuple[str, ...] = ()  # differences from what the statistics are of, such as 'level'
    clip: float = setting(5.0, above=0)  # z-scores are clipped to [-clip, clip]
    threads: int = setting(4, least=1)  # reader threads of one process
    prefetch: int = setting(4, least=1)  # batches read ahead
    # A folder of this machine that shards are copied to, without compression, before the first step
    cache: str = dataclasses.field(default='', metadata=SPARSE | {'path': True})


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up and cosine decay to 0; the schedule counts updates that were not skipped."""

    learning_rate: float = setting(1.5625e-4, least=0, most=1e3)  # absolute peak; nothing rescales it
    b1: float = setting(0.9, least=0, below=1)
    b2: float = setting(0.95, least=0, below=1)
    eps: float = setting(1e-8, above=0)
    weight_decay: float = setting(0.05, least=0)
    decay_all: bool = False  # True: also biases, norms and tokens (MultiMAE's pretraining by accident)
    warmup_epochs: float = setting(10.0, least=0)  # a float, so that a part of an epoch can be given
    warmup_steps: int = setting(0, least=0)  # if not 0, replaces warmup_epochs
    clip_norm: float = setting(0.0, least=0)  # global gradient norm; 0 is off, as in the paper


@dataclasses.dataclass(frozen=True)
class Train:
    """Length, batch and number formats of a run."""

    batch_size: int = setting(400, least=1)  # global; the paper's "200" is read as 2 x 200
    epochs: float = setting(100.0, least=0)
    steps: int = setting(0, least=0, most=MAX_STEPS)  # if not 0, replaces epochs
    # auto: bfloat16, float32 on CPU
    compute_dtype: Literal['auto', 'float32', 'bfloat16', 'float64'] = 'auto'
    max_skips: int = setting(10, least=1)  # this many non-finite steps in a row stop the run
    # Micro-batches a step: less memory, the same batch, gradient and randomness.
    accumulation: int = setting(1, least=1)
    # Decay of an average of the weights, kept beside them; 0 is off
    ema: float = setting(0.0, least=0, below=1)
    compilation_cache: bool = True  # in the working directory: a restart need not compile again


@dataclasses.dataclass(frozen=True)
class Parallel:
    """Mesh axes, of which -1 takes the devices that are left, and the processes of a run.

    Of devices in several slices, `data` spans the slices and `fsdp` stays within one.
    """

    data: int = setting(-1, least=-1)
    fsdp: int = setting(1, least=-1)
    # auto: what TPU pods, SLURM, Open MPI or the settings below tell; off: this process alone.
    distributed: Literal['auto', 'off'] = 'auto'
    coordinator: str = ''  # address:port of process 0, where nothing tells it
    num_processes: int = setting(0, least=0)
    process_id: int = setting(-1, least=-1)
    heartbeat_seconds: int = setting(100, least=1)  # a process that is silent for so long counts as lost


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When to save and what to keep."""

    every_steps: int = setting(1000, least=1)
    keep: int = setting(2, least=1)  # newest ones; the best by validation loss is kept beside them
    keep_every_steps: int = setting(0, least=0)  # multiples of it are kept for good; 0: none
    # Exit code of a run that SIGTERM has stopped; some schedulers restart on others only
    preempt_exit_code: int = setting(0, least=0, most=255)
    checksum_every_steps: int = setting(1000, least=0)  # compares the parameters of all replicas; 0 is off


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """kNN, and a linear head, on a labelled set while the model trains; the test split is never opened."""

    every_steps: int = setting(0, least=0)  # 0 is off
    path: str = setting('', path=True)
    labels: str = 'labels_19'  # the label field
    kind: Literal['multi_label', 'single_label'] = 'multi_label'
    train_split: str = 'train[:5000]'
    val_split: str = 'val[:2000]'
    k: int = setting(20, least=1)
    probe_epochs: float = setting(0.0, least=0, sparse=True)  # of a linear head beside it; 0: none


@dataclasses.dataclass(frozen=True)
class Log:
    """Metrics, pictures and validation."""

    every_steps: int = setting(50, least=1)
    images_every_steps: int = setting(5000, least=0)  # 0 is off
    num_images: int = setting(6, least=1)
    eval_every_steps: int = setting(2000, least=1)  # held-out masked loss
    eval_batches: int = setting(0, least=0)  # 0: the whole validation split
    knn: Neighbours = dataclasses.field(default_factory=Neighbours)
    # Who gets the curve beside metrics.jsonl and TensorBoard, each with an extra of its name:
    # ('wandb', 'mlflow'). Their own variables of the environment say where, and whether online.
    writers: tuple[Literal['wandb', 'mlflow'], ...] = dataclasses.field(default=(), metadata=SPARSE)


@dataclasses.dataclass(frozen=True)
class Preset:
    """The input of an encoder that does not take `prepare`'s, from z-scores of its bands on."""

    # own: as in the code that the weights were published with; common: this project's z-scores on 224 px
    name: Literal['own', 'common'] = 'common'
    resize: int = 0  # pixels a side before the centre is cut out; 0 resamples to the model grid itself
    quantile_clip: tuple[float, float] = (0.0, 1.0)  # of each image and band; (0, 1) is off
    quantile_modality: str = ''
    quantile_grid: Literal['native', 'model'] = 'model'  # before or after resampling
    # zscore: as they are; the others map [mean - 2 std, mean + 2 std], to [-1, 1] or to [0, 1]. What is not
    # there, a sensor or a patch without a valid pixel, is 0 on the scale.
    scale: Literal['zscore', 'symmetric', 'unit'] = 'zscore'
    levels: int = 0  # 255: values become whole steps of 8 bits, rounded down
    # Modalities that become those steps on their native grids and are resampled as 8 bits, so that they are
    # rounded once more, to the nearest; all others are resampled first.
    native_levels: tuple[str, ...] = ()
    # Of all modalities; if not 0, inputs are multiplied by bands / bands given: for a projection whose
    # kernel was divided by the number of bands. 0 is off.
    bands: int = 0


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a pretraining run needs."""

    name: str = 'pretrain'
    seed: int = setting(0, least=0, most=MAX_SEED)
    data: Data = dataclasses.field(default_factory=Data)
    augment: Augment = dataclasses.field(default_factory=Augment)
    model: Model = dataclasses.field(default_factory=Model)
    masking: Masking = dataclasses.field(default_factory=Masking)
    loss: Loss = dataclasses.field(default_factory=Loss)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    train: Train = dataclasses.field(default_factory=Train)
    parallel: Parallel = dataclasses.field(default_factory=Parallel)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    log: Log = dataclasses.field(default_factory=Log)
    init: Init = dataclasses.field(default=Init(), metadata=SPARSE)
    # The settings of DINO-MM, which makes this a run of it; None: a masked autoencoder. Of `augment` it takes
    # `crop_ratio`, `hflip` and `vflip` alone; `masking`, `loss` and `model.decoder` mean nothing to it.
    dino: Dino | None = dataclasses.field(default=None, metadata=SPARSE)
    # Of encoders that were not trained on the inputs of `prepare`; None for what is trained here
    preset: Preset | None = dataclasses.field(default=None, metadata=SPARSE)

    @property
    def objective(self) -> Literal['masked', 'dino']:
        """Which of `train.recipes.RECIPES` is followed; the group that is there decides."""
        return 'masked' if self.dino is None else 'dino'

    @property
    def distillation(self) -> Dino:
        """The group `dino` of a run of DINO-MM."""
        assert self.dino is not None
        return self.dino


def dino_mm() -> Config:
    """The published run of DINO-MM: ViT-S/8 over 12 + 2 stacked bands."""
    paper = Model().modalities
    s1 = Modality(
        bands=('VH', 'VV'),
        sensor='s1',
        mean=(-19.22, -12.59),
        std=(5.42, 5.04),
        statistics_from='the code of DINO-MM',
    )
    return Config(
        name='pretrain_dino_mm',
        data=Data(normalisation='mean_2sigma'),
        model=Model(
            modalities={'s2': paper['s2'], 's1': s1},
            image_size=(224, 224),  # the grid of the learned positions; crops interpolate them
            patch_size=8,
            size='S',
            positions='learned',
            fusion=Fusion(encoder='stack'),
        ),
        masking=Masking(strategy='consistent'),
        optimizer=Optimizer(
            learning_rate=5e-4, b2=0.999, weight_decay=0.04, warmup_epochs=10.0, clip_norm=3.0
        ),
        train=Train(batch_size=256, compute_dtype='float32'),
        log=Log(images_every_steps=0),
        dino=Dino(),
    )
