//! Kernels that share a launch. Side by side: neighbours in a program that do not touch each other's results, such as
//! the gradient of a layer's weights, its update in the epilogue, and the next work on the gradient that goes on. One
//! behind another: work on the rows of a product, such as LayerNorm, follows the tiles that complete them.
//!
//! Each kernel is a device function of its own, under its own head comment, and has blocks of its own, in the order of
//! the kernels; a few lines say which block is whose. A block does one kernel's work, so that kernels share the block's
//! shared memory, and the launch's blocks need as many registers as the hungriest. A launch may begin at a later block
//! and have fewer, `first`: so a part of the kernels can run by itself.
//!
//! What follows a product has no blocks when both run: the block that finishes the last tile of some rows, which a
//! counter tells, goes on with what the blocks of these rows would do. No block waits, and each row is worked on by one
//! warp as it would be alone: the same bits. `alone` keeps it from that; then it has blocks of its own, behind all
//! others.

use std::fmt::Write as _;

use slrc_plan::Kernel;
use slrc_plan::launch::LaunchArg;
use slrc_plan::touches::{Place, Touched, place};
use slrc_plan::validate::MAX_GRID;

use crate::emit::cuda::code::{Call, Param, Registers, Rows, Shared, Table, sum_of};

/// What a kernel launches: all of its work, or a part that comes before the next.
pub(super) struct Work<'k> {
    pub(super) kernel: &'k Kernel,
    /// Who that is, for people.
    pub(super) user: String,
    pub(super) call: Call,
    /// Whether the kernel has no other.
    pub(super) whole: bool,
    /// The kernel of the same launch, by position, whose rows it works on as they are completed.
    pub(super) follows: Option<usize>,
}

/// Most parameters of a function: a launch has 4 KB of them.
const MOST_PARAMS: usize = 400;

/// Puts work together that may share a launch, in order: as many neighbours as none writes what another touches, and
/// those that work on the rows of a product among them.
pub(super) fn grouped<'k>(work: Vec<Work<'k>>, table: &Table<'k>) -> Vec<Vec<Work<'k>>> {
    let find = |id: &str| place(table.get(id).expect("invariant: kernels name buffers of their plan"));
    let mut out: Vec<Vec<Work<'k>>> = Vec::new();
    let mut touched = Touched::default();
    for mut w in work {
        let fits = out.last().is_some_and(|group| {
            let calls = || group.iter().chain([&w]).map(|w| &w.call);
            calls().all(|c| c.block == w.call.block)
                && calls().map(|c| c.params.len()).sum::<usize>() <= MOST_PARAMS
                && calls().map(most_blocks).sum::<usize>() <= MAX_GRID[0]
        });
        if let Some(group) = out.last_mut().filter(|_| fits) {
            if touched.admit(w.kernel, find) {
                group.push(w);
                continue;
            }
            let product = group.iter().position(|p| follows(p, &w) && touched.admit_behind(p.kernel, w.kernel, find));
            if let Some(product) = product {
                follow(&mut w.call, &group[product], find);
                w.follows = Some(product);
                group.push(w);
                continue;
            }
        }
        touched = Touched::default();
        touched.admit(w.kernel, find);
        out.push(vec![w]);
    }
    out
}

/// Whether a function can go on where tiles of a product are complete.
fn follows(product: &Work<'_>, w: &Work<'_>) -> bool {
    let Rows::Tiles { tile, .. } = product.call.rows else { return false };
    let Rows::Each { rows, .. } = w.call.rows else { return false };
    product.whole && w.whole && tile.is_multiple_of(rows)
}

/// Gives a function as many blocks as its rows take, and lets it expect that the product writes what it reads.
fn follow(call: &mut Call, product: &Work<'_>, find: impl Fn(&str) -> Place) {
    if let Rows::Each { blocks, .. } = call.rows {
        call.grid = [blocks, 1, 1];
    }
    let written: Vec<Place> = product.call.params.iter().filter(|p| p.written).filter_map(|p| lies(p, &find)).collect();
    for p in &mut call.params {
        let meets = |(s, q): &Place| lies(p, &find).is_some_and(|(t, r)| *s == t && q.start < r.end && r.start < q.end);
        p.apart &= !written.iter().any(meets);
    }
}

/// Where the buffer lies that a parameter points to.
fn lies(p: &Param, find: impl Fn(&str) -> Place) -> Option<Place> {
    match &p.arg {
        LaunchArg::Buffer(id) => Some(find(id)),
        LaunchArg::Run | LaunchArg::Fault | LaunchArg::Turns | LaunchArg::First | LaunchArg::Alone => None,
    }
}

