"""Run a command of the package from a checkout: the same as `ivc-jax`.

python experiments/run.py                                 # bundled model and benchmark
python experiments/run.py --help
"""

import pathlib
import sys

from ivc_jax.commands.main import start

if __name__ == "__main__":
    sys.exit(start(pathlib.Path(__file__).name))
