const REASONS = {
  NotAllowedError: "The microphone was refused. Allow it for this page (the icon beside the address), then listen again.",
  NotFoundError: "No microphone was found. Plug one in, then listen again.",
  NotReadableError: "The microphone is in use by another program, or switched off. Free it, then listen again.",
};

/** The microphone as pieces of mono sound. `onsamples(Float32Array)`, `onended(sentence)` when it is pulled out. */
export class Microphone {
  onsamples = () => {};
  onended = () => {};

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
      await this._context.resume();
      const source = this._context.createMediaStreamSource(this._stream);
      this._source = source;
      this._node = new AudioWorkletNode(this._context, "pieces", { numberOfOutputs: 0 });
      this._node.port.onmessage = ({ data }) => this.onsamples(data);
      source.connect(this._node);
    } catch (error) {
      await this.close();
      throw new Error(`The browser cannot read the microphone: ${error.message}.`);
    }
    this._stream.getAudioTracks()[0].onended = () => this.onended("The microphone is gone. Plug it in, then listen again.");
    return this._context.sampleRate;
  }

  async close() {
    if (this._node) this._node.port.onmessage = null;
    this._source?.disconnect();
    for (const track of this._stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    const context = this._context;
    this._stream = this._context = this._source = this._node = null;
    if (context && context.state !== "closed") await context.suspend();
  }
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
