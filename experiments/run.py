"""Run a command of the package from a checkout: the same as `ivc-jax`.

python experiments/run.py                                 # bundled model and benchmark
python experiments/run.py --help
"""

import sys

from ivc_jax.commands.cli import SCRIPT
from ivc_jax.commands.main import main

if __name__ == "__main__":
    sys.exit(main(program=SCRIPT))
