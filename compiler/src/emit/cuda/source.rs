//! `kernels.cu`: functions, each once, with everyone who calls them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use slrc_plan::launch::{Launch, LaunchArg};
use slrc_plan::{Dims, Plan};

use crate::emit::cuda::code::Param;
use crate::emit::cuda::tensor;
use crate::emit::cuda::together::{Together, Work, body, declarations};
use crate::onnx::file::sha256_hex;

/// Functions by name.
#[derive(Default)]
pub(super) struct Source {
    functions: BTreeMap<String, Function>,
    /// Names in order of first use.
    order: Vec<String>,
}

struct Function {
    users: Vec<String>,
    /// Lines of the head comment besides.
    formula: Vec<String>,
    /// What stands before the name.
    qualifiers: String,
    params: Vec<String>,
    body: String,
}

/// Most users named in a function's head comment.
const NAMED_USERS: usize = 6;

impl Source {
    /// The launch that does this work, of one kernel or several.
    pub(super) fn launch(&mut self, mut work: Vec<Work<'_>>) -> Launch {
        match work.pop() {
            Some(only) if work.is_empty() => self.alone(only),
            last => self.together(work.into_iter().chain(last).collect()),
        }
    }

    /// The name of a function with this text, registered if it is new.
    fn register(&mut self, family: &str, block: usize, user: Option<&str>, function: Function) -> String {
        let text = format!("{}\n{block}\n{}", function.params.join(","), function.body);
        let name = format!("{family}_{}", &sha256_hex(text.as_bytes())[..10]);
        let f = self.functions.entry(name.clone()).or_insert_with(|| {
            self.order.push(name.clone());
            function
        });
        f.users.extend(user.map(String::from));
        name
    }

    fn alone(&mut self, Work { kernel, user, call, .. }: Work<'_>) -> Launch {
        let function = Function {
            users: Vec::new(),
            formula: call.formula,
            qualifiers: kernel_qualifiers(call.registers.blocks(call.block), call.block),
            params: call.params.iter().map(Param::declaration).collect(),
            body: call.body,
        };
        Launch {
            kernels: vec![kernel.id.clone()],
            function: self.register(call.family, call.block, Some(&user), function),
            grid: Dims(call.grid.to_vec()),
            blocks: Vec::new(),
            follows: BTreeMap::new(),
            block: call.block,
            shared: 0,
            args: call.params.into_iter().map(|p| p.arg).collect(),
        }
    }

    fn together(&mut self, work: Vec<Work<'_>>) -> Launch {
        let kernels: Vec<String> = work.iter().map(|w| w.kernel.id.clone()).collect();
        let followed = |w: &Work<'_>| Some((w.kernel.id.clone(), kernels[w.follows?].clone()));
        let followers: BTreeMap<String, String> = work.iter().filter_map(followed).collect();
        let mut together = Together::default();
        for Work { user, call, follows, .. } in work {
            let function = Function {
                users: Vec::new(),
                formula: call.formula.clone(),
                qualifiers: "static __device__ __forceinline__ void".into(),
                params: declarations(&call),
                body: body(&call),
            };
            let name = self.register(call.family, call.block, Some(&user), function);
            together.add(name, call, follows);
        }
        let function = Function {
            users: Vec::new(),
            formula: together.formula(),
            qualifiers: kernel_qualifiers(together.least_blocks(), together.block),
            params: together.declarations(),
            body: together.body(),
        };
        let alone = together.has_followers().then_some(LaunchArg::Alone);
        Launch {
            kernels,
            function: self.register("together", together.block, None, function),
            grid: Dims(vec![together.grid(), 1, 1]),
            blocks: together.blocks(),
            follows: followers,
            block: together.block,
            shared: 0,
            args: together.params.into_iter().map(|p| p.arg).chain([LaunchArg::First]).chain(alone).collect(),
        }
    }

    pub(super) fn text(&self, plan: &Plan) -> String {
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
            for l in &f.formula {
                let _ = writeln!(out, "//   {l}");
            }
            let _ = writeln!(out, "{} {name}(", f.qualifiers);
            let _ = writeln!(out, "    {}) {{", f.params.join(",\n    "));
            out.push_str(&f.body);
            out.push_str("}\n");
        }
        out
    }
}

/// What makes a function a kernel whose blocks have so many threads, and of which a multiprocessor holds so many at
/// least.
fn kernel_qualifiers(least: Option<usize>, block: usize) -> String {
    let least = least.map_or(String::new(), |n| format!(", {n}"));
    format!("extern \"C\" __global__ void __launch_bounds__({block}{least})")
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
