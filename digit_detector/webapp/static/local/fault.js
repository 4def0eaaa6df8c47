/** An error with a code for programs and a message for people, which says what to do. */
export class Fault extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}
