import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import ml_training
from ml_training import cli


@pytest.fixture
def run_digits(tmp_path):
    """Run the installed console command from another folder."""

    def run(*words):
        script = Path(sysconfig.get_path("scripts")) / "digits"
        if not script.exists():
            pytest.skip("the console command is not installed: pip install -e .")
        return subprocess.run(
            [script, *map(str, words)], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=120
        )

    return run


def test_help_lists_every_sub_command(capsys):
    assert cli.main([]) == cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in cli.DOORS)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"digits {ml_training.__version__}\n"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("trian", "did you mean train?"),
        (
            "xyz",
            "expected one of train, predict, listen, serve, train-live, tune-threshold, tune, evaluate, export, ",
        ),
    ],
)
def test_an_unknown_sub_command_is_one_line_and_code_2(capsys, word, hint):
    assert cli.main([word]) == 2
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert hint in shown


@pytest.mark.parametrize("name", cli.DOORS)
def test_every_sub_command_explains_itself_by_its_name(run_digits, name):
    done = run_digits(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: digits {name} ")


def test_predict_answers(run_digits, tiny_models, tiny_folder):
    done = run_digits("predict", tiny_folder / "7_speaker0_0.wav", "--models-dir", tiny_models)
    assert (done.returncode, done.stderr) == (0, f"answered by your own mfcc in {tiny_models}\n")
    assert done.stdout.startswith("7  seven, ")


def test_errors_keep_their_line_and_code(run_digits, tiny_models):
    done = run_digits("predict", "nothing.wav", "--models_dir", tiny_models)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: cannot read nothing.wav: No such file or directory\n"
    assert run_digits("predict", "--nonsense").returncode == 2


def test_only_the_requested_command_is_imported():
    code = (
        "import sys; from ml_training import cli; cli.main(['--help']); print([m for m in sys.modules if 'ml_' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "['ml_training', 'ml_training.cli']"
