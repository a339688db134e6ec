// A reader of .tok files in JavaScript, for browsers and Node: bytes -> indices (tok-v1.md, tok-v2.md), indices ->
// coefficients in integers (nano-code.md), coefficients -> pictures with the graphs of `titokc models export --onnx` (onnx.md), and
// tiles -> a picture of the size that the header says. No dependency but the ONNX Runtime that `Decoder.open` is given.

export const LIMITS = { pixels: 89478485, side: 16384, indices: 1048576 };
const MAGIC = [0xf5, 0x74, 0x6f, 0x6b];
const FACTORS = [65536, 55108, 46340, 38967, 32768, 27554, 23170, 19483, 16384, 13777, 11585, 9741, 8192, 6888, 5792, 4870];

/** What is wrong with a file; `name` is the rule's in tok-v1.md or tok-v2.md. */
export class TokError extends Error {
  constructor(name, message) {
    super(message);
    this.name = name;
  }
}

// ---- bytes -> header and indices

const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");

function crc16(data) {
  let register = 0xffff;
  for (const byte of data) {
    register ^= byte << 8;
    for (let bit = 0; bit < 8; bit++) register = ((register << 1) ^ (register & 0x8000 ? 0x1021 : 0)) & 0xffff;
  }
  return [register >> 8, register & 0xff];
}

function crc32(data) {
  let register = -1;
  for (const byte of data) {
    register ^= byte;
    for (let bit = 0; bit < 8; bit++) register = (register >>> 1) ^ (register & 1 ? 0xedb88320 : 0);
  }
  return [24, 16, 8, 0].map((shift) => (~register >>> shift) & 0xff);
}

/** The tokens of a tile with this share, where the most are `tokens`. */
const countOf = (tokens, share) => Math.max(1, (tokens * FACTORS[share]) >> 16);

/**
 * Uint8Array -> {width, height, rows, columns, tokens, declared, bits, id, name, nested, fingerprint, shares, indices,
 * start, end}; tokens are the most that a tile has, by its share of 0..15; indices are in the file's order, in its
 * bytes from start to end. models: the rows of ids.json. partial: of a file that was cut short, what is there.
 */