/// Blocks that a function has at most, following another or not.
fn most_blocks(call: &Call) -> usize {
    match call.rows {
        Rows::Each { blocks: each, .. } => blocks(call).max(each),
        Rows::Tiles { .. } | Rows::Unknown => blocks(call),
    }
}

fn blocks(call: &Call) -> usize {
    call.grid.iter().product()
}

/// Parameters of a kernel's device function: its own, the block's number among its blocks, and shared memory.
pub(super) fn declarations(call: &Call) -> Vec<String> {
    let memory = (!call.shared.is_empty()).then(|| "unsigned char* memory".to_string());
    let own = call.params.iter().map(Param::declaration);
    own.chain(["unsigned int block".into()]).chain(memory).collect()
}

/// Its text: blocks counted by `block`, shared arrays in `memory`.
pub(super) fn body(call: &Call) -> String {
    let [x, y, z] = call.grid;
    let mut body = call.body.replace("gridDim.x", &format!("{x}u"));
    let mut offset = 0;
    for s in &call.shared {
        body = body.replacen(&s.declaration(), &s.placed(offset), 1);
        offset += s.bytes();
    }
    if y * z == 1 {
        return body.replace("blockIdx.x", "block");
    }
    let axes =
        [("x", format!("block % {x}")), ("y", format!("block / {x} % {y}")), ("z", format!("block / {}", x * y))];
    let mut out = String::new();
    for (axis, of) in axes {
        let (from, to) = (format!("blockIdx.{axis}"), format!("block_{axis}"));
        if body.contains(&from) {
            let _ = writeln!(out, "  const unsigned int {to} = {of};");
            body = body.replace(&from, &to);
        }
    }
    out + &body
}

/// A launch of several kernels.
#[derive(Default)]
pub(super) struct Together {
    pub(super) params: Vec<Param>,
    /// Threads of a block.
    pub(super) block: usize,
    parts: Vec<Part>,
}

/// One of them.
struct Part {
    /// Name of its device function.
    name: String,
    call: Call,
    /// Whose rows it works on.
    follows: Option<usize>,
}

impl Together {
    /// Adds a kernel, by the name of its function, and the one whose rows it works on.
    pub(super) fn add(&mut self, name: String, call: Call, follows: Option<usize>) {
        let turns = follows.map(|_| Param::turns());
        for p in call.params.iter().cloned().chain(turns) {
            match self.params.iter_mut().find(|own| own.arg == p.arg) {
                Some(own) => {
                    own.written |= p.written;
                    own.apart &= p.apart;
                }
                None => {
                    let name = format!("q{}", self.params.len());
                    self.params.push(Param { name, ..p });
                }
            }
        }
        self.block = call.block;
        self.parts.push(Part { name, call, follows });
    }

    /// Blocks of each kernel.
    pub(super) fn blocks(&self) -> Vec<usize> {
        self.parts.iter().map(|p| blocks(&p.call)).collect()
    }

    /// Blocks of a launch of all.
    pub(super) fn grid(&self) -> usize {
        self.parts.iter().filter(|p| p.follows.is_none()).map(|p| blocks(&p.call)).sum()
    }

    /// Whether kernels follow others.
    pub(super) fn has_followers(&self) -> bool {
        self.parts.iter().any(|p| p.follows.is_some())
    }

    /// Fewest blocks that a multiprocessor must be able to hold, if that is to be said.
    pub(super) fn least_blocks(&self) -> Option<usize> {
        let registers = || self.parts.iter().map(|p| p.call.registers);
        let blocks = registers().max().unwrap_or(Registers::Unbounded).blocks(self.block)?;
        // What takes what the compiler likes may like more than the others' bound leaves.
        let unbounded = registers().any(|r| r == Registers::Unbounded);
        Some(if unbounded { blocks.max(2) - 1 } else { blocks })
    }

    pub(super) fn formula(&self) -> Vec<String> {
        let of = |p: &Part| match p.follows {
            None => format!("{} in {} blocks", p.name, blocks(&p.call)),
            Some(product) => format!("{} on rows that {} completes", p.name, self.parts[product].name),
        };
        let head = match self.has_followers() {
            false => "side by side:",
            true => "side by side, and on rows that are complete:",
        };
        [head.to_string()].into_iter().chain(self.parts.iter().map(of)).collect()
    }

