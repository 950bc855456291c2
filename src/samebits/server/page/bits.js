// Answers as bits. A logprob comes as the double that is exactly the server's float32: nothing is rounded here.

const single = new Float32Array(1);
const word = new Uint32Array(single.buffer);

// The 32 bits of a float32, as an unsigned integer.
export function bitsOf(value) {
  single[0] = value;
  return word[0];
}

export function hex(bits) {
  return `0x${bits.toString(16).padStart(8, "0")}`;
}

// How many bits of a word are set.
export function count(bits) {
  let found = 0;
  for (let rest = bits; rest; rest &= rest - 1) found += 1;
  return found;
}

// Every logprob of an answer, each token's own and then its alternatives', as words of 32 bits.
export function words(answer) {
  return answer.tokens.flatMap((token) => [token, ...token.top].map((entry) => bitsOf(entry.logprob)));
}

// Everything of two answers. Doubles are compared, so that a logprob which is no float32 cannot hide a difference.
// Returns {tokens, logprobs, difference}: what was compared, and the first difference as a sentence, or null.
export function compare(first, second) {
  const result = { tokens: first.tokens.length, logprobs: 0, difference: null };
  const differ = (text) => (result.difference ??= text);
  for (let at = 0; at < Math.max(first.tokens.length, second.tokens.length); at += 1) {
    const left = first.tokens[at];
    const right = second.tokens[at];
    if (!left || !right) {
      differ(`one answer has ${first.tokens.length} tokens, the other ${second.tokens.length}`);
      break;
    }
    if (left.id !== right.id) differ(`token ${at} is ${left.id} alone and ${right.id} under load`);
    if (!Object.is(left.logprob, right.logprob)) {
      differ(`the logprob of token ${at} is ${shown(left.logprob)} alone and ${shown(right.logprob)} under load`);
    }
    if (!sameTop(left.top, right.top)) differ(`the alternatives of token ${at} differ`);
    result.logprobs += 1 + left.top.length;
  }
  if (first.text !== second.text) differ("the texts differ");
  if (first.finish !== second.finish) differ(`one ended by ${first.finish}, the other by ${second.finish}`);
  if (first.fingerprint !== second.fingerprint) differ("the fingerprints differ: the server was restarted in between");
  return result;
}

function sameTop(left, right) {
  return (
    left.length === right.length &&
    left.every((entry, at) => entry.text === right[at].text && Object.is(entry.logprob, right[at].logprob))
  );
}

function shown(logprob) {
  return `${logprob} (${hex(bitsOf(logprob))})`;
}
