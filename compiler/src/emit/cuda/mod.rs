//! CUDA: one source file for a plan, and the launches that run it.
//!
//! [`emit`] reads a finished plan: every kernel's family has a generator here under the family's name, reached by an
//! exhaustive match, and yields one or more functions with their geometry. Functions of equal text are one. Sources are
//! compiled without contraction of products and sums (`--fmad=false`): where one rounding is wanted, `fmaf` says so.

mod attention;
mod body;
mod code;
mod columns;
mod conv;
mod depthwise;
mod epilogue;
mod map;
mod matmul;
mod memory_ops;
mod product;
mod reduce;
mod row;
mod scalar;
mod tensor;
mod walk;
mod window;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use slrc_plan::kernel::{Kernel, KernelOp};
use slrc_plan::launch::Launch;
use slrc_plan::{Dims, Plan, Precision, Region};

use crate::emit::cuda::code::{Call, Table};
use crate::onnx::file::sha256_hex;

/// Functions by name, with everyone who calls them.
#[derive(Default)]
struct Source {
    functions: BTreeMap<String, Function>,
    /// Names in order of first use.
    order: Vec<String>,
}

struct Function {
    call: Call,
    users: Vec<String>,
}

/// Most users named in a function's head comment.
const NAMED_USERS: usize = 6;

/// Writes the plan's launches and the hash of their source, and returns it: `kernels.cu`.
pub fn emit(plan: &mut Plan) -> String {
    let mut source = Source::default();
    let precision = plan.settings.precision;
    let shared = plan.clone();
    let table: Table<'_> = shared.all_buffers().map(|b| (b.id.as_str(), b)).collect();
    for m in &mut plan.modules {
        for (name, program) in [("", &mut m.step), (".eval", &mut m.eval)] {
            let mut launches = Vec::new();
            let user = |k: &Kernel| format!("m{}{name}.{} {}", m.index, k.id, k.nodes.join(" "));
            let mut rest = &program.kernels[..];
            while let Some(k) = rest.first() {
                let maps: Vec<&Region> = rest.iter().map_while(|k| as_map(&k.run)).collect();
                let together = map::how_many_together(&table, &maps).max(1);
                let (now, later) = rest.split_at(together);
                rest = later;
                if together > 1 {
                    let users: Vec<String> = now.iter().map(user).collect();
                    launches.push(source.launch(map::emit_together(&table, &maps[..together]), now, &users));
                    continue;
                }
                for call in calls(&table, k, precision) {
                    launches.push(source.launch(call, now, &[user(k)]));
                }
            }
            program.launches = launches;
        }
    }
    let text = source.text(plan);
    plan.kernels_sha256 = Some(sha256_hex(text.as_bytes()));
    text
}

fn as_map(op: &KernelOp) -> Option<&Region> {
    if let KernelOp::Map(r) = op { Some(r) } else { None }
}

/// The functions that do a kernel's work.
fn calls(table: &Table<'_>, k: &Kernel, precision: Precision) -> Vec<Call> {
    match &k.run {
        KernelOp::Map(r) => map::emit(table, r),
        KernelOp::Row(r) => row::emit(table, r),
        KernelOp::Reduce(r) => reduce::emit(table, r),
        KernelOp::Attention(a) => attention::emit(table, a),
        KernelOp::Matmul(m) => matmul::emit(table, m, precision),
        KernelOp::Conv(c) => conv::emit(table, c, precision),
        KernelOp::Window(w) => window::emit(table, w),
        KernelOp::Gather(g) => memory_ops::gather(table, g),
        KernelOp::ScatterAdd(g) => memory_ops::scatter_add(table, g),
        KernelOp::Copy(c) => memory_ops::copy(table, c),
        KernelOp::Fill(f) => memory_ops::fill(table, f),
        KernelOp::Random(r) => memory_ops::random(table, r),
    }
}