    pub(super) fn declarations(&self) -> Vec<String> {
        let own = self.params.iter().map(Param::declaration);
        let alone = self.has_followers().then(|| "unsigned long long alone".to_string());
        own.chain(["unsigned long long first".into()]).chain(alone).collect()
    }

    pub(super) fn body(&self) -> String {
        let mut out = String::new();
        let shared = |c: &Call| c.shared.iter().map(Shared::bytes).sum::<usize>();
        let memory = self.parts.iter().map(|p| shared(&p.call)).max().unwrap_or(0);
        if memory > 0 {
            let _ = writeln!(out, "  __shared__ __align__(16) unsigned char memory[{memory}];");
        }
        if self.has_followers() {
            let _ = writeln!(out, "  __shared__ int last;");
        }
        let followers = || (0..self.parts.len()).filter(|&i| self.parts[i].follows.is_some());
        for f in followers() {
            // Blocks of it that this one does the work of.
            let _ = writeln!(out, "  unsigned int rows_{f} = 0;\n  unsigned int after_{f} = 0;");
        }
        let _ = writeln!(out, "  const unsigned int block = blockIdx.x + (unsigned int)first;");
        let products = (0..self.parts.len()).filter(|&i| self.parts[i].follows.is_none());
        let mut begin = 0;
        for (n, i) in products.chain(followers()).enumerate() {
            let end = begin + blocks(&self.parts[i].call);
            let (open, last) = (if n == 0 { "  if" } else { " else if" }, n + 1 == self.parts.len());
            let _ = match last {
                true => writeln!(out, " else {{"),
                false => writeln!(out, "{open} (block < {end}) {{"),
            };
            let own = if begin == 0 { "block".into() } else { format!("block - {begin}") };
            if self.parts[i].follows.is_some() {
                let _ = writeln!(out, "    rows_{i} = {own};\n    after_{i} = rows_{i} + 1;");
            } else {
                let _ = writeln!(out, "    {}", self.call(i, begin, &own));
            }
            if followers().any(|f| self.parts[f].follows == Some(i)) {
                self.go_on(&mut out, i, begin, &own);
            }
            let _ = write!(out, "  }}");
            begin = end;
        }
        out.push('\n');
        for f in followers() {
            let call = self.call(f, 0, &format!("rows_{f}"));
            let _ = writeln!(out, "  for (; rows_{f} < after_{f}; ++rows_{f}) {{\n    {call}\n  }}");
        }
        out
    }

    /// The call of a kernel's function for a block of it.
    fn call(&self, part: usize, begin: usize, block: &str) -> String {
        let Part { name, call, .. } = &self.parts[part];
        let memory = (!call.shared.is_empty()).then(|| "memory".to_string());
        let args = call.params.iter().map(|p| self.argument(p, begin)).chain([block.to_string()]).chain(memory);
        format!("{name}({});", args.collect::<Vec<String>>().join(", "))
    }

    /// Behind a tile of a product: the block that completes its rows is to do what follows.
    fn go_on(&self, out: &mut String, product: usize, begin: usize, own: &str) {
        let Rows::Tiles { tile, across } = self.parts[product].call.rows else {
            unreachable!("invariant: only tiles of products are followed")
        };
        let whole = |of: &str| if of.contains(' ') { format!("({of})") } else { of.to_string() };
        let (turns, own) = (whole(&self.argument(&Param::turns(), begin)), whole(own));
        let mut line = |depth: usize, text: &str| {
            let _ = writeln!(out, "{:width$}{text}", "", width = 2 * depth);
        };
        line(2, "if (alone == 0) {");
        line(3, &format!("const unsigned int tile = {own} / {across};"));
        line(3, "__syncthreads();");
        line(3, "if (threadIdx.x == 0) {");
        line(4, "__threadfence();");
        line(4, &format!("last = atomicAdd(&{turns}[tile], 1u) == {};", across - 1));
        line(4, "__threadfence();");
        line(3, "}");
        line(3, "__syncthreads();");
        line(3, "if (last != 0) {");
        line(4, "if (threadIdx.x == 0) {");
        line(5, &format!("atomicExch(&{turns}[tile], 0u);"));
        line(4, "}");
        for f in (0..self.parts.len()).filter(|&f| self.parts[f].follows == Some(product)) {
            let Rows::Each { rows, blocks } = self.parts[f].call.rows else {
                unreachable!("invariant: only work on rows follows")
            };
            let each = tile / rows;
            line(4, &format!("rows_{f} = tile * {each};"));
            line(4, &format!("after_{f} = min((tile + 1u) * {each}u, {blocks}u);"));
        }
        line(3, "}");
        line(2, "}");
    }

