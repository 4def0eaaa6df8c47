import pytest


def test_door_runs_the_whole_chain_on_synthetic_speech_from_another_folder(run_door, tmp_path):
    pytest.importorskip("espeakng_loader")
    done = run_door("demo.py", "--synthetic")
    assert done.returncode == 0, done.stdout + done.stderr
    *_, last = done.stdout.splitlines()
    assert last.startswith("7 of 7 passed in ")
    assert "FAILED" not in done.stdout
    assert "synthetic speech" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo_output"]
    assert (tmp_path / "demo_output" / "train_logs" / "plots" / "training_report.html").is_file()


def test_door_refuses_what_it_does_not_know(run_door):
    done = run_door("demo.py", "--synthetik")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "demo.py: unknown argument --synthetik, did you mean --synthetic? (see demo.py --help)\n"


@pytest.mark.slow
@pytest.mark.real_data
def test_door_takes_real_recordings_where_there_are_some(run_door, fsdd_dir):
    done = run_door("demo.py", "--output", "shown", DIGIT_DATA_DIR=str(fsdd_dir.resolve()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "real recordings, part of FSDD" in done.stdout
