//! Tiles: evaluating statements over blocks of elements that stay in the L1 cache.
//!
//! A block is some rows of the innermost dimension (or a part of one row). Every value of a block is a tile; a load
//! whose elements are consecutive f32 is used where it lies, any other is brought into a tile; a result that is
//! consecutive is written where it belongs, unless it might overwrite something still to be read.

use std::collections::BTreeMap;

use slrc_plan::region::Store;
use slrc_plan::statement::{Arg, Statement, StatementOp};
use slrc_plan::{DType, ScalarFn};

use crate::cpu::bits;
use crate::cpu::instruction::{Source, execute};
use crate::cpu::math::Vector;
use crate::cpu::memory::{Memory, Operand};

/// Elements of a tile.
pub(super) const TILE: usize = 1024;

/// Where a value of a block is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place {
    /// In tile register `i`.
    Register(usize),
    /// A number of the plan.
    Number(f32),
    /// A number read from memory once per kernel: constant `i`.
    Constant(usize),
}

#[derive(Clone, Debug)]
struct Read {
    operand: Operand,
    register: usize,
}

#[derive(Clone, Debug)]
struct Instruction {
    f: ScalarFn,
    to: usize,
    args: [Place; 3],
}

#[derive(Clone, Debug)]
struct Write {
    operand: Operand,
    from: Place,
    /// The register may be the target memory itself.
    direct: bool,
}

/// Statements over one iteration space, ready to run block by block.
#[derive(Clone, Debug)]
pub(super) struct TileProgram {
    reads: Vec<Read>,
    constants: Vec<Operand>,
    instructions: Vec<Instruction>,
    writes: Vec<Write>,
    registers: usize,
    /// Value names to places, for reductions of them.
    places: BTreeMap<String, Place>,
}

impl TileProgram {
    /// Prepares `body` (scalar statements only). `given` are values that the caller puts into registers before a block
    /// runs, in order, from register 0; `kept` are values it looks at afterwards.
    pub(super) fn new(
        memory: &Memory,
        loads: &[(String, Operand)],
        given: &[&str],
        body: &[&Statement],
        stores: &[&Store],
        kept: &[&str],
    ) -> TileProgram {
        let mut registers = Registers::default();
        let mut places: BTreeMap<String, Place> = BTreeMap::new();
        for g in given {
            places.insert(g.to_string(), Place::Register(registers.take()));
        }
        let last_use = |name: &str| {
            let forever = given.contains(&name) || kept.contains(&name) || stores.iter().any(|s| s.value == name);
            let uses = |s: &&Statement| s.args.iter().any(|a| matches!(a, Arg::Value(v) if v == name));
            if forever { usize::MAX } else { body.iter().rposition(uses).unwrap_or(0) }
        };
        let (mut reads, mut constants) = (Vec::new(), Vec::new());
        // Registers to give back after each statement.
        let mut expiring: Vec<(usize, usize)> = Vec::new();
        for (name, operand) in loads {
            let place = if operand.strides.iter().all(|&s| s == 0) {
                constants.push(operand.clone());
                Place::Constant(constants.len() - 1)
            } else {
                let register = registers.take();
                // A row that repeats in every block stays where it is.
                let repeats = operand.strides[..operand.strides.len() - 1].iter().all(|&s| s == 0);
                if !repeats {
                    expiring.push((last_use(name), register));
                }
                reads.push(Read { operand: operand.clone(), register });
                Place::Register(register)
            };
            places.insert(name.clone(), place);
        }
        let mut instructions = Vec::new();
        for (i, s) in body.iter().enumerate() {
            let StatementOp::Scalar(f) = s.op else { unreachable!("invariant: reductions are not tile statements") };
            let mut args = [Place::Number(0.0); 3];
            for (a, arg) in args.iter_mut().zip(&s.args) {
                *a = match arg {
                    Arg::Number(x) => Place::Number(*x),
                    Arg::Value(v) => places[v],
                };
            }
            let to = registers.take();
            instructions.push(Instruction { f, to, args });
            places.insert(s.name.clone(), Place::Register(to));
            expiring.push((last_use(&s.name), to));
            expiring.retain(|&(last, register)| {
                if last <= i {
                    registers.give_back(register);
                }
                last > i
            });
        }
        let inputs: Vec<&Operand> = loads.iter().map(|(_, o)| o).collect();
        let mut writes: Vec<Write> = Vec::new();
        for s in stores {
            let operand = memory.operand(&s.view);
            let from = places[&s.value];
            let computed = matches!(from, Place::Register(r) if instructions.iter().any(|i| i.to == r));
            let only = stores.iter().filter(|x| x.value == s.value).count() == 1;
            // A register that another value used before cannot be the target memory.
            let own = matches!(from, Place::Register(r) if instructions.iter().filter(|i| i.to == r).count() == 1
                && reads.iter().all(|x| x.register != r));
            let alone = !inputs.iter().any(|i| i.overlaps(&operand));
            let direct = computed && only && own && alone && operand.dtype == DType::F32;
            writes.push(Write { operand, from, direct });
        }
        TileProgram { reads, constants, instructions, writes, registers: registers.count, places }
    }

