"""Figures of NVIDIA GPUs that a plan may be for: what the compiler must know of them, and their speed."""

from typing import NamedTuple

TENSOR = 0.8  # share of the data sheet that large products reach; 790 of 989 TFLOP/s on an H100
SCALAR = 0.75  # the same of products outside the tensor cores
STREAM = 0.85  # the same of the memory's bandwidth


class Gpu(NamedTuple):
    """One kind of NVIDIA GPU. Rates are dense (no sparsity), from the vendor's data sheet."""

    name: str  # by which the driver, and so jax, calls it
    capability: tuple[int, int]
    accelerated: bool  # has instructions of its own kind (`sm_90a`)
    cores: int  # streaming multiprocessors
    fpus: int  # of each
    clock: float  # GHz
    memory: int  # bytes
    bandwidth: float  # bytes/s
    cache: int  # bytes of L2
    shared: int  # bytes of shared memory in a core; a block can have 1 KiB less
    rates: dict[str, float]  # FLOP/s of matrix products, by the type of their operands

    def rate(self, dtype: str, exact: bool = False) -> float:
        """FLOP/s that large products of a type reach; float32 runs as tf32 unless it is to be exact."""
        name = {'f16': 'bf16', 'f32': 'f32' if exact else 'tf32'}.get(dtype, dtype)
        name = 'fp8' if dtype.startswith('f8') else name
        name = name if name in self.rates else 'f32'
        return self.rates[name] * (SCALAR if name in ('f32', 'f64') else TENSOR)

    @property
    def stream(self) -> float:
        """Bytes/s that large kernels read and write."""
        return STREAM * self.bandwidth


TERA = 1e12
HOPPER = {
    'f64': 67 * TERA,
    'f32': 67 * TERA,
    'tf32': 494.7 * TERA,
    'bf16': 989.4 * TERA,
    'fp8': 1978.9 * TERA,
}
# Figures of the hardware: openxla/xla, xla/backends/gpu/target_config/specs. Rates: NVIDIA's data sheets of
# A100, H100, H200 and HGX B200.
GPUS = {
    'a100': Gpu(
        name='NVIDIA A100-SXM4-80GB',
        capability=(8, 0),
        accelerated=False,
        cores=108,
        fpus=64,
        clock=1.41,
        memory=85_100_068_864,
        bandwidth=2_039_040_000_000,
        cache=40 * 2**20,
        shared=164 * 1024,
        rates={'f64': 19.5 * TERA, 'f32': 19.5 * TERA, 'tf32': 156 * TERA, 'bf16': 312 * TERA},
    ),
    'h100': Gpu(
        name='NVIDIA H100 80GB HBM3',
        capability=(9, 0),
        accelerated=True,
        cores=132,
        fpus=128,
        clock=1.98,
        memory=84_942_979_072,
        bandwidth=3_352_320_000_000,
        cache=50 * 2**20,
        shared=228 * 1024,
        rates=HOPPER,
    ),
    'h200': Gpu(
        name='NVIDIA H200',
        capability=(9, 0),
        accelerated=True,
        cores=132,
        fpus=128,
        clock=1.98,
        memory=151_397_597_184,
        bandwidth=4_800_000_000_000,
        cache=50 * 2**20,
        shared=228 * 1024,
        rates=HOPPER,
    ),
    'b200': Gpu(
        name='NVIDIA B200',
        capability=(10, 0),
        accelerated=True,
        cores=148,
        fpus=128,
        clock=1.965,
        memory=191_514_411_008,
        bandwidth=7_672_320_000_000,
        cache=132_644_864,
        shared=228 * 1024,
        rates={
            'f64': 37 * TERA,
            'f32': 75 * TERA,
            'tf32': 1125 * TERA,
            'bf16': 2250 * TERA,
            'fp8': 4500 * TERA,
        },
    ),
}


def gpu_of(kind: str) -> Gpu | None:
    """The GPU of a `jax.Device.device_kind`; None where its figures are not known."""
    return next((gpu for gpu in GPUS.values() if kind.startswith(gpu.name)), None)


def description(gpu: Gpu) -> str:
    """The text form of XLA's `GpuTargetConfigProto`, by which its compiler knows a GPU that is not there."""
    registers = 65_536  # of 32 bits, in a core and at most in a block: of every kind that is listed
    major, minor = gpu.capability
    extension = 'ACCELERATED_FEATURES' if gpu.accelerated else 'NONE'
    facts = {
        'threads_per_block_limit': 1024,
        'threads_per_warp': 32,
        'shared_memory_per_block': 48 * 1024,
        'shared_memory_per_core': gpu.shared,
        'shared_memory_per_block_optin': gpu.shared - 1024,
        'threads_per_core_limit': 2048,
        'core_count': gpu.cores,
        'fpus_per_core': gpu.fpus,
        'block_dim_limit_x': 2**31 - 1,
        'block_dim_limit_y': 65_535,
        'block_dim_limit_z': 65_535,
        'thread_dim_limit_x': 1024,
        'thread_dim_limit_y': 1024,
        'thread_dim_limit_z': 64,
        'registers_per_core_limit': registers,
        'registers_per_block_limit': registers,
        'memory_bandwidth': int(gpu.bandwidth),
        'l2_cache_size': gpu.cache,
        'clock_rate_ghz': gpu.clock,
        'device_memory_size': gpu.memory,
        'name': f'"{gpu.name}"',
    }
    lines = '\n'.join(f'  {key}: {value}' for key, value in facts.items())
    capability = f'major: {major} minor: {minor} feature_extension: {extension}'
    return (
        f'gpu_device_info {{\n{lines}\n  cuda_compute_capability {{ {capability} }}\n}}\n'
        'platform_name: "CUDA"\n'
        'dnn_version_info { major: 9 minor: 10 patch: 0 }\n'  # the cuDNN whose kernels may be chosen
        f'device_description_str: "{gpu.name}"\n'
    )
