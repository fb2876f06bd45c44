/** Who answers the pages' questions: here a server. (An exported file answers by itself.) */

/** An answer that says why there is none. */
export class Refusal extends Error {}

const KEPT_ANSWERS = 60;

export class HttpSource {
  /** @param base where questions are asked: beside the folder of these files, so that a prefix is kept. */
  constructor(base = new URL("../../", import.meta.url)) {
    this.base = base;
    this.answers = new Map();
  }

  /**
   * One question, `timeline` say, with its parameters; those without a value are left out.
   * @param signal gives up when the question is of no interest any more.
   */
  async ask(question, parameters = {}, signal = undefined) {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(parameters)) {
      if (value !== null && value !== undefined && value !== "") query.set(name, String(value));
    }
    const address = `${question}?${query}`;
    if (this.answers.has(address)) return this.answers.get(address);
    let response;
    try {
      response = await fetch(new URL(address, this.base), { signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal("The server does not answer. Is TensorBoard still running?");
    }
    const answer = await response.json().catch(() => null);
    if (!response.ok) throw new Refusal(answer?.error ?? `The server answered ${response.status}.`);
    if (answer === null) throw new Refusal("The server's answer cannot be read.");
    if (question !== "runs" && answer.ready !== false) this.keep(address, answer);
    return answer;
  }

  keep(address, answer) {
    this.answers.set(address, answer);
    if (this.answers.size > KEPT_ANSWERS) this.answers.delete(this.answers.keys().next().value);
  }

  /** A run has grown: what was answered may be different now. */
  forget() {
    this.answers.clear();
  }
}
