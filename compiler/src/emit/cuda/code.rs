//! Text of one function: lines with indentation, parameters in order of first use, shared memory, and the launch that
//! goes with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use slrc_plan::launch::LaunchArg;
use slrc_plan::{Buffer, DType};

/// Buffers of the plan by id.
pub(super) type Table<'a> = BTreeMap<&'a str, &'a Buffer>;

/// Threads of a block where nothing else is said.
pub(super) const BLOCK: usize = 256;
/// Most blocks of a grid-stride launch: several waves on the largest devices of 2026.
const MOST_BLOCKS: usize = 4096;

/// A launch with the function it calls, which may turn out to be another's.
pub(super) struct Call {
    pub(super) family: &'static str,
    /// Head comment: what is computed, one line each.
    pub(super) formula: Vec<String>,
    pub(super) block: usize,
    pub(super) grid: [usize; 3],
    pub(super) params: Vec<Param>,
    pub(super) body: String,
    /// Arrays that the threads of a block share, in the order of their declarations in the body.
    pub(super) shared: Vec<Shared>,
    /// How many registers a thread may take.
    pub(super) registers: Registers,
    /// What is known of its rows, where a kernel that works on rows can follow it or it can follow a product.
    pub(super) rows: Rows,
}

/// How a function's blocks divide rows between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// In no way that others could rely on.
    Unknown,
    /// Tiles of a product: `tile` rows each, and `across` blocks one after the other for the tiles of the same rows.
    Tiles { tile: usize, across: usize },
    /// Each block works on the next `rows`, if there are so many `blocks`.
    Each { rows: usize, blocks: usize },
}

/// A parameter of a function: a pointer, with what is known of it.
#[derive(Clone, Debug)]
pub(super) struct Param {
    pub(super) name: String,
    /// What it points to in a launch.
    pub(super) arg: LaunchArg,
    /// The C type of what it points to.
    pub(super) ty: &'static str,
    pub(super) written: bool,
    /// Whether what is written through it is reached through no other, and the other way round.
    pub(super) apart: bool,
}

impl Param {
    /// The counters of a launch's blocks.
    pub(super) fn turns() -> Param {
        Param { name: "turns".into(), arg: LaunchArg::Turns, ty: "unsigned int", written: true, apart: false }
    }

    pub(super) fn declaration(&self) -> String {
        let constant = if self.written { "" } else { "const " };
        let restrict = if self.apart { " __restrict__" } else { "" };
        format!("{constant}{}*{restrict} {}", self.ty, self.name)
    }
}

/// An array that the threads of a block share, or a number where it has no extents.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    ty: &'static str,
    name: String,
    extents: Vec<usize>,
}

/// Where arrays in shared memory begin: what vectors of four numbers need.
const SHARED_ALIGNMENT: usize = 16;

impl Shared {
    fn brackets(&self) -> String {
        self.extents.iter().map(|e| format!("[{e}]")).collect()
    }

    /// The declaration of one that has its own memory.
    pub(super) fn declaration(&self) -> String {
        format!("__shared__ {} {}{};", self.ty, self.name, self.brackets())
    }

    /// The declaration of one that lies in `memory`, so many bytes from its beginning.
    pub(super) fn placed(&self, offset: usize) -> String {
        let (ty, name, at) = (self.ty, &self.name, sum_of("memory", offset));
        match self.brackets() {
            b if b.is_empty() => format!("{ty}& {name} = *reinterpret_cast<{ty}*>({at});"),
            b => format!("{ty} (&{name}){b} = *reinterpret_cast<{ty} (*){b}>({at});"),
        }
    }

    /// Bytes from its beginning to that of the next.
    pub(super) fn bytes(&self) -> usize {
        let element = if self.ty == c_type(DType::U8) { 1 } else { 4 };
        (self.extents.iter().product::<usize>() * element).next_multiple_of(SHARED_ALIGNMENT)
    }
}

/// `a + n`, or `a`.
pub(super) fn sum_of(a: &str, n: usize) -> String {
    if n == 0 { a.into() } else { format!("{a} + {n}") }
}

/// How many registers a thread may take. NVIDIA's compiler spills a few where that lets a multiprocessor hold more
/// threads; a bound that has room for what is live keeps it from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Registers {
    /// What the compiler likes.
    Unbounded,
    /// Enough for this many live values.
    For(usize),
    /// All it can use: one block of a multiprocessor is enough.
    All,
}

/// Registers of a multiprocessor.
const FILE: usize = 65536;
/// Registers of a thread where a multiprocessor holds as many threads as it can, 2048.
const FULL: usize = 32;

