"""Texts for synthetic training speech: digit strings in the rhythms people use, other numbers, letters, sentences.

The table has columns file, speaker, speed and text, as `digits train-live` reads it once a synthesiser has made the
files; `speaker` names a voice of Kokoro-82M or a mixture of two ("af_heart+am_adam").
"""

# ruff: noqa: SIM905 (lists of words)

from __future__ import annotations

import csv
import random
from pathlib import Path

from digit_detector.labels import LABELS
from ml_training.data.negatives import WORDS

COUNT = 6000
_AMERICAN = "af_heart af_bella af_nicole af_sarah af_nova af_sky af_alloy af_aoede af_kore af_jessica af_river am_adam \
am_michael am_fenrir am_puck am_echo am_eric am_liam am_onyx am_santa"
_BRITISH = "bf_emma bf_isabella bf_alice bf_lily bm_george bm_lewis bm_daniel bm_fable"
VOICES = tuple(f"{_AMERICAN} {_BRITISH}".split())
_SPEEDS = (0.8, 0.9, 1.0, 1.0, 1.1, 1.2, 1.3, 1.4)
_GROUPS = ((3, 3, 4), (2,) * 8, (3,) * 5, (4,) * 4, (1, 3, 3, 4), (5, 5, 5))
_LENGTHS = (1, 2, 3, 4, 4, 5, 6, 7, 8, 10, 10, 10, 11)
_CARRIERS = (
    "my number is {}", "it's {}", "call me at {}", "the code is {}", "you can reach me on {} thank you", "yes, {}",
    "my phone number is {}", "pin {}", "extension {} please", "the account number is {}", "okay so that's {}",
    "uh, {}", "um it's {} I think", "card ending in {}", "order number {}", "room {} on the left", "{} that's it",
    "again, {}", "sorry, {}", "area code {}",
)  # fmt: skip
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth thousand million half dozen".split()
_NEAR = (  # words that sound like digits
    "night near freeze received finance or port ton done sun tree free fife file fine mine line nice sick sits "
    "heaven eleven late hate wait great fate weight hello zebra heroes hero through threw fort fought forth "
    "fork sore door war want once wonder hive live alive dive drive like kind time sign noon none nun now know no go "
    "so hoe row zoo zone xylophone thirsty third euro legal"
).split()
_SENTENCES = (
    "could you tell me where the nearest station is", "I would like to order a large coffee with milk",
    "please hold the line while we connect your call", "the weather will be fine this evening",
    "she walked down the street and turned left at the corner", "we are open from Monday to Friday",
    "thank you for calling, goodbye", "he wanted to know whether it was too late",
    "they waited for the train in the rain", "your call is important to us", "turn the lights off in the kitchen",
    "what time does the film start tonight", "I'm sorry I didn't catch that", "the children ran through the garden",
    "press the star key to continue", "I have received your letter and will answer soon",
    "nice to meet you, how are you doing", "her favourite colour is green", "the knight rode over the hill",
    "let me think about it for a while", "there is nothing to be afraid of", "can you spell your last name for me",
    "my address is on the back of the form", "the driver's licence has expired", "his brother works in finance",
    "we are looking forward to seeing you", "don't forget to buy bread and wine",
)  # fmt: skip


def write_texts(table: Path, count: int = COUNT, seed: int = 0) -> None:
    """Write `count` rows of texts; another seed gives others."""
    rng = random.Random(seed)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerow(("file", "speaker", "speed", "text"))
        for i in range(count):
            writer.writerow((f"t{seed}_{i:05d}.flac", _voice(rng), rng.choice(_SPEEDS), _text(rng)))


def _voice(rng: random.Random) -> str:
    one, other = rng.choice(VOICES), rng.choice(VOICES)
    return one if one == other or rng.random() < 0.5 else f"{one}+{other}"


def _text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.62:
        return _join(rng, _digits(rng, rng.choice(_LENGTHS)))
    if kind < 0.70:
        return rng.choice(_CARRIERS).format(_join(rng, _digits(rng, rng.choice((3, 4, 6, 7, 10)))))
    if kind < 0.80:
        return " ".join(_number(rng) for _ in range(rng.randint(1, 4)))
    if kind < 0.86:  # the letter o sounds like "oh", which is a token of its own
        return rng.choice((" ", ", ")).join(
            f"{x}." for x in rng.choices("ABCDEFGHIJKLMNPQRSTUVWXYZ", k=rng.randint(3, 9))
        )
    if kind < 0.93:
        return rng.choice((", ", ". ", " ")).join(rng.sample(_NEAR, rng.randint(1, 5)))
    return rng.choice(_SENTENCES) if rng.random() < 0.5 else " ".join(rng.sample(WORDS, rng.randint(3, 7)))


def _digits(rng: random.Random, count: int) -> list[str]:
    """Words of `count` digits: zero may be "oh", pairs may be "double", three "triple"."""
    with_oh, with_double = rng.random() < 0.5, rng.random() < 0.3
    words: list[str] = []
    while count > 0:
        word = words[-1] if words and rng.random() < 0.15 else rng.choice(LABELS)
        word = "oh" if word == "zero" and with_oh and rng.random() < 0.8 else word
        times = 1 if not with_double or rng.random() > 0.2 else 3 if rng.random() < 0.25 else 2
        words += [*({2: ("double",), 3: ("triple",)}.get(times, ()) if times <= count else ()), word]
        count -= times
    return words


def _join(rng: random.Random, words: list[str]) -> str:
    kind = rng.random()
    if kind < 0.3:
        return " ".join(words)
    if kind < 0.45:
        return ", ".join(words)
    if kind < 0.55:
        return " ".join(f"{word.capitalize()}." for word in words)
    groups, at = [], 0
    for size in rng.choice(_GROUPS):
        groups.append(" ".join(words[at : at + size]))
        at += size
    return ", ".join(group for group in (*groups, " ".join(words[at:])) if group)


def _number(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(_TEENS)
    if kind < 0.6:
        return rng.choice(_TENS)
    if kind < 0.8:
        return f"{rng.choice(_TENS)} {rng.choice(LABELS[1:])}"
    if kind < 0.9:
        return f"{rng.choice(LABELS[1:])} hundred {rng.choice(('', f'and {rng.choice(_TEENS)}'))}".strip()
    return rng.choice(_ORDINALS)
