"""What an evaluation measures and logs, what a report shows, and what both refuse."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from pfscale.config import RunConfig
from pfscale.errors import ModelNotFoundError, NotEnoughDataError, OutputExistsError, PfscaleError, ShardError
from pfscale.models.mlpf import MlpfConfig
from pfscale.physics.evaluation import Candidates, GenReference, evaluate_events
from pfscale.physics.jets import cluster_jets
from pfscale.report.html import Page, PageCode, PageFigure, PageSection, PageTable, render_page
from pfscale.shards.dataset import load_index
from pfscale.tracking.records import find_run
from pfscale.training.config import DataConfig, OptimisationConfig, TorchEngineConfig
from pfscale.training.evaluate import evaluate
from pfscale.training.finetune import FinetuneConfig, finetune
from pfscale.training.pretrain import PretrainConfig, pretrain
from pfscale.training.report import report, verdicts
from pfscale.training.run import Run
from synthetic_events import synthetic_table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECTIONS = ["Results", "Events", "Training", "Data", "Lineage", "Repeat it"]


@pytest.fixture(scope="module")
def run_config(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(migrated_database, folder / "mlflow.db")
    return RunConfig(storage=str(folder / "runs"), tracking_uri=f"sqlite:///{folder}/mlflow.db", num_workers=0)


@pytest.fixture(scope="module")
def trained(make_shards: Callable[..., Path], run_config: RunConfig) -> list[Run]:
    """A small pre-trained model of CLIC, and two transferred to CLD that differ in their seed."""
    common = {"optimisation": OptimisationConfig(num_steps=20, learning_rate=3e-3, evaluate_every=10), "engine": TorchEngineConfig()}
    data = {name: DataConfig(shards=str(make_shards(detector=name)), tokens_per_step=512) for name in ("clic", "cld")}
    first = pretrain(PretrainConfig(model=MlpfConfig(width=16, num_layers=1, num_heads=2), data=data["clic"], run=run_config, **common))
    backbone = "models:/mlpf-clic/1"
    seeds = [finetune(FinetuneConfig(backbone=backbone, seed=s, mode="full", data=data["cld"], run=run_config, **common)) for s in (1, 2)]
    return [first, *seeds]


class Links(HTMLParser):
    """Every address that a page asks for, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]


def test_an_evaluation_is_logged_below_the_run_that_trained_the_model(
    trained: list[Run], make_shards: Callable[..., Path], run_config: RunConfig
) -> None:
    """Would catch figures without numbers, an evaluation that belongs to no model, and one more run for every repetition."""
    shards = make_shards(detector="cld")
    found = [evaluate("models:/mlpf-cld@candidate", shards, tracking_uri=run_config.tracking_uri) for _ in range(2)]
    assert found[0].metrics == pytest.approx(found[1].metrics, nan_ok=True)
    record = find_run(run_config.tracking_uri, "evaluate mlpf-cld/2 test")
    assert record.tags["mlflow.parentRunId"] == trained[2].run_id
    runs = MlflowClient(run_config.tracking_uri).search_runs([record.tracker.experiment_id])
    assert sum(run.info.run_name == record.name for run in runs) == 1
    assert record.tags["pfscale.model"] == "models:/mlpf-cld/2"
    assert record.metrics["mlpf/met_resolution"] == pytest.approx(found[0].metrics["mlpf/met_resolution"])
    assert record.metrics["mlpf/efficiency_211"] == pytest.approx(found[0].metrics["mlpf/efficiency_211"])
    stems = {Path(path).stem for path in record.artifacts("figures") if path.endswith(".png")}
    assert {"jet_response", "met_resolution", "confusion_mlpf", "particle_rates_vs_pt"} <= stems
    for stem in stems:
        assert record.read_json(f"figures/{stem}.json")


def test_an_evaluation_in_a_folder(trained: list[Run], make_shards: Callable[..., Path], tmp_path: Path, run_config: RunConfig) -> None:
    """Data without a baseline and without electrons and muons: said, and every other number is there."""
    checkpoint = str(trained[1].checkpoint)
    shards = make_shards(detector="cld")
    found = evaluate(checkpoint, shards, output=tmp_path / "out", tracking_uri=run_config.tracking_uri)
    assert any("no rule-based" in note for note in found.notes)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    assert metrics["truth_targets/visible_energy_ratio_median"] == pytest.approx(1.0, abs=0.05)
    assert metrics["mlpf/efficiency_11"] is None
    assert metrics["mlpf/efficiency_211"] > 0.5
    assert not [name for name in metrics if name.startswith("rule_based")]
    assert (tmp_path / "out" / "jet_response.png").read_bytes()[:4] == b"\x89PNG"
    assert len(found.events) == len(found.met_residual) == found.result.num_events
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    with pytest.raises(OutputExistsError):
        evaluate(checkpoint, shards, output=tmp_path / "other", tracking_uri=run_config.tracking_uri)