impl Registers {
    /// Fewest blocks that a multiprocessor must be able to hold, if that is to be said.
    pub(super) fn blocks(self, block: usize) -> Option<usize> {
        match self {
            Registers::Unbounded => None,
            // Fewer fit without spilling.
            Registers::For(values) if values <= FULL => None,
            // They are given out in eights.
            Registers::For(values) => Some((FILE / (block * values.next_multiple_of(8))).max(1)),
            Registers::All => Some(1),
        }
    }
}

struct Pointer {
    id: String,
    name: String,
    dtype: DType,
    written: bool,
}

/// A function being written.
pub(super) struct Code<'a> {
    table: &'a Table<'a>,
    text: String,
    depth: usize,
    pointers: Vec<Pointer>,
    special: Vec<LaunchArg>,
    shared: Vec<Shared>,
    formula: Vec<String>,
    /// How often the last block went on alone.
    lasts: usize,
    /// Names handed out.
    names: usize,
}

impl<'a> Code<'a> {
    pub(super) fn new(table: &'a Table<'a>) -> Code<'a> {
        Code {
            table,
            text: String::new(),
            depth: 1,
            pointers: Vec::new(),
            special: Vec::new(),
            shared: Vec::new(),
            formula: Vec::new(),
            lasts: 0,
            names: 0,
        }
    }

    /// A name that begins with `of` and that nothing else in the function has.
    pub(super) fn fresh(&mut self, of: &str) -> String {
        self.names += 1;
        format!("{of}_{}", self.names)
    }

    /// Adds a line of the head comment.
    pub(super) fn formula(&mut self, line: impl Into<String>) {
        self.formula.push(line.into());
    }

    pub(super) fn line(&mut self, line: impl AsRef<str>) {
        let line = line.as_ref();
        let depth = if line.starts_with('#') { 0 } else { self.depth };
        let _ = writeln!(self.text, "{:width$}{line}", "", width = 2 * depth);
    }

    /// A line that opens a block.
    pub(super) fn open(&mut self, line: impl AsRef<str>) {
        self.line(format!("{} {{", line.as_ref()));
        self.depth += 1;
    }

    pub(super) fn close(&mut self) {
        self.depth -= 1;
        self.line("}");
    }

    /// Lines that are to stand elsewhere.
    pub(super) fn apart(&mut self, work: impl FnOnce(&mut Code<'a>)) -> Vec<String> {
        let (text, depth) = (std::mem::take(&mut self.text), std::mem::take(&mut self.depth));
        work(self);
        self.depth = depth;
        let lines = std::mem::replace(&mut self.text, text);
        lines.lines().map(String::from).collect()
    }

    /// The parameter that points to a buffer.
    pub(super) fn pointer(&mut self, id: &str, write: bool) -> String {
        if let Some(p) = self.pointers.iter_mut().find(|p| p.id == id) {
            p.written |= write;
            return p.name.clone();
        }
        let name = format!("p{}", self.pointers.len());
        let dtype = self.dtype(id);
        self.pointers.push(Pointer { id: id.into(), name: name.clone(), dtype, written: write });
        name
    }

    /// Declares an array that the threads of a block share, or a number. Its name is no other's in the function.
    pub(super) fn shared(&mut self, ty: &'static str, name: &str, extents: &[usize]) {
        let shared = Shared { ty, name: name.into(), extents: extents.to_vec() };
        self.line(shared.declaration());
        self.shared.push(shared);
    }

    /// Lets the last of `count` blocks to get here go on, alone, with what all of them wrote; the others end. `turn` is
    /// the number of the counter that these blocks share.
    pub(super) fn last_block(&mut self, turn: &str, count: usize) {
        self.last_of(turn, &(count - 1).to_string());
    }

    /// The same, of a block and `others`, an expression.
    pub(super) fn last_of(&mut self, turn: &str, others: &str) {
        let turns = self.special(LaunchArg::Turns);
        if self.lasts == 0 {
            self.shared("int", "last", &[]);
        }
        self.lasts += 1;
        self.line("__syncthreads();");
        self.open("if (threadIdx.x == 0)");
        self.line("__threadfence();");
        self.line(format!("last = atomicAdd(&{turns}[{turn}], 1u) == {others};"));
        self.line("__threadfence();");
        self.close();
        self.line("__syncthreads();");
        self.open("if (last == 0)");
        self.line("return;");
        self.close();
        self.open("if (threadIdx.x == 0)");
        self.line(format!("atomicExch(&{turns}[{turn}], 0u);"));
        self.close();
    }

    /// The parameter for `$run`, `$fault` or `$turns`.
    pub(super) fn special(&mut self, arg: LaunchArg) -> &'static str {
        let name = match arg {
            LaunchArg::Run => "run",
            LaunchArg::Fault => "fault",
            LaunchArg::Turns => "turns",
            LaunchArg::Buffer(_) | LaunchArg::First | LaunchArg::Alone => {
                unreachable!("invariant: kernels know of no such argument")
            }
        };
        if !self.special.contains(&arg) {
            self.special.push(arg);
        }
        name
    }

    pub(super) fn dtype(&self, id: &str) -> DType {
        self.table.get(id).map_or(DType::F32, |b| b.dtype)
    }

    /// Whether another operand that is written shares memory with `p`.
    fn aliased(&self, p: &Pointer) -> bool {
        let range = |id: &str| self.table.get(id).map(|b| (b.space, b.offset, b.offset + b.bytes));
        let Some((space, from, to)) = range(&p.id) else { return true };
        self.pointers
            .iter()
            .filter(|o| o.id != p.id && (o.written || p.written))
            .any(|o| range(&o.id).is_none_or(|(s, f, t)| s == space && f < to && from < t))
    }

    /// The finished function with its launch.
    pub(super) fn finish(self, family: &'static str, block: usize, grid: [usize; 3]) -> Call {
        let buffers = self.pointers.iter().map(|p| Param {
            name: p.name.clone(),
            arg: LaunchArg::Buffer(p.id.clone()),
            ty: c_type(p.dtype),
            written: p.written,
            apart: !self.aliased(p),
        });
        let special = self.special.iter().map(|arg| {
            let (name, ty, written) = match arg {
                LaunchArg::Turns => return Param::turns(),
                LaunchArg::Run => ("run", "unsigned long long", false),
                LaunchArg::Fault => ("fault", "int", true),
                LaunchArg::Buffer(_) | LaunchArg::First | LaunchArg::Alone => {
                    unreachable!("invariant: kernels know of no such argument")
                }
            };
            Param { name: name.into(), arg: arg.clone(), ty, written, apart: !written }
        });
        Call {
            family,
            params: buffers.chain(special).collect(),
            formula: self.formula,
            block,
            grid,
            body: self.text,
            shared: self.shared,
            registers: Registers::Unbounded,
            rows: Rows::Unknown,
        }
    }
}

