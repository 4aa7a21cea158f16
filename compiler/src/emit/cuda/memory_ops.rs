//! Families that move or make numbers: gather, scatter-add, copy, fill, random.

use slrc_plan::View;
use slrc_plan::kernel::{Copy, Fill, Gather, Random};
use slrc_plan::launch::{LaunchArg, fault};

use crate::emit::cuda::body::converted;
use crate::emit::cuda::code::{BLOCK, Call, Code, Table, blocks_for, c_type, index_type, number, sum, times};
use crate::emit::cuda::walk::Walk;

/// Side of a tile that is turned in shared memory.
const TURN: usize = 32;

fn grid_loop(code: &mut Code<'_>, ty: &str, n: usize) {
    code.open(format!("for ({ty} i = blockIdx.x * {BLOCK} + threadIdx.x; i < {n}; i += ({ty})gridDim.x * {BLOCK})"));
}

/// Element of a view with two dimensions.
fn at(p: &str, v: &View, row: &str, col: &str) -> String {
    let mut terms: Vec<String> = Vec::new();
    for (name, s) in [(row, v.strides[0]), (col, v.strides[1])] {
        if s != 0 {
            terms.push(times(name, s));
        }
    }
    if v.offset != 0 {
        terms.push(v.offset.to_string());
    }
    format!("{p}[{}]", sum(terms))
}

fn index_at(p: &str, v: &View, i: &str) -> String {
    format!("{p}[{} + {}]", times(i, v.strides[0]), v.offset)
}

pub(super) fn gather(table: &Table<'_>, g: &Gather) -> Vec<Call> {
    let mut code = Code::new(table);
    code.formula(format!("rows[i] = table[index[i]], {} of {} rows of {}", g.count, g.table_rows, g.width));
    let n = g.count * g.width;
    let ty = index_type(n.max(g.table_rows * g.width));
    let (from, index) = (code.pointer(&g.table.buffer, false), code.pointer(&g.index.buffer, false));
    let to = code.pointer(&g.rows.buffer, true);
    let flag = code.special(LaunchArg::Fault);
    grid_loop(&mut code, ty, n);
    code.line(format!("const {ty} row = i / {};", g.width));
    code.line(format!("const {ty} col = i % {};", g.width));
    code.line(format!("const {ty} from = {};", index_at(&index, &g.index, "row")));
    code.line(format!("const bool legal = from >= 0 && from < {};", g.table_rows));
    code.open("if (!legal)");
    code.line(format!("*{flag} = {};", fault::INDEX));
    code.close();
    code.line(format!("{} = legal ? {} : 0.0f;", at(&to, &g.rows, "row", "col"), at(&from, &g.table, "from", "col")));
    code.close();
    vec![code.finish("gather", BLOCK, blocks_for(n, BLOCK))]
}

/// A block per table row walks all indices in order, so equal indices add up in a fixed order without atomics.
pub(super) fn scatter_add(table: &Table<'_>, g: &Gather) -> Vec<Call> {
    let mut code = Code::new(table);
    code.formula(format!("table[index[i]] += rows[i], {} rows of {} into {}", g.count, g.width, g.table_rows));
    let ty = index_type(g.count.max(g.table_rows) * g.width);
    let (index, rows) = (code.pointer(&g.index.buffer, false), code.pointer(&g.rows.buffer, false));
    let to = code.pointer(&g.table.buffer, true);
    code.open(format!("for ({ty} row = blockIdx.x; row < {}; row += gridDim.x)", g.table_rows));
    code.open(format!("for ({ty} col = threadIdx.x; col < {}; col += {BLOCK})", g.width));
    code.line("float value = 0.0f;");
    code.open(format!("for ({ty} i = 0; i < {}; ++i)", g.count));
    code.open(format!("if ({} == row)", index_at(&index, &g.index, "i")));
    code.line(format!("value += {};", at(&rows, &g.rows, "i", "col")));
    code.close();
    code.close();
    code.line(format!("{} = value;", at(&to, &g.table, "row", "col")));
    code.close();
    code.close();
    vec![code.finish("scatter_add", BLOCK, blocks_for(g.table_rows, 1))]
}

pub(super) fn copy(table: &Table<'_>, c: &Copy) -> Vec<Call> {
    let mut code = Code::new(table);
    code.formula(format!("copy over {}", c.space));
    let walk = Walk::new(&c.space, &[], &[&c.from, &c.to]);
    let (from, to) = (code.pointer(&c.from.buffer, false), code.pointer(&c.to.buffer, true));
    let ty = index_type(walk.end);
    let n: usize = c.space.iter().product();
    let all: Vec<usize> = (0..walk.extents.len()).collect();
    if let Some(turned) = walk.turned(0, 1) {
        return vec![turn(code, &walk, turned, ty, &from, &to, c_type_of(table, c))];
    }
    grid_loop(&mut code, ty, n);
    walk.coordinates(&mut code, ty, "i", &all);
    code.line(format!("{to}[{}] = {from}[{}];", walk.element(1), walk.element(0)));
    code.close();
    vec![code.finish("copy", BLOCK, blocks_for(n, BLOCK))]
}

