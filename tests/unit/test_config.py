"""Configs: every mistake at once with its place, bases, overrides, and fingerprints that name what a result depends on."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from pfscale.config import Config, RunConfig, dump_yaml, fingerprint, load_config, runtime
from pfscale.errors import ConfigError, OutputExistsError


class Warm(Config):
    kind: Literal["warm"] = "warm"
    degrees: float = Field(20.0, gt=0)


class Cold(Config):
    kind: Literal["cold"] = "cold"
    frost: bool = True


class Inner(Config):
    width: int = Field(8, ge=1, description="width")
    folder: str = runtime("here", description="where")


class Outer(Config):
    seed: int = 1
    inner: Inner = Inner()
    weather: Annotated[Warm | Cold, Field(discriminator="kind")] = Warm()
    run: RunConfig = RunConfig()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_all_mistakes_are_told_at_once_with_file_line_and_closest_key(tmp_path: Path) -> None:
    """Catches a loader that stops at the first mistake, or that cannot say where it is."""
    path = write(tmp_path / "c.yaml", "seed: many\ninner:\n  widht: 4\nweather:\n  kind: warm\n  degres: 3\n")
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, path, ["inner.width=0"])
    text = str(caught.value)
    assert text.startswith("4 mistakes")
    for expected in (
        f"{path}:1",
        f"{path}:3",
        f"{path}:6",
        "did you mean 'width'",
        "did you mean 'degrees'",
        "command line (inner.width=0)",
    ):
        assert expected in text, text


def test_a_base_file_is_one_level_and_differences_win(tmp_path: Path) -> None:
    """Catches a base that overrides its heirs, and chains of bases that nobody can follow."""
    write(tmp_path / "base.yaml", "seed: 3\ninner: {width: 5}\nweather: {kind: warm, degrees: 30}\n")
    heir = write(tmp_path / "heir.yaml", "base: base.yaml\ninner: {folder: there}\nweather: {kind: cold}\n")
    loaded = load_config(Outer, heir)
    assert (loaded.seed, loaded.inner.width, loaded.inner.folder, loaded.weather) == (3, 5, "there", Cold())
    with pytest.raises(ConfigError, match="one level"):
        load_config(Outer, write(tmp_path / "grandchild.yaml", "base: heir.yaml\n"))


def test_a_wrong_kind_is_told_where_it_was_given(tmp_path: Path) -> None:
    """Catches a mistake of the command line that is blamed on the file's line with the right kind."""
    path = write(tmp_path / "c.yaml", "weather:\n  kind: warm\n")
    with pytest.raises(ConfigError, match=r"command line \(weather.kind=hot\): weather: kind 'hot'"):
        load_config(Outer, path, ["weather.kind=hot"])
    with pytest.raises(ConfigError, match=r"c.yaml:2: weather: kind 'tepid'"):
        load_config(Outer, write(tmp_path / "c.yaml", "weather:\n  kind: tepid\n"))


def test_overrides_reach_every_depth_and_change_kinds() -> None:
    """Catches an override that is dropped, or that mixes the fields of two kinds."""
    loaded = load_config(Outer, None, ["inner.width=7", "weather.kind=cold", "weather.frost=false", "run.num_workers=0"])
    assert (loaded.inner.width, loaded.weather, loaded.run.num_workers) == (7, Cold(frost=False), 0)


def test_mistakes_of_the_command_line_are_told_together_and_in_plain_words() -> None:
    """Catches a malformed override that hides the others, mistakes without a place, and pydantic's own terms."""
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, None, ["nonsense", "iner.width=3", "weather.kind=hot", "inner=5", "seed=1.5"])
    text = str(caught.value)
    assert text.startswith("5 mistakes")
    assert all(f"command line ({part})" in text for part in ("iner.width=3", "weather.kind=hot", "inner=5", "seed=1.5"))
    for expected in (
        "'nonsense' is not of the form key.path=value",
        "did you mean 'inner'",
        "'hot' is none of 'warm', 'cold'",
        "a section",
    ):
        assert expected in text, text


@pytest.mark.parametrize("text", ["seed: [1", "- 1\n- 2\n"])
def test_files_that_are_no_config_are_refused(tmp_path: Path, text: str) -> None:
    """Catches a parser's traceback in front of a user."""
    with pytest.raises(ConfigError):
        load_config(Outer, write(tmp_path / "c.yaml", text))
    with pytest.raises(ConfigError, match=r"did you mean .*c\.yaml"):
        load_config(Outer, tmp_path / "cc.yaml")


def test_the_fingerprint_follows_the_result_and_nothing_else() -> None:
    """Catches a rerun that resumes another run's checkpoint, or that starts anew because a folder moved."""
    name = fingerprint(Outer(), data="a")
    for same in (["run.num_workers=4"], ["inner.folder=/else/where"], ["seed=1"]):
        assert fingerprint(load_config(Outer, None, same), data="a") == name
    for other in (["seed=2"], ["inner.width=9"], ["weather.degrees=21"], ["weather.kind=cold"]):
        assert fingerprint(load_config(Outer, None, other), data="a") != name
    assert fingerprint(Outer(), data="b") != name


def test_a_dumped_config_reads_back_the_same(tmp_path: Path) -> None:
    """Catches a resolved config in MLflow that does not repeat its run."""
    config = load_config(Outer, None, ["weather.kind=cold", "inner.width=3"])
    assert load_config(Outer, write(tmp_path / "c.yaml", dump_yaml(config))) == config


def test_errors_cross_process_borders_whole() -> None:
    """Catches an error raised in a Ray worker whose hint is lost on the way to the user."""
    error = OutputExistsError("taken", where="there", hint="choose another")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert isinstance(pickle.loads(pickle.dumps(error)), OutputExistsError)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "jobs" / "configs").glob("*/*.yaml")), ids=lambda p: p.name)
def test_every_config_in_the_project_loads(path: Path) -> None:
    """Catches a config file that a renamed key left behind."""
    from pfscale.training.downstream import DownstreamConfig
    from pfscale.training.finetune import FinetuneConfig
    from pfscale.training.pretrain import PretrainConfig

    load_config({"pretrain": PretrainConfig, "finetune": FinetuneConfig, "downstream": DownstreamConfig}[path.parent.name], path)


def test_a_mistake_of_several_keys_is_not_blamed_on_the_last_one() -> None:
    """Catches `command line (seed=3): : ...` for what two other keys say together, and the hint of another verb."""
    from pfscale.training.downstream import DownstreamConfig

    with pytest.raises(ConfigError) as caught:
        load_config(DownstreamConfig, None, ["task.kind=jet_flavour", "arm=latents-linear", "network.kind=particle_transformer", "seed=3"])
    assert "\n  arm latents-linear is one linear layer" in str(caught.value.what)
    assert "config show downstream" in str(caught.value.hint)
