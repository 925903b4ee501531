r"""Turns EDM4hep ROOT files into Parquet shards and a manifest.

ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/ingest.py \
    "$PWD/root/*.root" --detector clic --output $PWD/shards/clic --check

Expected on two cores: 15 s for 3,000 ttbar events, "3000 events"; the real CLD event in tests/data: 17 s as a job, "1 event".
--check adds the physics gates: 5 s for the figures and 1 s for 1,200 events; the job fails if a gate does.
"""

import sys

from pfscale.cli import run

if __name__ == "__main__":
    sys.exit(run(["ingest", *sys.argv[1:]]))