export function parse(data, models, { partial = false, limits = LIMITS } = {}) {
  const fail = (name, message) => {
    throw new TokError(name, message);
  };
  if (MAGIC.some((byte, at) => data[at] !== byte)) {
    fail("MagicError", `not a .tok file: it starts with ${hex(data.subarray(0, 4)) || "nothing"}, expected ${hex(MAGIC)}`);
  }
  let at = 32; // in bits
  const need = (bits) => {
    const bytes = Math.ceil((at + bits) / 8);
    if (data.length < bytes) {
      fail("TruncatedError", `the header is cut short: found ${data.length} bytes, expected at least ${bytes}`);
    }
  };
  const take = (bits) => {
    let value = 0;
    for (const end = at + bits; at < end; at++) value = (value << 1) | ((data[at >> 3] >> (7 - (at & 7))) & 1);
    return value;
  };

  need(40);
  const version = take(3);
  const sideBits = [0, 8, 12, 16][take(2)];
  const tiled = take(1);
  if (version !== 1 && !(version === 2 && tiled)) {
    const found = version === 2 ? "2 without tiles" : version;
    fail("VersionError", `format version at byte 4: found ${found}, expected 1, or 2 with tiles`);
  }
  if (take(2)) fail("ReservedBitsError", "reserved bits at byte 4: expected 00");
  const id = take(8);
  const declared = take(8) + 1;
  const fingerprint = hex([take(8), take(8)]).replace(" ", "");
  let row = models.find((each) => each.id === id);
  if (!row) fail("UnknownModelError", `model id at byte 5: found ${id}; a newer reader may know it`);
  if (id === 0) {
    need(8);
    const nested = take(1) === 1;
    if (take(3)) fail("ReservedBitsError", "reserved bits at byte 9: expected 000");
    row = { ...row, nested, bits_per_index: take(4) + 1, max_tokens: 256 };
  } else if (declared > row.max_tokens || (declared < row.max_tokens && !row.nested)) {
    const expected = row.nested ? `1..${row.max_tokens}` : row.max_tokens;
    fail("TokenCountError", `tokens per tile at byte 6: found ${declared}, expected ${expected} for ${row.name}`);
  }
  if (version === 2 && !row.nested) {
    fail("TokenCountError", "format version at byte 4: found 2, expected 1 for a model whose codes are not nested");
  }
  let [width, height, rows, columns] = [256, 256, 1, 1];
  if (sideBits) {
    need(2 * sideBits);
    [width, height] = [take(sideBits) + 1, take(sideBits) + 1];
    const fewest = width === 256 && height === 256 ? 0 : [8, 12, 16].find((bits) => Math.max(width, height) <= 2 ** bits);
    if (fewest !== sideBits) fail("NonCanonicalError", `${width}x${height}: found ${sideBits} bits a side, fewer hold it`);
  }
  if (tiled) {
    need(16);
    [rows, columns] = [take(8) + 1, take(8) + 1];
    if (rows * columns === 1) fail("NonCanonicalError", "found a grid of 1x1, which is stored as no grid");
    if (rows > height || columns > width) {
      fail("GridError", `found ${rows} rows and ${columns} columns, expected at most one a pixel of ${width}x${height}`);
    }
  }
  const tiles = rows * columns;
  const shares = Array(tiles).fill(0);
  if (version === 2) {
    need(4 * tiles);
    for (let tile = 0; tile < tiles; tile++) shares[tile] = take(4);
    if (tiles % 2 && take(4)) fail("ReservedBitsError", `reserved bits at byte ${at / 8 - 1}: expected 0000`);
    if (shares.every((share) => !share)) fail("NonCanonicalError", "all shares are 0, which is stored as version 1");
    if (!shares.includes(0)) fail("NonCanonicalError", "no share is 0, the least must be");
  }

  const totalOf = (tokens) => shares.reduce((total, share) => total + countOf(tokens, share), 0);
  const [bits, start] = [row.bits_per_index, at / 8];
  const end = Math.ceil((at + totalOf(declared) * bits) / 8);
  const size = end + (end + 2 <= 4095 ? 2 : 4);
  if (data.length < size && !partial) {
    fail("TruncatedError", `the file is cut short: found ${data.length} bytes, expected ${size}`);
  }
  if (data.length > size) fail("TrailingDataError", `the file is too long: found ${data.length} bytes, expected ${size}`);
  if (data.length === size) {
    const computed = (size - end === 2 ? crc16 : crc32)(data.subarray(0, end));
    const found = data.subarray(end);
    if (computed.some((byte, n) => byte !== found[n])) {
      fail("ChecksumError", `checksum at byte ${end}: found ${hex(found)}, expected ${hex(computed)}`);
    }
  }
  const filling = (8 - ((at + totalOf(declared) * bits) % 8)) % 8;
  if (data.length >= end && data[end - 1] & ((1 << filling) - 1)) {
    fail("PaddingError", `padding bits at byte ${end - 1}: expected zeros`);
  }
  if (Math.max(width, height) > limits.side) {
    fail("LimitExceededError", `the header declares ${width}x${height} pixels; the limit is ${limits.side} a side`);
  }
  if (width * height > limits.pixels) {
    fail("LimitExceededError", `the header declares ${width}x${height} pixels; the limit is ${limits.pixels}`);
  }
  if (totalOf(declared) > limits.indices) {
    fail("LimitExceededError", `the header declares ${totalOf(declared)} tokens; the limit is ${limits.indices}`);
  }
  let tokens = declared;
  while (tokens && totalOf(tokens) * bits > 8 * data.length - at) tokens--;
  if (!tokens) fail("TruncatedError", "no token of every tile is left");
  const indices = Array.from({ length: totalOf(tokens) }, () => take(bits));
  const { name, nested } = row;
  const model = { bits, id, name, nested, fingerprint };
  return { width, height, rows, columns, tokens, declared, ...model, shares, indices, start, end };
}

/** What `parse` gave -> the indices of each tile, tiles row by row. */
export function tokensOfTiles({ tokens, shares, indices }) {
  const tiles = shares.map(() => []);
  let at = 0;
  for (let most = 1; most <= tokens; most++) {
    tiles.forEach((tile, n) => {
      if (tile.length < countOf(most, shares[n])) tile.push(indices[at++]);
    });
  }
  return tiles;
}

// ---- indices -> coefficients

/** nano's code; `description` is "quantizer" of model.json, `file` the ArrayBuffer of the file that it names. */
export class Quantizer {
  constructor(description, file) {
    const kinds = { int8: Int8Array, int32: Int32Array, float32: Float32Array };
    this.about = description;
    for (const [name, { type, offset, bytes }] of Object.entries(description.tensors)) {
      this[name] = new kinds[type](file.slice(offset, offset + bytes)); // a copy, so that it is aligned
    }
  }