impl Source {
    /// Registers a function, or finds the one of the same text, and writes the launch.
    fn launch(&mut self, call: Call, kernels: &[Kernel], users: &[String]) -> Launch {
        let text = format!("{}\n{}\n{}", call.params.join(","), call.block, call.body);
        let name = format!("{}_{}", call.family, &sha256_hex(text.as_bytes())[..10]);
        let launch = Launch {
            kernels: kernels.iter().map(|k| k.id.clone()).collect(),
            function: name.clone(),
            grid: Dims(call.grid.to_vec()),
            block: call.block,
            shared: 0,
            args: call.args.clone(),
        };
        let f = self.functions.entry(name.clone()).or_insert_with(|| {
            self.order.push(name);
            Function { call, users: Vec::new() }
        });
        f.users.extend(users.iter().map(|u| u.trim_end().to_string()));
        launch
    }

    fn text(&self, plan: &Plan) -> String {
        let mut out = format!(
            "// {}, {} modules, batch {}, {}\n\
             // A training step's kernels. Compile without contraction: nvcc --fmad=false, or NVRTC with the same option.\n",
            plan.model.name,
            plan.modules.len(),
            plan.settings.batch,
            plan.settings.target
        );
        out.push_str(PRELUDE);
        out.push_str(&tensor::prelude(plan.settings.precision));
        for name in &self.order {
            let f = &self.functions[name];
            out.push('\n');
            for u in f.users.iter().take(NAMED_USERS) {
                let _ = writeln!(out, "// {u}");
            }
            if f.users.len() > NAMED_USERS {
                let _ = writeln!(out, "// and {} more", f.users.len() - NAMED_USERS);
            }
            for l in &f.call.formula {
                let _ = writeln!(out, "//   {l}");
            }
            let blocks = f.call.registers.blocks(f.call.block).map_or(String::new(), |b| format!(", {b}"));
            let bounds = format!("__launch_bounds__({}{blocks})", f.call.block);
            let _ = writeln!(out, "extern \"C\" __global__ void {bounds} {name}(");
            let _ = writeln!(out, "    {}) {{", f.call.params.join(",\n    "));
            out.push_str(&f.call.body);
            out.push_str("}\n");
        }
        out
    }
}

/// Device functions that kernels share.
const PRELUDE: &str = r#"
// The larger of two, NaN if either is.
static __device__ __forceinline__ float larger(float a, float b) {
  return a > b || a != a ? a : b;
}

// Sum over a warp's lanes in a fixed tree; every lane gets the result.
static __device__ __forceinline__ float warp_sum(float x) {
  for (int d = 16; d > 0; d /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, d);
  }
  return x;
}

static __device__ __forceinline__ float warp_max(float x) {
  for (int d = 16; d > 0; d /= 2) {
    x = larger(x, __shfl_xor_sync(0xffffffffu, x, d));
  }
  return x;
}

// Sum over a block of 256 threads; partial holds one number a warp.
static __device__ __forceinline__ float block_sum(float x, float* partial) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) {
    partial[threadIdx.x / 32] = x;
  }
  __syncthreads();
  x = partial[0];
  for (int w = 1; w < 8; ++w) {
    x += partial[w];
  }
  __syncthreads();
  return x;
}

static __device__ __forceinline__ float block_max(float x, float* partial) {
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) {
    partial[threadIdx.x / 32] = x;
  }
  __syncthreads();
  x = partial[0];
  for (int w = 1; w < 8; ++w) {
    x = larger(x, partial[w]);
  }
  __syncthreads();
  return x;
}

// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): four random words of a seed, a step, a stream and a block.
static __device__ __forceinline__ uint4 philox(
    unsigned long long seed, unsigned long long step, unsigned int stream, unsigned int block) {
  unsigned int c0 = block;
  unsigned int c1 = stream;
  unsigned int c2 = (unsigned int)step;
  unsigned int c3 = (unsigned int)(step >> 32);
  unsigned int k0 = (unsigned int)seed;
  unsigned int k1 = (unsigned int)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const unsigned int h0 = __umulhi(0xD2511F53u, c0);
    const unsigned int l0 = 0xD2511F53u * c0;
    const unsigned int h1 = __umulhi(0xCD9E8D57u, c2);
    const unsigned int l1 = 0xCD9E8D57u * c2;
    c0 = h1 ^ c1 ^ k0;
    c1 = l1;
    c2 = h0 ^ c3 ^ k1;
    c3 = l0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return make_uint4(c0, c1, c2, c3);
}
"#;
