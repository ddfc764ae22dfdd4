// Numbers and states as people read them.

export function seconds(value) {
  if (value === null || value === undefined) return "no deadline";
  if (Math.abs(value) < 100) return `${value.toFixed(1)} s`;
  const whole = Math.floor(value), days = Math.floor(whole / 86400);
  const clock = [3600, 60, 1].map((unit, at) =>
    String(Math.floor(whole / unit) % (at ? 60 : 24)).padStart(2, "0")).join(":");
  if (days > 0) return `${days} d ${clock}`;
  return clock.startsWith("00:") ? clock.slice(3) : clock;
}

export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0, value = bytes;
  while (value >= 999.95 && at < units.length - 1) { value /= 1000; at += 1; }
  return at ? `${value.toFixed(1)} ${units[at]}` : `${bytes} B`;
}

// What somebody else has named: control characters and those that turn text round are shown.
export function plain(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu,
    (it) => `\\u${it.codePointAt(0).toString(16).padStart(4, "0")}`);
}
