const FIRST_WAIT = 500, LONGEST_WAIT = 4000; // ms between tries to reach the server again
const STOP_WAIT = 3000; // ms for the last digits of a stopped stream
const RETRIED = { busy: "busy", restarted: "restarting" };

/** Live detection by the server, through /ws. Reconnects until `stop` when the server is lost. */
export class ServerSession {
  onready = () => {};
  onlevel = () => {};
  ondigits = () => {};
  onerror = () => {};
  onlost = () => {}; // with the reason: the server is "gone", "busy" or "restarting"

  /**
   * Resolves when the stream is ready, when the server could not be reached yet, or at `stop`. `rate` is in Hz,
   * `context` "digits" or "any".
   */
  async open(rate, context = "digits") {
    this._rate = rate;
    this._context = context;
    this._digits = []; // that were received since the last report
    this._wanted = true;
    this._wasReady = false;
    this._why = "gone";
    this._wait = FIRST_WAIT;
    await new Promise((resolve) => this._connect((this._tried = resolve)));
  }

  /** Mono samples, Float32Array. They are lost while the server is gone. */
  send(samples) {
    if (!this._ready || this._socket.readyState !== WebSocket.OPEN) return;
    const integers = new DataView(new ArrayBuffer(2 * samples.length));
    for (let n = 0; n < samples.length; n++) {
      integers.setInt16(2 * n, Math.round(32767 * Math.max(-1, Math.min(1, samples[n]))), true);
    }
    this._socket.send(integers.buffer);
  }

  /** Resolves after the last digit. */
  async stop() {
    this._wanted = false;
    clearTimeout(this._retry);
    if (this._ready && this._socket.readyState === WebSocket.OPEN) {
      this._ready = false;
      const stopped = new Promise((resolve) => {
        this._stopped = resolve;
        setTimeout(resolve, STOP_WAIT);
      });
      this._socket.send('{"type":"stop"}');
      await stopped;
    }
    if (this._socket?.readyState === WebSocket.CONNECTING) {
      this._socket.onopen = () => this._socket.close(); // closing it earlier would count as a failure
      this._tried();
    } else this._socket?.close();
  }

  _connect(tried) {
    const address = new URL("ws", document.baseURI);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    this._socket = socket;
    const start = { type: "start", sample_rate: this._rate, context: this._context, protocol: 2 };
    socket.onopen = () => socket.send(JSON.stringify(start));
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "digit") this._digits.push(message);
      else this._reportDigits();
      if (message.type === "status") this.onlevel(message);
      else if (message.type === "stopped") this._stopped?.();
      else if (message.type === "error") this._onError(message, tried);
      else if (message.type === "ready") {
        this._ready = this._wasReady = this._wanted;
        this._why = "gone";
        this._wait = FIRST_WAIT;
        this.onready({ seconds: 0 });
        tried();
      }
    };
    socket.onclose = () => {
      this._reportDigits();
      this._ready = false;
      this._stopped?.();
      tried();
      if (!this._wanted) return;
      this.onlost(this._why);
      this._retry = setTimeout(() => this._connect(() => {}), this._wait);
      this._wait = Math.min(2 * this._wait, LONGEST_WAIT);
    };
  }

  /** Digits of an utterance come one by one, and are shown together. */
  _reportDigits() {
    const digits = this._digits;
    this._digits = [];
    if (digits.length) this.ondigits(digits);
  }

  _onError({ code, message }, tried) {
    if (code in RETRIED && this._wasReady) {
      this._why = RETRIED[code]; // the stream is started again as soon as there is room
      return;
    }
    this._wanted = this._ready = false;
    this.onerror({ code, message: `The server ended this: ${message}.` });
    tried();
  }
}
