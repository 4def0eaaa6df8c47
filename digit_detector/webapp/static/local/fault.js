/** What cannot be done: a code for programs and a sentence for people, which says what to do. */
export class Fault extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}
