// From posteriors of tokens to digits: beam search over the utterance, endpoint, the two contexts, as
// digit_detector/streaming/decoder.py. `detector` is detector.json: a DetectorConfig, the tokens, the samples of a frame.

import { SAMPLE_RATE } from "./clip.js";

export const ANY = "any"; // context
const POSTERIOR_MARGIN = 1e-4; // from 0 and 1, within which log-odds are taken

/** Prefix beam search over the frames of one utterance. A hypothesis has tokens, each {token, first, peak, posterior}. */
export class BeamSearch {
  constructor({ config, tokens }) {
    this.width = config.beam_width;
    this.floor = config.posterior_floor;
    this.blank = tokens.indexOf("");
    this.weights = tokens.map((token) => (token === "other" ? config.other_weight : 1));
    this.hypotheses = [{ tokens: [], blank: 1, label: 0 }];
  }

  get best() {
    return this.hypotheses[0];
  }

  /** Take the posteriors of the next frame. */
  push(posteriors, frame) {
    const blank = posteriors[this.blank];
    const tokens = [...posteriors.keys()].filter((token) => token !== this.blank && posteriors[token] > this.floor);
    const found = new Map(); // hypotheses by their sequence
    for (const hypothesis of this.hypotheses) {
      const sequence = hypothesis.tokens.map(({ token }) => token).join();
      const last = hypothesis.tokens.at(-1);
      const total = hypothesis.blank + hypothesis.label;
      let stayed = 0;
      let kept = hypothesis.tokens;
      if (last) {
        const posterior = posteriors[last.token];
        stayed = hypothesis.label * posterior;
        if (posterior > last.posterior && frame - last.peak <= 2) {
          kept = [...kept.slice(0, -1), { ...last, peak: frame, posterior }];
        }
      }
      add(found, sequence, kept, total * blank, stayed);
      for (const token of tokens) {
        const before = token === last?.token ? hypothesis.blank : total;
        const posterior = posteriors[token];
        const longer = [...hypothesis.tokens, { token, first: frame, peak: frame, posterior }];
        add(found, sequence ? `${sequence},${token}` : `${token}`, longer, 0, before * posterior * this.weights[token]);
      }
    }
    const best = [...found.values()].sort((a, b) => probability(b) - probability(a)).slice(0, this.width);
    const scale = 1 / best.reduce((sum, each) => sum + probability(each), 0);
    for (const each of best) {
      each.blank *= scale;
      each.label *= scale;
    }
    this.hypotheses = best;
  }

  /** Drop the first `count` tokens of the best hypothesis, and the hypotheses that begin with others. */
  commit(count) {
    const prefix = this.best.tokens.slice(0, count);
    const kept = this.hypotheses.filter(({ tokens }) => prefix.every(({ token }, i) => tokens[i]?.token === token));
    for (const each of kept) each.tokens = each.tokens.slice(count);
    this.hypotheses = kept;
  }
}

const probability = ({ blank, label }) => blank + label;

/** Add the probability of alignments to a hypothesis; its times are those of its most probable part. */
function add(found, sequence, tokens, blank, label) {
  const known = found.get(sequence);
  if (!known) {
    found.set(sequence, { tokens, blank, label });
    return;
  }
  if (blank + label > probability(known)) known.tokens = tokens;
  known.blank += blank;
  known.label += label;
}

/** Digits of one stream, frame by frame. A detection is {digit, confidence, start, end, delay}. */
export class Decoder {
  constructor(detector) {
    const { config, tokens, block } = detector;
    this.detector = detector;
    this.config = config;
    [this.firstDigit, this.oh, this.double, this.triple, this.other] = ["zero", "oh", "double", "triple", "other"].map(
      (token) => tokens.indexOf(token),
    );
    this.repeats = new Map([[this.double, 2], [this.triple, 3]]); // of the digit that follows
    this.blockSeconds = block / SAMPLE_RATE;
    this.isAny = config.context === ANY;
    this.endpointFrames = Math.max(1, round(config.endpoint_seconds / this.blockSeconds));
    this.pairFrames = config.pair_seconds / this.blockSeconds;
    this.frame = 0; // frames taken so far
    this.lastEnd = 0; // of the last detection, seconds
    this.guardUntil = 0; // frame until which an utterance is dropped
    this.pending = []; // context any: "oh", "double", "triple" that wait for their digit
    this.startUtterance();
  }

  startUtterance() {
    this.search = new BeamSearch(this.detector);
    this.decided = []; // first tokens of the utterance
    this.silence = 0; // frames since the last speech
    this.firstSpeech = null;
    this.others = 0; // sum of the largest posteriors of the other words so far
    this.largestOther = 0; // largest posterior of the other word that is being said
  }

