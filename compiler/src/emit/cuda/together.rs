//! Kernels side by side in one launch: neighbours in a program that do not touch each other's results, such as the
//! gradient of a layer's weights, its update in the epilogue, and the next work on the gradient that goes on.
//!
//! Each kernel is a device function of its own, under its own head comment, and has blocks of its own, in the order of
//! the kernels; a few lines say which block is whose. A block does one kernel's work, so that kernels share the block's
//! shared memory, and the launch's blocks need as many registers as the hungriest. A launch may begin at a later block
//! and have fewer, `first`: so a part of the kernels can run by itself.

use std::fmt::Write as _;

use slrc_plan::Kernel;
use slrc_plan::launch::LaunchArg;
use slrc_plan::touches::{Touched, place};
use slrc_plan::validate::MAX_GRID;

use crate::emit::cuda::code::{Call, Param, Registers, Shared, Table, sum_of};

/// What a kernel launches: all of its work, or a part that comes before the next.
pub(super) struct Work<'k> {
    pub(super) kernel: &'k Kernel,
    /// Who that is, for people.
    pub(super) user: String,
    pub(super) call: Call,
}

/// Most parameters of a function: a launch has 4 KB of them.
const MOST_PARAMS: usize = 400;

/// Puts work together that may share a launch, in order: as many neighbours as none writes what another touches.
pub(super) fn side_by_side<'k>(work: Vec<Work<'k>>, table: &Table<'k>) -> Vec<Vec<Work<'k>>> {
    let find = |id: &str| place(table.get(id).expect("invariant: kernels name buffers of their plan"));
    let mut out: Vec<Vec<Work<'k>>> = Vec::new();
    let mut touched = Touched::default();
    for w in work {
        let fits = out.last().is_some_and(|group| {
            let calls = || group.iter().chain([&w]).map(|w| &w.call);
            calls().all(|c| c.block == w.call.block)
                && calls().map(|c| c.params.len()).sum::<usize>() <= MOST_PARAMS
                && calls().map(blocks).sum::<usize>() <= MAX_GRID[0]
        });
        match out.last_mut() {
            Some(group) if fits && touched.admit(w.kernel, find) => group.push(w),
            _ => {
                touched = Touched::default();
                touched.admit(w.kernel, find);
                out.push(vec![w]);
            }
        }
    }
    out
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
    /// Names of the device functions, and what they are of.
    parts: Vec<(String, Call)>,
}

impl Together {
    /// Adds a kernel, by the name of its function.
    pub(super) fn add(&mut self, name: String, call: Call) {
        for p in &call.params {
            match self.params.iter_mut().find(|own| own.arg == p.arg) {
                Some(own) => {
                    own.written |= p.written;
                    own.apart &= p.apart;
                }
                None => {
                    let name = format!("q{}", self.params.len());
                    self.params.push(Param { name, ..p.clone() });
                }
            }
        }
        self.block = call.block;
        self.parts.push((name, call));
    }

    /// Blocks of each kernel.
    pub(super) fn blocks(&self) -> Vec<usize> {
        self.parts.iter().map(|(_, c)| blocks(c)).collect()
    }

    /// Fewest blocks that a multiprocessor must be able to hold, if that is to be said.
    pub(super) fn least_blocks(&self) -> Option<usize> {
        let hungriest = self.parts.iter().map(|(_, c)| c.registers).max();
        hungriest.unwrap_or(Registers::Unbounded).blocks(self.block)
    }

    pub(super) fn formula(&self) -> Vec<String> {
        let parts = self.parts.iter().map(|(name, c)| format!("{name} in {} blocks", blocks(c)));
        ["side by side:".to_string()].into_iter().chain(parts).collect()
    }

    pub(super) fn declarations(&self) -> Vec<String> {
        let own = self.params.iter().map(Param::declaration);
        own.chain(["unsigned long long first".into()]).collect()
    }

    pub(super) fn body(&self) -> String {
        let mut out = String::new();
        let shared = |c: &Call| c.shared.iter().map(Shared::bytes).sum::<usize>();
        let memory = self.parts.iter().map(|(_, c)| shared(c)).max().unwrap_or(0);
        if memory > 0 {
            let _ = writeln!(out, "  __shared__ __align__(16) unsigned char memory[{memory}];");
        }
        let _ = writeln!(out, "  const unsigned int block = blockIdx.x + (unsigned int)first;");
        let mut begin = 0;
        for (i, (name, call)) in self.parts.iter().enumerate() {
            let end = begin + blocks(call);
            let (open, last) = (if i == 0 { "  if" } else { " else if" }, i + 1 == self.parts.len());
            let _ = match last {
                true => writeln!(out, " else {{"),
                false => writeln!(out, "{open} (block < {end}) {{"),
            };
            let mut args: Vec<String> = call.params.iter().map(|p| self.argument(p, begin)).collect();
            args.push(if begin == 0 { "block".into() } else { format!("block - {begin}") });
            if !call.shared.is_empty() {
                args.push("memory".into());
            }
            let _ = write!(out, "    {name}({});\n  }}", args.join(", "));
            begin = end;
        }
        out.push('\n');
        out
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
                Work { kernel, user: String::new(), call }
            });
            let groups = side_by_side(work.collect(), &table);
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
        (0..2).for_each(|i| together.add(format!("f{i}"), call()));
        assert_eq!(together.blocks(), [28, 28]);
        let text = together.body();
        assert!(text.contains("unsigned char memory[80];"), "{text}");
        assert!(text.contains("  if (block < 28) {\n    f0(q0, q1, block, memory);\n  } else {\n"), "{text}");
        assert!(text.contains("    f1(q0, q1 + 28, block - 28, memory);\n  }\n"), "{text}");
    }
}
