"""`digits evaluate`: its files, the scoring log, the page, and errors in one line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector.labels import PIPELINES
from ml_training import evaluate
from ml_training.evaluation import protocols

PNG = b"\x89PNG"
RESULTS = Path("evaluation_results")


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIGIT_DATA_DIR", raising=False)
    return tmp_path


def flags(models, folder, *more):
    return ["--models-dir", str(models), "--folder", str(folder), "--pipeline", "mfcc", *more]


def test_json_a_table_a_plot_and_a_report_of_each_protocol(desk, tiny_models, tiny_folder, capsys):
    assert evaluate.PROTOCOLS == protocols.PROTOCOLS
    assert evaluate.main(flags(tiny_models, tiny_folder, "--protocol", "unseen_speakers")) == 0
    assert evaluate.main(flags(tiny_models, tiny_folder, "--protocol", "strangers", "calibration")) == 0
    printed = capsys.readouterr()
    assert "strangers is now called unseen_speakers" in printed.err
    assert re.search(r"mfcc +unknown +\d of 200 +\d+\.\d % +\d+\.\d to \d+\.\d %", printed.out)
    assert "speaker0" in printed.out
    assert "error before" in printed.out
    assert printed.out.splitlines()[-1] == "report: evaluation_results/evaluation_report.html"
    assert len(list(RESULTS.glob("*.json"))) == 2, "the same question replaces its result"
    (file,) = RESULTS.glob("unseen_speakers_*_mfcc.json")
    values = json.loads(file.read_text(encoding="utf-8"))
    assert values["protocol"] == "unseen_speakers"
    assert {"seeds", "data_hash", "version", "git_commit", "created", "definition"} <= values.keys()
    plots = sorted((RESULTS / "plots").iterdir())
    assert [path.read_bytes()[:4] for path in plots] == [PNG, PNG]
    report = (RESULTS / "evaluation_report.html").read_text(encoding="utf-8")
    assert (report.count("data:image/png;base64,"), report.count('<section id="result')) == (2, 2)
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", report), "it loads nothing"


def test_folders_of_one_name_are_distinguished_and_none_counts_twice(desk, tiny_models, tiny_folder, capsys):
    for person in ("ann", "ben"):
        (desk / person).mkdir()
        (desk / person / "clips").symlink_to(tiny_folder)
    Path("clips").mkdir()
    for path in list(tiny_folder.iterdir())[:30]:
        shutil.copy(path, "clips")
    shutil.copytree("clips", "other/clips")
    words = ["--protocol", "unseen_speakers", "--pipeline", "mfcc", "--models_dir", str(tiny_models), str(tiny_models)]
    words += ["--folder", "clips", "ann/clips", "clips", "other/clips", "ben/clips", "--log_scoring", "scored.md"]
    assert evaluate.main(words) == 0
    names = [path.name for path in RESULTS.glob("*.json")]
    assert len(names) == 3
    assert "unseen_speakers_other_clips_mfcc.json" in names
    assert Path("scored.md").read_text(encoding="utf-8").count("| unseen_speakers |") == 3
    assert "mean of" not in capsys.readouterr().out, "one model"


def test_files_that_cannot_be_read_are_reported_and_left_out(desk, tiny_models, tiny_folder, capsys):
    RESULTS.mkdir()
    (RESULTS / "older.json").write_text('{"protocol": "official"}', encoding="utf-8")
    shutil.copytree(tiny_folder, "clips")
    Path("clips/3_speaker1_2.wav").write_bytes(b"RIFF")
    Path("noises").mkdir()
    shutil.copy(next(tiny_folder.iterdir()), "noises")
    Path("noises/broken.wav").write_bytes(b"RIFF")
    words = ["--protocol", "noise", "--noise_dir", "noises", "--noise-seed", "3"]
    assert evaluate.main(flags(tiny_models, "clips", *words)) == 0
    printed = capsys.readouterr()
    assert re.search(r"left out of the report: .*older\.json is no result of evaluate\.py", printed.err)
    assert "clips: 1 file left out, first 3_speaker1_2.wav: " in printed.err
    assert "noises (noise): 1 file left out, first broken.wav: " in printed.err
    (file,) = RESULTS.glob("noise_*.json")
    values = json.loads(file.read_text(encoding="utf-8"))
    assert (values["clips"], values["details"]["clips_left_out"][0]["file"]) == (199, "3_speaker1_2.wav")
    assert (RESULTS / "evaluation_report.html").exists()
    assert {path.stem.rpartition("_")[2] for path in (RESULTS / "plots").iterdir()} == {
        "white", "pink", "brown", "recorded", "band", "clipping", "reverberation", "speed", "level", "place",
    }  # fmt: skip
    assert "noise seed 3" in printed.out
    assert re.search(r"^ +-5 dB +\d+\.\d % \(\d+\.\d to \d+\.\d\)$", printed.out, re.MULTILINE)


def test_each_scoring_of_a_folder_is_logged_and_part_of_the_page(desk, tiny_models, tiny_folder):
    Path("scored.md").write_text("# Mine\n\n| when | what |\n|---|---|\n| once | this |\n", encoding="utf-8")
    words = flags(tiny_models, tiny_folder, "--protocol", "unseen_speakers", "--log_scoring", "scored.md")
    for _ in range(2):
        assert evaluate.main([*words, "--update_docs", "results.md"]) == 0
    log = Path("scored.md").read_text(encoding="utf-8")
    assert log.startswith("# Mine\n\n| when | what |\n|---|---|\n| once | this |\n\n| when (UTC) |")
    rows = [line for line in log.splitlines() if re.match(r"\| \d{4}-\d\d-\d\d \d\d:\d\d \|", line)]
    assert len(rows) == 2
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert (len(cells), cells[2]) == (6 + len(PIPELINES), "unseen_speakers")
    assert re.fullmatch("[0-9a-f]{8}", cells[5])
    assert 90 <= float(cells[6]) <= 100
    page = Path("results.md").read_text(encoding="utf-8")
    assert all(row in page for row in rows)
    assert "## Unseen speakers: " in page
    (plot,) = re.findall(r"^!\[.+: accuracy\]\((.+)\)$", page, re.MULTILINE)
    assert Path(plot).read_bytes().startswith(PNG)
    assert re.search(r"^\| mfcc \| unknown \| \d of 200 \|", page, re.MULTILINE)
    Path("results.md").unlink()
    assert evaluate.main(["--update_docs", "results.md", "--log_scoring", "scored.md"]) == 2, "nothing to log"
    Path("scored.md").rename("strangers_scored.md")
    assert evaluate.main(["--update_docs", "results.md"]) == 0, "the page again, nothing evaluated"
    assert Path("results.md").read_text(encoding="utf-8") == page


def test_rejection_leaves_a_table_and_a_curve(desk, tiny_models, tiny_folder, capsys):
    for kind in ("words", "noise"):
        Path(kind).mkdir()
        for number in range(3):
            soundfile.write(f"{kind}/{number}.wav", np.random.default_rng(number).normal(0, 0.1, 6000), 8000)
    words = flags(tiny_models, tiny_folder, "--protocol", "rejection", "--others", "words=words", "noise=noise")
    assert evaluate.main(words) == 0
    printed = capsys.readouterr().out
    assert re.search(r"digits \(200\) +95% +95\.0 %$", printed, re.MULTILINE)
    assert re.search(r"words \(3\) +score 0\.5 +0\.0 %$", printed, re.MULTILINE)
    assert re.search(r"noise \(3\) +area under ROC +1\.000$", printed, re.MULTILINE)
    (file,) = RESULTS.glob("rejection_*_mfcc.json")
    values = json.loads(file.read_text(encoding="utf-8"))
    kinds = [rejection["kind"] for rejection in values["rejections"]]
    assert kinds == ["digits", "words", "noise", "cut off", "doubled", "silence"]
    assert values["details"]["others"]["words"] == "3 clips of 3 recordings in words"
    (plot,) = (RESULTS / "plots").iterdir()
    assert plot.name.endswith("_roc.png")


def test_loso_trains_and_continues_by_itself(desk, tiny_folder, capsys):
    words = [
        "--protocol", "loso", "--dataset", "folder", "--data_dir", str(tiny_folder), "--pipeline", "mfcc",
        "--epochs", "1", "--seeds", "0", "--speakers", "speaker0", "--device", "cpu", "--config", "few.json",
    ]  # fmt: skip
    Path("few.json").write_text('{"synthetic_voices": 2}', encoding="utf-8")
    assert evaluate.main(words) == 0
    printed = capsys.readouterr()
    assert "mfcc, seed 0, without speaker0: " in printed.err
    assert "mean ± over seeds" in printed.out
    (fold,) = Path("train_logs/loso").glob("mfcc_speaker0_seed0_*")
    assert (fold / "fold.json").is_file()
    assert (fold / "best_model.pt").is_file()
    assert evaluate.main(words) == 0
    assert "1 trainings, 1 already done" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (
            "",
            2,
            "noise, calibration, rejection, strings at least",
        ),
        ("--protocol oficial", 2, "invalid choice: 'oficial'"),
        ("--protocol unseen_speakers", 2, "needs a folder of labelled clips"),
        ("--protocol loso --log_scoring x.md", 2, "it logs scorings of a folder, and none is named"),
        ("--protocol loso --seeds -1", 2, "seeds: expected whole numbers from 0 on, got -1"),
        ("--protocol loso --noise_seed -1", 2, "noise_seed: expected a whole number from 0 to 2147483647"),
        ("--protocol loso --version 1", 2, "version: cv and loso train their own models"),
        ("--protocol official --compare x.json", 2, "compare: only cv and loso are compared"),
        ("--protocol official --folder CLIPS", 2, "unseen_speakers, noise, calibration, rejection score folders"),
        ("--protocol official --noise_dir CLIPS", 2, "noise_dir: only protocol 'noise' mixes noise in"),
        ("--protocol official --speakers theo", 2, "only protocol 'loso' leaves speakers out"),
        ("--protocol rejection --folder CLIPS", 2, "'rejection' needs a folder of clips without a digit"),
        ("--protocol official --others words=CLIPS", 2, "others: only protocol 'rejection' uses them"),
        ("--protocol rejection --others CLIPS", 2, "expected KIND=DIR, e.g. words=recordings/words, got"),
        ("--protocol rejection --others words=", 2, "expected KIND=DIR"),
        ("--protocol rejection --others a=x a=y", 2, "others: each kind needs a name of its own"),
        ("--protocol rejection --others silence=x", 2, "none of digits, cut off, doubled, silence"),
        (
            "--protocol rejection --folder CLIPS --others words=nowhere --models_dir MODELS",
            1,
            "nowhere is not a folder",
        ),
        ("--protocol official --output fold.json/x", 2, "fold.json is a file, expected a folder"),
        ("--protocol official --update_docs foreign", 2, "foreign is a folder, expected a file"),
        ("--protocol loso --config missing.json", 2, "missing.json"),
        ("--protocol loso --config fold.json", 2, "split: the protocol decides it"),
        ("--protocol loso --epochs 0", 2, "epochs: expected a number from 1"),
        ("--protocol unseen_speakers --folder nowhere", 1, "no folder models"),
        ("--protocol unseen_speakers --folder nowhere --models_dir MODELS", 1, "nowhere is not a folder"),
        ("--protocol noise --noise_dir nowhere --models_dir MODELS", 1, "nowhere is not a folder"),
        ("--protocol official --models_dir MODELS --dataset folder --data_dir CLIPS", 1, "has no official test part"),
        ("--update_docs page.md", 1, "evaluation_results holds no results to write page.md from"),
        ("--update_docs page.md --output foreign", 1, "foreign.json is no result of evaluate.py"),
    ],
)
def test_faults_are_one_line(words, code, expected, desk, tiny_models, tiny_folder, capsys):
    Path("fold.json").write_text('{"split": "speaker", "held_out_speaker": "theo"}', encoding="utf-8")
    Path("foreign").mkdir()
    Path("foreign/foreign.json").write_text('{"protocol": "official"}', encoding="utf-8")
    try:
        found = evaluate.main(words.replace("MODELS", str(tiny_models)).replace("CLIPS", str(tiny_folder)).split())
    except SystemExit as left:  # of argparse
        found = int(str(left.code))
    printed = capsys.readouterr()
    assert (found, printed.out) == (code, "")
    assert expected in printed.err.splitlines()[-1]
    assert not RESULTS.exists(), "nothing is left behind"
    assert "Traceback" not in printed.err


def test_as_a_script_and_without_the_train_extra(run_door, tiny_models, tiny_folder, tmp_path):
    done = run_door("evaluate.py", *flags(tiny_models, tiny_folder, "--protocol", "unseen_speakers"))
    assert done.returncode == 0, done.stderr
    assert "Errors and accuracy" in done.stdout
    command = [sys.executable, "-S", str(Path(evaluate.__file__)), "--protocol", "official"]  # -S: no packages
    bare = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert bare.returncode == 1
    assert re.match(r"error: evaluation \(matplotlib, jinja2\) needs the \[train\] extra", bare.stderr)


def test_trained_models_are_evaluated_without_torch(tiny_models, tiny_folder, tmp_path):
    recordings, few = tmp_path / "fsdd", tmp_path / "few"
    for folder in (recordings, few):
        folder.mkdir()
    for digit in range(10):
        for index in (0, 1):
            shutil.copy(tiny_folder / f"{digit}_speaker0_{index}.wav", recordings / f"{digit}_ann_{7 * index}.wav")
            shutil.copy(tiny_folder / f"{digit}_speaker1_{index}.wav", few / f"{digit}_ben_{index}.wav")
    code = """
import sys
sys.modules["torch"] = None
from ml_training import evaluate
code = evaluate.main(sys.argv[1:])
assert not any(name.startswith("torch.") for name in sys.modules)
sys.exit(code)
"""
    (few / "clips.tsv").write_text("file\tdigits\n7_ben_0.wav\t7\n", encoding="utf-8")
    scoring = [name for name in evaluate.PROTOCOLS if name not in ("cv", "loso")]
    words = [
        "--protocol", *scoring, "--models_dir", tiny_models, "--pipeline", "mfcc", "--data_dir", recordings,
        "--folder", few, "--noise_dir", few, "--others", f"words={few}", "--strings", few,
        "--output", tmp_path / "results",
    ]  # fmt: skip
    command = [sys.executable, "-W", "error", "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert len(list((tmp_path / "results").glob("*.json"))) == len(scoring)
    training = [sys.executable, "-c", code, "--protocol", "cv", "--data_dir", str(recordings)]
    refused = subprocess.run(training, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert refused.returncode == 1
    assert "evaluation (torch) needs the [train] extra" in refused.stderr