  /** The indices of one tile -> {values, levels}: Int32Array [C] each. */
  integers(indices) {
    const { coefficients: C, token_size: T, codebook_size: V, refresh, step } = this.about;
    const values = new Int32Array(C);
    const levels = this.base.slice();
    const touched = new Uint8Array(C);
    indices.forEach((index, k) => {
      if (k && k % refresh === 0) this.#predict(values, levels, touched);
      const chosen = highest(levels, T);
      chosen.forEach((c, t) => {
        values[c] += this.codebooks[(k * T + t) * V + index] * step[levels[c]];
        levels[c] = clamp(levels[c] + this.drops[k * T + t], 0, 96);
        touched[c] = 1;
      });
    });
    return { values, levels };
  }

  /** The indices of one tile -> the coefficients that the graphs take: Float32Array [C]. */
  coefficients(indices) {
    return Float32Array.from(this.integers(indices).values, (value) => value * this.unit[0]);
  }

  #predict(values, levels, touched) {
    const { coefficients: C, hidden: H, evidence } = this.about;
    const seen = [];
    for (let c = 0; c < C; c++) {
      if (touched[c]) {
        seen.push([c, evidence[Math.min(127, (12 * Math.abs(values[c])) >> (6 + (this.base[c] >> 3)))]]);
      }
    }
    const y = new Int32Array(H);
    for (let h = 0; h < H; h++) {
      let sum = this.into_bias[h];
      for (const [c, e] of seen) sum += this.into[h * C + c] * e;
      y[h] = clamp(sum >> this.shifts[0], 0, 127);
    }
    for (let c = 0; c < C; c++) {
      if (touched[c]) continue;
      let sum = this.out_bias[c];
      for (let h = 0; h < H; h++) sum += this.out[c * H + h] * y[h];
      levels[c] = clamp(this.base[c] + (sum >> this.shifts[1]), 0, 96);
    }
  }
}

const clamp = (x, least, most) => Math.min(most, Math.max(least, x));

/** The places of the `count` highest levels, highest first; of equal ones the first. */
function highest(levels, count) {
  const found = [];
  for (let c = 0; c < levels.length; c++) {
    if (found.length === count && levels[found[count - 1]] >= levels[c]) continue;
    let at = found.length;
    while (at && levels[found[at - 1]] < levels[c]) at--;
    found.splice(at, 0, c);
    if (found.length > count) found.pop();
  }
  return found;
}

// ---- the noise of the natural look

const MASK = (1n << 64n) - 1n;

function mix(z) {
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return z ^ (z >> 31n);
}

/** The indices of one tile -> Float32Array of `count` values: splitmix64 (nano-code.md). */
export function noise(indices, count) {
  let state = 0n;
  for (const index of indices) state = mix(state ^ BigInt(index + 1));
  const width = Math.fround(2 * Math.sqrt(3));
  return Float32Array.from({ length: count }, () => {
    state = (state + 0x9e3779b97f4a7c15n) & MASK;
    return Math.fround(Number(mix(state) >> 40n) / 2 ** 24 - 0.5) * width;
  });
}

// ---- tiles -> picture; pictures are {width, height, data}, three bytes a pixel

/** Scaled as Pillow's LANCZOS does it: across, then down, 8 bits in between, weights of 22 bits. */
export function resize(picture, width, height) {
  let { data } = picture;
  if (picture.width !== width) data = scaled(data, picture.width, width, picture.height, 3, 3 * picture.width);
  if (picture.height !== height) data = scaled(data, picture.height, height, width, 3 * width, 3);
  return { width, height, data };
}

/** Along one axis: `lines` of `from` pixels become lines of `to`. step, line: bytes from pixel to pixel, line to line. */
function scaled(data, from, to, lines, step, line) {
  const down = step !== 3;
  const [outStep, outLine] = down ? [step, 3] : [3, 3 * to];
  const out = new Uint8ClampedArray(3 * to * lines);
  const scale = from / to;
  const wide = Math.max(scale, 1);
  for (let x = 0; x < to; x++) {
    const centre = (x + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - 3 * wide + 0.5));
    const last = Math.min(from, Math.trunc(centre + 3 * wide + 0.5));
    const weights = Array.from({ length: last - first }, (_, n) => lanczos((n + first - centre + 0.5) / wide));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    const whole = weights.map((weight) => {
      const share = (weight / sum) * 2 ** 22;
      return Math.trunc(share + (share < 0 ? -0.5 : 0.5));
    });
    for (let y = 0; y < lines; y++) {
      for (let channel = 0; channel < 3; channel++) {
        let total = 1 << 21;
        let at = y * line + first * step + channel;
        for (let n = 0; n < whole.length; n++, at += step) total += data[at] * whole[n];
        out[y * outLine + x * outStep + channel] = total >> 22;
      }
    }
  }
  return out;
}