fn c_type_of(table: &Table<'_>, c: &Copy) -> &'static str {
    c_type(table.get(c.from.buffer.as_str()).map_or(slrc_plan::DType::F32, |b| b.dtype))
}

/// A transpose: both reads and writes run along memory, the turn happens in shared memory. `d` is the dimension along
/// which the source is consecutive; the last is the destination's.
fn turn(mut code: Code<'_>, walk: &Walk, d: usize, ty: &str, from: &str, to: &str, element: &'static str) -> Call {
    let last = walk.extents.len() - 1;
    let (rows, cols) = (walk.extents[d], walk.extents[last]);
    let others: Vec<usize> = (0..last).filter(|&o| o != d).collect();
    let planes = walk.count(&others);
    let (row_tiles, col_tiles) = (rows.div_ceil(TURN), cols.div_ceil(TURN));
    let each = BLOCK / TURN;
    // One column more than needed, so that a column lies in 32 banks.
    code.shared(element, "tile", &[TURN, TURN + 1]);
    code.line(format!("const {ty} plane = blockIdx.x / {};", row_tiles * col_tiles));
    code.line(format!("const {ty} row0 = blockIdx.x / {col_tiles} % {row_tiles} * {TURN};"));
    code.line(format!("const {ty} col0 = blockIdx.x % {col_tiles} * {TURN};"));
    code.line(format!("const int lane = threadIdx.x % {TURN};"));
    code.line(format!("const int line = threadIdx.x / {TURN};"));
    walk.coordinates(&mut code, ty, "plane", &others);
    for (read, row, col) in [(true, "lane", "line + j"), (false, "line + j", "lane")] {
        code.open(format!("for (int j = 0; j < {TURN}; j += {each})"));
        code.line(format!("const {ty} i{d} = row0 + {row};"));
        code.line(format!("const {ty} i{last} = col0 + {col};"));
        code.open(format!("if (i{d} < {rows} && i{last} < {cols})"));
        if read {
            code.line(format!("tile[line + j][lane] = {from}[{}];", walk.element(0)));
        } else {
            code.line(format!("{to}[{}] = tile[lane][line + j];", walk.element(1)));
        }
        code.close();
        code.close();
        if read {
            code.line("__syncthreads();");
        }
    }
    code.finish("copy", BLOCK, [planes * row_tiles * col_tiles, 1, 1])
}

pub(super) fn fill(table: &Table<'_>, f: &Fill) -> Vec<Call> {
    let mut code = Code::new(table);
    code.formula(format!("{} over {}", f.value, f.space));
    let walk = Walk::new(&f.space, &[], &[&f.to]);
    let to = code.pointer(&f.to.buffer, true);
    let ty = index_type(walk.end);
    let n: usize = f.space.iter().product();
    let all: Vec<usize> = (0..walk.extents.len()).collect();
    grid_loop(&mut code, ty, n);
    walk.coordinates(&mut code, ty, "i", &all);
    let value = converted(code.dtype(&f.to.buffer), &number(f.value));
    code.line(format!("{to}[{}] = {value};", walk.element(0)));
    code.close();
    vec![code.finish("fill", BLOCK, blocks_for(n, BLOCK))]
}

pub(super) fn random(table: &Table<'_>, r: &Random) -> Vec<Call> {
    let mut code = Code::new(table);
    code.formula(format!(
        "{} uniform numbers in [0, 1): Philox-4x32-10 of seed, step, stream {} and position",
        r.count, r.stream
    ));
    let to = code.pointer(&r.to.buffer, true);
    let run = code.special(LaunchArg::Run);
    let ty = index_type(r.count);
    let blocks = r.count.div_ceil(4);
    grid_loop(&mut code, ty, blocks);
    code.line(format!("const uint4 words = philox({run}[0], {run}[1], {}u, (unsigned int)i);", r.stream));
    code.line("const unsigned int w[4] = {words.x, words.y, words.z, words.w};");
    code.line("#pragma unroll");
    code.open("for (int j = 0; j < 4; ++j)");
    code.open(format!("if (i * 4 + j < {})", r.count));
    code.line(format!(
        "{to}[{} + {}] = (w[j] >> 8) * (1.0f / 16777216.0f);",
        times("(i * 4 + j)", r.to.strides[0]),
        r.to.offset
    ));
    code.close();
    code.close();
    code.close();
    vec![code.finish("random", BLOCK, blocks_for(blocks, BLOCK))]
}
