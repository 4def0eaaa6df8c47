"""`digits evaluate --protocol strings`, and benchmarks/connected.py, on synthetic speech."""

from __future__ import annotations

import json
from pathlib import Path

import connected
import numpy as np
import pytest
import soundfile

from digit_detector.evaluation.perturbations import CLEAN
from digit_detector.evaluation.speech import FalseAlarm, SpeechResult
from digit_detector.evaluation.strings import live_detect
from digit_detector.processors.baselines import parse_digits
from ml_training import evaluate
from ml_training.data.tts import VOICES, synthesize_words
from ml_training.evaluation.records import load_result, update_docs
from ml_training.report.tables import tables_of

STRINGS = ("three seven one", "five two", "nine zero four six")
DIGITS = ("371", "52", "9046")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that benchmarks/connected.py reads, with a few recordings each."""
    root = tmp_path_factory.mktemp("corpora")
    quiet = np.zeros(4000, dtype=np.float32)

    def write(folder: str, lines: dict[str, str], voice: int = 0) -> None:
        (root / folder).mkdir(parents=True, exist_ok=True)
        clips = synthesize_words([(VOICES[voice], text) for text in lines.values()], seed=voice)
        for name, clip in zip(lines, clips, strict=True):
            soundfile.write(root / folder / f"{name}.wav", np.concatenate([quiet, clip, quiet]), 8000)

    texts = dict(zip("abc", STRINGS, strict=True))
    write("phone_numbers", texts)
    write("read_speech", texts | {"d": "we call it bear"}, 1)
    write("audiobooks", {"sentence_ls103_x-0": "to the sun", "sentence_ls104_x-0": "an even reader"}, 2)
    write("speech/eval", {"line": "a large coffee please"}, 3)
    write("spelled_names", {"name": "a b c"}, 4)
    table = "".join(f"{n}.wav\tann\t3\t{d}\t{t}\n" for n, d, t in zip("abc", DIGITS, STRINGS, strict=True))
    (root / "phone_numbers" / "clips.tsv").write_text(f"file\tspeaker\tfold\tdigits\ttext\n{table}", encoding="utf-8")
    rows = "".join(f"{n}.wav\tbob\t4\tdigits\t{d}\t\n" for n, d in zip("abc", DIGITS, strict=True))
    (root / "read_speech" / "clips.tsv").write_text(
        f"file\tspeaker\tfold\tdigit_words\tdigits\ttext\n{rows}d.wav\tbob\t4\tnone\t\twe call it bear\n",
        encoding="utf-8",
    )
    (root / "audiobooks" / "whisper_tiny.tsv").write_text(
        "sentence_ls103_x-0\tto the sun\nsentence_ls104_x-0\tan even reader\n", encoding="utf-8"
    )
    (root / "spelled_names" / "clips.tsv").write_text("file\tfold\ttext\nname.wav\t3\tA. B. C.\n", encoding="utf-8")
    (root / "noise" / "eval").mkdir(parents=True)
    hiss = 0.1 * np.random.default_rng(0).standard_normal(40_000)
    soundfile.write(root / "noise" / "eval" / "hiss.wav", hiss, 8000)
    return root


def test_a_run_leaves_json_tables_plots_and_a_section(corpora, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--protocol", "strings", "--strings", f"{corpora}/phone_numbers", f"{corpora}/read_speech"]
    words += ["--speech", f"books={corpora}/audiobooks", "--perturb", "tempo=1.25", "snr=20", "--context", "digits"]
    assert evaluate.main([*words, "--noise-dir", f"{corpora}/noise/eval"]) == 0
    printed = capsys.readouterr()
    assert "digit error rate (95 %)" in printed.out
    assert "phone_numbers, tempo=1.25" in printed.out
    (file,) = Path("evaluation_results").glob("strings_phone_numbers_read_speech_*.json")
    result = load_result(file)
    assert [(each.name, each.condition) for each in result.strings[:3]] == [
        ("phone_numbers", CLEAN.name), ("phone_numbers", "tempo=1.25"), ("phone_numbers", "snr=20")
    ]  # fmt: skip
    assert (result.clips, result.speakers, len(result.speech)) == (3 + 3 + 2, 2, 3)
    total = result.strings[0].total
    assert (total.reference, total.correct + total.substituted + total.deleted) == (9, 9)
    figures = json.loads(file.read_text(encoding="utf-8"))["details"]["figures"]
    assert figures[0]["digit_error_rate"] == pytest.approx(total.digit_error_rate)
    assert "alarms" in figures[-1]
    page = Path("evaluation_results/evaluation_report.html").read_text(encoding="utf-8")
    assert page.count('<section id="result') == 1
    assert "False alarms in speech" in page
    assert page.count("data:image/png;base64,") == 4  # error rates, groups, two confusion matrices
    assert [table.title for table in tables_of(result)][:2] == [
        "Digit strings: errors by plain edit distance, latency from the end of speech",
        "False alarms in speech without digit strings",
    ]
    assert update_docs(Path("evaluation_results"), Path("results.md")) == 1
    assert "| phone_numbers, snr=20 | 9 |" in Path("results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--protocol", "strings"], "needs --strings or --speech"),
        (["--protocol", "noise", "--strings", "x"], "only protocol 'strings' uses them"),
        (["--protocol", "strings", "--strings", "x", "--perturb", "snr=10"], "snr needs --noise_dir"),
        (["--protocol", "strings", "--speech", "a=x", "--where", "fold=1"], "where: "),
    ],
)
def test_flags_that_do_not_fit_are_one_line(words, fault, capsys):
    assert evaluate.main(words) == 2
    assert fault in capsys.readouterr().err


def test_a_missing_table_and_a_misspelt_perturbation_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(["--protocol", "strings", "--strings", "none"]) == 1
    assert "none is no folder and no table" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main(["--protocol", "strings", "--strings", "x", "--perturb", "temp=1.5"])
    assert "did you mean tempo?" in capsys.readouterr().err


def test_false_alarms_are_listed_with_their_transcripts():
    alarms = (FalseAlarm("a.wav", "62", "it takes too long", ("too",)), FalseAlarm("b.wav", "6", "sick <b>cats</b>"))
    result = SpeechResult("books", CLEAN.name, 10, 360.0, 4, 180.0, 0, alarms)
    assert (result.total, result.in_homophones, result.unexplained_per_hour) == (3, 2, pytest.approx(20.0))


def test_the_same_detector_is_used_for_one_recording_after_another(corpora):
    detect = live_detect()
    samples = soundfile.read(corpora / "phone_numbers" / "a.wav", dtype="float32")[0]
    first, again = detect(samples), detect(samples)
    assert [(d.digit, d.end) for d in first] == [(d.digit, d.end) for d in again]


def test_the_benchmark_has_a_row_for_each_set_and_writes_its_page(corpora, tmp_path, monkeypatch):
    recognisers = connected.list_recognisers(others=False)
    jobs = connected.list_jobs(corpora, recognisers, hours=0.002)
    assert {job.row for job in jobs} == {*connected.list_sets(corpora), connected.NOISE}
    results: dict = {}
    for job in jobs:
        results.setdefault(job.row, {}).setdefault(job.recogniser, []).append(connected.run(job))
    table = connected.format_table(results, recognisers)
    assert "| phone numbers: digit error rate, % | 9 digits of 1 people |" in table
    assert "| audiobooks: false alarms an hour | 1 recordings, 0.00 h |" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1
    page = tmp_path / "live.md"
    page.write_text(f"# Live\n\n{connected.BEGIN}\nold\n{connected.END}\nrest\n", encoding="utf-8")
    monkeypatch.setattr(connected, "PAGE", page)
    connected.update_docs(table)
    assert page.read_text(encoding="utf-8") == f"# Live\n\n{connected.BEGIN}\n{table}{connected.END}\nrest\n"
    assert connected.BEGIN in (connected.ROOT / "docs" / "live.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("Five five five, 0192.", "5550192"),
        ("555-0192", "5550192"),
        ("double five triple two oh", "552220"),
        ("double oh seven", "007"),
        ("to for ate won", "2481"),
        ("my number is nine", "9"),
        ("", ""),
    ],
)
def test_transcriptions_of_strings_become_digits(text, digits):
    assert "".join(map(str, parse_digits(text))) == digits


def test_of_other_speech_only_digits_count():
    assert parse_digits("I went to 1998 for 5 of seven", in_speech=True) == [5, 7]
