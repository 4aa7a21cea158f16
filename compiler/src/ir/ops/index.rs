//! Rows of a table by index (embeddings) and the transposed operation.

use crate::ir::graph::NodeId;
use crate::ir::op::{AttributeReader, Attributes, Class, Jvp, Rule, Vjp};
use crate::ir::ops::{arity, dtype};
use crate::ir::tensor::Tensor;
use crate::ir::types::{DType, Type};

/// `rows[i, :] = table[index[i], :]`, operands `table [R, W]`, `index [I]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gather;

/// `table[r, :] = sum over i with index[i] = r of rows[i, :]`, operands `rows [I, W]`, `index [I]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScatterAdd {
    /// Rows of the table.
    pub rows: usize,
}

impl Gather {
    pub(crate) fn parse(_: &AttributeReader<'_>) -> Result<Gather, String> {
        Ok(Gather)
    }
}

impl ScatterAdd {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<ScatterAdd, String> {
        Ok(ScatterAdd { rows: a.get("rows")? })
    }
}

fn check(operands: &[&Type]) -> Result<(), String> {
    arity(operands, 2)?;
    dtype(operands[0], DType::F32)?;
    dtype(operands[1], DType::I32)?;
    if operands[0].rank() != 2 || operands[1].rank() != 1 {
        return Err(format!("needs rows of a matrix and a list of indices, not {} and {}", operands[0], operands[1]));
    }
    Ok(())
}

impl Rule for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        Vec::new()
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        check(operands)?;
        Ok(Type::f32(vec![operands[1].shape[0], operands[0].shape[1]]))
    }
    /// An index outside the table gives a row of NaN.
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let (table, index) = (operands[0], operands[1]);
        Tensor::from_fn(ty.shape.clone(), |i| {
            let row = index.data[i[0]];
            if row >= 0.0 && row < table.shape[0] as f64 { table.at(&[row as usize, i[1]]) } else { f64::NAN }
        })
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let (table, index) = (cx.operands[0], cx.operands[1]);
        let rows = cx.b.shape(table)[0];
        vec![Some(cx.b.scatter_add(cx.upstream, index, rows)), None]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let t = cx.tangents[0]?;
        let index = cx.operands[1];
        Some(cx.b.gather(t, index))
    }
}

impl Rule for ScatterAdd {
    fn name(&self) -> &'static str {
        "scatter-add"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        vec![("rows", self.rows.to_string())]
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        check(operands)?;
        if operands[0].shape[0] != operands[1].shape[0] {
            return Err(format!("{} rows for {} indices", operands[0].shape[0], operands[1].shape[0]));
        }
        Ok(Type::f32(vec![self.rows, operands[0].shape[1]]))
    }
    /// Rows whose index is outside the table are left out.
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let (rows, index) = (operands[0], operands[1]);
        let mut out = Tensor::full(ty.shape.clone(), 0.0);
        for (i, &row) in index.data.iter().enumerate() {
            if row >= 0.0 && row < self.rows as f64 {
                for w in 0..ty.shape[1] {
                    let at = out.position(&[row as usize, w]);
                    out.data[at] += rows.at(&[i, w]);
                }
            }
        }
        out
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let index = cx.operands[1];
        vec![Some(cx.b.gather(cx.upstream, index)), None]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let t = cx.tangents[0]?;
        let index = cx.operands[1];
        Some(cx.b.scatter_add(t, index, self.rows))
    }
}