pub(super) fn c_type(d: DType) -> &'static str {
    match d {
        DType::F32 => "float",
        DType::I32 => "int",
        DType::U8 | DType::Bit => "unsigned char",
    }
}

/// The integer type of positions up to `end`.
pub(super) fn index_type(end: usize) -> &'static str {
    // Grid-stride loops step past the end by up to a grid.
    if end < (1 << 31) - MOST_BLOCKS * 1024 { "int" } else { "long long" }
}

/// Blocks of a grid-stride loop over `n` items.
pub(super) fn blocks_for(n: usize, block: usize) -> [usize; 3] {
    [n.div_ceil(block).clamp(1, MOST_BLOCKS), 1, 1]
}

/// A number as C source.
pub(super) fn number(x: f32) -> String {
    if x.is_nan() {
        "__int_as_float(0x7fc00000)".into()
    } else if x == f32::INFINITY {
        "__int_as_float(0x7f800000)".into()
    } else if x == f32::NEG_INFINITY {
        "__int_as_float(0xff800000)".into()
    } else if x.is_sign_negative() {
        format!("({x:?}f)")
    } else {
        format!("{x:?}f")
    }
}

/// `a * n`, without needless factors.
pub(super) fn times(a: &str, n: usize) -> String {
    if n == 1 { a.into() } else { format!("{a} * {n}") }
}

/// A sum of terms; `0` if there are none.
pub(super) fn sum(terms: Vec<String>) -> String {
    if terms.is_empty() { "0".into() } else { terms.join(" + ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_leave_room_for_what_is_live() {
        for registers in [Registers::Unbounded, Registers::For(FULL)] {
            assert_eq!(registers.blocks(256), None);
        }
        assert_eq!(Registers::All.blocks(256), Some(1));
        for (values, block) in [(33, 256), (40, 256), (41, 128), (64, 256), (100, 128), (300, 256)] {
            let blocks = Registers::For(values).blocks(block).expect("a bound");
            assert!(blocks == 1 || FILE / (blocks * block) >= values, "{values} values, {block} threads: {blocks}");
            assert!(FILE / ((blocks + 1) * block) < values.next_multiple_of(8), "one block more would not fit");
        }
    }
}