def test_seeds_give_a_spread(trained: list[Run], make_shards: Callable[..., Path], run_config: RunConfig) -> None:
    """Would catch another seed evaluated on other events, and any model taken for one."""
    shards, first, second = make_shards(detector="cld"), str(trained[1].checkpoint), str(trained[2].checkpoint)
    alone = [evaluate(model, shards, tracking_uri=run_config.tracking_uri).metrics["mlpf/met_resolution"] for model in (first, second)]
    both = evaluate(first, shards, other_seeds=[second], tracking_uri=run_config.tracking_uri).metrics
    assert both["mlpf/met_resolution"] == pytest.approx(alone[0])
    assert both["mlpf/met_resolution_seed_spread"] == pytest.approx(np.std(alone, ddof=1))
    with pytest.raises(PfscaleError, match="not another seed"):
        evaluate(first, shards, other_seeds=[str(trained[0].checkpoint)], tracking_uri=run_config.tracking_uri)
    with pytest.raises(PfscaleError, match="there already"):
        evaluate(first, shards, other_seeds=[first], tracking_uri=run_config.tracking_uri)


def rewritten(shards: Path, target: Path, *, tables: list[pa.Table], **manifest: object) -> Path:
    """The data set with its events and parts of its manifest replaced."""
    shutil.copytree(shards, target)
    text = json.loads((target / "manifest.json").read_text())
    kept = text["shards"][: len(tables)]
    for record, table in zip(kept, tables, strict=True):
        pq.write_table(table, target / record["file"])
        record["num_events"] = table.num_rows
    (target / "manifest.json").write_text(json.dumps({**text, "shards": kept, "num_events": sum(t.num_rows for t in tables), **manifest}))
    return target


def test_data_that_cannot_be_evaluated_on(
    trained: list[Run], make_shards: Callable[..., Path], tmp_path: Path, run_config: RunConfig
) -> None:
    """No events, none of the split, another schema version, no data set: each its own error; another detector is told, not refused."""
    model, shards = str(trained[1].checkpoint), make_shards(detector="cld")
    uri = run_config.tracking_uri
    with pytest.raises(NotEnoughDataError, match="no test events"):
        evaluate(model, rewritten(shards, tmp_path / "empty", tables=[]), tracking_uri=uri)
    with pytest.raises(ShardError, match="schema"):
        evaluate(model, rewritten(shards, tmp_path / "future", tables=[], schema_version=99), tracking_uri=uri)
    with pytest.raises(ShardError):
        evaluate(model, tmp_path / "nothing", tracking_uri=uri)
    notes = evaluate(model, make_shards(detector="clic"), tracking_uri=uri).notes
    assert any("trained on cld, the shards: clic" in note for note in notes)


def test_events_without_elements_and_with_one(
    trained: list[Run], make_shards: Callable[..., Path], tmp_path: Path, run_config: RunConfig
) -> None:
    """An event that the detector did not see must not shift or stop the others."""
    rows = synthetic_table(40, seed=3).to_pylist()
    for row in rows:
        row["event"]["split"] = "test"
    for column in ("track", "cluster", "track_target", "cluster_target", "gen_particle", "gen_jet"):
        rows[0][column] = []
        rows[1][column] = rows[1][column][:1] if column.startswith("cluster") else []
    table = pa.Table.from_pylist(rows, schema=synthetic_table(1).schema)
    few = rewritten(make_shards(detector="cld"), tmp_path / "few", tables=[table])
    assert load_index(few).num_elements[:2].tolist() == [0, 1]
    found = evaluate(str(trained[1].checkpoint), few, tracking_uri=run_config.tracking_uri)
    assert found.result.num_events == 40
    others = rewritten(make_shards(detector="cld"), tmp_path / "others", tables=[table.slice(2)])
    alone = evaluate(str(trained[1].checkpoint), others, tracking_uri=run_config.tracking_uri)
    np.testing.assert_allclose(found.met_residual[2:], alone.met_residual, rtol=1e-4, atol=1e-4)


def test_the_report_of_a_model_needs_nothing_but_itself(trained: list[Run], tmp_path: Path, run_config: RunConfig) -> None:
    """Would catch a page with scripts or things that are loaded from elsewhere, and one without figures, lineage or command."""
    path = report("models:/mlpf-cld/2", tmp_path / "report.html", tracking_uri=run_config.tracking_uri)
    text = path.read_text()
    page = Links(text)
    assert "script" not in page.tags
    assert all(address.startswith(("data:", "#")) for address in page.addresses), [a[:60] for a in page.addresses]
    assert "http" not in text.split("</style>")[0].partition("<style>")[2]
    for section in SECTIONS:
        assert f">{section}</h2>" in text
    assert page.tags.count("img") >= 14
    assert "models:/mlpf-clic/1" in text
    assert "pfscale evaluate models:/mlpf-cld/2" in text
    images = [a for a in page.addresses if a.startswith("data:image/svg+xml;base64,")]
    assert all(base64.b64decode(a.partition(",")[2]).lstrip().startswith((b"<?xml", b"<svg")) for a in images)
    by_name = report(trained[2].name, tmp_path / "run.html", tracking_uri=run_config.tracking_uri).read_text()
    assert by_name.count("<img") == text.count("<img")


