"""Layers of the settings, their order, and the messages of what breaks a rule."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.errors import ConfigurationError
from jobs.settings import FingerprintSettings, Settings
from jobs.settings_layers import load_settings, redact
from ppr.params import FingerprintParams
from ppr.urls import HIDDEN


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("FAIRPATH_")]:
        monkeypatch.delenv(name)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_of_the_fingerprints_are_those_of_the_package():
    assert FingerprintSettings().params() == FingerprintParams()


def test_each_layer_wins_over_the_one_below(tmp_path, monkeypatch):
    below = write(
        tmp_path / "below.toml", "[fingerprints]\nn_walks = 1\nseed = 1\ntop_k = 1\nmax_steps = 1\n"
    )
    above = write(tmp_path / "above.toml", "[fingerprints]\nn_walks = 2\nseed = 2\ntop_k = 2\n")
    monkeypatch.setenv("FAIRPATH_FINGERPRINTS__N_WALKS", "3")
    monkeypatch.setenv("FAIRPATH_FINGERPRINTS__SEED", "3")
    resolved = load_settings(
        {"fingerprints.n_walks": 5, "fingerprints.restart_prob": None},
        assignments=["fingerprints.seed=4", "fingerprints.n_walks=4"],
        files=[below, above],
    )

    got = resolved.settings.fingerprints
    assert (got.n_walks, got.seed, got.top_k, got.max_steps, got.restart_prob) == (5, 4, 2, 1, 0.15)
    described = resolved.describe()["fingerprints"]
    assert described["n_walks"] == {"value": 5, "from": "command line"}
    assert described["seed"] == {"value": 4, "from": "--set fingerprints.seed"}
    assert described["top_k"] == {"value": 2, "from": str(above)}
    assert described["max_steps"] == {"value": 1, "from": str(below)}
    assert described["restart_prob"] == {"value": 0.15, "from": "default"}


def test_the_environment_wins_over_files(tmp_path, monkeypatch):
    file = write(tmp_path / "a.toml", "[query]\nk = 3\nsteps = 1\n")
    monkeypatch.setenv("FAIRPATH_QUERY__K", "7")
    resolved = load_settings(files=[file])
    assert (resolved.settings.query.k, resolved.settings.query.steps) == (7, 1)
    assert resolved.describe()["query"]["k"]["from"] == "environment"


def test_tables_of_several_files_merge_at_every_depth(tmp_path):
    one = write(
        tmp_path / "one.toml", '[spark]\napp_name = "a"\n[spark.conf]\n"spark.x" = "1"\n"spark.y" = "1"\n'
    )
    two = write(tmp_path / "two.toml", '[spark.conf]\n"spark.y" = "2"\n')
    spark = load_settings(files=[one, two]).settings.spark
    assert spark.app_name == "a"
    assert spark.conf == {"spark.x": "1", "spark.y": "2"}


@pytest.mark.parametrize(
    ("assignment", "section", "key", "value"),
    [
        ("fingerprints.top_k=none", "fingerprints", "top_k", None),
        ("fingerprints.restart_prob=0.5", "fingerprints", "restart_prob", 0.5),
        ("fingerprints.exclude_neighbors=true", "fingerprints", "exclude_neighbors", True),
        ("recommend.kinds=item,llm", "recommend", "kinds", ("item", "llm")),
        ('recommend.kinds=["item", "llm"]', "recommend", "kinds", ("item", "llm")),
        ("spark.master=local-cluster[2,1,1024]", "spark", "master", "local-cluster[2,1,1024]"),
        ('spark.conf."spark.ui.enabled"=no', "spark", "conf", {"spark.ui.enabled": "no"}),
        ("spark.conf.spark.ui.enabled=no", "spark", "conf", {"spark.ui.enabled": "no"}),
        ('spark.conf.spark.x="a = b"', "spark", "conf", {"spark.x": "a = b"}),
        ("spark.conf.spark.memory.fraction=0.50", "spark", "conf", {"spark.memory.fraction": "0.50"}),
        ("graph.src=käufer = x", "graph", "src", "käufer = x"),
    ],
)
def test_values_of_assignments(assignment, section, key, value):
    settings = load_settings(assignments=[assignment]).settings
    assert getattr(getattr(settings, section), key) == value


def test_lists_and_tables_in_the_environment(monkeypatch):
    monkeypatch.setenv("FAIRPATH_RECOMMEND__KINDS", "item, llm")
    monkeypatch.setenv("FAIRPATH_SPARK__CONF", '{"spark.x": "1"}')
    monkeypatch.setenv("FAIRPATH_FINGERPRINTS__TOP_K", "none")
    settings = load_settings().settings
    assert settings.recommend.kinds == ("item", "llm")
    assert settings.spark.conf == {"spark.x": "1"}
    assert settings.fingerprints.top_k is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("fingerprints.n_walks=0", "[fingerprints] 'n_walks' must be between 1 and 16777216 (got 0)"),
        ("fingerprints.n_walks=many", "[fingerprints] 'n_walks' must be a valid integer (got 'many')"),
        (
            "fingerprints.restart_prob=1",
            "[fingerprints] 'restart_prob' must be between 0.001 and 0.999 (got 1.0)",
        ),
        (
            "fingerprints.restart_prob=nan",
            "[fingerprints] 'restart_prob' must be between 0.001 and 0.999 (got nan)",
        ),
        ("fingerprints.max_steps=0", "[fingerprints] 'max_steps' must be positive (got 0)"),
        ("fingerprints.engine=ray", "[fingerprints] 'engine' must be 'local', 'spark' or 'dask' (got 'ray')"),
        ("query.k=0", "[query] 'k' must be greater than 0 (got 0)"),
        (
            "recommend.popularity_discount=inf",
            "[recommend] 'popularity_discount' must be a finite number (got inf)",
        ),
        ("log=loud", "[log] must be a valid dictionary or instance of LogSettings (got 'loud')"),
        ("log.colour=red", "[log] 'colour' is not a setting; there are level, format"),
    ],
)
def test_a_broken_rule_names_layer_key_rule_and_value(assignment, message):
    with pytest.raises(ConfigurationError) as caught:
        load_settings(assignments=[assignment])
    assert str(caught.value) == f"--set {assignment.partition('=')[0]}: {message}"


def test_a_broken_rule_in_a_file_names_the_file(tmp_path):
    fine = write(tmp_path / "fine.toml", "[fingerprints]\nn_walks = 5\n")
    wrong = write(tmp_path / "wrong.toml", "[fingerprints]\nseed = -1\n[nonsense]\nx = 1\n")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(files=[fine, wrong])
    seed, section = str(caught.value).splitlines()
    assert seed == f"{wrong}: [fingerprints] 'seed' must be between 0 and 2**63 - 1 (got -1)"
    assert section.startswith(f"{wrong}: [nonsense] is not a section of the settings; there are graph, ")


def test_unknown_sections_of_the_environment_are_refused(monkeypatch):
    monkeypatch.setenv("FAIRPATH_FINGERPRINT__N_WALKS", "3")
    with pytest.raises(
        ConfigurationError, match=r"FAIRPATH_FINGERPRINT__N_WALKS: \[fingerprint\] is not a section"
    ):
        load_settings()


def test_a_variable_without_a_section_is_refused(monkeypatch):
    monkeypatch.setenv("FAIRPATH_N_WALKS", "3")
    with pytest.raises(ConfigurationError, match=r"FAIRPATH_N_WALKS: names must be FAIRPATH_SECTION__KEY"):
        load_settings()


def test_unknown_keys_of_the_environment_are_refused(monkeypatch):
    monkeypatch.setenv("FAIRPATH_FINGERPRINTS__WALKS", "3")
    with pytest.raises(ConfigurationError, match=r"environment: \[fingerprints\] 'walks' is not a setting"):
        load_settings()


def test_a_table_of_the_environment_that_is_not_json_is_refused(monkeypatch):
    monkeypatch.setenv("FAIRPATH_SPARK__CONF", "{")
    with pytest.raises(ConfigurationError, match=r"environment: .*spark"):
        load_settings()


@pytest.mark.parametrize("text", ["n_walks", "=3", "a b=3", "", "query.=3"])
def test_an_assignment_that_is_none_is_refused(text):
    with pytest.raises(ConfigurationError, match="--set"):
        load_settings(assignments=[text])


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError, match=r"absent\.toml: no such configuration file"):
        load_settings(files=[tmp_path / "absent.toml"])


@pytest.mark.parametrize("content", [b"[query\n", b"k = \xff\n"])
def test_a_file_that_is_not_toml_is_an_error(tmp_path, content):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"broken\.toml: not valid TOML"):
        load_settings(files=[path])


def test_a_folder_is_not_a_configuration_file(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings(files=[tmp_path])


def test_constructing_settings_reads_nothing(monkeypatch):
    monkeypatch.setenv("FAIRPATH_QUERY__K", "7")
    assert Settings().query.k == 10


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().query.k = 3
    with pytest.raises(ValidationError, match="frozen"):
        Settings().query = None


def test_secrets_are_hidden_everywhere():
    resolved = load_settings(
        assignments=[
            'spark.conf."spark.hadoop.fs.s3a.secret.key"=hush',
            "spark.remote=sc://host:15002/;token=hush;use_ssl=true",
        ]
    )
    described = resolved.describe()
    assert "hush" not in str(described)
    assert described["spark"]["conf"]["value"] == {"spark.hadoop.fs.s3a.secret.key": HIDDEN}
    assert described["spark"]["remote"]["value"] == f"sc://host:15002/;token={HIDDEN};use_ssl=true"
    assert resolved.settings.spark.conf["spark.hadoop.fs.s3a.secret.key"] == "hush"


def test_properties_of_several_layers_merge_by_their_whole_names(tmp_path):
    file = write(tmp_path / "a.toml", "[spark.conf]\nspark.x.y = 1\nspark.x.z = true\n")
    spark = load_settings(assignments=["spark.conf.spark.x.y=2"], files=[file]).settings.spark
    assert spark.conf == {"spark.x.y": "2", "spark.x.z": "true"}


def test_secrets_stay_out_of_messages(tmp_path):
    file = write(tmp_path / "a.toml", '[spark.conf]\nspark.hadoop.fs.s3a.secret.key = ["hush"]\n')
    with pytest.raises(ConfigurationError) as caught:
        load_settings(files=[file], assignments=["spark.conf.spark.x=1"])
    assert "spark.hadoop.fs.s3a.secret.key" in str(caught.value)
    assert "hush" not in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(assignments=["a secret=hush"])
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://AKIA:hush@b/x", f"s3://{HIDDEN}@b/x"),
        ("s3://AKIA:hu/s@h@b/x: no such store", f"s3://{HIDDEN}@b/x: no such store"),
        ("https://hush@host/x", f"https://{HIDDEN}@host/x"),
        ("https://host/x@v2 spark://host:7077", "https://host/x@v2 spark://host:7077"),
    ],
)
def test_credentials_of_urls_are_hidden(text, shown):
    assert redact(text) == shown


def test_redaction_reaches_nested_values_and_keeps_the_rest():
    value = {"a": [{"api_key": "x", "k": 3}, "s3://me:pw@bucket/x"], "key": "user-1"}
    assert redact(value) == {"a": [{"api_key": HIDDEN, "k": 3}, f"s3://{HIDDEN}@bucket/x"], "key": "user-1"}


def test_the_example_overlay_is_valid():
    example = Path(__file__).resolve().parents[2] / "conf" / "example.toml"
    assert load_settings(files=[example]).settings.fingerprints.n_walks > 0
