const FIRST_WAIT = 500, LONGEST_WAIT = 4000; // ms between tries to reach the server again
const LAST_WORD = 3000; // ms that a stopped stream may take to tell the rest
const RETRIED = { busy: "busy", restarted: "restarting" };

/** Live sound heard by the server, through /ws. When the server goes it is tried again and again until `stop`. */
export class ServerSession {
  onready = () => {};
  onlevel = () => {};
  ondigit = () => {};
  onerror = () => {};
  onlost = () => {}; // told why: the server is "gone", "busy" or "restarting" what hears

  /** Resolves when it is heard, when the server could not be reached yet, or at `stop`. `rate` is in Hz. */
  async open(rate) {
    this._rate = rate;
    this._wanted = true;
    this._heard = false;
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

  /** Resolves when the last digit was told. */
  async stop() {
    this._wanted = false;
    clearTimeout(this._retry);
    if (this._ready && this._socket.readyState === WebSocket.OPEN) {
      this._ready = false;
      const told = new Promise((resolve) => {
        this._stopped = resolve;
        setTimeout(resolve, LAST_WORD);
      });
      this._socket.send('{"type":"stop"}');
      await told;
    }
    if (this._socket?.readyState === WebSocket.CONNECTING) {
      this._socket.onopen = () => this._socket.close(); // closed before, it would be told of as a failure
      this._tried();
    } else this._socket?.close();
  }

  _connect(tried) {
    const address = new URL("ws", document.baseURI);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    this._socket = socket;
    socket.onopen = () => socket.send(JSON.stringify({ type: "start", sample_rate: this._rate, protocol: 2 }));
    socket.onmessage = ({ data }) => {
      const said = JSON.parse(data);
      if (said.type === "status") this.onlevel(said);
      else if (said.type === "digit") this.ondigit(said);
      else if (said.type === "stopped") this._stopped?.();
      else if (said.type === "error") this._refused(said, tried);
      else if (said.type === "ready") {
        this._ready = this._heard = this._wanted;
        this._why = "gone";
        this._wait = FIRST_WAIT;
        this.onready({ seconds: 0 });
        tried();
      }
    };
    socket.onclose = () => {
      this._ready = false;
      this._stopped?.();
      tried();
      if (!this._wanted) return;
      this.onlost(this._why);
      this._retry = setTimeout(() => this._connect(() => {}), this._wait);
      this._wait = Math.min(2 * this._wait, LONGEST_WAIT);
    };
  }

  _refused({ code, message }, tried) {
    if (code in RETRIED && this._heard) {
      this._why = RETRIED[code]; // what was begun goes on as soon as there is room
      return;
    }
    this._wanted = this._ready = false;
    this.onerror({ code, message: `The server ended this: ${message}.` });
    tried();
  }
}
