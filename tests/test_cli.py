"""The `l2o` command: the whole job in small, and its complaints."""

import json
import subprocess
import sys

import pytest

import l2o
from l2o.meta_train._cli import main


@pytest.mark.slow
def test_the_demo_in_small(tmp_path):
    command = [sys.executable, "-m", "l2o.meta_train", "demo", "--preset", "smoke"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in ("meta-loss", "inner steps/s", "speed-up", "report:", "autoencoder"):
        assert words in done.stdout
    frozen = tmp_path / "run" / "frozen"
    assert sorted(p.name for p in frozen.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert l2o.read_card(frozen)["optimizer"]["name"] == "small_fc"
    results = json.loads((tmp_path / "run/evaluation/results.json").read_text())
    assert [r["task"] for r in results["results"]] == ["deep_mlp", "autoencoder"]
    assert "Meta-training" in (tmp_path / "run/evaluation/report.html").read_text()


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in (
        *l2o.FACTORIES,
        "small_fc_digits",
        "amoudgl/celo2-base",
        "mlp32x32",
        "transformer_lm",
        "preset smoke",
    ):
        assert name in out


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "meta-train" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["meta-train", "--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert "--outer-steps" in out and "Updates of theta" in out


def test_a_preset_fills_the_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["meta-train", "--preset", "smoke", "--help"])
    assert "(default: 20)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "line, words",
    [
        ("meta-train --outer-stepz 3 --out x", ["--outer-stepz", "--episode-length"]),
        ("meta-train --outer-steps many --out x", ["--outer-steps", "many"]),
        ("meta-train --outer-steps 3", ["--out"]),
        ("meta-train --out x --families mnist", ["mnist", "mlp32x32"]),
        ("meta-train --out x --std 0", ["std must be positive"]),
        ("demo --preset full", ["unknown preset 'full'", "smoke"]),
        ("evaluate nowhere", ["'nowhere' is neither a file or folder nor"]),
        ("evaluate nowhere --seedz 3", ["--seedz", "--learning-rates"]),
        ("train", ["unknown command 'train'", "meta-train"]),
    ],
)
def test_bad_input_fails_at_once_and_says_what_is_known(line, words, capsys):
    try:
        status = main(line.split())
    except SystemExit as done:
        status = done.code
    assert status == 2
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).split())
    for word in words:
        assert word in text
    assert "Traceback" not in text


def test_an_unwritable_output_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "run")
    assert main(["meta-train", "--preset", "smoke", "--out", out]) == 2
    assert capsys.readouterr().err.startswith("l2o: ")
