"""Digits in live sound: feed samples, get what was said.

from digit_detector import StreamingDetector
detector = StreamingDetector()
for detection in detector.feed(samples, sample_rate):
    print(detection.digit, detection.confidence)
"""

from digit_detector.streaming.detector import Detection, StreamingDetector
from digit_detector.streaming.pool import DetectorPool
from digit_detector.streaming.thresholds import Thresholds, load_thresholds

__all__ = ["Detection", "DetectorPool", "StreamingDetector", "Thresholds", "load_thresholds"]