  /** Take the posteriors and the speech activity of the next frame -> the digits decided by it. */
  push(posteriors, speech) {
    const { config } = this;
    const frame = this.frame++;
    this.search.push(posteriors, frame);
    if (posteriors[this.other] >= config.other_floor) {
      this.largestOther = Math.max(this.largestOther, posteriors[this.other]);
    } else if (this.largestOther) {
      this.others += this.largestOther;
      this.largestOther = 0;
    }
    if (speech >= config.speech_threshold) {
      this.silence = 0;
      this.firstSpeech ??= frame;
    } else this.silence++;
    if (this.isAny) return this.reportDecided();
    this.decide(frame - config.commit_frames);
    const started = this.firstSpeech !== null || this.decided.length > 0 || this.search.best.tokens.length > 0;
    const tooLong = frame - (this.firstSpeech ?? frame) > config.max_utterance_seconds / this.blockSeconds;
    if (started && (this.silence >= this.endpointFrames || tooLong)) return this.endUtterance();
    if (!started && this.silence > this.endpointFrames) this.search = new BeamSearch(this.detector);
    return [];
  }

  /** End the utterance here -> its digits; none if other words were said in it, or the digits are unclear. */
  endUtterance() {
    if (this.isAny) return this.reportDecided(true);
    const { config } = this;
    let digits = this.digits([...this.decided, ...this.search.best.tokens]);
    const others = this.others + this.largestOther;
    if (others > config.other_ratio * (others + digits.length)) {
      this.guardUntil = this.frame - this.silence + round(config.guard_seconds / this.blockSeconds);
      digits = [];
    } else if (this.firstSpeech !== null && this.firstSpeech < this.guardUntil) digits = [];
    this.startUtterance();
    this.lastEnd = digits.at(-1)?.end ?? this.lastEnd;
    const sum = digits.reduce((sum, { confidence }) => sum + confidence, 0);
    return sum < config.digits_threshold * digits.length ? [] : digits;
  }

  /** Digits of the utterance so far, which its end may change; always empty in context any. */
  get provisional() {
    return this.isAny ? [] : this.digits([...this.decided, ...this.search.best.tokens]);
  }

  /** Decide the tokens of the best hypothesis whose peak is not after a frame. */
  decide(until) {
    const { tokens } = this.search.best;
    const count = tokens.filter(({ peak }) => peak <= until).length;
    if (count) {
      this.search.commit(count);
      this.decided.push(...tokens.slice(0, count));
    }
    return tokens.slice(0, count);
  }

  /** Context any: the digits of the tokens that have just been decided. */
  reportDecided(last = false) {
    const tokens = [...this.pending, ...this.decide(last ? this.frame : this.frame - 1 - this.config.any_frames)];
    this.decided = [];
    let waiting = 0;
    while (waiting < tokens.length && [this.oh, this.double, this.triple].includes(tokens.at(-1 - waiting).token)) waiting++;
    this.pending = tokens.slice(tokens.length - waiting);
    const digits = this.digits(tokens.slice(0, tokens.length - waiting));
    if (waiting && this.frame - this.pending.at(-1).peak > this.pairFrames) this.pending = [];
    this.lastEnd = digits.at(-1)?.end ?? this.lastEnd;
    return digits.filter(({ confidence }) => confidence >= this.config.any_threshold);
  }

  /** The digits of tokens: "oh" beside a digit is 0, "double" and "triple" repeat the digit that follows. */
  digits(tokens) {
    const { config } = this;
    const found = [];
    let before = this.lastEnd;
    tokens.forEach((token, i) => {
      if ([this.other, this.double, this.triple].includes(token.token)) return;
      if (token.token === this.oh && !this.isZero(tokens, i)) return;
      const earlier = tokens[i - 1];
      const count = earlier && this.areNear(earlier, token) ? (this.repeats.get(earlier.token) ?? 1) : 1;
      const end = Math.max(before, (token.peak + 1) * this.blockSeconds - config.token_seconds);
      const start = Math.max(before, end - count * config.word_seconds);
      const confidence = this.calibrate(token.posterior);
      const digit = token.token === this.oh ? 0 : token.token - this.firstDigit;
      for (let k = 0; k < count; k++) {
        const [first, last] = [k, k + 1].map((n) => start + ((end - start) * n) / count);
        found.push({ digit, confidence, start: first, end: last, delay: this.frame * this.blockSeconds - last });
      }
      before = end;
    });
    return found;
  }

  /** Whether the "oh" at `i` stands beside a digit or another "oh" that does. */
  isZero(tokens, i) {
    const beside = [...tokens.slice(Math.max(0, i - 1), i), ...tokens.slice(i + 1, i + 2)];
    return beside.some((each) => each.token !== this.other && this.areNear(each, tokens[i]));
  }

  areNear(one, other) {
    return Math.abs(one.peak - other.peak) <= this.pairFrames;
  }

  calibrate(posterior) {
    posterior = Math.min(Math.max(posterior, POSTERIOR_MARGIN), 1 - POSTERIOR_MARGIN);
    const logOdds = Math.log(posterior / (1 - posterior));
    return 1 / (1 + Math.exp(-this.config.confidence_offset - this.config.confidence_scale * logOdds));
  }
}

/** To the nearest whole number, halves to the even one, as Python does. */
export function round(value) {
  const rounded = Math.round(value);
  return value % 1 === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}
