"""The command `doctor`."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusmae_jax.errors import InputError

from . import html as pages
from . import report
from .checks import examine
from .findings import exit_code
from .opening import open_paths


def run(paths: Sequence[str], as_json: bool = False, html: str = '', **options: Any) -> int:
    """Looks at one path or two, prints what was found, and returns the exit code.

    Args:
      paths: see `opening.open_paths`.
      as_json: print JSON instead of text.
      html: a file for the report with histograms and thumbnails; '' for none.
      options: none yet; another name raises InputError.

    Returns:
      0 with nothing above a note, 3 with a warning, 4 with an error.

    Raises:
      InputError: a path that holds nothing that is known, or an `html` that cannot be written.
    """
    if options:
        raise InputError(f'doctor: {", ".join(options)}: no such option; valid: json, html')
    page = Path(html) if html else None
    if page is not None and not page.absolute().parent.is_dir():
        raise InputError(f'--html={html}: there is no folder {page.absolute().parent}; create it first')
    evidence = open_paths(paths)
    with warnings.catch_warnings(action='ignore', category=RuntimeWarning):  # NaN is expected here
        results = [(item, examine(item)) for item in evidence]
    if as_json:
        print(json.dumps([report.as_json(*result) for result in results], indent=2, allow_nan=False))
    else:
        print('\n\n'.join(report.as_text(*result) for result in results))
    if page is not None:
        pages.write(page, results)
        if not as_json:
            print(f'report    {page}')
    return max(exit_code(findings) for _, findings in results)
