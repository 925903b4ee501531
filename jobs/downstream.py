r"""Trains a downstream head on a registered model's latents; submitted again, it resumes.

ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/downstream.py \
    jobs/configs/downstream/missing_momentum.yaml data.shards=$PWD/shards/cld \
    run.storage=$PWD/runs run.tracking_uri=sqlite:///$PWD/mlflow.db

One linear layer on latents; its time and resolution were not measured since it is trained like all heads.
"""

import sys

from pfscale.cli import run

if __name__ == "__main__":
    sys.exit(run(["downstream", *sys.argv[1:]]))