function lanczos(x) {
  if (x === 0) return 1;
  if (x < -3 || x >= 3) return 0;
  const turn = x * Math.PI;
  return ((Math.sin(turn) / turn) * Math.sin(turn / 3)) / (turn / 3);
}

const startOf = (at, length, count) => Math.floor((at * length) / count);

/** Square tiles, row by row -> the whole picture, with smooth seams (tok-v1.md and tok-v2.md, "From indices to pixels"). */
export function assemble(tiles, { width, height, rows, columns, shares = [] }) {
  const data = new Uint8ClampedArray(3 * width * height);
  tiles.forEach((tile, n) => {
    const [row, column] = [Math.floor(n / columns), n % columns];
    const [left, right] = [startOf(column, width, columns), startOf(column + 1, width, columns)];
    const [top, bottom] = [startOf(row, height, rows), startOf(row + 1, height, rows)];
    const fitted = resize(tile, right - left, bottom - top);
    for (let y = top; y < bottom; y++) {
      const from = 3 * (y - top) * (right - left);
      data.set(fitted.data.subarray(from, from + 3 * (right - left)), 3 * (y * width + left));
    }
  });
  if (shares.some((share) => share)) {
    for (let row = 0; row < rows; row++) {
      const [top, bottom] = [startOf(row, height, rows), startOf(row + 1, height, rows)];
      spreadSmallSteps(data.subarray(3 * width * top, 3 * width * bottom), width, columns, bottom - top, 3, 3 * width);
    }
    spreadSmallSteps(data, height, rows, width, 3 * width, 3);
  }
  smoothSeams(data, width, columns, height, 3, 3 * width);
  smoothSeams(data, height, rows, width, 3 * width, 3);
  return { width, height, data };
}

function spreadSmallSteps(data, length, count, lines, step, line) {
  for (let tile = 1; tile < count; tile++) {
    const [before, seam, after] = [tile - 1, tile, tile + 1].map((at) => startOf(at, length, count));
    const deep = Math.min(2, seam - before, after - seam);
    const reaches = [seam - before, after - seam].map((size) => Math.max(1, size >> 2));
    const aside = Math.min(...reaches) >> 1;
    const raw = Array.from({ length: lines }, (_, y) =>
      [0, 1, 2].map((channel) => {
        let sum = 0;
        for (let n = 0; n < deep; n++) {
          const at = y * line + seam * step + channel;
          sum += data[at + n * step] - data[at - (n + 1) * step];
        }
        return sum / deep;
      }),
    );
    const around = (y, channel) => {
      let sum = 0;
      for (let n = y - aside; n <= y + aside; n++) sum += raw[clamp(n, 0, lines - 1)][channel];
      return sum / (2 * aside + 1);
    };
    for (let y = 0; y < lines; y++) {
      const steps = [0, 1, 2].map((channel) => around(y, channel));
      const part = clamp(2 - Math.max(...steps.map(Math.abs)) / 16, 0, 1);
      for (let channel = 0; channel < 3; channel++) {
        reaches.forEach((reach, side) => {
          for (let n = 0; n < reach; n++) {
            const at = y * line + (side ? seam + n : seam - 1 - n) * step + channel;
            const change = steps[channel] * part * ((2 * (reach - n) - 1) / (4 * reach));
            data[at] = Math.floor(data[at] + (side ? -change : change) + 0.5);
          }
        });
      }
    }
  }
}

function smoothSeams(data, length, count, lines, step, line) {
  for (let tile = 1; tile < count; tile++) {
    const [before, seam, after] = [tile - 1, tile, tile + 1].map((at) => startOf(at, length, count));
    for (let y = 0; y < lines; y++) {
      for (let channel = 0; channel < 3; channel++) {
        const at = y * line + seam * step + channel;
        const d = data[at] - data[at - step];
        for (const [size, sign] of [[seam - before, 1], [after - seam, -1]]) {
          const m = Math.max(1, size >> 5);
          for (let j = 0; j < m; j++) {
            const share = Math.floor((d * (2 * (m - j) - 1) + 2 * m) / (4 * m));
            data[at + step * (sign === 1 ? -1 - j : j)] += sign * share;
          }
        }
      }
    }
  }
}

