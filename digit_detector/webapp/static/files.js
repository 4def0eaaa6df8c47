const MOST_BYTES = 8 << 20; // what the server takes, too
const MOST_SECONDS = 40; // as samples, these are no larger
const RATE = 48000;

/** A recording that was chosen or dropped -> {name, samples, rate, file}; samples are null where this browser cannot decode it. */
export async function opened(file) {
  if (file.size > MOST_BYTES) {
    throw new Error(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MB: up to 8 MB are possible. Cut it to the word.`);
  }
  let sound;
  try { // what a browser decodes is more than a server does, webm with it
    sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
  } catch {
    return { name: file.name, samples: null, rate: RATE, file };
  }
  if (sound.duration > MOST_SECONDS) {
    throw new Error(`${file.name} lasts ${Math.round(sound.duration)} s: up to ${MOST_SECONDS} s are possible. Cut it to the word.`);
  }
  const samples = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    sound.getChannelData(channel).forEach((sample, n) => (samples[n] += sample / sound.numberOfChannels));
  }
  return { name: file.name, samples, rate: RATE, file };
}

/** Take files that are dropped anywhere on the page, instead of the browser opening them; `target` shows it. */
export function droppable(target, onfile) {
  const over = (event, is) => {
    event.preventDefault();
    target.classList.toggle("over", is);
  };
  document.ondragover = (event) => over(event, true);
  document.ondragleave = (event) => over(event, false);
  document.ondrop = (event) => {
    over(event, false);
    if (event.dataTransfer.files.length) onfile(event.dataTransfer.files[0]);
  };
}
