"""Wrong input on the command line: one line says what is wrong, nothing is left."""

import os
import re

import pytest

from l2o.meta_train.cli._main import main

# What only a library would say.
RAW = (
    r"Traceback|Errno|has no attribute|operand|invalid literal|positional arg|JSON com"
)

META_TRAIN = {
    "--outer-stepz 3": "no option --outer-stepz; did you mean --outer-steps",
    "--help-al": "did you mean --help-all",
    "--topology x": "there is no option --topology",
    "--outer-steps many": "--outer-steps takes a whole number, not 'many'",
    "--outer-steps=": "an argument is empty",
    "--outer-steps 0": "--outer-steps must be positive, not 0",
    "--outer-steps 10": r"--outer-warmup must be from 0 to less than .*\(10\)",
    "--outer-lr fast": "--outer-lr takes a number, not 'fast'",
    "--outer-lr nan": "--outer-lr must be finite, not nan",
    "--outer-lr inf": "--outer-lr must be finite, not inf",
    "--outer-lr -1": "--outer-lr must be positive, not -1.0",
    "--outer-optimizer adm": "unknown outer optimizer 'adm'.*Did you mean 'adam'",
    "--outer-options decay 1": "unknown option decay of adam; known: b1",
    "--std 0": "--std must be positive, not 0",
    "--particles 0": "--particles must be positive, not 0",
    "--particles 2.5": "--particles takes a whole number, not '2.5'",
    "--truncation -3": "--truncation must be positive, not -3",
    "--seed -1": "--seed must not be negative",
    "--families mnist": "--families: unknown task 'mnist'; `l2o tasks`",
    "--families": "--families names no task family",
    "--families ./no.json": "--families: there is no file no.json",
    "--families heldout/small": "--families: .* is held out .*allow_heldout",
    "--families-per-step two": "--families-per-step takes .*, not 'two'",
    "--episode-length 9 3": "--episode-length must be 0 < low <= high, not \\(9, 3\\)",
    "--reparam-range 1": "--reparam-range needs 2 values",
    "--optimizer smal_fc": "unknown learned optimizer 'smal_fc'.*'small_fc'",
    "--optimizer adaptive_muon": "the name of weights, not of an arch.*--start-from",
    "--optimizer-options step_mutl 1": "no argument 'step_mutl'; known: step_mult",
    "--optimizer-options step_mult": "--optimizer-options takes names and values",
    "--optimizer-options step_mult fast": "needs step_mult to be a finite number",
    "--estimator pess": "unknown estimator 'pess'.*Did you mean 'pes'",
    "--estimator-options foo 1": "unknown option foo of the estimator pes; known",
    "--objective-metric accurracy": "unknown metric of mlp32.*Did you mean 'accuracy'",
    "--objective-split tst": "--objective-split takes .*, not 'tst'",
    "--start-from nowhere": "unknown optimizer 'nowhere'.*write a path: ./NAME",
    "--start-from celo": "'celo' is an architecture",
    "--frozen nn9": "--frozen: theta has no part 'nn9'; its parts are",
    "--theta-average 2": "--theta-average must be between 0 and 1",
    "--processes 2": "coordinator, processes and process go together",
    "--distributed --coordinator a:1 --processes 2 --process 2": "counts from 0 to 1",
    "--preset full": "unknown preset 'full'; known: .*smoke",
    "--preset": "--preset needs a value",
    "y": "unexpected y",
}
OTHERS = {
    "train": "unknown command 'train'; known: .*meta-train",
    "-x": "unknown command '-x'",
    "meta-train": "--out is missing: Folder for config",
    "meta-train --out": "--out needs a value",
    "meta-train --out page.html": "--out takes a folder, and page.html is a file",
    "demo --preset full": "unknown preset 'full'",
    "demo smoke": "unexpected smoke",
    "evaluate": "name what to evaluate",
    "evaluate --optimizers": "name what to evaluate",
    "evaluate --optimizers nowhere": "unknown optimizer 'nowhere'.*l2o list baselines",
    "evaluate --optimizers ./nowhere": "'./nowhere' is neither a file nor a folder",
    "evaluate --optimizers adam:fast": "'fast' is no rate.*such as adamw:0.001",
    "evaluate --optimizers adam:-1": "'-1' is no rate",
    "evaluate --optimizers adam+cosin": "schedule 'cosin'.*Did you mean 'cosine'",
    "evaluate --optimizers adaptive_muon+cosine": "has a schedule of its own",
    "evaluate --optimizers adam --seedz 3": "no option --seedz; did you mean --seeds",
    "evaluate --optimizers adam --run nowhere": "nowhere holds no run",
    "evaluate --seeds 3 4": "unexpected 4",
    "evaluate --seeds 0": "--seeds must be positive, not 0",
    "evaluate --steps 13": "--steps \\(13\\) must be a multiple of eval_every",
    "evaluate --suite nowhere": "--suite: unknown task 'nowhere'",
    "evaluate --suite ./x.json": "--suite: there is no file x.json",
    "evaluate --tasks nope": "--tasks: 'nope' is not in demo/heldout, which has",
    "evaluate --tuning often": "--tuning takes .*, not 'often'",
    "evaluate --follow": "--follow needs a value",
    "evaluate --follow nowhere": "nowhere holds no run.*config.json",
    "evaluate --follow x --seedz 3": "no option --seedz; did you mean --seeds",
    "report": "name a folder",
    "report nowhere": "nowhere holds neither a run.*evaluation.json",
    "report nowhere --follow": "there is no option --follow",
    "tradeoffs --scale huge": "unknown scale 'huge'; known: smoke, laptop, cluster",
    "tradeoffs --variants nope": "unknown variant 'nope'",
    "diagnose": "SOURCE is missing",
    "diagnose smal_fc": "unknown optimizer 'smal_fc'.*Did you mean 'small_fc'",
    "diagnose small_fc --lengths 5 2": "--lengths must be positive and increasing",
    "diagnose small_fc --family demo/train": "--family must be one task",
    "tasks nope": "unknown task 'nope'",
    "tasks --show quadratic11": "Did you mean 'quadratic10'",
    "list --all": "there is no option --all",
    "list preset": "Did you mean 'presets'",
    "show": "NAME is missing",
    "show adaptive_muno": "Did you mean 'adaptive_muon'",
}
LINES = {f"meta-train --out x {line}": words for line, words in META_TRAIN.items()}


@pytest.mark.parametrize("line, words", (LINES | OTHERS).items())
def test_wrong_input_is_one_line_that_says_what_is_known(line, words, capsys):
    try:
        status = main(line.split())
    except SystemExit as done:
        status = done.code
    assert status == 2
    assert not os.listdir()  # nothing is left behind
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert re.search(words, captured.err), captured.err
    assert not re.search(RAW, captured.err), captured.err
