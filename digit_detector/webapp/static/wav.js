/** Mono samples (Float32Array) as a WAV file of 32-bit floats: nothing is rounded on the way. */
export function encodeWav(samples, rate) {
  const bytes = 4 * samples.length;
  const view = new DataView(new ArrayBuffer(44 + bytes));
  const text = (at, letters) => [...letters].forEach((letter, n) => view.setUint8(at + n, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + bytes, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 3, true); // IEEE floats
  view.setUint16(22, 1, true); // one channel
  view.setUint32(24, rate, true);
  view.setUint32(28, 4 * rate, true);
  view.setUint16(32, 4, true);
  view.setUint16(34, 32, true);
  text(36, "data");
  view.setUint32(40, bytes, true);
  samples.forEach((sample, n) => view.setFloat32(44 + 4 * n, sample, true));
  return new Blob([view], { type: "audio/wav" });
}

/** Play mono samples; resolves at the end of playback. */
export async function play(samples, rate) {
  const address = URL.createObjectURL(encodeWav(samples, rate));
  const audio = new Audio(address);
  try {
    const ended = new Promise((resolve, reject) => {
      audio.onended = resolve;
      audio.onerror = () => reject(new Error("the browser cannot play this"));
    });
    await Promise.all([audio.play(), ended]);
  } finally {
    URL.revokeObjectURL(address);
  }
}