    /// f32 scratch a block of `tile` elements needs.
    pub(super) fn scratch(&self, tile: usize) -> usize {
        self.registers * tile
    }

    /// Whether a register may be target memory.
    fn is_target(&self, register: usize) -> bool {
        self.writes.iter().any(|w| w.direct && w.from == Place::Register(register))
    }

    /// Where a value is.
    pub(super) fn place(&self, name: &str) -> Place {
        self.places[name]
    }

    /// Begins a task: reads constants. `scratch` is this task's memory for tiles of up to `tile` elements.
    pub(super) fn begin<'a>(&'a self, scratch: &'a mut [f32], tile: usize) -> Blocks<'a> {
        let constants = self.constants.iter().map(|c| read_number(c, 0)).collect();
        let tiles: Vec<*mut f32> =
            scratch.chunks_exact_mut(tile).take(self.registers).map(|t| t.as_mut_ptr()).collect();
        Blocks {
            program: self,
            vector: Vector::detect(),
            at: tiles.clone(),
            tiles,
            constants,
            filled: vec![0; self.reads.len()],
        }
    }
}

/// Hands out register numbers, those given back first.
#[derive(Default)]
pub(super) struct Registers {
    free: Vec<usize>,
    /// Registers in all.
    pub(super) count: usize,
}

impl Registers {
    pub(super) fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.count += 1;
            self.count - 1
        })
    }

    pub(super) fn give_back(&mut self, register: usize) {
        self.free.push(register);
    }
}

/// One element of an operand as a number.
pub(super) fn read_number(o: &Operand, at: usize) -> f32 {
    // SAFETY: views lie in their buffers.
    unsafe {
        match o.dtype {
            DType::F32 => *o.f32(at),
            DType::I32 => *o.i32(at) as f32,
            DType::U8 => f32::from(*o.u8(at)),
            DType::Bit => f32::from(*o.bits(at) >> (at % 8) & 1),
        }
    }
}

/// A task's state while it runs blocks.
pub(super) struct Blocks<'a> {
    program: &'a TileProgram,
    vector: Vector,
    /// Every register's own tile.
    tiles: Vec<*mut f32>,
    /// Where each register's elements are now.
    at: Vec<*mut f32>,
    constants: Vec<f32>,
    /// Elements of reads that are the same in every block and already in their tile.
    filled: Vec<usize>,
}

