"""More than one node, MLflow on PostgreSQL, shards on S3: the chain through submitted jobs, and what is lost when parts of it go away.

Nodes are raylets with resources of their own on this machine; PostgreSQL and MLflow run as a user would run them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from kills import kill_with_children

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "cluster" / "local.sh"
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
BIN = Path(sys.executable).parent
REAL_EVENT = ROOT / "tests" / "data" / "cld_zh_nunubb_240_1ev_podio1.2.root"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not POSTGRES, reason="PostgreSQL is not installed (apt-get install postgresql)"),
]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_until(there: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2).read()
    except (OSError, urllib.error.URLError):
        return False
    return True


@dataclass
class Cluster:
    """A head without CPUs, and nodes with two each.

    Attributes:
        env: of a shell that submits to it.
    """

    env: dict[str, str]
    address: str
    logs: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add_node(self) -> None:
        """Returns when it is there: two raylets that start on one machine at the same time get in each other's way."""
        before = num_nodes(self)
        log = (self.logs / f"node-{len(self.nodes)}.log").open("wb")
        line = [str(BIN / "ray"), "start", f"--address={self.address}", "--num-cpus=2", "--block", "--disable-usage-stats"]
        self.nodes.append(subprocess.Popen(line, env=self.env, stdout=log, stderr=log, start_new_session=True))
        wait_until(lambda: num_nodes(self) == before + 1, 90, "another node")

    def kill_node(self) -> None:
        """The last one, its raylet and workers, without a word."""
        before = num_nodes(self)
        kill_with_children(self.nodes.pop())
        wait_until(lambda: num_nodes(self) == before - 1, 60, "the head knows that a node is gone")

    @property
    def session(self) -> Path:
        """Ray's folder of logs."""
        return Path((Path(self.env["PFSCALE_CLUSTER_DIR"]) / "temp_dir").read_text().strip())

    def kill_head(self) -> None:
        """The head and what it has started, without a word; the nodes end when they notice."""
        pid = int((Path(self.env["PFSCALE_CLUSTER_DIR"]) / "pid").read_text())
        family = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        for node in self.nodes:
            with contextlib.suppress(psutil.NoSuchProcess):
                kill_with_children(node)
        self.nodes.clear()

    def start_head(self) -> None:
        """Returns when it takes jobs."""
        started = subprocess.run([str(LOCAL), "start"], env=self.env, capture_output=True, text=True, timeout=180, check=False)
        assert started.returncode == 0, started.stdout + started.stderr
        self.env |= dict(re.findall(r"(RAY_\w+)=(\S+)", started.stdout))
        wait_until(lambda: num_nodes(self) == 1, 90, "the head knows itself")  # else the first node would be counted with it

    def submit(self, job: str, *arguments: str) -> subprocess.Popen[str]:
        line = [str(BIN / "pfscale"), "submit", job, *arguments]
        return subprocess.Popen(line, cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, job: str, *arguments: str) -> str:
        submitted = self.submit(job, *arguments)
        said, _ = submitted.communicate(timeout=600)
        assert submitted.returncode == 0, said
        return said


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    pytest.importorskip("psycopg")
    folder = tmp_path_factory.mktemp("postgres")
    server = MlflowServer(folder)
    try:
        server.start_database()
        server.start()
        yield server
    finally:
        server.stop()
        server.stop_database()


