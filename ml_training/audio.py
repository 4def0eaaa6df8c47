"""Kept for code that imports it from here: see digit_detector.audio."""

from digit_detector.audio import (
    FAINTEST,
    MAX_SECONDS,
    NUM_SAMPLES,
    SAMPLE_RATE,
    Downmix,
    Source,
    decode,
    decode_sound,
    is_silent,
    load_audio,
    load_clip,
    mono_blocks,
    pad_or_trim,
    trim_silence,
)

__all__ = [
    "FAINTEST",
    "MAX_SECONDS",
    "NUM_SAMPLES",
    "SAMPLE_RATE",
    "Downmix",
    "Source",
    "decode",
    "decode_sound",
    "is_silent",
    "load_audio",
    "load_clip",
    "mono_blocks",
    "pad_or_trim",
    "trim_silence",
]