impl Blocks<'_> {
    /// The tile of a given register, to be filled before [`Blocks::run`].
    pub(super) fn given(&mut self, register: usize, n: usize) -> &mut [f32] {
        // SAFETY: tiles are disjoint parts of the scratch and at least this long.
        unsafe { std::slice::from_raw_parts_mut(self.tiles[register], n) }
    }

    /// The elements of a value after [`Blocks::run`].
    pub(super) fn source(&self, place: Place, n: usize) -> Source<'_> {
        match place {
            // SAFETY: a register's elements are its tile or memory of the block.
            Place::Register(r) => Source::Tile(unsafe { std::slice::from_raw_parts(self.at[r], n) }),
            Place::Number(x) => Source::Number(x),
            Place::Constant(i) => Source::Number(self.constants[i]),
        }
    }

    /// Evaluates one block of `rows x cols` elements that begins at `index` of the iteration space (whose last two
    /// dimensions the rows and columns run along; a space of one dimension has a single row). `extent` is the
    /// full length of the last dimension.
    pub(super) fn run(&mut self, index: &[usize], rows: usize, cols: usize, extent: usize) {
        let n = rows * cols;
        for i in 0..self.program.reads.len() {
            self.read(i, index, rows, cols, extent);
        }
        for w in self.program.writes.iter().filter(|w| w.direct) {
            let Place::Register(r) = w.from else { continue };
            let (start, row, col) = walk(&w.operand, index);
            let dense = (col == 1 || cols == 1) && (row == cols || rows == 1);
            self.at[r] = if dense { w.operand.f32(start) } else { self.tiles[r] };
            if dense {
                expect(w.operand.f32(start + n), n);
            }
        }
        for i in &self.program.instructions {
            // The register may have held a load that was used where it lies.
            if !self.program.is_target(i.to) {
                self.at[i.to] = self.tiles[i.to];
            }
            // SAFETY: every value has its own tile or target memory that no operand shares, so `out` overlaps no
            // argument.
            let out = unsafe { std::slice::from_raw_parts_mut(self.at[i.to], n) };
            let [a, b, c] = i.args.map(|p| self.source(p, n));
            execute(self.vector, i.f, out, a, b, c);
        }
        for w in &self.program.writes {
            let (start, row, col) = walk(&w.operand, index);
            let done = matches!(w.from, Place::Register(r) if w.direct && self.at[r] != self.tiles[r]);
            if !done {
                write_block(&w.operand, start, row, col, rows, cols, self.source(w.from, n));
            }
        }
    }

    fn read(&mut self, i: usize, index: &[usize], rows: usize, cols: usize, extent: usize) {
        let Read { operand, register } = &self.program.reads[i];
        let n = rows * cols;
        let (start, row, col) = walk(operand, index);
        if operand.dtype == DType::F32 && (col == 1 || cols == 1) && (row == cols || rows == 1) {
            self.at[*register] = operand.f32(start);
            expect(operand.f32(start + n), n);
            return;
        }
        self.at[*register] = self.tiles[*register];
        // A row that repeats in every block (a bias, say) is laid out once.
        let last = operand.strides.len() - 1;
        let repeats = cols == extent && operand.strides[..last].iter().all(|&s| s == 0);
        if repeats && self.filled[i] >= n {
            return;
        }
        // SAFETY: the tile belongs to this register.
        let tile = unsafe { std::slice::from_raw_parts_mut(self.tiles[*register], n) };
        if row == 0 && rows > 1 {
            read_row(operand, start, col, &mut tile[..cols]);
            for r in 1..rows {
                tile.copy_within(..cols, r * cols);
            }
        } else {
            tile.chunks_exact_mut(cols).enumerate().for_each(|(r, t)| read_row(operand, start + r * row, col, t));
        }
        if repeats {
            self.filled[i] = n;
        }
    }
}

/// Asks for memory that the next block works on, most likely: blocks are as long as a page, and what the processor
/// fetches ahead by itself ends with a page.
#[inline(always)]
fn expect(from: *const f32, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..count).step_by(16) {
        // SAFETY: a hint; no memory is accessed, whatever the address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(line).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, count);
}

/// First element and the strides along rows and columns of a block that begins at `index`.
fn walk(o: &Operand, index: &[usize]) -> (usize, usize, usize) {
    let n = o.strides.len();
    let start = index.iter().zip(&o.strides).map(|(i, s)| i * s).sum();
    (start, if n >= 2 { o.strides[n - 2] } else { 0 }, o.strides[n - 1])
}

/// Brings one row into a tile as numbers.
pub(super) fn read_row(o: &Operand, start: usize, stride: usize, to: &mut [f32]) {
    // SAFETY: views lie in their buffers.
    unsafe {
        match (o.dtype, stride) {
            (_, 0) => to.fill(read_number(o, start)),
            (DType::F32, 1) => to.copy_from_slice(std::slice::from_raw_parts(o.f32(start), to.len())),
            (DType::F32, s) => to.iter_mut().enumerate().for_each(|(i, t)| *t = *o.f32(start + i * s)),
            (DType::U8, 1) => {
                let from = std::slice::from_raw_parts(o.u8(start), to.len());
                to.iter_mut().zip(from).for_each(|(t, &x)| *t = f32::from(x));
            }
            (DType::U8, s) => to.iter_mut().enumerate().for_each(|(i, t)| *t = f32::from(*o.u8(start + i * s))),
            (DType::I32, s) => to.iter_mut().enumerate().for_each(|(i, t)| *t = *o.i32(start + i * s) as f32),
            (DType::Bit, 1) if start.is_multiple_of(8) => {
                let from = std::slice::from_raw_parts(o.bits(start), to.len().div_ceil(8));
                bits::unpack(from, to);
            }
            (DType::Bit, s) => to.iter_mut().enumerate().for_each(|(i, t)| *t = read_number(o, start + i * s)),
        }
    }
}

