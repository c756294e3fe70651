/* Writes an animated GIF: without a server, for any program for slides, with exact frame times on a slow machine too. */

const CLEAR = 256;
const END = 257;
const MOST = 4096; // codes of 12 bits
const UNCHANGED = 255; // index of a pixel that does not change

/** The most frequent colours of pictures, in order. @param {Uint32Array[]} pictures */
function frequent(pictures) {
  /** @type {Map<number, number>} */
  const counts = new Map();
  for (const pixels of pictures) for (const color of pixels) counts.set(color, (counts.get(color) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]).slice(0, UNCHANGED).map(([color]) => color);
}

const partsOf = (color) => [color & 255, (color >> 8) & 255, (color >> 16) & 255];

/** Builds a file from frames of one size; each frame stores the changes since the last one. */
export class Gif {
  /**
   * @param {number} width
   * @param {number} height
   * @param {ImageData[]} samples pictures with the colours to keep, up to 255
   */
  constructor(width, height, samples) {
    this.width = width;
    this.height = height;
    this.palette = frequent(samples.map(({ data }) => new Uint32Array(data.buffer)));
    /** @type {Map<number, number>} */
    this.places = new Map(this.palette.map((color, place) => [color, place]));
    /** @type {Uint8Array | null} */
    this.before = null;
    this.bytes = new Bytes();
    this.head();
  }

  head() {
    const { bytes, width, height } = this;
    bytes.text("GIF89a").short(width).short(height).put(0xf7, 0, 0); // one table of 256 colours for all frames
    for (let i = 0; i < 256; i++) bytes.put(...partsOf(this.palette[i] ?? 0));
    bytes.put(0x21, 0xff, 11).text("NETSCAPE2.0").put(3, 1, 0, 0, 0); // plays in a loop
  }

  /**
   * @param {ImageData} picture
   * @param {number} ms duration of the frame, in steps of 10
   */
  add({ data }, ms) {
    const now = this.indexed(new Uint32Array(data.buffer));
    const { left, top, right, bottom } = this.changed(now);
    const [width, height] = [right - left + 1, bottom - top + 1];
    const part = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      const from = (top + y) * this.width + left;
      for (let x = 0; x < width; x++) {
        const isSame = this.before?.[from + x] === now[from + x];
        part[y * width + x] = isSame ? UNCHANGED : now[from + x];
      }
    }
    this.bytes.put(0x21, 0xf9, 4, 0x05).short(Math.round(ms / 10)).put(UNCHANGED, 0);
    this.bytes.put(0x2c).short(left).short(top).short(width).short(height).put(0);
    compress(part, this.bytes);
    this.before = now;
  }

  /** Index of each pixel's colour, or of the nearest one. @param {Uint32Array} pixels */
  indexed(pixels) {
    const indices = new Uint8Array(pixels.length);
    let [last, place] = [-1, 0];
    pixels.forEach((color, i) => {
      if (color !== last) [last, place] = [color, this.places.get(color) ?? this.nearest(color)];
      indices[i] = place;
    });
    return indices;
  }

  /** @param {number} color */
  nearest(color) {
    const parts = partsOf(color);
    const far = this.palette.map((entry) => partsOf(entry).reduce((sum, part, i) => sum + (part - parts[i]) ** 2, 0));
    const place = far.indexOf(Math.min(...far));
    this.places.set(color, place);
    return place;
  }

  /** The smallest rectangle with all changes; one pixel without any. @param {Uint8Array} now */
  changed(now) {
    const { before, width, height } = this;
    if (!before) return { left: 0, top: 0, right: width - 1, bottom: height - 1 };
    let [left, top, right, bottom] = [width, height, 0, 0];
    for (let i = 0; i < now.length; i++) {
      if (now[i] === before[i]) continue;
      const [x, y] = [i % width, Math.floor(i / width)];
      [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
    }
    return left > right ? { left: 0, top: 0, right: 0, bottom: 0 } : { left, top, right, bottom };
  }

  /** The file. */
  end() {
    return new Blob(this.bytes.put(0x3b).parts, { type: "image/gif" });
  }
}

/** Compress pixels of one byte with GIF's LZW. @param {Uint8Array} pixels @param {Bytes} bytes */
function compress(pixels, bytes) {
  const codes = new Int16Array(MOST * 256);
  let [next, size, held, bits] = [END + 1, 9, 0, 0];
  /** @type {number[]} */
  let block = [];
  bytes.put(8);
  const flush = () => {
    if (block.length) bytes.put(block.length, ...block);
    block = [];
  };
  const put = (code) => {
    held |= code << bits;
    for (bits += size; bits >= 8; bits -= 8, held >>>= 8) {
      block.push(held & 255);
      if (block.length === 255) flush();
    }
  };
  put(CLEAR);
  let prefix = pixels[0];
  for (let i = 1; i < pixels.length; i++) {
    const place = prefix * 256 + pixels[i];
    if (codes[place]) {
      prefix = codes[place];
      continue;
    }
    put(prefix);
    if (next < MOST) {
      if (next === 1 << size) size += 1;
      codes[place] = next++;
    } else {
      put(CLEAR);
      codes.fill(0);
      [next, size] = [END + 1, 9];
    }
    prefix = pixels[i];
  }
  put(prefix);
  if (next === 1 << size && size < 12) size += 1; // a decoder adds a code for the last one too
  put(END);
  if (bits) block.push(held & 255);
  flush();
  bytes.put(0);
}

/** The parts of a file. */
class Bytes {
  /** @type {Uint8Array<ArrayBuffer>[]} */
  parts = [];

  /** @param {number[]} values */
  put(...values) {
    this.parts.push(Uint8Array.from(values));
    return this;
  }

  /** @param {number} value two bytes, the lower one first */
  short(value) {
    return this.put(value & 255, value >> 8);
  }

  /** @param {string} text in ASCII */
  text(text) {
    return this.put(...Array.from(text, (sign) => sign.charCodeAt(0)));
  }
}
