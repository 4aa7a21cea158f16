//! Elementwise work: a grid-stride loop, in vectors of four where every operand allows it.

use slrc_plan::DType;
use slrc_plan::region::{Level, Region};

use crate::emit::cuda::body::{Body, Origin, converted};
use crate::emit::cuda::code::{BLOCK, Call, Code, Table, blocks_for, index_type};

pub(super) fn emit(table: &Table<'_>, r: &Region) -> Vec<Call> {
    let mut code = Code::new(table);
    let body = Body::new(r);
    body.describe(&mut code);
    let n: usize = r.space.iter().product();
    let width = if body.walk.vectors() { 4 } else { 1 };
    let ty = index_type(body.walk.end);
    let count = n / width;
    let grid = blocks_for(count, BLOCK);
    code.open(format!(
        "for ({ty} i = blockIdx.x * {BLOCK} + threadIdx.x; i < {count}; i += ({ty})gridDim.x * {BLOCK})"
    ));
    let all: Vec<usize> = (0..body.walk.extents.len()).collect();
    if width == 1 {
        body.walk.coordinates(&mut code, ty, "i", &all);
        elements(&body, &mut code);
        for s in body.stores(Level::Element) {
            body.store(&mut code, s);
        }
    } else {
        code.line(format!("const {ty} first = i * 4;"));
        body.walk.coordinates(&mut code, ty, "first", &all);
        vectors(&body, &mut code);
    }
    code.close();
    vec![code.finish("map", BLOCK, grid)]
}

/// Declares everything that is stored, in order.
fn elements(body: &Body<'_>, code: &mut Code<'_>) {
    let targets = body.stored(&body.stores(Level::Element));
    for i in body.closure(&targets, |_| false) {
        body.declare(code, i);
    }
}

/// The C type of four elements.
fn vector_type(d: DType) -> &'static str {
    match d {
        DType::F32 => "float4",
        DType::I32 => "int4",
        DType::U8 => "uchar4",
    }
}

fn vectors(body: &Body<'_>, code: &mut Code<'_>) {
    let stores = body.stores(Level::Element);
    let needed = body.closure(&body.stored(&stores), |_| false);
    let mut lanes: Vec<(String, String)> = Vec::new();
    for &i in &needed {
        let v = &body.values[i];
        let Origin::Load(l) = v.origin else { continue };
        let view = &body.region.loads[l].view;
        let dtype = code.dtype(&view.buffer);
        if body.walk.steps(l) {
            let p = code.pointer(&view.buffer, false);
            let at = body.walk.element(l);
            let four = vector_type(dtype);
            code.line(format!("const {four} {}_4 = *reinterpret_cast<const {four}*>({p} + {at});", v.name));
            let parts: Vec<String> = ["x", "y", "z", "w"].iter().map(|c| format!("(float){}_4.{c}", v.name)).collect();
            code.line(format!("const float {}_v[4] = {{{}}};", v.name, parts.join(", ")));
            lanes.push((v.name.clone(), format!("{}_v[lane]", v.name)));
        } else {
            body.declare(code, i);
        }
    }
    for &s in &stores {
        code.line(format!("float s{s}_v[4];"));
    }
    code.line("#pragma unroll");
    code.open("for (int lane = 0; lane < 4; ++lane)");
    for (name, value) in lanes {
        code.line(format!("const float {name} = {value};"));
    }
    for &i in &needed {
        if matches!(body.values[i].origin, Origin::Compute(_)) {
            body.declare(code, i);
        }
    }
    for &s in &stores {
        code.line(format!("s{s}_v[lane] = {};", body.region.stores[s].value));
    }
    code.close();
    for &s in &stores {
        let view = &body.region.stores[s].view;
        let dtype = code.dtype(&view.buffer);
        let p = code.pointer(&view.buffer, true);
        let at = body.walk.element(body.region.loads.len() + s);
        let four = vector_type(dtype);
        let parts: Vec<String> = (0..4).map(|l| converted(dtype, &format!("s{s}_v[{l}]"))).collect();
        code.line(format!("*reinterpret_cast<{four}*>({p} + {at}) = make_{four}({});", parts.join(", ")));
    }
}
