"""The report as one HTML file: findings, histograms and thumbnails, without scripts or other files."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fusmae_jax import storage

from . import report
from .evidence import Evidence, Sensor
from .findings import Finding
from .summary import usable

THUMBNAILS = 12
SIDE = 132  # pixels of a thumbnail on the page

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #1d2329; }
h1 { font-size: 1.5rem; margin-bottom: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #d8dde2; padding-bottom: .2rem; }
.sub { color: #5b6670; }
.finding { border-left: .35rem solid #9aa5ae; background: #f5f7f8; padding: .5rem .9rem; margin: .6rem 0; }
.error { border-color: #c62f2f; background: #fdf1f1; }
.warning { border-color: #d98a00; background: #fdf7ea; }
.note { border-color: #3d7ab8; background: #f0f6fb; }
.finding b { display: block; } .finding small { color: #5b6670; } .finding p { margin: .15rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .15rem .7rem; border-bottom: 1px solid #e6eaed; }
th:first-child, td:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; }
.wide { overflow-x: auto; }
img { max-width: 100%; height: auto; }
.patches { display: flex; flex-wrap: wrap; gap: .8rem; }
figure { margin: 0; }
figcaption { font-size: .7rem; color: #5b6670; max-width: 17rem; overflow-wrap: anywhere; }
figure img { width: 132px; height: 132px; image-rendering: pixelated; }
"""


def write(file: Path, results: Sequence[tuple[Evidence, Sequence[Finding]]]) -> None:
    """Writes the page, whole or not at all."""
    paths = ', '.join(evidence.path for evidence, _ in results)
    body = ''.join(_evidence(evidence, findings) for evidence, findings in results)
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>doctor: {html.escape(paths)}</title><style>{_STYLE}</style></head><body>{body}</body></html>'
    )
    storage.write_text(file, page)


def _evidence(evidence: Evidence, findings: Sequence[Finding]) -> str:
    parts = [
        f'<h1>{html.escape(evidence.path)}</h1>',
        f'<p class="sub">{html.escape(evidence.kind)}; {report.looked_at(evidence)}; '
        f'{report.verdict(findings)}</p>',
        *(_finding(finding) for finding in findings),
    ]
    for sensor in evidence.sensors.values():
        if sensor.images:
            title = {'s1': 'Sentinel-1', 's2': 'Sentinel-2'}[sensor.modality]
            alt = f'histograms of {title}'
            parts += [f'<h2>{title}</h2>', _table(sensor), _image(histograms(sensor), alt)]
    if evidence.names:
        parts += ['<h2>Patches</h2>', _patches(evidence)]
    return ''.join(parts)


def _finding(finding: Finding) -> str:
    remedy = f'<p>{html.escape(finding.remedy)}</p>' if finding.remedy else ''
    return (
        f'<div class="finding {finding.severity.replace(" ", "-")}"><b>{html.escape(finding.what)}</b>'
        f'<p>{html.escape(finding.evidence)}</p>{remedy}'
        f'<small>{finding.severity} &middot; {finding.code} &middot; from {finding.needs}</small></div>'
    )


def _table(sensor: Sensor) -> str:
    keys = ('minimum', 'p01', 'p50', 'p99', 'maximum')
    head = ''.join(f'<th>{t}</th>' for t in ('', 'type', 'min', '1 %', 'median', '99 %', 'max', 'unusable'))
    rows = ''.join(
        f'<tr><td>{html.escape(row["band"])}</td><td>{row["dtype"]}</td>'
        + ''.join(f'<td>{"-" if row[key] is None else format(row[key], ".5g")}</td>' for key in keys)
        + f'<td>{row["unusable"]:.2%}</td></tr>'
        for row in report.band_rows(sensor)
    )
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _image(png: bytes, alt: str = '') -> str:
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def histograms(sensor: Sensor) -> bytes:
    """A PNG with the histogram of every band over the sample, of stored values."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bands = sensor.declared.bands
    columns = min(5, max(2, len(bands)))
    rows = -(-len(bands) // columns)
    figure = Figure(figsize=(2.3 * columns, 1.7 * rows), dpi=100, layout='constrained')
    FigureCanvasAgg(figure)
    for i, band in enumerate(bands):
        axes = figure.add_subplot(rows, columns, i + 1)
        values = sensor.summary.pooled(i)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = np.percentile(values, (0.1, 99.9))
            axes.hist(np.clip(values, low, high), bins=60, color='#3d7ab8')
        axes.set_title(band, fontsize=8, pad=2)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
    stream = io.BytesIO()
    figure.savefig(stream, format='png')
    return stream.getvalue()


def _patches(evidence: Evidence) -> str:
    from .raw import spread

    figures = []
    for index in spread(range(len(evidence.names)), THUMBNAILS):
        images = [
            _image(thumbnail(sensor, index), sensor.modality)
            for sensor in evidence.sensors.values()
            if index < len(sensor.images) and sensor.images[index]
        ]
        if images:
            caption = html.escape(evidence.names[index])
            figures.append(f'<figure>{"".join(images)}<figcaption>{caption}</figcaption></figure>')
    return f'<div class="patches">{"".join(figures)}</div>'


def thumbnail(sensor: Sensor, index: int) -> bytes:
    """A PNG of one patch: red, green, blue of Sentinel-2; VV, VH and their difference of Sentinel-1."""
    from PIL import Image

    image = sensor.images[index]
    chosen = _channels(sensor.modality, image)
    shape = max(channel.shape for channel in chosen)
    planes = [_stretched(_resized(channel, shape), sensor.declared.nodata) for channel in chosen]
    picture = Image.fromarray(np.stack(planes, -1))
    picture.thumbnail((2 * SIDE, 2 * SIDE))
    stream = io.BytesIO()
    picture.save(stream, format='PNG')
    return stream.getvalue()


def _channels(modality: str, image: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    if modality == 's2' and {'B04', 'B03', 'B02'} <= image.keys():
        return [image[band] for band in ('B04', 'B03', 'B02')]
    values = [channel.astype(np.float32) for channel in image.values()]
    if modality == 's1' and len(values) == 2 and values[0].shape == values[1].shape:
        return [*values, values[0] - values[1]]
    return values[:3] if len(values) >= 3 else [values[0]] * 3


def _resized(channel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The nearest pixel of another grid."""
    rows, columns = ((np.arange(n) * m // n) for n, m in zip(shape, channel.shape))
    return channel[rows[:, None], columns]


def _stretched(channel: np.ndarray, nodata: Sequence[float]) -> np.ndarray:
    """uint8 from the 2nd to the 98th percentile; what is unusable is black."""
    valid = usable(channel, nodata)
    if not valid.any():
        return np.zeros(channel.shape, np.uint8)
    values = np.where(valid, channel, 0).astype(np.float64)
    low, high = np.percentile(values[valid], (2, 98))
    return (np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 254 + 1 * valid).astype(np.uint8) * valid