class MlflowServer:
    """MLflow with PostgreSQL, both on ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.database_port = folder, free_port(), free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.data = Path(tempfile.gettempdir()) / f"pfs-pg-{os.getpid()}"  # short, and where the user postgres may go
        self.as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []

    def postgres(self, tool: str, *arguments: str) -> None:
        line = [*self.as_user, str(POSTGRES[0] / tool), *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, cwd="/")
        assert done.returncode == 0, done.stdout + done.stderr

    def start_database(self) -> None:
        self.data.mkdir()
        if os.getuid() == 0:
            shutil.chown(self.data, "postgres")
        self.postgres("initdb", "-D", str(self.data / "db"), "-A", "trust", "-U", "mlflow")
        options = f"-p {self.database_port} -c listen_addresses=127.0.0.1 -k {self.data}"
        self.postgres("pg_ctl", "-D", str(self.data / "db"), "-o", options, "-l", str(self.data / "log"), "-w", "start")
        self.postgres("createdb", "-h", "127.0.0.1", "-p", str(self.database_port), "-U", "mlflow", "mlflow")

    def stop_database(self) -> None:
        if (self.data / "db").is_dir():
            self.postgres("pg_ctl", "-D", str(self.data / "db"), "-m", "immediate", "stop")
        shutil.rmtree(self.data, ignore_errors=True)

    def start(self) -> None:
        line = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        line += ["--backend-store-uri", f"postgresql://mlflow@127.0.0.1:{self.database_port}/mlflow"]
        line += ["--artifacts-destination", str(self.folder / "artifacts")]
        log = (self.folder / "mlflow.log").open("ab")
        self.process = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
        wait_until(lambda: answers(f"{self.uri}/health"), 120, "the MLflow server")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            kill_with_children(self.process)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3_environment: dict[str, str]) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("nodes")
    port = free_port()
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | s3_environment
    env |= {"PATH": os.pathsep.join([str(BIN), env["PATH"]]), "OMP_NUM_THREADS": "1", "PFSCALE_CLUSTER_DIR": str(folder / "state")}
    env |= {"PFSCALE_NUM_CPUS": "0", "PFSCALE_GCS_PORT": str(port), "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    found = Cluster(env, f"127.0.0.1:{port}", folder)
    found.start_head()
    try:
        for _ in range(2):
            found.add_node()
        yield found
    finally:
        for node in found.nodes:
            with contextlib.suppress(psutil.NoSuchProcess):
                kill_with_children(node)
        subprocess.run([str(LOCAL), "stop"], env=found.env, capture_output=True, timeout=180, check=False)


def num_nodes(cluster: Cluster) -> int:
    env = {**cluster.env, "RAY_ADDRESS": cluster.address}
    said = subprocess.run([str(BIN / "ray"), "status"], env=env, capture_output=True, text=True, timeout=60, check=False).stdout
    return len(re.findall(r"^ 1 node_", said, re.MULTILINE))


class S3Server:
    """moto's, which keeps what it holds while it is stopped."""

    def __init__(self) -> None:
        self.port = free_port()
        self.server: Any = None

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()

    def stop(self) -> None:
        self.server.stop()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    server = S3Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def s3_environment(s3_server: S3Server) -> Iterator[dict[str, str]]:
    """What a client must know of the S3 server; there is a bucket `data`."""
    found = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_server.port}", "AWS_ACCESS_KEY_ID": "test"}
    found |= {"AWS_SECRET_ACCESS_KEY": "planted-secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem().mkdir("data")
        yield found
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def shards(cluster: Cluster, make_shards: Callable[..., Path]) -> str:
    """Synthetic events on S3; and that a job can write shards there."""
    import s3fs

    from pfscale.shards.manifest import load_manifest

    cluster.run("ingest", str(REAL_EVENT), "--detector", "cld", "--output", "s3://data/real")
    assert load_manifest("s3://data/real").num_events == 1
    s3fs.S3FileSystem().put(f"{make_shards()}/", "data/shards/", recursive=True)
    return "s3://data/shards"


def arguments(shards: str, tracking: MlflowServer, folder: Path, *, num_steps: int, name: str = "") -> list[str]:
    """Of a small pre-training on two nodes."""
    config = folder / "tiny.yaml"
    config.write_text(f"optimisation: {{num_steps: {num_steps}, evaluate_every: 20}}\nmodel: {{width: 16, num_layers: 1, num_heads: 2}}\n")
    line = [str(config), f"data.shards={shards}", "data.num_validation_events=20", "data.tokens_per_step=1024", "checkpoint_every=5"]
    line += [f"run.storage={folder}/runs", f"run.tracking_uri={tracking.uri}", "run.num_workers=2", "run.cpus_per_worker=2"]
    return [*line, "run.log_every=1", "run.max_failures=4", "physics_events=0", f"run.name={name}"]


def many_shards(folder: Path, count: int) -> Path:
    """A data set of so many shards of 20 events, all of them training events but every tenth."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pfscale.shards.manifest import ShardRecord, write_manifest
    from synthetic_events import synthetic_manifest, synthetic_table

    folder.mkdir()
    tables = [synthetic_table(20, seed=seed) for seed in range(20)]
    split = pa.array(["validation" if row % 10 == 0 else "train" for row in range(20)])
    records = []
    for number in range(count):
        table, name = tables[number % len(tables)], f"events_{number:06d}.parquet"
        event = table.column("event").combine_chunks()
        fields = {field.name: split if field.name == "split" else event.field(field.name) for field in event.type}
        event = pa.StructArray.from_arrays(list(fields.values()), list(fields))
        pq.write_table(table.set_column(table.schema.get_field_index("event"), "event", event), folder / name)
        records.append(ShardRecord(file=name, source="synthetic", start=20 * number, stop=20 * number + 20, num_events=20))
    manifest = synthetic_manifest(f"many-{count}", "clic", records, {"train": 18 * count, "validation": 2 * count, "test": 0})
    write_manifest(folder, manifest)
    return folder


def run_named(tracking: MlflowServer, name: str) -> Any:
    """The MLflow run of a training."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking.uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = [run for run in client.search_runs(experiments) if run.info.run_name.startswith(f"{name}-")]
    return run


def artifact(tracking: MlflowServer, name: str, path: str) -> dict[str, Any]:
    """A JSON file of a training's run."""
    import mlflow

    found = mlflow.artifacts.load_dict(f"{run_named(tracking, name).info.artifact_uri}/{path}")
    assert isinstance(found, dict)
    return found


def last_metric(tracking: MlflowServer, name: str, metric: str) -> float:
    """The last value of a metric of a training."""
    return float(run_named(tracking, name).data.metrics[metric])


def steps_logged(tracking: MlflowServer, name: str) -> list[int]:
    """Steps at which the run's training loss was logged."""
    from mlflow import MlflowClient

    points = MlflowClient(tracking.uri).get_metric_history(run_named(tracking, name).info.run_id, "train_loss")
    return sorted(point.step for point in points)


def progressed(folder: Path, step: int) -> bool:
    """Whether the run in `folder` has come that far."""
    found = list((folder / "runs").glob("*/progress.json"))
    return bool(found) and int(re.search(r'"step": (\d+)', found[0].read_text())[1]) >= step  # type: ignore[index]


def test_the_chain_runs_on_two_nodes_and_no_secret_is_told(cluster: Cluster, tracking: MlflowServer, shards: str, tmp_path: Path) -> None:
    """Would catch a stage that works on one node only, two workers on the same node, and credentials in logs, MLflow or metadata."""
    from pfscale.tracking.registry import list_models

    said = cluster.run("pretrain", *arguments(shards, tracking, tmp_path, num_steps=20, name="chain"))
    assert "models:/mlpf-clic/" in said
    assert steps_logged(tracking, "chain") == list(range(1, 21))
    sweep = tmp_path / "sweep.yaml"
    space = "{optimisation.learning_rate: {grid_search: [1.0e-3, 1.0e-2]}}"
    sweep.write_text(f"question: which rate?\nverb: pretrain\nbase: tiny.yaml\nspace: {space}\n")
    trials = arguments(shards, tracking, tmp_path, num_steps=20)[1:]
    alone = ["run.num_workers=0", "run.threads_per_worker=1", "optimisation.num_steps=20"]
    trials = [argument for argument in trials if not argument.startswith(("run.num_workers", "run.name"))]
    assert "best" in cluster.run("sweep", str(sweep), *trials, *alone)
    assert list_models(tracking.uri)
    listed = subprocess.run(
        [str(BIN / "ray"), "job", "list"], env=cluster.env, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    artifacts = [path for path in (tracking.folder / "artifacts").rglob("*") if path.is_file()]
    assert artifacts
    logs = [tracking.folder / "mlflow.log", *cluster.logs.rglob("*.log"), *cluster.session.rglob("*.log"), *cluster.session.rglob("*.out")]
    assert len(logs) > 10
    files = [path for path in (*artifacts, *logs) if path.is_file()]
    assert not [path for path in files if "planted-secret" in path.read_text(errors="replace")]
    assert not [text for text in (said, listed) if "planted-secret" in text]


def test_a_node_dies_and_the_training_goes_on(cluster: Cluster, tracking: MlflowServer, shards: str, tmp_path: Path) -> None:
    """Would catch a run that fails, begins again, or waits for ever; every step is logged, and none is lost."""
    submitted = cluster.submit("pretrain", *arguments(shards, tracking, tmp_path, num_steps=400, name="node"))
    wait_until(lambda: progressed(tmp_path, 40), 120, "step 40")
    cluster.kill_node()
    cluster.add_node()
    said, _ = submitted.communicate(timeout=600)
    assert submitted.returncode == 0, said
    assert sorted(set(steps_logged(tracking, "node"))) == list(range(1, 401))


def test_mlflow_is_restarted_and_no_point_is_lost(cluster: Cluster, tracking: MlflowServer, shards: str, tmp_path: Path) -> None:
    """Would catch a run that dies with its tracking server, and points that are dropped while it is away."""
    submitted = cluster.submit("pretrain", *arguments(shards, tracking, tmp_path, num_steps=400, name="restart"))
    wait_until(lambda: progressed(tmp_path, 20), 120, "step 20")
    assert tracking.process is not None
    tracking.process.send_signal(signal.SIGTERM)
    tracking.stop()
    time.sleep(5)
    tracking.start()
    said, _ = submitted.communicate(timeout=600)
    assert submitted.returncode == 0, said
    assert sorted(set(steps_logged(tracking, "restart"))) == list(range(1, 401))


def test_the_store_is_away_for_a_minute_and_is_waited_for(cluster: Cluster, s3_server: S3Server, tmp_path: Path) -> None:
    """Would catch an ingest that ends, loses a shard, or sets a file aside because its store was restarted."""
    import s3fs

    from pfscale.shards.manifest import load_manifest

    for number in range(8):
        shutil.copy(REAL_EVENT, tmp_path / f"copy_{number}.root")
    submitted = cluster.submit("ingest", f"{tmp_path}/*.root", "--detector", "cld", "--output", "s3://data/away")
    store = s3fs.S3FileSystem(use_listings_cache=False)
    wait_until(lambda: store.exists("data/away/.ingest.json"), 120, "the ingest begins")
    s3_server.stop()
    time.sleep(60)
    s3_server.start()
    said, _ = submitted.communicate(timeout=600)
    assert submitted.returncode == 0, said
    assert "does not answer" in said
    manifest = load_manifest("s3://data/away")
    assert (manifest.num_events, manifest.quarantined) == (8, ())


def test_a_thousand_shards_are_read_once_by_four_nodes(cluster: Cluster, tracking: MlflowServer, tmp_path: Path) -> None:
    """Would catch a worker that decodes what others decode, a shard that nobody reads, and memory that grows with the number of shards."""
    for _ in range(4 - len(cluster.nodes)):
        cluster.add_node()
    peaks = {}
    for name, count in (("many", 1000), ("few", 100)):
        shards = many_shards(tmp_path / f"shards-{name}", count)
        line = arguments(str(shards), tracking, tmp_path, num_steps=200 * count // 1000, name=name)
        line += ["run.num_workers=4", "data.tokens_per_step=8192", "data.lanes=4", "data.window_events=2000", "run.max_failures=0"]
        cluster.run("pretrain", *line, f"optimisation.evaluate_every={20 * count // 100}")
        reading = artifact(tracking, name, "reading.json")
        assert len(reading) == 4
        first = [worker["epochs"]["0"] for worker in reading.values()]
        assert sum(epoch["shards"] for epoch in first) == sum(epoch["row_groups"] for epoch in first) == count
        assert max(epoch["shards"] for epoch in first) < 1.1 * count / 4
        assert sum(epoch["events"] for epoch in first) == sum(worker["epochs"]["1"]["events"] for worker in reading.values())
        peaks[name] = last_metric(tracking, name, "peak_memory_mb")
    print(f"peak memory of a worker: {peaks['few']:.0f} MB with 100 shards, {peaks['many']:.0f} MB with 1,000")
    assert peaks["many"] < 1.15 * peaks["few"]


def test_the_head_dies_and_the_job_submitted_again_goes_on(cluster: Cluster, tracking: MlflowServer, shards: str, tmp_path: Path) -> None:
    """Would catch a run that cannot be taken up by another cluster, and steps that are lost with the head."""
    line = arguments(shards, tracking, tmp_path, num_steps=400, name="head")
    submitted = cluster.submit("pretrain", *line)
    wait_until(lambda: progressed(tmp_path, 40), 120, "step 40")
    cluster.kill_head()
    submitted.communicate(timeout=120)
    assert submitted.returncode != 0
    cluster.start_head()
    for _ in range(2):
        cluster.add_node()
    cluster.run("pretrain", *line)
    assert sorted(set(steps_logged(tracking, "head"))) == list(range(1, 401))
    resumed = run_named(tracking, "head").data.tags["pfscale.resumed_from_step"]
    assert int(resumed) >= 35, "all but the last five steps were committed"