    /// What a kernel is given for a parameter; its blocks have counters of their own.
    fn argument(&self, p: &Param, begin: usize) -> String {
        let own =
            self.params.iter().find(|own| own.arg == p.arg).expect("invariant: parts' parameters are the launch's");
        if p.arg == LaunchArg::Turns { sum_of(&own.name, begin) } else { own.name.clone() }
    }
}

#[cfg(test)]
mod tests {
    use slrc_plan::kernel::{Copy, KernelOp, Phase};
    use slrc_plan::{Buffer, DType, Dims, Space, View};

    use super::*;
    use crate::emit::cuda::code::Code;
    use crate::emit::cuda::memory_ops;

    fn buffers() -> Vec<Buffer> {
        let (space, dtype) = (Space::Arena, DType::F32);
        let of = |(i, id): (usize, &str)| Buffer {
            id: id.into(),
            space,
            dtype,
            shape: Dims(vec![64]),
            order: None,
            offset: 256 * i,
            bytes: 256,
            live: None,
        };
        ["a", "b", "c", "d"].into_iter().enumerate().map(of).collect()
    }

    fn copy(id: &str, from: &str, to: &str) -> Kernel {
        let view = |b: &str| View::new(b, vec![1]);
        let run = KernelOp::Copy(Copy { space: Dims(vec![64]), from: view(from), to: view(to) });
        Kernel { id: id.into(), phase: Phase::Forward, nodes: Vec::new(), flops: 0, run }
    }

    #[test]
    fn neighbours_share_a_launch_unless_one_needs_the_other() {
        let buffers = buffers();
        let table: Table<'_> = buffers.iter().map(|b| (b.id.as_str(), b)).collect();
        let kernels = [copy("k0", "a", "b"), copy("k1", "a", "c"), copy("k2", "b", "d"), copy("k3", "d", "b")];
        let shared = |block: usize| {
            let work = kernels.iter().map(|kernel| {
                let KernelOp::Copy(c) = &kernel.run else { unreachable!("all are copies") };
                let mut call = memory_ops::copy(&table, c).remove(0);
                call.block = if kernel.id == "k1" { block } else { call.block };
                Work { kernel, user: String::new(), call, whole: true, follows: None }
            });
            let groups = grouped(work.collect(), &table);
            groups.iter().map(|g| g.iter().map(|w| w.kernel.id.as_str()).collect()).collect::<Vec<Vec<&str>>>()
        };
        assert_eq!(shared(256), [vec!["k0", "k1"], vec!["k2"], vec!["k3"]]);
        assert_eq!(shared(128), [["k0"], ["k1"], ["k2"], ["k3"]], "blocks of other sizes");
    }

    #[test]
    fn a_kernel_counts_its_own_blocks_in_its_own_memory() {
        let buffers = buffers();
        let table: Table<'_> = buffers.iter().map(|b| (b.id.as_str(), b)).collect();
        let call = || {
            let mut code = Code::new(&table);
            let p = code.pointer("a", true);
            code.shared("float", "part", &[3, 5]);
            code.line(format!("{p}[blockIdx.x + blockIdx.y * gridDim.x] = part[0][0];"));
            code.last_block("blockIdx.x", 4);
            code.finish("reduce", 256, [7, 4, 1])
        };
        let text = body(&call());
        for line in [
            "  const unsigned int block_x = block % 7;\n  const unsigned int block_y = block / 7 % 4;\n",
            "  float (&part)[3][5] = *reinterpret_cast<float (*)[3][5]>(memory);\n",
            "  p0[block_x + block_y * 7u] = part[0][0];\n",
            "  int& last = *reinterpret_cast<int*>(memory + 64);\n",
            "atomicAdd(&turns[block_x], 1u)",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("blockIdx") && !text.contains("gridDim") && !text.contains("__shared__"), "{text}");
        let mut together = Together::default();
        (0..2).for_each(|i| together.add(format!("f{i}"), call(), None));
        assert_eq!(together.blocks(), [28, 28]);
        let text = together.body();
        assert!(text.contains("unsigned char memory[80];"), "{text}");
        assert!(text.contains("  if (block < 28) {\n    f0(q0, q1, block, memory);\n  } else {\n"), "{text}");
        assert!(text.contains("    f1(q0, q1 + 28, block - 28, memory);\n  }\n"), "{text}");
    }
}
