"""Runs that an older version began: they go on as what they were."""

import json

import pytest

from l2o.meta_train import Config, Following, follow, run

OPTIONS = {"axes": "last_two", "embeddings": "matrix"}
CONFIG = {
    "optimizer": "learnable_muon",
    "families": ("mlp16",),
    "estimator": "pes",
    "particles": 1,
    "truncation": 2,
    "episode_length": (4, 4),
    "outer_steps": 2,
    "outer_warmup": 0,
    "checkpoint_every": 1,
}


def test_an_argument_that_a_run_does_not_name_is_what_it_was(tmp_path):
    config = Config(**CONFIG, optimizer_options=OPTIONS)
    run(config, tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    for name in OPTIONS:
        del content["optimizer_options"][name]
    path.write_text(json.dumps(content))
    assert run(config, tmp_path).completed
    with pytest.raises(ValueError, match="another configuration:\n  optimizer_options"):
        run(Config(**CONFIG), tmp_path)
    (record, *_) = follow(
        tmp_path, Following(steps=4, seeds=1, eval_every=2, eval_batches=1)
    )
    assert record["step"] == 1
    best = json.loads((tmp_path / "best" / "config.json").read_text())
    assert OPTIONS.items() <= best["optimizer"]["arguments"].items()