// ---- all together

/** Decodes files of one model, from the folder that `titokc models export --onnx` has written. */
export class Decoder {
  /** ort: the module onnxruntime-web. fetched: a function from a file's name to its ArrayBuffer. models: of ids.json. */
  static async open(ort, fetched, models) {
    const decoder = new Decoder();
    const about = JSON.parse(new TextDecoder().decode(await fetched("model.json")));
    const file = about.quantizer.file;
    const weights = await fetched(file);
    const quantizer = new Quantizer(about.quantizer, weights);
    const session = async (name) => {
      const graph = new Uint8Array(await fetched(name));
      // A copy, as ONNX Runtime may move it into a worker.
      const externalData = [{ path: file, data: new Uint8Array(weights.slice(0)) }];
      return ort.InferenceSession.create(graph, { externalData });
    };
    Object.assign(decoder, { ort, about, models, quantizer, session });
    decoder.sessions = { "decoder.onnx": session("decoder.onnx") };
    await decoder.sessions["decoder.onnx"];
    return decoder;
  }

  /** See `parse`; TokError for a file of another model too. */
  read(data, options) {
    const header = parse(data, this.models, options);
    const { model, code } = this.about;
    if (header.bits !== this.about.bits || !code.startsWith(header.fingerprint)) {
      const [found, here] = [header.fingerprint, code.slice(0, 4)];
      throw new TokError("ModelMismatchError", `made by ${header.name} with the code ${found}; here is ${model}, ${here}`);
    }
    const highest = header.indices.reduce((most, index) => Math.max(most, index), 0);
    if (highest >= this.about.quantizer.codebook_size) {
      throw new TokError("IndexRangeError", `index ${highest}: expected 0..${this.about.quantizer.codebook_size - 1}`);
    }
    return header;
  }

  /** What `read` gave -> the picture. look: one of about.looks. done: called with the number of tiles after each. */
  async decode(header, look = "faithful", done = () => {}) {
    const tiles = [];
    for (const indices of tokensOfTiles(header)) {
      tiles.push(await this.#tile(indices, look));
      await done(tiles.length);
    }
    return assemble(tiles, header);
  }

  async #tile(indices, look) {
    const { side } = this.about;
    const seen = await this.#run("decoder.onnx", {
      coefficients: this.quantizer.coefficients(indices),
      tokens: Int32Array.of(indices.length),
    });
    if (look === "faithful") return pixels(seen.picture.data, side);
    const [coarse, fine] = ["noise", "fine_noise"].map((name) => this.#size("natural.onnx", name));
    const drawn = noise(indices, coarse + fine);
    const { natural } = await this.#run("natural.onnx", {
      picture: seen.picture.data,
      features: seen.features.data,
      tokens: Int32Array.of(indices.length),
      noise: drawn.slice(0, coarse),
      fine_noise: drawn.slice(coarse),
    });
    return pixels(natural.data, side);
  }

  #shape(graph, name) {
    const { shape } = this.about.graphs[graph].inputs.find((input) => input.name === name);
    return shape.map((size) => (size === "N" ? 1 : size));
  }

  #size(graph, name) {
    return this.#shape(graph, name).reduce((product, size) => product * size, 1);
  }

  async #run(graph, inputs) {
    this.sessions[graph] ??= this.session(graph);
    const session = await this.sessions[graph];
    const tensor = ([name, data]) => {
      const type = data instanceof Int32Array ? "int32" : "float32";
      return [name, new this.ort.Tensor(type, data, this.#shape(graph, name))];
    };
    return session.run(Object.fromEntries(Object.entries(inputs).map(tensor)));
  }
}

/** Planes in 0..1 -> a picture of side x side. */
function pixels(planes, side) {
  const data = new Uint8ClampedArray(3 * side * side); // it clamps and rounds, halves to even
  const plane = side * side;
  for (let at = 0; at < plane; at++) {
    for (let channel = 0; channel < 3; channel++) data[3 * at + channel] = 255 * planes[channel * plane + at];
  }
  return { width: side, height: side, data };
}
