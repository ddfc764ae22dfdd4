// The states of the last minute, and which of them is looked at.

const KEPT = 60; // seconds

export class Past {
  constructor() {
    this.states = [];
    this.at = null; // null: the newest one, whatever it is
  }

  add(state) {
    // A program that has come again has a clock of its own.
    const last = this.states.at(-1);
    if (last && (last.pid !== state.pid || last.at > state.at)) { this.states = []; this.at = null; }
    this.states.push(state);
    while (this.states[0].time < state.time - KEPT) {
      this.states.shift();
      if (this.at !== null) this.at = Math.max(0, this.at - 1);
    }
  }

  get isPaused() { return this.at !== null; }
  get shown() { return this.isPaused ? this.states[this.at] : this.states.at(-1); }
  get index() { return this.isPaused ? this.at : this.states.length - 1; }
  get until() { return this.states.slice(0, this.index + 1); }
  get ago() { return this.shown ? this.states.at(-1).time - this.shown.time : 0; }

  pause() { if (this.states.length) this.at ??= this.states.length - 1; }
  resume() { this.at = null; }
  go(to) { if (this.states.length) this.at = Math.max(0, Math.min(this.states.length - 1, to)); }
  step(by) { this.pause(); this.go(this.index + by); }
}