def test_a_report_without_the_training_data_says_so(trained: list[Run], tmp_path: Path, run_config: RunConfig) -> None:
    """What is in MLflow and in the model is shown all the same; a folder alone has no run."""
    moved = tmp_path / "model"
    shutil.copytree(str(trained[1].checkpoint), moved)
    text = report(str(moved), tmp_path / "folder.html", tracking_uri=run_config.tracking_uri).read_text()
    assert "no evaluation" in text
    assert ">Lineage</h2>" in text


def test_reports_that_cannot_be_made(trained: list[Run], tmp_path: Path, run_config: RunConfig) -> None:
    """A name that is neither model nor run, and an output that would overwrite something."""
    assert trained
    with pytest.raises(ModelNotFoundError):
        report("mlpf-cdl@candidate", tmp_path / "report.html", tracking_uri=run_config.tracking_uri)
    with pytest.raises(OutputExistsError):
        report("models:/mlpf-cld/2", tmp_path, tracking_uri=run_config.tracking_uri)
    (tmp_path / "index.html").write_text("<html>mine</html>")
    with pytest.raises(OutputExistsError, match="no report of ours"):
        report("models:/mlpf-cld/2", tmp_path / "index.html", tracking_uri=run_config.tracking_uri)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_page_escapes_what_it_shows() -> None:
    """Would catch a config or a file name that becomes part of the page."""
    evil = "<script>alert(1)</script>"
    figure = PageFigure(f'x" onload="{evil}', f'"{evil}', "<svg/>", "{}")
    section = PageSection(evil, [evil], [PageTable([evil], [[evil]])], [figure], [PageCode(evil, evil, is_folded=True)])
    text = render_page(Page(evil, evil, [evil], [evil], [section], evil))
    assert "script" not in Links(text).tags
    assert "onload" not in [name for name, _ in Links(text).attributes]


def test_verdicts_say_which_is_better_only_beyond_the_uncertainty() -> None:
    """Would catch a difference within the errors sold as a gain, a better model called worse, and an unknown error taken for none."""
    rng = np.random.default_rng(1)
    event = np.repeat(np.arange(300), 8)
    p = rng.normal(size=(3, len(event))) * 20
    energy = np.linalg.norm(p, axis=0)
    met = [-np.bincount(event, component, 300) for component in p[:2]]
    jets = cluster_jets(num_events=300, event=event, px=p[0], py=p[1], pz=p[2], energy=energy)
    gen = GenReference(300, jets.event, jets.pt, jets.eta, jets.phi, jets.energy, *met)

    def smeared(width: float) -> Candidates:
        factor = rng.normal(1, width, len(event))
        return Candidates(event, *(p * factor), energy * factor, np.full(len(event), 22), np.zeros(len(event)))

    def said(mlpf: float, rule_based: float) -> str:
        candidates = {"mlpf": smeared(mlpf), "rule-based": smeared(rule_based), "truth targets": smeared(0.0)}
        return verdicts(evaluate_events(candidates, gen, seed=1))[1]

    assert "no difference beyond" in said(0.2, 0.2)
    assert "the baseline is better" in said(0.3, 0.1)
    assert "MLPF is better" in said(0.1, 0.3)
    assert "ceiling 0.00" in said(0.1, 0.3)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look at the page with")
def test_the_report_in_a_browser(trained: list[Run], tmp_path: Path, run_config: RunConfig) -> None:
    """Would catch a figure that a browser does not show, and a page that is wider than a phone."""
    assert trained
    path = report("models:/mlpf-cld/2", tmp_path / "report.html", tracking_uri=run_config.tracking_uri)
    look = (
        "<script>onload = () => parent.postMessage({wide: document.documentElement.scrollWidth - innerWidth, width: innerWidth,"
        " dark: [...document.images].filter(i => !i.complete || !i.naturalWidth).length, all: document.images.length}, '*')</script>"
    )
    (tmp_path / "looked.html").write_text(path.read_text().replace("</body>", look + "</body>"))
    listen = "<script>onmessage = e => { document.title = JSON.stringify(e.data) }</script>"
    (tmp_path / "phone.html").write_text(f'<title></title>{listen}<iframe width=390 height=800 src="looked.html"></iframe>')
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    dom = subprocess.run([*command, f"file://{tmp_path}/phone.html"], capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(dom.partition("<title>")[2].partition("</title>")[0].replace("&quot;", '"'))
    assert seen["dark"] == 0
    assert seen["all"] >= 14
    assert seen["wide"] <= 0
    assert seen["width"] <= 390
