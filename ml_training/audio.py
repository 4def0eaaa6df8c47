"""The functions of digit_detector.audio, under the name that they had in version 0.1."""

from digit_detector.audio import *  # noqa: F403
