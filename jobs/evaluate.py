r"""Measures a registered model's physics on shards.

ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/evaluate.py \
    models:/mlpf-clic@candidate $PWD/shards/clic --output $PWD/evaluation --tracking-uri sqlite:///$PWD/mlflow.db

Expected on two cores for 301 test events of simulated ttbar: 18 s, jet response 1.00, IQR/median 0.19.
"""

import sys

from pfscale.cli import run

if __name__ == "__main__":
    sys.exit(run(["evaluate", *sys.argv[1:]]))
