// node read.mjs ARRAY OUT: the whole array, as little-endian float32 in C order
import fs from "node:fs";
import { Float16Array } from "@petamoriken/float16";
globalThis.Float16Array ??= Float16Array;
const zarr = await import("zarrita");
const { FileSystemStore } = await import("@zarrita/storage");

const [path, out] = process.argv.slice(2);
const array = await zarr.open(new FileSystemStore(path), { kind: "array" });
const { data, shape, stride } = await zarr.get(array);
const values = new Float32Array(shape.reduce((product, side) => product * side, 1));
const index = shape.map(() => 0);
for (let place = 0; place < values.length; place++) {
  values[place] = data[index.reduce((sum, i, axis) => sum + i * stride[axis], 0)];
  for (let axis = shape.length - 1; axis >= 0 && ++index[axis] === shape[axis]; axis--) index[axis] = 0;
}
fs.writeFileSync(out, new Uint8Array(values.buffer));
console.log(JSON.stringify({ shape, dtype: array.dtype }));
