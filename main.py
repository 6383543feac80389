"""python main.py COMMAND --config=configs/FILE.py[:VARIANT] [--workdir=DIR] [--config.key=value].

The one entry; the commands stand in `fusmae_jax/cli.py`. Bad input ends with one message and exit code 2,
without a traceback.
"""

import sys

from fusmae_jax.cli import main
from fusmae_jax.config.options import COMMANDS

__all__ = ['COMMANDS', 'main']

if __name__ == '__main__':
    sys.exit(main(sys.argv))
