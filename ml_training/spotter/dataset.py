"""Training data of the spotter: augmented single words, utterances joined from them, acoustic scenes.

Utterances last SAMPLES (4.1 s) and are drawn from a numpy generator. Scenes are rendered for a batch of B utterances of
T samples and drawn from torch's global generator.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, pad_or_trim, trim_silence
from digit_detector.evaluation.streams import find_edges
from digit_detector.labels import LABELS
from ml_training.config import AugmentationConfig
from ml_training.data.augmentation import _chosen, _uniform, augment, random_response
from ml_training.data.augmentation.channel import LONGEST_TAIL, band_limits, quantize, reverberation, telephone_band
from ml_training.data.augmentation.noise import NoiseBank, generated_noise_bank, load_noise_bank
from ml_training.data.corpus import NOT_A_DIGIT, Corpus
from ml_training.data.digit_corruption import corrupt_digits
from ml_training.data.negatives import WORDS, cached_negatives, recorded_negatives
from ml_training.data.tts import VOICES, cached_digits, synthesize_utterances
from ml_training.results import Floats, Ints
from ml_training.spotter.targets import Digit

SAMPLES = 32_768  # of an utterance, 4.1 s
WORD_AUGMENTATION = AugmentationConfig(
    formant_shift_probability=0.7, formant_shift=(0.82, 1.22), pitch_probability=0.6, pitch=(0.75, 1.35),
    speed=(0.75, 1.3), edge_crop_probability=0.3, edge_crop=0.1, time_shift=0.0, random_eq_db=0.0,
    noise_probability=0.0, gain_db=(0.0, 0.0),
)  # fmt: skip
CORRUPTIONS = (*["turned round"] * 6, *["spliced"] * 7, *["cut off"] * 7)
_SILENCE_DB = -35.0  # ends of a word that lie so far below its loudest frame are cut off
_FRAME = SAMPLE_RATE // 100
_BATCH = 256
_CROSSFADE = SAMPLE_RATE // 50  # samples of overlapping words
_GAIN_DB = 4.0  # words of several speakers differ by up to so much either way
_NOISE_SPEED = (0.75, 1.33)
_NEPERS = math.log(10.0) / 20.0  # per dB of amplitude
_MAX_TTS_UTTERANCES = 8000
_TTS_SENTENCES = 0.4  # share of the synthetic utterances that have no digit
_TTS_FILLERS = 0.2  # share of non-digits in the others
# No digits, but many words that sound like one: whether "for" is a digit depends on the words around it.
_SENTENCES = """
I would like to have a cup of tea to go, could you please wait for me at the station, we ate too much for dinner and
went to bed, he won the race for the first time, this is for you and that is for her, can I get a large coffee to go
for my friend, they want to know what to do before it rains, she has been there for a while but nobody came, turn on
the heating in the living room tonight, what is the weather going to be like tomorrow, please send a message to my
brother that I am late, I had an egg and some toast for breakfast, the train to the city leaves from the other side,
do you know where I left my keys, it is too cold to swim in the sea in winter, let me see if there is any sugar left,
a slice of cheese pizza with extra sauce and no onions, she said that she is fine and will be here soon, we need to
find a way to fix the roof, add some milk and a little bit of honey, he is alive and kicking as they say, nobody has
seen heaven or several seas from here, the hero of the story was a zebra from the zoo, if it is free we should take
it, there were trees along the river and a field of wheat, I might try the sixteenth floor or the twentieth, she was
ninety and he was eighty when they met, some of the mine workers were on strike for days, great idea but we are too
late to change it, the wine is nice but the knives are not clean, may I have the bill and a glass of water, make it
decaf with whole milk and no foam, sixty people came to the fortieth anniversary, some of them would do but none of us
has any, hold on I am looking for it, thanks a lot for calling see you later
"""
SENTENCES = tuple(_SENTENCES.split(","))


@dataclass(frozen=True, eq=False)
class WordBank:
    """N words, each scaled so that its loudest 10 ms have an RMS of one."""

    words: list[NDArray[np.float16]]  # (T,) each; 16 bits because there are many
    labels: Ints  # (N,) digits or NOT_A_DIGIT
    speakers: Ints  # (N,) numbers

    @classmethod
    def from_clips(cls, clips: Iterable[Floats], labels: Ints, speakers: Ints) -> WordBank:
        """Trim the silence around clips (T,) and scale them; clips without any sound are left out."""
        words, rows = [], []
        for i, clip in enumerate(clips):
            word = trim_silence(np.asarray(clip, dtype=np.float32), _SILENCE_DB)
            if (level := _peak_rms(word)) > 1e-5:
                words.append((word / level).astype(np.float16))
                rows.append(i)
        return cls(words, labels[rows], speakers[rows])

    def __len__(self) -> int:
        return len(self.words)

    def word(self, i: int) -> Floats:
        return self.words[i].astype(np.float32)

    @cached_property
    def speaker_rows(self) -> list[Ints]:
        """The words of each speaker."""
        return [np.flatnonzero(self.speakers == speaker) for speaker in np.unique(self.speakers)]


def _peak_rms(word: Floats) -> float:
    count = max(1, len(word) // _FRAME)
    frames = word[: count * _FRAME].reshape(count, -1)
    return float(np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1).max()))


def augment_words(
    waveforms: Floats, lengths: Ints, speakers: Sequence[str], labels: Ints | None, variants: int, seed: int,
    config: AugmentationConfig = WORD_AUGMENTATION,
) -> WordBank:  # fmt: skip
    """`variants` words of each clip (N, 8000); all but the first have another vocal tract and pitch.

    Clips are centred and `lengths` (N,) samples long; `labels` None: none is a digit.
    """
    same_voice = replace(config, formant_shift_probability=0.0, pitch_probability=0.0, edge_crop_probability=0.0)
    numbers = np.unique(speakers, return_inverse=True)[1]
    if labels is None:
        labels = np.full(len(lengths), NOT_A_DIGIT)

    def variants_of_clips() -> Iterator[Floats]:
        for take, first in itertools.product(range(variants), range(0, len(lengths), _BATCH)):
            clips, sizes = (torch.from_numpy(np.array(each[first : first + _BATCH])) for each in (waveforms, lengths))
            yield from augment(clips, sizes, config if take else same_voice).numpy()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WordBank.from_clips(variants_of_clips(), np.tile(labels, variants), np.tile(numbers, variants))


def corrupt_words(bank: WordBank, share: float, seed: int) -> WordBank:
    """`share` * N non-digits: words reversed, cut off, or spliced with another word of the same speaker."""
    rows = np.random.default_rng(seed).integers(len(bank), size=int(share * len(bank)))
    rows = rows[np.argsort(bank.speakers[rows], kind="stable")]  # a splice goes on with the next word
    kinds = np.where(bank.labels == NOT_A_DIGIT, np.arange(len(bank)), bank.labels)  # no two fillers are the same word
    clips: list[Floats] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch in (rows[first : first + _BATCH] for first in range(0, len(rows), _BATCH)):
            waveforms = torch.from_numpy(np.stack([pad_or_trim(bank.word(i)) for i in batch]))
            lengths = torch.tensor([min(len(bank.words[i]), NUM_SAMPLES) for i in batch])
            corrupted, _ = corrupt_digits(waveforms, lengths, torch.from_numpy(kinds[batch]), None, CORRUPTIONS)
            clips += list(corrupted.numpy())
    return WordBank.from_clips(clips, np.full(len(clips), NOT_A_DIGIT), bank.speakers[rows])


def noise_bursts(noise: NoiseBank, count: int, seed: int) -> WordBank:
    """Non-digits: excerpts of recorded noise as long as a word, augmented as words are."""
    rng = np.random.default_rng(seed)
    clips = np.zeros((count, NUM_SAMPLES), dtype=np.float32)
    lengths = rng.integers(int(0.12 * SAMPLE_RATE), int(0.8 * SAMPLE_RATE), size=count)
    for row, which, length in zip(clips, rng.integers(len(noise.starts), size=count), lengths, strict=True):
        begin = int(noise.starts[which]) + int(rng.integers(int(noise.choices[which])))
        clip = noise.samples[begin : begin + length].numpy().copy()
        row[(NUM_SAMPLES - length) // 2 :][:length] = _fade(clip, 80, 80)
    return augment_words(clips, lengths, [str(i % 50) for i in range(count)], None, 2, seed)


def _fade(word: Floats, fade_in: int, fade_out: int) -> Floats:
    """Fade the ends of (T,) in place, over at most T samples each."""
    fade_in, fade_out = min(fade_in, len(word)), min(fade_out, len(word))
    word[:fade_in] *= np.linspace(0.0, 1.0, fade_in + 1, dtype=np.float32)[1:]
    word[len(word) - fade_out :] *= np.linspace(1.0, 0.0, fade_out + 1, dtype=np.float32)[:-1]
    return word


class Utterance(NamedTuple):
    """Words in a row, from one speaker or several."""

    samples: Floats  # (T,), 0 between words; the RMS of the loudest 10 ms of a word is about one
    digits: list[Digit]


@dataclass(frozen=True)
class JoinStyle:
    """How words are joined to an utterance."""

    share: float  # of all joined utterances
    gap: tuple[float, float]  # seconds from the offset of a word to the start of the next; they overlap below 0
    fillers: float  # share of words that are not digits
    one_speaker: float = 0.8  # share of utterances with one speaker


JOIN_STYLES = (
    JoinStyle(0.28, (-0.10, 0.03), 0.08),  # connected digits
    JoinStyle(0.17, (-0.03, 0.20), 0.2),
    JoinStyle(0.27, (0.10, 1.0), 0.3, 0.5),  # isolated words
    JoinStyle(0.20, (-0.06, 0.10), 1.0, 0.7),  # running speech without digits
    JoinStyle(0.08, (0.1, 1.2), 1.0, 0.3),
)


@dataclass(frozen=True, eq=False)
class SpotterData:
    """What training utterances and their noise are drawn from, each with its share."""

    digits: Sequence[tuple[WordBank, float]]
    fillers: Sequence[tuple[WordBank, float]]  # words that are not digits, and other sounds
    tts_utterances: Sequence[Utterance]
    noises: Sequence[tuple[NoiseBank, float]]
    data_hash: str
    name: str

    def draw_speaker(self, digits: bool, rng: np.random.Generator) -> tuple[WordBank, Ints]:
        """A bank of digits or fillers and the rows of one of its speakers."""
        banks = self.digits if digits else self.fillers
        bank = banks[_draw([share for _, share in banks], rng)][0]
        return bank, bank.speaker_rows[int(rng.integers(len(bank.speaker_rows)))]


def _draw(shares: Sequence[float], rng: np.random.Generator) -> int:
    return int(rng.choice(len(shares), p=np.array(shares) / sum(shares)))


def join_words(data: SpotterData, rng: np.random.Generator) -> Utterance:
    """An utterance of single words in a random style."""
    style = JOIN_STYLES[_draw([style.share for style in JOIN_STYLES], rng)]
    utterance = Utterance(np.zeros(SAMPLES, dtype=np.float32), [])
    speakers = {digits: data.draw_speaker(digits, rng) for digits in (True, False)}
    one_speaker = rng.random() < style.one_speaker
    pace = np.sort(rng.uniform(*style.gap, 2))  # the speaker's own range of gaps
    gain_db, fade_in = 0.0, 0
    at = int(rng.uniform(-0.3, 0.8) * SAMPLE_RATE)  # some begin before the utterance does
    while at < SAMPLES:
        digits = rng.random() >= style.fillers
        if not one_speaker:
            speakers[digits] = data.draw_speaker(digits, rng)
            gain_db = rng.uniform(-_GAIN_DB, _GAIN_DB)
        bank, rows = speakers[digits]
        i = int(rng.choice(rows))
        word = bank.word(i) * np.float32(10 ** ((gain_db + rng.normal(0.0, 1.0)) / 20))
        onset, offset = find_edges(word)
        gap = max(int(rng.uniform(*pace) * SAMPLE_RATE), -offset // 2)
        fade_out = min(_CROSSFADE, max(0, -gap))
        word = _fade(word[: offset + gap + _CROSSFADE] if gap < 0 else word, fade_in, fade_out)
        label = [Digit(int(bank.labels[i]), onset, min(offset, len(word)))] if digits else []
        _add(utterance, Utterance(word, label), at)
        at, fade_in = at + offset + gap, fade_out
    return utterance


def join_utterances(utterances: Sequence[Utterance], rng: np.random.Generator) -> Utterance:
    """Random utterances with pauses of 0.1 to 1 s between them."""
    joined = Utterance(np.zeros(SAMPLES, dtype=np.float32), [])
    at = int(rng.uniform(-1.0, 0.8) * SAMPLE_RATE)
    while at < SAMPLES:
        utterance = utterances[int(rng.integers(len(utterances)))]
        _add(joined, utterance, at)
        at += len(utterance.samples) + int(rng.uniform(0.1, 1.0) * SAMPLE_RATE)
    return joined


def _add(target: Utterance, part: Utterance, at: int) -> None:
    begin, end = max(0, at), min(len(target.samples), at + len(part.samples))
    if begin < end:
        target.samples[begin:end] += part.samples[begin - at : end - at]
    target.digits.extend(Digit(label, at + onset, at + offset) for label, onset, offset in part.digits)


def split_utterance(samples: Floats, begins: Ints, labels: Sequence[int]) -> Utterance | None:
    """The utterance of (T,) samples whose words begin at `begins` (N,); None where they do not fit `labels`."""
    bounds = list(itertools.pairwise([*begins.tolist(), len(samples)]))
    if len(bounds) != len(labels) or min(last - first for first, last in bounds) < SAMPLE_RATE // 20:
        return None
    words = [
        (label, first, *find_edges(samples[first:last])) for label, (first, last) in zip(labels, bounds, strict=True)
    ]
    digits = [Digit(label, first + onset, first + offset) for label, first, onset, offset in words if label >= 0]
    return Utterance(samples / np.float32(_peak_rms(samples)), digits)


def make_tts_utterances(seed: int, voices: int) -> list[Utterance]:
    """Strings of digits with some other words between them, and sentences without digits, in many voices."""
    rng = np.random.default_rng(seed)
    texts = []
    for i in range(min(_MAX_TTS_UTTERANCES, 48 * voices)):
        if rng.random() >= _TTS_SENTENCES:
            fillers = rng.random(int(rng.integers(2, 8))) < _TTS_FILLERS
            words = [str(rng.choice(WORDS if filler else LABELS)) for filler in fillers]
        elif rng.random() < 0.3:
            words = [str(word) for word in rng.choice(WORDS, int(rng.integers(3, 8)))]
        else:
            sentence = SENTENCES[int(rng.integers(len(SENTENCES)))].split()
            words = [str(rng.choice(WORDS)) if rng.random() < 0.15 else word for word in sentence]
        texts.append((VOICES[i % voices], words))
    spoken = synthesize_utterances([(voice, " ".join(words)) for voice, words in texts], seed)
    utterances = []
    for (samples, begins), (_, words) in zip(spoken, texts, strict=True):
        labels = [LABELS.index(word) if word in LABELS else NOT_A_DIGIT for word in words]
        if (utterance := split_utterance(samples, begins, labels)) is not None:
            utterances.append(utterance)
    return utterances


@dataclass(frozen=True)
class AcousticScene(AugmentationConfig):
    """Augmentation of utterances; settings of voice, place, level and mixing do not apply."""

    snr_db: tuple[float, float] = (-2.0, 35.0)  # over the speech without its pauses
    tilt_db: float = 3.0
    reverb_probability: float = 0.25
    band_probability: float = 0.15
    telephone_probability: float = 0.1
    noise_only_probability: float = 0.14
    output_peak_dbfs: tuple[float, float] = (-42.0, 3.0)  # what exceeds 0 is clipped


def render_scene(
    speech: Tensor, noises: Sequence[tuple[NoiseBank, float]], scene: AcousticScene
) -> tuple[Tensor, Tensor]:
    """(B, T) speech, 0 in pauses -> (B, T) sound of 16 bits, and (B,) which of it is noise only.

    `noises` are recordings with the share of utterances that each gives.
    """
    like, size = speech[:, 0], speech.shape[1]
    step = 1 << max(0, (size + LONGEST_TAIL).bit_length() - 4)
    points = -(-(size + LONGEST_TAIL) // step) * step  # a length with a fast transform
    power = speech.square().sum(dim=1) / (speech != 0).sum(dim=1).clamp_min(1)
    noise_only = _chosen(like, scene.noise_only_probability)
    spectra = torch.fft.rfft(speech * ~noise_only[:, None], n=points)
    spectra *= random_response(speech, points // 2 + 1, scene.random_eq_db, scene.tilt_db)
    reverberant = _chosen(like, scene.reverb_probability)
    spectra *= reverberation(points, _uniform(like, scene.rt60), _uniform(like, scene.drr_db), reverberant)
    noisy = _chosen(like, scene.noise_probability) | noise_only
    gain = power.clamp_min(1e-4).sqrt() * torch.exp(_uniform(like, scene.snr_db) * -_NEPERS) * noisy
    spectra += torch.fft.rfft(noise_excerpts(noises, *speech.shape) * gain[:, None], n=points)
    low, high = _uniform(like, scene.band_low_hz), _uniform(like, scene.band_high_hz)
    spectra *= band_limits(points, low, high, _chosen(like, scene.band_probability))
    telephone = _chosen(like, scene.telephone_probability)
    spectra *= telephone_band(points, telephone)
    sound: Tensor = torch.fft.irfft(spectra, n=points)[:, :size]
    sound = quantize(sound, telephone, _uniform(like, scene.peak_dbfs), mu_law=True)
    peak = torch.exp(_uniform(like, scene.output_peak_dbfs) * _NEPERS)
    sound *= (peak / sound.abs().amax(dim=1).clamp_min(1e-6))[:, None]
    return sound.clamp_(-1.0, 1.0).mul_(2**15).round_().div_(2**15), noise_only


def noise_excerpts(noises: Sequence[tuple[NoiseBank, float]], count: int, size: int) -> Tensor:
    """(count, size) random excerpts at random speeds, of power one; shorter recordings are repeated."""
    sources = torch.multinomial(torch.tensor([share for _, share in noises]), count, replacement=True).tolist()
    excerpts = torch.empty(count, size)
    for row, source in zip(excerpts, sources, strict=True):
        noise = noises[source][0]
        which = int(torch.randint(len(noise.starts), ()))
        start, length = int(noise.starts[which]), int(noise.choices[which]) + SAMPLE_RATE - 1
        sound = noise.samples[start : start + length].roll(int(torch.randint(length, ())))
        needed = math.ceil(size * float(_uniform(row[:1], _NOISE_SPEED)))
        sound = sound.repeat(-(-needed // length))[:needed]
        row[:] = functional.interpolate(sound[None, None], size=size, mode="linear")[0, 0]
    return excerpts / excerpts.square().mean(dim=1, keepdim=True).sqrt().clamp_min(0.03)


def load_spotter_data(
    corpus: Corpus, rows: Ints, non_digit_dir: str | None, noise_dir: str | None, seed: int = 0, variants: int = 16,
    voices: int = 300,
) -> SpotterData:  # fmt: skip
    """Data from the `rows` of a corpus of digits, recorded non-digits and noise, and synthetic speech.

    Raises DataError where a folder cannot be used, MissingExtraError without speech synthesis.
    """
    speakers, tts = [corpus.speakers[i] for i in rows], cached_digits(seed, voices, 2)
    recorded = augment_words(
        corpus.waveforms[rows], corpus.lengths[rows], speakers, corpus.labels[rows], variants, seed
    )  # fmt: skip
    synthetic = augment_words(tts.waveforms, tts.lengths, tts.speakers, tts.labels, 2, seed + 1)
    words = cached_negatives(seed, max(1, voices // 2))
    hashes = [corpus.data_hash, hashlib.sha256(rows.tobytes()).hexdigest(), tts.data_hash, words.data_hash]
    bank = augment_words(words.waveforms, words.lengths, words.speakers, None, 2, seed + 2)
    fillers = [(corrupt_words(recorded, 0.33, seed), 0.2), (bank, 0.35)]
    if non_digit_dir is not None:
        words = recorded_negatives(non_digit_dir)
        bank = augment_words(words.waveforms, words.lengths, words.speakers, None, variants, seed + 3)
        fillers += [(bank, 0.4), (corrupt_words(bank, 1.0, seed + 4), 0.2)]
        hashes.append(words.data_hash)
    noises = [(generated_noise_bank(), 0.3)]
    if noise_dir is not None:
        noises.append((load_noise_bank(noise_dir), 0.7))
        fillers.append((noise_bursts(noises[1][0], 375 * variants, seed + 5), 0.4))
        hashes.append(noises[1][0].data_hash)
    return SpotterData(
        digits=[(recorded, 0.7), (synthetic, 0.3)], fillers=fillers, tts_utterances=make_tts_utterances(seed, voices),
        noises=noises, name=corpus.name,
        data_hash=hashlib.sha256("\n".join([*hashes, f"{variants} {voices} {seed}"]).encode()).hexdigest(),
    )  # fmt: skip
