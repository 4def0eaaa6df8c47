// Confidence in a digit by logistic regression on log-odds, as digit_detector/streaming/fusion.py.

/** Confidence, 0 to 1; `scores` are the probabilities [spotter, presence, classifier, voice]. */
export function fuse(scores, config) {
  const terms = scores.map((p, i) => config.fusion_weights[i] * logOdds(p, config.probability_floor));
  return sigmoid(config.fusion_offset + terms.reduce((sum, term) => sum + term, 0));
}

/** Several models' probabilities of one event, pooled: the mean of their log-odds, as a probability. */
export function meanLogOdds(probabilities, floor) {
  return sigmoid(probabilities.reduce((sum, p) => sum + logOdds(p, floor), 0) / probabilities.length);
}

/** The digit with the largest product of two posteriors. */
export function productArgmax(spotter, classifier, floor) {
  const products = spotter.map((p, i) => Math.max(p, floor) * Math.max(classifier[i], floor));
  return products.indexOf(Math.max(...products));
}

function sigmoid(logit) {
  return 1 / (1 + Math.exp(-logit));
}

function logOdds(probability, floor) {
  const bounded = Math.min(Math.max(probability, floor), 1 - floor);
  return Math.log(bounded / (1 - bounded));
}
