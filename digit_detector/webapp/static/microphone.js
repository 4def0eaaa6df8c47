const REASONS = {
  NotAllowedError: "The microphone was refused. Allow it for this page (the icon beside the address), then listen again.",
  NotFoundError: "No microphone was found. Plug one in, then listen again.",
  NotReadableError: "The microphone is in use by another program, or switched off. Free it, then listen again.",
};

const STATES = {
  muted: "The microphone is muted. Unmute it with its own switch, or in the settings of the system or the browser.",
  silent: "The microphone sends only silence. Check that it is switched on, and that the right one is chosen in the sound settings of the system.",
};
const SUSPENDED = "The browser has paused the sound of this page. Close other programs that use the microphone, then listen again.";
const SILENT = 2; // seconds of zeros, after which it is called silent
const PATIENCE = 2000; // ms that the browser may take to go on with sound by itself

/**
 * The microphone as pieces of mono sound. `onsamples(Float32Array)`; `onended(sentence)` when it is pulled out or the
 * browser suspends sound; `onstate(sentence)` when it becomes muted or silent, with "" when it is neither.
 */
export class Microphone {
  onsamples = () => {};
  onended = () => {};
  onstate = () => {};

  /** -> Hz. Throws an Error whose message says what to do. */
  async open() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("A browser gives the microphone to pages of this machine and to https addresses only. Open this page at 127.0.0.1, or put the server behind https.");
    }
    const exact = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    try {
      this._stream = await navigator.mediaDevices.getUserMedia({ audio: exact });
    } catch (error) {
      throw new Error(REASONS[error.name] ?? `The microphone cannot be used: ${error.message}`);
    }
    try {
      this._context = await sharedContext();
      await running(this._context);
      const source = this._context.createMediaStreamSource(this._stream);
      this._source = source;
      this._node = new AudioWorkletNode(this._context, "pieces", { numberOfOutputs: 0 });
      this._node.port.onmessage = ({ data }) => {
        this._check(data);
        this.onsamples(data);
      };
      source.connect(this._node);
      this._context.onstatechange = () => this._checkContext();
    } catch (error) {
      await this.close();
      throw new Error(`The browser cannot read the microphone: ${error.message}.`);
    }
    const track = this._stream.getAudioTracks()[0];
    track.onended = () => this.onended("The microphone is gone. Plug it in, then listen again.");
    track.onmute = track.onunmute = () => this._report();
    return this._context.sampleRate;
  }

  /** Whether the sound is digital silence: a microphone in a quiet room is never that quiet. */
  _check(samples) {
    const isSilent = samples.every((sample) => sample === 0);
    this._silence = isSilent ? (this._silence ?? 0) + samples.length / this._context.sampleRate : 0;
    this._report();
  }

  _report() {
    const state = this._stream.getAudioTracks()[0].muted ? "muted" : this._silence >= SILENT ? "silent" : null;
    if (state === this._state) return;
    this._state = state;
    this.onstate(STATES[state] ?? "");
  }

  /** A suspended context gives no pieces at all: the stream cannot go on. */
  _checkContext() {
    clearTimeout(this._suspended);
    if (this._context.state !== "running") this._suspended = setTimeout(() => this.onended(SUSPENDED), PATIENCE);
  }

  async close() {
    clearTimeout(this._suspended);
    if (this._context) this._context.onstatechange = null;
    if (this._node) this._node.port.onmessage = null;
    this._source?.disconnect();
    for (const track of this._stream?.getTracks() ?? []) {
      track.onended = track.onmute = track.onunmute = null;
      track.stop();
    }
    const context = this._context;
    this._stream = this._context = this._source = this._node = null;
    if (context && context.state !== "closed") await context.suspend();
  }
}

/** Resolves when the context runs. */
async function running(context) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("it keeps the sound of this page paused. Reload the page, then listen again")), PATIENCE);
  });
  await Promise.race([context.resume(), late]).finally(() => clearTimeout(timer));
}

let context = null; // one for all: its worklet comes from the server, which may be gone when it is needed again

async function sharedContext() {
  if (context && context.state !== "closed") return context;
  const made = new AudioContext({ latencyHint: "interactive" });
  try {
    await made.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
  } catch {
    await made.close();
    throw new Error("a part of this page could not be fetched. See that the server runs, then listen again");
  }
  return (context = made);
}
