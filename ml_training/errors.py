"""The exceptions of digit_detector.errors, under the name that they had in version 0.1."""

from digit_detector.errors import *  # noqa: F403
