"""Runs that earlier versions wrote still load: the files below are in the format of the first version."""

import json
from pathlib import Path

import pytest
import yaml

from glassmoe import config as configuration
from glassmoe.config import SCHEMA_VERSION, RunConfig
from glassmoe.training.records import read_environment, read_start, seen_before
from glassmoe.training.tracking import MetricsLog, read_metrics

CONFIG = """\
seed: 0
data:
  path: null
  rows: games:256
  tokens: characters
  synthetic_games: 300
model:
  ffn: relu
  layers: 2
  heads: 2
  width: 128
  active_width: 512
  num_experts: 8
  experts_per_token: 2
  activation: null
  gated: false
  router: null
  balance: 0.01
  router_gradient: true
  bias: false
  attention_bias: null
  norm: layernorm
  norm_eps: 1.0e-05
  positions: learned
  rotary_theta: 10000.0
  rotary_share: 1.0
  rotary_scaling: null
  kv_heads: null
  parallel_residual: false
  tie_word_embeddings: true
  context: null
  eos_token_id: null
  unused_ids: 0
  init_std: 0.02
  options: null
start:
  source: null
  noise: 0.1
  redraw: 0.0
  shape: model
optimizer:
  name: muon
  lr: 0.002
  muon_lr: 0.02
  final_lr: 0.1
  warmup_steps: 50
  betas:
  - 0.9
  - 0.95
  momentum: 0.95
  weight_decay: 0.1
  clip: 1.0
train:
  steps: 2
  batch_rows: 16
  micro_rows: 8
  precision: auto
  device: auto
  compile: false
  eval_every: 250
  eval_rows: 8
  checkpoint_every: 250
  snapshot_every: 0
  log_every: 10
schema_version: 1
"""
START = {
    "source": "dense",
    "source_config": {"seed": 0},
    "source_tokens": 8160,
    "source_flops": 2.1e10,
    "valid_loss": {"source": 3.38, "copied": 3.38, "start": 3.39},
    "jump": 0.0,
    "layers": [{"kind": "experts", "exact": True, "redrawn": 0}],
    "noise": 0.1,
    "redraw": 0.0,
    "copied_weights": 163840,
    "source_parameters": 430000,
    "parameters": 1200000,
    "new_weights": 0,
}
ENVIRONMENT = {
    "glassmoe": "0.1.0",
    "command": ["glassmoe", "train"],
    "commit": "0123456789ab+",
    "data": "synthetic",
    "data_sha256": "ab" * 32,
    "started": "2026-01-01T00:00:00+00:00",
    "hardware": "a processor, 1 threads",
    "compute_dtype": "float32",
    "active_parameters": 400000,
    "total_parameters": 430000,
    "python": "3.11.7",
    "packages": {"torch": "2.9.0", "chess": None},
}
LINE = {"step": 2, "tokens": 8160, "flops": 2.1e10, "seconds": 1.5, "loss": 3.4, "balance": 1.0, "grad_norm": 0.7}


def test_config_of_the_first_version_loads_and_keeps_its_values(tmp_path: Path) -> None:
    """Settings that later versions added have their defaults."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    config = configuration.load(tmp_path / "config.yaml")
    assert config.model.ffn == "relu" and config.data.synthetic_games == 300
    old, written = yaml.safe_load(CONFIG), yaml.safe_load(configuration.to_yaml(config))
    defaults = yaml.safe_load(configuration.to_yaml(configuration.RunConfig()))
    assert list(old) == list(written)
    for section, values in old.items():
        if isinstance(values, dict):
            added = {name: defaults[section][name] for name in written[section].keys() - values.keys()}
            values = {**values, **added}
        assert written[section] == values, section
    assert configuration.load(str(tmp_path / "config.yaml")) == config


def test_config_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    newer = CONFIG.replace("schema_version: 1", f"schema_version: {SCHEMA_VERSION + 1}\nplanets: 9")
    (tmp_path / "config.yaml").write_text(newer)
    with pytest.raises(ValueError, match=rf"config.yaml has schema version {SCHEMA_VERSION + 1}, newer than"):
        configuration.load(tmp_path / "config.yaml")


def test_config_without_a_field_takes_its_default(tmp_path: Path) -> None:
    """Runs from before a field was added do not name it."""
    (tmp_path / "config.yaml").write_text("seed: 3\nmodel: {ffn: switch}\nschema_version: 1\n")
    config = configuration.load(tmp_path / "config.yaml")
    assert (config.seed, config.model.ffn, config.train) == (3, "switch", RunConfig().train)


def test_records_of_a_run_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_start(tmp_path) is None and seen_before(tmp_path) == {"source_tokens": 0, "source_flops": 0}
    (tmp_path / "start.json").write_text(json.dumps(START))
    (tmp_path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    receipt, environment = read_start(tmp_path), read_environment(str(tmp_path))
    assert receipt is not None and receipt.jump == 0.0 and receipt.layers[0]["kind"] == "experts"
    assert list(receipt.to_dict().items()) == list(START.items())
    assert seen_before(tmp_path) == {"source_tokens": 8160, "source_flops": 2.1e10}
    assert environment.packages["torch"] == "2.9.0"
    assert list(environment.to_dict().items()) == list(ENVIRONMENT.items())


def test_metrics_are_read_up_to_a_line_that_is_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [LINE, LINE | {"step": 4, "valid_loss": 3.2, "layers": [{"l0": 9.0}], "tokens_per_second": 10.0}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "tok')
    first, second = read_metrics(str(file))
    assert (first.step, first.tokens, first.flops, first.seconds, first.loss) == (2, 8160, 2.1e10, 1.5, 3.4)
    assert first.valid_loss is first.layers is first.tokens_per_second is None and first["balance"] == 1.0
    assert (second.valid_loss, second.layers, second.tokens_per_second) == (3.2, [{"l0": 9.0}], 10.0)
    assert dict(second) == lines[1] and second == read_metrics(file)[1]
    MetricsLog(file, 2).write(step=3)
    first, second = file.read_text().splitlines()
    assert json.loads(first).items() >= LINE.items() and second.startswith('{"step": 3, "checksum": "')
