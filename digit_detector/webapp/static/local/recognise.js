// Digits in whole recordings, as digit_detector/processors/registry.py.

import { clip } from "./clip.js";
import { Fault } from "./fault.js";
import { classifier } from "./models.js";

const IS_DIGIT = 0.5; // the least digit score that counts as a digit
const PIPELINES = { ml_mfcc: ["mfcc"], ml_cnn: ["mel_cnn"], ml_raw: ["raw_cnn"], ensemble: ["mfcc", "mel_cnn", "raw_cnn"] };

/** One processor's answer, with an error for an invalid recording. */
export async function answer(name, samples, rate) {
  const classifiers = await Promise.all(PIPELINES[name].map(classifier));
  const started = performance.now();
  try {
    const second = clip(samples, rate);
    const outputs = [];
    for (const classify of classifiers) outputs.push(await classify(second));
    const mean = (of) => outputs.reduce((sum, one) => sum + of(one), 0) / outputs.length;
    const probabilities = outputs[0].probabilities.map((_, digit) => mean((one) => one.probabilities[digit]));
    const confidence = Math.max(...probabilities);
    const isDigit = mean((one) => one.digitScore) >= IS_DIGIT;
    const text = isDigit ? String(probabilities.indexOf(confidence)) : "";
    return { name, text, confidence, milliseconds: performance.now() - started, error: null };
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    return { name, text: "", confidence: null, milliseconds: performance.now() - started, error: error.message };
  }
}
