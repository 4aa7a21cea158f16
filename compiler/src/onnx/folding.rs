//! Values that are known at import, computed by the interpreter within bounds: a small file can name large numbers.

use crate::ir::graph::{Graph, NodeId};
use crate::ir::interp::{Env, evaluate};
use crate::ir::op::Op;
use crate::onnx::tensor::{Const, Elem};

/// Largest constant, in elements.
pub(crate) const LARGEST: usize = 1 << 26;
/// What all constants of a model may cost, in elements copied.
const ALL: u64 = 1 << 28;
/// Elements that could be copied while the interpreter computes one.
const COMPUTED: u64 = 2;

/// Elements of a constant of this shape.
pub(crate) fn constant_of(shape: &[usize]) -> Result<usize, String> {
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= LARGEST);
    count.ok_or_else(|| format!("shape {shape:?} is too large for a constant"))
}

/// What may still be spent on constants.
#[derive(Clone, Debug)]
pub(crate) struct Allowance(u64);

impl Default for Allowance {
    fn default() -> Allowance {
        Allowance(ALL)
    }
}

impl Allowance {
    /// For a constant that is put into a graph.
    pub(crate) fn copy(&mut self, elements: usize) -> Result<(), String> {
        self.spend(elements as u64)
    }

    /// For a constant that a conversion computed itself.
    pub(crate) fn compute(&mut self, elements: usize) -> Result<(), String> {
        self.spend((elements as u64).saturating_mul(COMPUTED))
    }

    fn spend(&mut self, cost: u64) -> Result<(), String> {
        let left = self.0.checked_sub(cost);
        self.0 = left.ok_or("what is known at import is too much to compute: constants of the model are too large")?;
        Ok(())
    }

    /// A value of a graph of constants.
    pub(crate) fn fold(&mut self, g: &Graph, id: NodeId, elem: Elem) -> Result<Const, String> {
        let needed = g.needed([id]);
        for n in g.ids().filter(|n| needed[n.index()]) {
            if g.ty(n).count() > LARGEST {
                return Err(format!("a constant of type {} is too large to compute at import", g.ty(n)));
            }
            self.spend(work(g, n).saturating_mul(COMPUTED))?;
        }
        let t = evaluate(g, &Env::default(), &[id]).remove(0);
        Ok(Const { elem, shape: t.shape, data: t.data })
    }
}

/// Elements that the interpreter looks at for a node.
fn work(g: &Graph, id: NodeId) -> u64 {
    let node = g.node(id);
    let count = |n: NodeId| g.ty(n).count() as u64;
    let operands: u64 = node.operands.iter().map(|&o| count(o)).fold(0, u64::saturating_add);
    let times = match &node.op {
        Op::MatMul(_) => g.shape(node.operands[0]).last().copied().unwrap_or(1) as u64,
        Op::Conv(c) => {
            taps(&c.0.geometry.kernel).saturating_mul(g.shape(node.operands[1]).get(1).map_or(1, |&c| c as u64))
        }
        Op::ConvInputGrad(_) | Op::ConvWeightGrad(_) => operands,
        Op::WindowMaxIndex(w) => taps(&w.0.kernel),
        Op::WindowSum(w) => taps(&w.0.kernel),
        Op::WindowSpread(w) => taps(&w.0.kernel),
        _ => 1,
    };
    count(id).saturating_mul(times).saturating_add(operands)
}

fn taps(kernel: &[usize]) -> u64 {
    kernel.iter().fold(1, |a, &k| a.saturating_mul(k as u64))
}
