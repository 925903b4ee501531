r"""Transfers a registered model to another detector; submitted again, it resumes.

ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/finetune.py \
    jobs/configs/finetune/cld_tiny.yaml data.shards=$PWD/shards/cld \
    run.storage=$PWD/runs run.tracking_uri=sqlite:///$PWD/mlflow.db

Expected on two cores with 2,000 simulated ttbar events, 150 of them to learn from: 30 to 80 s, validation_loss 2.96.
"""

import sys

from pfscale.cli import run

if __name__ == "__main__":
    sys.exit(run(["finetune", *sys.argv[1:]]))
