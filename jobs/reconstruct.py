r"""Finds particle-flow candidates in ROOT files with a registered model.

ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/reconstruct.py \
    models:/mlpf-clic@candidate "$PWD/root/*.root" --output $PWD/candidates --tracking-uri sqlite:///$PWD/mlflow.db
"""

import sys

from pfscale.cli import run

if __name__ == "__main__":
    sys.exit(run(["reconstruct", *sys.argv[1:]]))