/// Writes a block; strides of zero (a value that does not vary) write one element.
fn write_block(o: &Operand, start: usize, row: usize, col: usize, rows: usize, cols: usize, from: Source<'_>) {
    for r in 0..if row == 0 { rows.min(1) } else { rows } {
        let part = match from {
            Source::Tile(t) => Source::Tile(&t[r * cols..(r + 1) * cols]),
            number => number,
        };
        write_row(o, start + r * row, col, cols, part);
    }
}

/// Writes one row of numbers in the operand's type.
pub(super) fn write_row(o: &Operand, start: usize, stride: usize, cols: usize, from: Source<'_>) {
    let count = if stride == 0 { cols.min(1) } else { cols };
    let value = |i: usize| match from {
        Source::Tile(t) => t[i],
        Source::Number(x) => x,
    };
    // SAFETY: views lie in their buffers; tasks write disjoint elements.
    unsafe {
        match (o.dtype, stride, from) {
            (DType::F32, 1, Source::Tile(t)) => std::ptr::copy_nonoverlapping(t.as_ptr(), o.f32(start), count),
            (DType::F32, s, _) => (0..count).for_each(|i| *o.f32(start + i * s) = value(i)),
            (DType::U8, 1, Source::Tile(t)) => {
                let to = std::slice::from_raw_parts_mut(o.u8(start), count);
                to.iter_mut().zip(t).for_each(|(o, &x)| *o = u8::from(x != 0.0));
            }
            (DType::U8, s, _) => (0..count).for_each(|i| *o.u8(start + i * s) = u8::from(value(i) != 0.0)),
            (DType::I32, s, _) => (0..count).for_each(|i| *o.i32(start + i * s) = value(i) as i32),
            (DType::Bit, s, _) => {
                assert!(s == 1 && start.is_multiple_of(8) && count.is_multiple_of(8), "invariant: plans are validated");
                let to = std::slice::from_raw_parts_mut(o.bits(start), count / 8);
                match from {
                    Source::Tile(t) => bits::pack(&t[..count], to),
                    Source::Number(x) => to.fill(if x == 0.0 { 0 } else { u8::MAX }),
                }
            }
        }
    }
}

/// Rows and columns of a block for an iteration space: a part of a long row, or several short rows.
pub(super) fn block_shape(space: &[usize], tile: usize) -> (usize, usize) {
    let n = space.len();
    let cols = space[n - 1].clamp(1, tile);
    let rows = if cols < space[n - 1] || n < 2 { 1 } else { (tile / cols).clamp(1, space[n - 2].max(1)) };
    (rows, cols)
}

/// Calls `f(index, rows, cols)` for every block of a space, in order.
pub(super) fn for_each_block(
    space: &[usize],
    rows: usize,
    cols: usize,
    range: std::ops::Range<usize>,
    mut f: impl FnMut(&[usize], usize, usize),
) {
    let n = space.len();
    let mut index = vec![0; n];
    for b in range {
        let mut rest = b;
        let col_blocks = space[n - 1].div_ceil(cols);
        index[n - 1] = rest % col_blocks * cols;
        rest /= col_blocks;
        let mut r = 1;
        if n >= 2 {
            let row_blocks = space[n - 2].div_ceil(rows);
            index[n - 2] = rest % row_blocks * rows;
            rest /= row_blocks;
            r = rows.min(space[n - 2] - index[n - 2]);
        }
        for d in (0..n.saturating_sub(2)).rev() {
            index[d] = rest % space[d];
            rest /= space[d];
        }
        f(&index, r, cols.min(space[n - 1] - index[n - 1]));
    }
}

/// Number of blocks of a space.
pub(super) fn block_count(space: &[usize], rows: usize, cols: usize) -> usize {
    let n = space.len();
    let inner = space[n - 1].div_ceil(cols) * if n >= 2 { space[n - 2].div_ceil(rows) } else { 1 };
    inner * space[..n.saturating_sub(2)].iter().product::<usize>()
}
