//! Elementwise work: a grid-stride loop, in vectors of four where every operand allows it.

use slrc_plan::DType;
use slrc_plan::region::{Level, Region};

use crate::emit::cuda::body::{Body, Origin, converted};
use crate::emit::cuda::code::{BLOCK, Call, Code, Registers, Table, blocks_for, index_type};

pub(super) fn emit(table: &Table<'_>, r: &Region) -> Vec<Call> {
    let mut code = Code::new(table);
    let body = Body::new(r);
    body.describe(&mut code);
    let grid = [blocks(&body), 1, 1];
    elementwise(&body, &mut code, grid[0]);
    let call = code.finish("map", BLOCK, grid);
    vec![Call { registers: Registers::For(live(&body)), ..call }]
}

/// Registers for positions and what is computed.
const SPARE: usize = 16;

/// Elements that a thread works on at a time.
fn width(body: &Body<'_>) -> usize {
    if body.walk.vectors() { 4 } else { 1 }
}

/// Values live at once at most: every load and store of a thread's elements, addresses, and some numbers beside.
fn live(body: &Body<'_>) -> usize {
    let (loads, stores) = (body.region.loads.len(), body.region.stores.len());
    let elements: usize = (0..loads).map(|l| if body.walk.steps(l) { width(body) } else { 1 }).sum();
    elements + width(body) * stores + 2 * (loads + stores) + SPARE
}

fn blocks(body: &Body<'_>) -> usize {
    blocks_for(body.region.space.iter().product::<usize>() / width(body), BLOCK)[0]
}

/// The work of so many blocks.
fn elementwise(body: &Body<'_>, code: &mut Code<'_>, blocks: usize) {
    let width = width(body);
    let ty = index_type(body.walk.end);
    let count = body.region.space.iter().product::<usize>() / width;
    let step = blocks * BLOCK;
    code.open(format!("for ({ty} i = blockIdx.x * {BLOCK} + threadIdx.x; i < {count}; i += {step})"));
    let all: Vec<usize> = (0..body.walk.extents.len()).collect();
    if width == 1 {
        body.walk.coordinates(code, ty, "i", &all);
        elements(body, code);
        for s in body.stores(Level::Element) {
            body.store(code, s);
        }
    } else {
        code.line(format!("const {ty} first = i * 4;"));
        body.walk.coordinates(code, ty, "first", &all);
        vectors(body, code);
    }
    code.close();
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
