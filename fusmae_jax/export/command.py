"""Commands `export` and `push`: an encoder for other programs, kept only if it gives what `encode` gives.

What is written stands under another name until it has been compared; an artefact with a larger error is
removed again. The report of the comparison stays beside it.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath

import fusmae_jax
from fusmae_jax import storage
from fusmae_jax.encoders import hub, single_file
from fusmae_jax.encoders.inputs import describe
from fusmae_jax.errors import InputError
from fusmae_jax.export import card, parity, to_onnx, to_safetensors, to_stablehlo, to_torch
from fusmae_jax.export.parity import Samples
from fusmae_jax.export.source import Source, open_source

REPORT = 'parity.json'
KINDS = ('safetensors', 'stablehlo', 'onnx', 'torch')
FOLDERS: dict[str, Any] = {'stablehlo': to_stablehlo, 'onnx': to_onnx, 'torch': to_torch}
CHECKS: dict[str, Callable[[], Any]] = {
    'stablehlo': to_stablehlo.check_installed,
    'onnx': to_onnx.installed,
    'torch': to_torch.check_installed,
}
MakeSamples = Callable[[], Samples | None]


def run_export(checkpoint: str, kind: str, out: str, samples: MakeSamples) -> int:
    """Writes one artefact and the report of its comparison; returns the exit code 0.

    Args:
        checkpoint: what `fusmae_jax.load` opens.
        kind: one of KINDS.
        out: a file that ends in .safetensors, or a folder for the other kinds.
        samples: real images to compare with; None where there are none.

    Raises:
        InputError: a package is missing; something else is at `out`; the encoder cannot be written in this
            format; the error is above the limit, and nothing is left then.
    """
    # Before the encoder is read: that takes its time.
    check_place(kind, out)
    CHECKS.get(kind, lambda: None)()
    source = open_source(checkpoint)
    content = _export(source, kind, Path(out), samples())
    print('\n'.join([f'{out}: {kind}, {content["bytes"] / 1e6:.1f} MB', *parity.lines(content)]))
    return 0


def check_place(kind: str, out: str) -> None:
    """Raises InputError unless an artefact can be written to `out`."""
    if '://' in out:
        raise InputError(f'--out={out}: give a path on this machine, and copy the result from there')
    place = Path(out)
    if kind == 'safetensors' and not single_file.is_single_file(out):
        raise InputError(f'--out={out}: give a name that ends in {single_file.SUFFIX}')
    if kind == 'safetensors' and place.is_dir():
        raise InputError(f'--out={out}: is a folder; give the name of a file')
    if kind != 'safetensors' and place.exists() and not (place / REPORT).is_file():
        raise InputError(f'--out={out}: is there, and is no earlier export; give a folder that is not there')


def _export(source: Source, kind: str, out: Path, samples: Samples | None) -> dict[str, Any]:
    """Writes, compares, and puts in place; returns the report."""
    started = time.perf_counter()
    part = out.with_name(f'{out.name.removesuffix(single_file.SUFFIX)}.part')
    part = part.with_name(part.name + single_file.SUFFIX) if kind == 'safetensors' else part
    part.parent.mkdir(parents=True, exist_ok=True)
    _remove(part)
    try:
        if kind == 'safetensors':
            to_safetensors.write(part, source)
            run = to_safetensors.runner(part)
        else:
            part.mkdir()
            FOLDERS[kind].write(epath.Path(part), source.model)
            run = FOLDERS[kind].runner(epath.Path(part))
        written = time.perf_counter() - started
        content = _compared(source, kind, part, run, samples) | {'seconds_to_write': round(written, 1)}
        if kind == 'safetensors':
            part.replace(out)
            storage.write_json(f'{out}.{REPORT}', content)
        else:
            storage.write_json(part / REPORT, content)
            _remove(out)
            part.rename(out)
        return content
    finally:
        _remove(part)


def _compared(source: Source, kind: str, part: Path, run: Any, samples: Samples | None) -> dict[str, Any]:
    """The report; raises InputError where the error is above the limit."""
    images, title = parity.make_images(source.model, samples)
    files = [part] if part.is_file() else [*part.iterdir()]
    about = {
        'artefact': kind,
        'encoder': source.card['title'],
        'reference': f'fusmae_jax {fusmae_jax.__version__}, jax {jax.__version__} on {jax.default_backend()}',
        'bytes': sum(file.stat().st_size for file in files),
    }
    content = parity.report(parity.compare(source.model, images, run), title, about)
    if not content['ok']:
        raise InputError(
            '\n'.join(
                [
                    f'the {kind} artefact differs from encode by {content["max_relative"]:.1e} of the '
                    f'largest value, more than {parity.LIMIT:g}; it was not kept',
                    *parity.lines(content),
                ]
            )
        )
    return content


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def run_push(checkpoint: str, to: str, samples: MakeSamples) -> int:
    """Uploads an encoder as one safetensors file with a README; returns the exit code 0.

    Args:
        checkpoint: what `fusmae_jax.load` opens.
        to: hf://ORG/NAME or hf://ORG/NAME@BRANCH; or a folder, which gets what would be uploaded.
        samples: as for `run_export`.

    Raises:
        InputError: huggingface_hub is missing; the hub refuses; and as `run_export` does.
    """
    if not hub.is_hub(to):
        push_folder(open_source(checkpoint), Path(to), 'hf://ORG/NAME', samples())
        print(f'{to}: what a push uploads; nothing was uploaded')
        return 0
    repository, library = hub.parse(to), hub.library()
    with tempfile.TemporaryDirectory() as folder:
        push_folder(open_source(checkpoint), Path(folder), to, samples())
        try:
            api = library.HfApi()
            api.create_repo(repository.name, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository.name,
                folder_path=folder,
                revision=repository.revision or None,
                commit_message='fusmae_jax encoder',
            )
        except Exception as error:
            if not hub.is_refusal(error):
                raise
            raise InputError(
                f'{to}: the hub refused ({hub.reason(error)}); `hf auth login` first?'
            ) from error
    print(f'{to}: uploaded {done}')
    return 0


def push_folder(source: Source, folder: Path, address: str, samples: Samples | None) -> None:
    """Writes the folder that is uploaded: the file, its parity report and the README."""
    folder.mkdir(parents=True, exist_ok=True)
    _export(source, 'safetensors', folder / hub.FILE, samples)
    storage.write_text(folder / 'README.md', card.readme(source, describe(source.model), address))
