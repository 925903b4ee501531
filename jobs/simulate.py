r"""Makes EDM4hep ROOT files with the built-in event source.

ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/simulate.py \
    --detector clic --process ttbar --num-events 2000 --seed 1 --output $PWD/root

Expected on two cores: 15 s for these 2,000 events (a minute more where numba compiles for the first time), in four files of 500.
"""

import sys

from pfscale.cli import run

if __name__ == "__main__":
    sys.exit(run(["simulate", *sys.argv[1:]]))
