"""Live sound -> detections: resampling, energy gate, voice activity, the spotter, the decision."""
