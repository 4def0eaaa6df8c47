/** A setting of the page that the browser keeps, or null. */
export function kept(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // storage is refused
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // it lasts until the page is closed
  }
}
